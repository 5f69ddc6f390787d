"""AUC, its variance by patient, and comparisons: by hand, against slow versions of the papers' sums, by simulation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit.errors import InputError
from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics.roc_auc import (
    Z_95,
    Estimate,
    auc,
    compare,
    compare_macro,
    compute_metrics,
    delong,
    holm,
    influence,
    logit_interval,
    macro,
    mean_estimate,
    normal_test,
    obuchowski,
    variance_of,
)


def clustered(seed, num_images=120, num_patients=25, num_findings=1):
    """Draw targets and scores with ties, several images a patient, and a patient's own lean in both."""
    random = np.random.default_rng(seed)
    patients_N = np.append(np.arange(num_patients), random.integers(0, num_patients, num_images - num_patients))
    lean_PL = random.normal(size=(num_patients, num_findings))
    noise_NL = random.normal(size=(num_images, num_findings)) + random.normal(size=(num_images, 1))
    targets_NL = (lean_PL[patients_N] + noise_NL > 0.8).astype(int)
    scores_NL = np.round(targets_NL + lean_PL[patients_N] + random.normal(size=targets_NL.shape), 1)
    return targets_NL, scores_NL, patients_N


# Slow and plain: every pair of images is looked at, every sum of the papers is a loop.


def slow_pairs(targets, scores):
    """Return {(positive image, negative image): 1, 1/2 or 0}."""
    positives = [image for image, target in enumerate(targets) if target == 1]
    negatives = [image for image, target in enumerate(targets) if target == 0]
    return {
        (i, j): 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in positives
        for j in negatives
    }


def slow_auc(targets, scores):
    pairs = slow_pairs(targets, scores)
    return sum(pairs.values()) / len(pairs)


def slow_components(targets, scores):
    """Return theta, V10 by positive image, V01 by negative image."""
    pairs = slow_pairs(targets, scores)
    positives, negatives = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
    v10 = {i: sum(pairs[i, j] for j in negatives) / len(negatives) for i in positives}
    v01 = {j: sum(pairs[i, j] for i in positives) / len(positives) for j in negatives}
    return sum(pairs.values()) / len(pairs), v10, v01


def slow_delong_covariance(targets, scores_a, scores_b):
    """Return the covariance of two AUCs on the same images (DeLong, DeLong, Clarke-Pearson, Biometrics 1988)."""
    theta_a, v10_a, v01_a = slow_components(targets, scores_a)
    theta_b, v10_b, v01_b = slow_components(targets, scores_b)
    s10 = sum((v10_a[i] - theta_a) * (v10_b[i] - theta_b) for i in v10_a) / (len(v10_a) - 1)
    s01 = sum((v01_a[j] - theta_a) * (v01_b[j] - theta_b) for j in v01_a) / (len(v01_a) - 1)
    return s10 / len(v10_a) + s01 / len(v01_a)


def slow_obuchowski_covariance(targets_l, scores_l, targets_k, scores_k, patients):
    """Return the covariance of two AUCs by patient; with l = k it is the variance of Obuchowski 1997.

    There S10 = I10 / ((I10 - 1) M) * sum (V10(X_i.) - m_i theta)^2, S01 alike, and
    S11 = I / (I - 1) * sum (V10(X_i.) - m_i theta) (V01(Y_i.) - n_i theta); var = S10/M + S01/N + 2 S11/(M N).
    """
    theta_l, v10_l, v01_l = slow_components(targets_l, scores_l)
    theta_k, v10_k, v01_k = slow_components(targets_k, scores_k)

    def deviations(values, theta):
        return {
            patient: sum(value - theta for image, value in values.items() if patients[image] == patient)
            for patient in set(patients)
        }

    def factor(values):
        count = len({patients[image] for image in values})
        return count / (count - 1)

    a_l, b_l = deviations(v10_l, theta_l), deviations(v01_l, theta_l)
    a_k, b_k = deviations(v10_k, theta_k), deviations(v01_k, theta_k)
    everyone = len(set(patients))
    s10 = math.sqrt(factor(v10_l) * factor(v10_k)) * sum(a_l[p] * a_k[p] for p in a_l)
    s01 = math.sqrt(factor(v01_l) * factor(v01_k)) * sum(b_l[p] * b_k[p] for p in a_l)
    s11_lk = everyone / (everyone - 1) * sum(a_l[p] * b_k[p] for p in a_l)
    s11_kl = everyone / (everyone - 1) * sum(b_l[p] * a_k[p] for p in a_l)
    return (
        s10 / (len(v10_l) * len(v10_k))
        + s01 / (len(v01_l) * len(v01_k))
        + s11_lk / (len(v10_l) * len(v01_k))
        + s11_kl / (len(v01_l) * len(v10_k))
    )


# AUC


def test_auc_counts_ordered_pairs():
    assert auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]) == 0.875  # 3.5 of 4 pairs; the tie counts half


@pytest.mark.parametrize(
    ("targets", "scores", "expected"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], 1.0),
        ([1, 1, 0, 0], [1, 2, 3, 4], 0.0),
        ([0, 1, 0, 1], [5, 5, 5, 5], 0.5),
        ([1, 0, 0, 0], [2, 1, 2, 3], 0.5),  # above one, tied with one, below one: 1.5 of 3
        ([0, 1], [0.0, -0.0], 0.5),  # the two zeros are equal
    ],
)
def test_auc_by_hand(targets, scores, expected):
    assert auc(targets, scores) == expected


@pytest.mark.parametrize("targets", [[], [0, 0], [1, 1]])
def test_auc_of_one_class_is_undefined(targets):
    assert math.isnan(auc(targets, [0.5] * len(targets)))


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_pair_counting_and_scikit_learn(seed):
    targets_NL, scores_NL, _ = clustered(seed)
    value = auc(targets_NL[:, 0], scores_NL[:, 0])
    assert value == slow_auc(targets_NL[:, 0], scores_NL[:, 0])  # exact: whole numbers, one division
    assert value == pytest.approx(roc_auc_score(targets_NL[:, 0], scores_NL[:, 0]), abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "scores", "message"),
    [
        ([0, 1], [0.1, math.nan], "scores must be finite, found nan"),
        ([0, 1], [0.1, math.inf], "scores must be finite, found inf"),
        ([0, 2], [0.1, 0.2], "targets must be 0 or 1, found 2"),
        ([0, math.nan], [0.1, 0.2], "targets must be 0 or 1, found nan"),
        ([0, 1], [0.1], r"targets have shape \(2,\), scores \(1,\); expected the same, 1-D"),
        ([[0], [1]], [[0.1], [0.2]], "expected the same, 1-D"),
    ],
)
def test_wrong_input_is_refused(targets, scores, message):
    for function in (auc, delong):
        with pytest.raises(ValueError, match=message):
            function(targets, scores)


@pytest.mark.parametrize(
    ("patients", "message"),
    [([1, 2], "expected one for each of 3 images"), ([1, None, 2], "missing"), ([1, math.nan, 2], "missing")],
)
def test_wrong_patients_are_refused(patients, message):
    with pytest.raises(ValueError, match=message):
        obuchowski([0, 1, 1], [0.1, 0.2, 0.3], patients)


def test_auc_keeps_under_a_rising_transform_and_turns_over_with_the_classes():
    targets_NL, scores_NL, patients_N = clustered(7)
    targets_N, scores_N = targets_NL[:, 0], scores_NL[:, 0]
    assert obuchowski(targets_N, np.exp(3 * scores_N), patients_N) == obuchowski(targets_N, scores_N, patients_N)
    swapped = obuchowski(1 - targets_N, scores_N, patients_N)
    estimate = obuchowski(targets_N, scores_N, patients_N)
    assert swapped.auc == pytest.approx(1 - estimate.auc, abs=1e-12)
    assert swapped.variance == pytest.approx(estimate.variance, rel=1e-12)


# Variance


def test_delong_by_hand():
    # positives 2, 4 and negatives 1, 3: V10 = 1/2, 1; V01 = 1, 1/2; AUC = 3/4
    # S10 = 2 * (1/4)^2 / (2 - 1) = 1/8 = S01; variance = 1/8 / 2 + 1/8 / 2 = 1/8
    estimate = delong([1, 1, 0, 0], [2, 4, 1, 3])
    assert (estimate.auc, estimate.variance) == (0.75, pytest.approx(0.125))
    assert estimate.low == pytest.approx(0.75 - Z_95 * math.sqrt(0.125))  # 0.057
    assert estimate.high == 1.0  # 1.443, clipped


def test_obuchowski_by_hand():
    # As above, with images 2+ and 3- of patient A, 4+ and 1- of B:
    # a_A = 1/2 - 3/4 = -1/4, a_B = 1/4; b_A = 1/2 - 3/4 = -1/4, b_B = 1/4; I10 = I01 = I = 2
    # S10 = 2/(1 * 2) * 1/8 = 1/8 = S01; S11 = 2/1 * (1/16 + 1/16) = 1/4
    # variance = 1/8 / 2 + 1/8 / 2 + 2 * 1/4 / (2 * 2) = 1/4
    estimate = obuchowski([1, 1, 0, 0], [2, 4, 1, 3], ["A", "B", "B", "A"])
    assert (estimate.auc, estimate.variance) == (0.75, pytest.approx(0.25))


@pytest.mark.parametrize("seed", range(5))
def test_variances_equal_the_papers_sums(seed):
    targets_NL, scores_NL, patients_N = clustered(seed)
    targets, scores = targets_NL[:, 0].tolist(), scores_NL[:, 0].tolist()
    assert delong(targets, scores).variance == pytest.approx(slow_delong_covariance(targets, scores, scores), rel=1e-10)
    slow = slow_obuchowski_covariance(targets, scores, targets, scores, patients_N.tolist())
    assert obuchowski(targets, scores, patients_N).variance == pytest.approx(slow, rel=1e-10)


def test_one_image_a_patient_is_delong():
    targets_NL, scores_NL, _ = clustered(3)
    targets_N, scores_N = targets_NL[:, 0], scores_NL[:, 0]
    shuffled = np.random.default_rng(0).permutation(len(targets_N))
    by_patient, by_image = obuchowski(targets_N, scores_N, shuffled), delong(targets_N, scores_N)
    assert by_patient.variance == pytest.approx(by_image.variance, rel=1e-12)
    assert by_patient.low == pytest.approx(by_image.low, rel=1e-12)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_every_image_change_nothing_by_patient(copies):
    targets_NL, scores_NL, patients_N = clustered(4, num_findings=3)
    once = macro(targets_NL, scores_NL, patients_N)
    copied = macro(np.tile(targets_NL, (copies, 1)), np.tile(scores_NL, (copies, 1)), np.tile(patients_N, copies))
    assert copied.auc == pytest.approx(once.auc, rel=1e-12)
    assert copied.variance == pytest.approx(once.variance, rel=1e-12)
    by_image = delong(np.tile(targets_NL[:, 0], copies), np.tile(scores_NL[:, 0], copies))
    assert by_image.variance < 0.7 * delong(targets_NL[:, 0], scores_NL[:, 0]).variance  # why images do not do


def test_names_of_patients_and_order_of_images_do_not_matter():
    targets_NL, scores_NL, patients_N = clustered(5)
    targets_N, scores_N = targets_NL[:, 0], scores_NL[:, 0]
    estimate = obuchowski(targets_N, scores_N, patients_N)
    order = np.random.default_rng(1).permutation(len(targets_N))
    names = [f"patient {7 * patient % 25}" for patient in patients_N[order]]
    renamed = obuchowski(targets_N[order], scores_N[order], names)
    assert (renamed.auc, renamed.variance) == (estimate.auc, pytest.approx(estimate.variance, rel=1e-12))


@pytest.mark.parametrize(
    ("targets", "patients"),
    [
        ([1, 0, 0, 0], [1, 2, 3, 4]),  # one positive
        ([1, 1, 1, 0], [1, 2, 3, 4]),  # one negative
        ([1, 1, 0, 0], [1, 1, 2, 3]),  # one patient has all positives
        ([1, 1, 0, 0], [1, 2, 3, 3]),  # one patient has all negatives
        ([1, 1, 0, 0], [1, 1, 1, 1]),  # one patient
    ],
)
def test_interval_of_one_positive_or_negative_patient_is_undefined(targets, patients):
    estimate = obuchowski(targets, [4, 2, 3, 1], patients)
    assert estimate.auc == slow_auc(targets, [4, 2, 3, 1])
    assert all(math.isnan(value) for value in (estimate.variance, estimate.low, estimate.high))
    assert not estimate.informative


@pytest.mark.parametrize(("scores", "value"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([1, 1, 1, 1], 0.5)])
def test_zero_width_interval_is_not_informative(scores, value):
    estimate = delong([0, 0, 1, 1], scores)
    assert (estimate.auc, estimate.variance, estimate.low, estimate.high) == (value, 0, value, value)
    assert not estimate.informative
    assert delong([0, 1, 0, 1], [1, 2, 3, 4]).informative


def test_a_zero_variance_is_exactly_zero_in_thirds():
    assert delong([1, 1, 0, 0, 0], [2, 2, 1, 1, 1]).variance == 0
    assert obuchowski([1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 2], [1, 2, 3, 1, 2, 4]).variance == 0


def test_by_patient_holds_its_promises_and_by_image_does_not():
    """On 120 patients of 1 to 7 images, scores correlate by 0.6 within a patient; two equally good models.

    A nominal 95 % interval covers the truth, and a test of the difference at 5 % cries wolf, in these shares.
    """
    random = np.random.default_rng(1997)
    num_repeats, truth = 1000, 0.5 * (1 + math.erf(1 / 2))  # unit normals one apart: Phi(1 / sqrt(2))
    covered, false_alarms = {"patient": 0, "image": 0}, {"patient": 0, "image": 0}
    for _ in range(num_repeats):
        patients_N = np.repeat(np.arange(120), random.integers(1, 8, 120))
        ill_P, shared_P2 = random.random(120) < 0.4, random.normal(size=(120, 2))
        num_images = len(patients_N)
        # In most patients all images show the finding or none; in some it comes and goes.
        targets_N = np.where(random.random(num_images) < 0.9, ill_P[patients_N], random.random(num_images) < 0.4)
        own_N2 = random.normal(size=(num_images, 2))
        a_N, b_N = (targets_N[:, None] + math.sqrt(0.6) * shared_P2[patients_N] + math.sqrt(0.4) * own_N2).T
        for unit, units_N in (("patient", patients_N), ("image", np.arange(num_images))):
            estimate = obuchowski(targets_N, a_N, units_N)
            covered[unit] += estimate.low <= truth <= estimate.high
            false_alarms[unit] += compare(targets_N, a_N, b_N, units_N).p < 0.05
    assert 0.92 <= covered["patient"] / num_repeats <= 0.97  # 0.937 of 4,000
    assert covered["image"] / num_repeats < 0.85  # 0.756 of 4,000
    assert 0.03 <= false_alarms["patient"] / num_repeats <= 0.08  # 0.055 of 4,000
    assert false_alarms["image"] / num_repeats > 0.15  # 0.255 of 4,000


# Macro


@pytest.mark.parametrize("seed", range(3))
def test_macro_variance_is_the_mean_of_the_covariance_matrix(seed):
    targets_NL, scores_NL, patients_N = clustered(seed, num_images=80, num_patients=20, num_findings=3)
    columns = list(zip(targets_NL.T.tolist(), scores_NL.T.tolist()))
    slow = [slow_obuchowski_covariance(*one, *other, patients_N.tolist()) for one in columns for other in columns]
    estimate = macro(targets_NL, scores_NL, patients_N)
    assert estimate.auc == pytest.approx(np.mean([slow_auc(*column) for column in columns]), rel=1e-12)
    assert estimate.variance == pytest.approx(np.mean(slow), rel=1e-10)
    assert estimate.num_findings == 3


def test_macro_of_one_finding_is_obuchowski_and_of_copies_too():
    targets_NL, scores_NL, patients_N = clustered(6)
    alone = obuchowski(targets_NL[:, 0], scores_NL[:, 0], patients_N)
    for num_copies in (1, 4):  # four equal findings are perfectly correlated: nothing is gained
        estimate = macro(np.tile(targets_NL, num_copies), np.tile(scores_NL, num_copies), patients_N)
        assert (estimate.auc, estimate.variance) == (pytest.approx(alone.auc), pytest.approx(alone.variance, rel=1e-12))


def test_macro_variance_agrees_with_the_jackknife_of_patients():
    targets_NL, scores_NL, patients_N = clustered(8, num_images=900, num_patients=250, num_findings=4)
    left = [macro(targets_NL[patients_N != p], scores_NL[patients_N != p]).auc for p in range(250)]
    jackknife = 249 / 250 * np.sum((left - np.mean(left)) ** 2)
    assert macro(targets_NL, scores_NL, patients_N).variance == pytest.approx(jackknife, rel=0.03)


def test_macro_leaves_out_what_is_undefined():
    targets_NL = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    scores_NL = np.array([[2, 1], [1, 2], [4, 3], [3, 4]])
    estimate = macro(targets_NL, scores_NL)
    assert (estimate.auc, estimate.variance, estimate.num_findings) == (0.75, pytest.approx(0.125), 1)
    nothing = macro(np.zeros((4, 2)), scores_NL)
    assert nothing.num_findings == 0
    assert all(math.isnan(value) for value in (nothing.auc, nothing.variance, nothing.low, nothing.high))


def test_macro_interval_is_undefined_if_that_of_a_finding_is():
    estimate = macro(np.array([[1, 1], [0, 0], [1, 0], [0, 0]]), np.array([[2, 9], [1, 2], [4, 3], [3, 4]]))
    assert (estimate.auc, estimate.num_findings) == (0.875, 2)  # 0.75 and 1
    assert math.isnan(estimate.variance)
    assert math.isnan(estimate.low)


# Comparison


@pytest.mark.parametrize("seed", range(3))
def test_compare_by_image_is_paired_delong(seed):
    targets_NL, scores_NL, _ = clustered(seed)
    targets, a = targets_NL[:, 0].tolist(), scores_NL[:, 0].tolist()
    b = np.round(scores_NL[:, 0] + np.random.default_rng(seed).normal(size=len(a)), 1).tolist()
    slow = (
        slow_delong_covariance(targets, a, a)
        + slow_delong_covariance(targets, b, b)
        - 2 * slow_delong_covariance(targets, a, b)
    )
    expected = slow_auc(targets, a) - slow_auc(targets, b)
    for patients in (None, [f"p{image}" for image in range(len(a))]):
        result = compare(targets, a, b, patients)
        assert result.difference == pytest.approx(expected, abs=1e-12)
        assert result.variance == pytest.approx(slow, rel=1e-10)
        assert result.z == pytest.approx(expected / math.sqrt(slow), rel=1e-10)
        assert result.p == pytest.approx(math.erfc(abs(result.z) / math.sqrt(2)))


def test_p_is_two_sided_normal():
    targets_NL, scores_NL, patients_N = clustered(2)
    result = compare(targets_NL[:, 0], scores_NL[:, 0], -scores_NL[:, 0], patients_N)
    from scipy.stats import norm

    assert result.p == pytest.approx(2 * norm.sf(abs(result.z)), rel=1e-9)
    assert 0 < result.p < 1e-4


def test_compare_by_patient_agrees_with_the_jackknife():
    targets_NL, scores_NL, patients_N = clustered(9, num_images=900, num_patients=250, num_findings=2)
    other_NL = scores_NL + np.random.default_rng(9).normal(size=(250, 2))[patients_N]  # differs by patient
    left = []
    for patient in range(250):
        kept = patients_N != patient
        left.append(compare_macro(targets_NL[kept], scores_NL[kept], other_NL[kept]).difference)
    jackknife = 249 / 250 * np.sum((left - np.mean(left)) ** 2)
    by_patient = compare_macro(targets_NL, scores_NL, other_NL, patients_N).variance
    assert by_patient == pytest.approx(jackknife, rel=0.03)
    assert compare_macro(targets_NL, scores_NL, other_NL).variance < 0.8 * by_patient


def test_compare_turns_over_with_its_runs():
    targets_NL, scores_NL, patients_N = clustered(1, num_findings=3)
    other_NL = scores_NL + np.random.default_rng(1).normal(size=scores_NL.shape)
    ab, ba = (compare_macro(targets_NL, *runs, patients_N) for runs in ((scores_NL, other_NL), (other_NL, scores_NL)))
    assert (ab.difference, ab.z) == (-ba.difference, -ba.z)
    assert (ab.variance, ab.p) == (ba.variance, ba.p)


def test_compare_of_identical_and_of_undefined_runs():
    targets_NL, scores_NL, patients_N = clustered(1)
    same = compare(targets_NL[:, 0], scores_NL[:, 0], 2 * scores_NL[:, 0], patients_N)  # the same ranking
    assert (same.difference, same.variance, same.z, same.p) == (0, 0, 0, 1)
    one_class = compare([0, 0, 0], [1, 2, 3], [3, 2, 1])
    assert all(math.isnan(value) for value in (one_class.difference, one_class.variance, one_class.z, one_class.p))
    one_positive = compare([1, 0, 0], [3, 2, 1], [1, 2, 3])
    assert one_positive.difference == 1
    assert math.isnan(one_positive.p)
    opposite = compare([1, 1, 0, 0], [4, 3, 2, 1], [1, 2, 3, 4])  # zero variance, yet another AUC: no test
    assert (opposite.difference, opposite.variance) == (1, 0)
    assert math.isnan(opposite.z)
    assert math.isnan(opposite.p)


@pytest.mark.parametrize("variance", [0.0, math.nan])
def test_no_test_without_a_variance(variance):
    result = normal_test(0.25, variance)
    assert result.difference == 0.25
    assert math.isnan(result.z)
    assert math.isnan(result.p)


# Influence


def test_influence_by_hand():
    # As in test_obuchowski_by_hand: a_A = -1/4 over M = 2, a_B = 1/4 over 2, b alike; f = f10 = f01 = 2/1.
    # Patient 1 has no image: its influence is 0, and it does not count in f.
    targets_N, scores_N = np.array([True, True, False, False]), np.array([2.0, 4.0, 1.0, 3.0])
    value, influence_4P = influence(targets_N, scores_N, np.array([0, 2, 2, 0]), 4)
    assert value == 0.75
    assert influence_4P == pytest.approx(math.sqrt(2) / 8 * np.array([[-1, 0, 1, 0]] * 4))
    assert variance_of(influence_4P) == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(3))
def test_influences_of_findings_give_their_covariance(seed):
    targets_NL, scores_NL, patients_N = clustered(seed, num_images=80, num_patients=20, num_findings=2)
    columns = list(zip(targets_NL.T.astype(bool), scores_NL.T))
    (_, one), (_, other) = (influence(*column, patients_N, 20) for column in columns)
    slow = slow_obuchowski_covariance(
        *[values.tolist() for column in columns for values in column], patients_N.tolist()
    )
    assert (variance_of(one + other) - variance_of(one - other)) / 4 == pytest.approx(slow, rel=1e-9)
    assert mean_estimate([0.5, 0.7], [one, other]).variance == variance_of((one + other) / 2)
    order = np.argsort(scores_NL[:, 0])  # sorted, to be fast
    ranked = influence(columns[0][0][order], columns[0][1][order], patients_N[order], 20)[1]
    assert np.array_equal(ranked, one)


def test_mean_estimate_of_nothing_is_undefined():
    estimate = mean_estimate([], [])
    assert estimate.num_findings == 0
    assert all(math.isnan(value) for value in (estimate.auc, estimate.variance, estimate.low, estimate.high))


# Many tests


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # .005 * 4, .01 * 3, .03 * 2, .04 * 1 < .06
        ([0.02, math.nan, 0.01, math.nan], [0.02, math.nan, 0.02, math.nan]),  # two tests: .01 * 2, .02 * 1
        ([0.3, 0.3, 0.3], [0.9, 0.9, 0.9]),
        ([0.6, 0.5, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]),  # .5 * 3 is 1 at most
        ([0.04], [0.04]),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    assert holm(p_values).tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed):
    tests = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.round(np.random.default_rng(seed).random(40) ** 4, 3)  # with ties and zeros
    assert holm(p_values).tolist() == pytest.approx(tests.multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    """The adjusted p of a test is the largest, over all sets of tests that hold it, of their Bonferroni p."""
    p_values = (np.random.default_rng(seed).random(7) ** 3).tolist()
    slow = []
    for place in range(7):
        sets = [[other for other in range(7) if code >> other & 1] for code in range(1, 2**7) if code >> place & 1]
        slow.append(max(min(1.0, len(held) * min(p_values[other] for other in held)) for held in sets))
    assert holm(p_values).tolist() == pytest.approx(slow)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.inf])
def test_holm_refuses_what_is_no_p(wrong):
    with pytest.raises(ValueError, match=rf"p-values must be in \[0, 1\], found {wrong}"):
        holm([0.5, wrong, math.nan])


# The interval on the logit scale


def test_logit_interval_by_hand():
    # logit .75 = log 3 = 1.0986; half = 1.96 * sqrt(.125) / (.75 * .25) = 3.6957; the sigmoids of -2.5971 and 4.7944
    assert logit_interval(delong([1, 1, 0, 0], [2, 4, 1, 3])) == (
        pytest.approx(0.069323, abs=1e-6),
        pytest.approx(0.991792, abs=1e-6),
    )


@pytest.mark.parametrize("seed", range(3))
def test_logit_interval_equals_scipys_functions(seed):
    from scipy.special import expit, logit
    from scipy.stats import norm

    targets_NL, scores_NL, patients_N = clustered(seed)
    estimate = obuchowski(targets_NL[:, 0], scores_NL[:, 0], patients_N)
    spread = math.sqrt(estimate.variance) / (estimate.auc * (1 - estimate.auc))
    expected = [expit(norm.ppf(level, logit(estimate.auc), spread)) for level in (0.025, 0.975)]
    low, high = logit_interval(estimate)
    assert [low, high] == pytest.approx(expected, rel=1e-12)
    swapped = logit_interval(obuchowski(1 - targets_NL[:, 0], scores_NL[:, 0], patients_N))
    assert swapped == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_logit_interval_stays_inside():
    low, high = logit_interval(Estimate(0.999, 1e-4, 0.979, 1.0))
    assert 0 < low < 0.999 < high < 1
    assert logit_interval(Estimate(1e-9, 0.04, 0.0, 0.4)) == (0.0, 1.0)  # exp(4e8) does not overflow
    assert logit_interval(Estimate(0.75, 0.0, 0.75, 0.75)) == (pytest.approx(0.75), pytest.approx(0.75))
    assert logit_interval(Estimate(0.8, 1e-8, 0.0, 0.0)) == (  # narrow: as Wald's
        pytest.approx(0.8 - Z_95 * 1e-4, abs=1e-7),
        pytest.approx(0.8 + Z_95 * 1e-4, abs=1e-7),
    )


@pytest.mark.parametrize(("value", "variance"), [(0.0, 0.0), (1.0, 0.1), (math.nan, math.nan), (0.7, math.nan)])
def test_logit_interval_is_undefined(value, variance):
    assert all(math.isnan(end) for end in logit_interval(Estimate(value, variance, math.nan, math.nan)))


# compute_metrics


def evaluation(num_columns=14, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    targets_NL = (random.random((300, num_columns)) < 0.3).astype(np.float32)
    return SimpleNamespace(
        predictions=(2 * random.normal(size=targets_NL.shape) + targets_NL).astype(dtype), label_ids=targets_NL
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_compute_metrics_ranks_the_logits(dtype, as_tuple):
    prediction = evaluation(dtype=dtype)
    logits_NL = prediction.predictions.astype(np.float32)
    expected = roc_auc_score(prediction.label_ids, logits_NL, average=None)
    if as_tuple:
        prediction.predictions = (prediction.predictions, np.zeros(3))
    metrics = compute_metrics(prediction)
    assert list(metrics) == ["roc_auc", *(f"roc_auc_{finding}" for finding in FINDINGS), "num_findings"]
    assert [metrics[f"roc_auc_{finding}"] for finding in FINDINGS] == pytest.approx(expected, abs=1e-12)
    assert metrics["roc_auc"] == pytest.approx(expected.mean(), abs=1e-12)
    assert metrics["num_findings"] == 14


def test_compute_metrics_does_not_softmax():
    prediction = evaluation()
    exp_NL = np.exp(prediction.predictions)
    softmaxed = roc_auc_score(prediction.label_ids, exp_NL / exp_NL.sum(axis=1, keepdims=True), average=None)
    metrics = compute_metrics(prediction)
    assert all(abs(metrics[f"roc_auc_{finding}"] - value) > 1e-3 for finding, value in zip(FINDINGS, softmaxed))


def test_compute_metrics_leaves_out_a_finding_of_one_class():
    prediction = evaluation()
    prediction.label_ids[:, 13] = 0
    metrics = compute_metrics(prediction)
    assert math.isnan(metrics["roc_auc_Hernia"])
    assert metrics["num_findings"] == 13
    assert metrics["roc_auc"] == pytest.approx(np.mean([metrics[f"roc_auc_{name}"] for name in FINDINGS[:13]]))
    prediction.label_ids[:] = 0
    metrics = compute_metrics(prediction)
    assert math.isnan(metrics["roc_auc"])
    assert metrics["num_findings"] == 0


def test_compute_metrics_keeps_no_finding_out_of_the_macro():
    prediction = evaluation(num_columns=15)
    fourteen = SimpleNamespace(predictions=prediction.predictions[:, :14], label_ids=prediction.label_ids[:, :14])
    with_15, with_14 = compute_metrics(prediction), compute_metrics(fourteen)
    expected = roc_auc_score(prediction.label_ids[:, 14], prediction.predictions[:, 14])
    assert with_15.pop("roc_auc_No_Finding") == pytest.approx(expected, abs=1e-12)
    assert with_15 == with_14


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_compute_metrics_says_that_training_diverged(wrong):
    prediction = evaluation()
    prediction.predictions[5, 3] = wrong
    with pytest.raises(
        InputError, match=r"1 of 4,200 logits are NaN or infinite: training diverged. Lower --learning_rate"
    ):
        compute_metrics(prediction)


def test_compute_metrics_refuses_other_columns():
    with pytest.raises(ValueError, match="logits have 13 columns, expected 14 or 15"):
        compute_metrics(evaluation(num_columns=13))
    prediction = evaluation()
    prediction.label_ids = prediction.label_ids[:-1]
    with pytest.raises(ValueError, match="targets have shape"):
        compute_metrics(prediction)


def test_delongs_interval_is_that_of_confidenceinterval():
    oracle = pytest.importorskip("confidenceinterval")  # by hand: it wants a setuptools older than torch's
    for seed in range(5):
        random = np.random.default_rng(seed)
        targets_N = random.integers(0, 2, 200)
        scores_N = targets_N + random.standard_normal(200)
        value, (low, high) = oracle.roc_auc_score(targets_N, scores_N, confidence_level=0.95)
        found = delong(targets_N, scores_N)
        assert (found.auc, found.low, found.high) == pytest.approx((value, low, high), abs=1e-6)  # it has float32
