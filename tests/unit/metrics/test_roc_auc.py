"""AUC, its variance by patient, and comparisons: by hand, against slow versions of the papers' sums, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit.metrics.intervals import (
    Z_95,
)
from chestxray_vit.metrics.roc_auc import compare, compare_macro, delong, macro, obuchowski, roc_auc
from tests.helpers.statistics import (
    clustered,
    slow_auc,
    slow_delong_covariance,
    slow_obuchowski_covariance,
)

# AUC


def test_auc_counts_ordered_pairs():
    assert roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]) == 0.875  # 3.5 of 4 pairs; the tie counts half


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
    assert roc_auc(targets, scores) == expected


@pytest.mark.parametrize("targets", [[], [0, 0], [1, 1]])
def test_auc_of_one_class_is_undefined(targets):
    assert math.isnan(roc_auc(targets, [0.5] * len(targets)))


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_pair_counting_and_scikit_learn(seed):
    targets_NL, scores_NL, _ = clustered(seed)
    value = roc_auc(targets_NL[:, 0], scores_NL[:, 0])
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
    for function in (roc_auc, delong):
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


def test_delongs_interval_is_that_of_confidenceinterval():
    oracle = pytest.importorskip("confidenceinterval")  # by hand: it wants a setuptools older than torch's
    for seed in range(5):
        random = np.random.default_rng(seed)
        targets_N = random.integers(0, 2, 200)
        scores_N = targets_N + random.standard_normal(200)
        value, (low, high) = oracle.roc_auc_score(targets_N, scores_N, confidence_level=0.95)
        found = delong(targets_N, scores_N)
        assert (found.auc, found.low, found.high) == pytest.approx((value, low, high), abs=1e-6)  # it has float32
