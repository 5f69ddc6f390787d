"""The patient bootstrap: by hand, against scikit-learn on the rows that were drawn, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit.metrics import bootstrap as module
from chestxray_vit.metrics.bootstrap import Bootstrap, bootstrap, finding_intervals, macro_interval
from chestxray_vit.metrics.roc_auc import macro, obuchowski, roc_auc
from tests.helpers.statistics import clustered

NAN = math.nan


def weighted(targets, scores, patients, counts_PB):
    """Return the AUCs of one finding where each patient counts as often as a column of counts_PB says."""
    columns = np.array(targets, dtype=bool)[:, None], np.array(scores, dtype=float)[:, None]
    ranked = module._rank(*columns, np.array(patients))
    return module._weighted_aucs(ranked, np.array(counts_PB))[0]


def slow_bootstrap(targets_NL, scores_NL, patients_N, replicates, seed):
    """Draw patients one replicate after the other, write down their rows, and ask scikit-learn."""
    random = np.random.default_rng(seed)
    names = sorted(set(patients_N.tolist()))
    aucs_RL = np.full((replicates, targets_NL.shape[1]), NAN)
    for replicate in range(replicates):
        drawn = [names[index] for index in random.integers(len(names), size=len(names))]
        rows = [image for name in drawn for image, patient in enumerate(patients_N.tolist()) if patient == name]
        for index, targets_N in enumerate(targets_NL[rows].T):
            if len(set(targets_N.tolist())) == 2:
                aucs_RL[replicate, index] = roc_auc_score(targets_N, scores_NL[rows, index])
    return aucs_RL


# AUCs by weight


def test_weighted_auc_by_hand():
    # patient 0 has positive 2 and negative 3; 1 has positive 4 and negative 1; 2 has negative 2, tied with positive 2
    targets, scores, patients = [1, 1, 0, 0, 0], [2, 4, 1, 3, 2], [0, 1, 1, 0, 2]
    counts_PB = [
        [1, 2, 0, 0, 1],
        [1, 0, 2, 0, 2],
        [1, 1, 1, 3, 0],
    ]
    # 1 1 1: positive 2 wins 1 + 1/2 of 3, positive 4 all 3: 4.5 of 6
    # 2 0 1: 2 positives 2, against 2 negatives 3 and one tie: 2 * 1/2 of 2 * 3
    # 0 2 1: 2 positives 4 above 3 negatives
    # 0 0 3: no positive
    # 1 2 0: positive 2 above 2 negatives 1, below 3; 2 positives 4 above 3 each: 8 of 9
    expected = [4.5 / 6, 1 / 6, 1.0, NAN, 8 / 9]
    assert weighted(targets, scores, patients, counts_PB).tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_auc_of_equal_weights_is_the_auc(decimals):
    targets_NL, scores_NL, patients_N = clustered(3)
    targets_N, scores_N = targets_NL[:, 0], np.round(scores_NL[:, 0], decimals)
    values = weighted(targets_N, scores_N, patients_N, np.full((25, 3), (1, 2, 7)))
    assert values.tolist() == [roc_auc(targets_N, scores_N)] * 3


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_replicates_equal_scikit_learn_on_the_drawn_rows(decimals):
    targets_NL, scores_NL, patients_N = clustered(1, num_images=90, num_patients=30, num_findings=3)
    targets_NL[:, 2] = 0
    targets_NL[[4, 50], 2] = 1  # so rare that some replicates lack it
    scores_NL = np.round(scores_NL, decimals)
    result = bootstrap(targets_NL, scores_NL, patients_N, replicates=101, seed=5)
    slow_RL = slow_bootstrap(targets_NL, scores_NL, patients_N, replicates=101, seed=5)  # one more than go at once
    assert 0 < np.isnan(slow_RL).sum() < 50
    np.testing.assert_allclose(result.aucs_RL, slow_RL, rtol=0, atol=1e-12)
    assert result.aucs_L.tolist() == [roc_auc(*columns) for columns in zip(targets_NL.T, scores_NL.T)]


def test_sums_beyond_32_bits_are_exact():
    # patient 0 has a positive above all; 1, drawn m times, a tied pair: m + m * m / 2 of (1 + m) * m pairs are won
    is_positive_NL, scores_NL = np.array([[True], [False], [True]]), np.array([[3.0], [1.0], [1.0]])
    patients_N = np.array([0, 1, 1])
    finding = module._rank_finding(is_positive_NL[:, 0], scores_NL[:, 0], patients_N, 2, np.int64)
    ranked = module._rank(is_positive_NL, scores_NL, patients_N)._replace(findings={0: finding}, dtype=np.int64)
    m = 2**31 + 1  # negative in 32 bits
    values = module._weighted_aucs(ranked, np.array([[1], [m]]))
    assert values[0, 0] == pytest.approx((1 + m / 2) / (1 + m), abs=1e-15)


def test_pairs_beyond_32_bits_are_exact():
    targets_N = np.arange(100_000) % 2  # 2.5e9 pairs
    scores_N = (
        np.arange(100_000) // 10_000 + targets_N
    )  # a step higher: each decile's positives tie the next's negatives
    value = weighted(targets_N, scores_N, np.arange(100_000), np.ones((100_000, 1), dtype=int))
    assert value.tolist() == [roc_auc(targets_N, scores_N)] == [0.595]


@pytest.mark.parametrize(("num_copies", "dtype"), [(3, np.int32), (2**16, np.int64)])
def test_sums_are_as_wide_as_the_data_may_need(num_copies, dtype):
    num_patients = 2**14
    patients_N = np.append(np.arange(num_patients), np.zeros(num_copies - 1, dtype=int))
    columns = np.zeros((len(patients_N), 1))
    assert module._rank(columns == 1, columns, patients_N).dtype == dtype  # 2 * 2^14 * 2^16 is 2^31


# Draws


def test_same_seed_same_numbers():
    data = clustered(4, num_findings=2)
    first, second, other = (bootstrap(*data, replicates=50, seed=seed).aucs_RL for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.array_equal(bootstrap(*data, replicates=20, seed=1).aucs_RL, first[:20])


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].tolist()
    bootstrap(*clustered(4), replicates=5)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_replicates_at_a_time_do_not_change_them(monkeypatch, at_once):
    data = clustered(4, num_findings=2)
    expected = bootstrap(*data, replicates=50).aucs_RL
    monkeypatch.setattr(module, "MOST_AT_ONCE", at_once)
    assert np.array_equal(bootstrap(*data, replicates=50).aucs_RL, expected)


def test_patients_are_drawn_with_replacement_and_all_alike():
    counts_PR = np.concatenate(list(module._draw(40, 5000, 3, 999)), axis=1)
    assert counts_PR.shape == (40, 5000)
    assert (counts_PR.sum(axis=0) == 40).all()
    # multinomial: mean 1, variance 1 - 1/40, covariance -1/40
    assert np.abs(counts_PR.mean(axis=1) - 1).max() < 5 * math.sqrt(1 / 5000)
    covariance_PP = np.cov(counts_PR)
    assert np.diag(covariance_PP).mean() == pytest.approx(1 - 1 / 40, rel=0.01)
    assert covariance_PP[~np.eye(40, dtype=bool)].mean() == pytest.approx(-1 / 40, rel=0.01)
    assert (counts_PR == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, rel=0.02)


def test_order_of_images_and_codes_of_patients_do_not_matter():
    targets_NL, scores_NL, patients_N = clustered(5, num_findings=2)
    expected = bootstrap(targets_NL, scores_NL, patients_N, replicates=40).aucs_RL
    order = np.random.default_rng(0).permutation(len(patients_N))
    shuffled = targets_NL[order], scores_NL[order]
    for codes_N in (1000 * patients_N - 17, np.array([f"{patient:08d}" for patient in patients_N])):
        assert np.array_equal(bootstrap(*shuffled, codes_N[order], replicates=40).aucs_RL, expected)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_every_image_change_nothing(copies):
    targets_NL, scores_NL, patients_N = clustered(6, num_findings=3)
    once = bootstrap(targets_NL, scores_NL, patients_N, replicates=60)
    tiled = np.tile(targets_NL, (copies, 1)), np.tile(scores_NL, (copies, 1)), np.tile(patients_N, copies)
    copied = bootstrap(*tiled, replicates=60)
    assert np.array_equal(copied.aucs_RL, once.aucs_RL)
    assert finding_intervals(copied) == finding_intervals(once)


# Intervals


def test_intervals_by_hand():
    # 41 replicates: finding 0 goes .5, .51 ... .9; the 2.5 % point is its second value, the 97.5 % its last but one
    rising_R = np.arange(41) / 100 + 0.5
    half_R = np.where(np.arange(41) == 0, NAN, 0.25)
    result = Bootstrap(np.array([0.75, 0.25, NAN]), np.stack([rising_R, half_R, NAN * half_R], 1), np.array([9, 9, 0]))
    first, second, third = finding_intervals(result)
    assert (first.auc, first.num_undefined, first.informative) == (0.75, 0, True)
    assert (first.low, first.high) == (pytest.approx(0.51), pytest.approx(0.89))
    assert first.variance == pytest.approx((41**2 - 1) / 12 * 41 / 40 / 100**2)  # of 0 ... 40, with n - 1
    assert (second.auc, second.variance, second.low, second.high, second.num_undefined) == (0.25, 0, 0.25, 0.25, 1)
    assert not second.informative
    assert [third.auc, third.variance, third.low, third.high] == pytest.approx([NAN] * 4, nan_ok=True)
    assert third.num_undefined == 41

    estimate = macro_interval(result)  # .5 alone, then (.51 + .25) / 2 = .38, .385 ... .575
    assert (estimate.auc, estimate.num_findings, estimate.num_undefined, estimate.num_incomplete) == (0.5, 2, 0, 1)
    assert (estimate.low, estimate.high) == (pytest.approx(0.385), pytest.approx(0.57))


def test_macro_counts_replicates_without_any_finding():
    aucs_RL = np.array([[0.5, NAN], [NAN, NAN], [0.7, 0.9], [NAN, 0.6]])
    estimate = macro_interval(Bootstrap(np.array([0.6, 0.8]), aucs_RL, np.array([2, 2])))
    assert (estimate.num_findings, estimate.num_undefined, estimate.num_incomplete) == (2, 1, 3)
    assert estimate.variance == pytest.approx(np.var([0.5, 0.8, 0.6], ddof=1))


def test_the_macro_is_that_of_the_sample_and_close_to_obuchowski():
    data = clustered(8, num_images=900, num_patients=250, num_findings=4)
    result = bootstrap(*data, replicates=4000)
    by_formula = macro(*data)
    estimate = macro_interval(result)
    assert (estimate.auc, estimate.num_findings) == (pytest.approx(by_formula.auc, abs=1e-12), 4)
    assert estimate.variance == pytest.approx(by_formula.variance, rel=0.1)
    assert (estimate.low, estimate.high) == pytest.approx((by_formula.low, by_formula.high), abs=0.005)
    for index, finding in enumerate(finding_intervals(result)):
        expected = obuchowski(data[0][:, index], data[1][:, index], data[2])
        assert finding.variance == pytest.approx(expected.variance, rel=0.1)
        assert (finding.num_undefined, finding.informative) == (0, True)


def test_percentile_interval_by_patient_covers_and_by_image_does_not():
    """On 120 patients of 1 to 7 images, scores correlate by 0.6 within a patient; the truth is Phi(1 / sqrt(2))."""
    random = np.random.default_rng(1997)
    num_repeats, truth = 400, 0.5 * (1 + math.erf(1 / 2))
    covered = {"patient": 0, "image": 0}
    for repeat in range(num_repeats):
        patients_N = np.repeat(np.arange(120), random.integers(1, 8, 120))
        ill_P, shared_P, num_images = random.random(120) < 0.4, random.normal(size=120), len(patients_N)
        # In most patients all images show the finding or none; in some it comes and goes.
        targets_N = np.where(random.random(num_images) < 0.9, ill_P[patients_N], random.random(num_images) < 0.4)
        own_N = random.normal(size=num_images)
        scores_N = targets_N + math.sqrt(0.6) * shared_P[patients_N] + math.sqrt(0.4) * own_N
        for unit, units_N in (("patient", patients_N), ("image", None)):
            result = bootstrap(targets_N[:, None], scores_N[:, None], units_N, 400, seed=repeat)
            (estimate,) = finding_intervals(result)
            covered[unit] += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered["patient"] / num_repeats <= 0.97  # 0.935 of 4,000
    assert covered["image"] / num_repeats < 0.85  # 0.741 of 4,000


# Edges


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_one_class_only_is_undefined(num_images):
    targets_NL, scores_NL = np.zeros((num_images, 2)), np.zeros((num_images, 2))
    targets_NL[:, 1] = 1
    result = bootstrap(targets_NL, scores_NL, np.arange(num_images), replicates=4)
    assert result.aucs_RL.shape == (4, 2)
    assert np.isnan(result.aucs_RL).all()
    assert np.isnan(result.aucs_L).all()
    for estimate in finding_intervals(result):
        assert np.isnan([estimate.auc, estimate.variance, estimate.low, estimate.high]).all()
        assert estimate.num_undefined == 4
    estimate = macro_interval(result)
    assert np.isnan([estimate.auc, estimate.variance, estimate.low, estimate.high]).all()
    assert (estimate.num_findings, estimate.num_undefined, estimate.num_incomplete) == (0, 4, 4)


def test_no_findings_give_no_columns():
    result = bootstrap(np.zeros((3, 0)), np.zeros((3, 0)), [1, 2, 3], replicates=4)
    assert (result.aucs_L.shape, result.aucs_RL.shape, finding_intervals(result)) == ((0,), (4, 0), [])
    assert macro_interval(result).num_findings == 0


@pytest.mark.parametrize(
    ("targets", "patients"),
    [
        ([1, 1, 0, 0], [1, 1, 1, 1]),  # one patient
        ([1, 1, 0, 0], [1, 1, 2, 3]),  # one patient has all positives
        ([1, 1, 0, 0], [1, 2, 3, 3]),  # one patient has all negatives
    ],
)
def test_interval_of_one_positive_or_negative_patient_is_undefined(targets, patients):
    result = bootstrap(np.array(targets)[:, None], np.array([[4.0], [2], [3], [1]]), patients, 50)
    for estimate in (finding_intervals(result)[0], macro_interval(result)):
        assert estimate.auc == 0.75
        assert np.isnan([estimate.variance, estimate.low, estimate.high]).all()
        assert estimate.num_undefined == np.isnan(result.aucs_RL).sum()
    if len(set(patients)) == 1:
        assert (result.aucs_RL == 0.75).all()


def test_one_replicate_has_no_spread():
    result = bootstrap([[1], [0], [1], [0]], [[2], [1], [4], [3]], [1, 1, 2, 2], replicates=1)
    assert math.isnan(finding_intervals(result)[0].low)


@pytest.mark.parametrize("scores", [[1, 2, 3, 4], [1, 1, 1, 1], [4, 3, 2, 1]])
def test_zero_width_interval_is_not_informative(scores):
    result = bootstrap(np.array([[0], [0], [1], [1]]), np.array(scores)[:, None], None, replicates=200)
    (estimate,) = finding_intervals(result)
    assert (estimate.variance, estimate.low, estimate.high) == (0, estimate.auc, estimate.auc)
    assert not estimate.informative
    assert 0 < estimate.num_undefined < 100  # each class is lacked by one draw in 16


def test_a_zero_variance_is_exactly_zero():
    result = Bootstrap(np.array([5 / 6]), np.full((7, 1), 5 / 6), np.array([9]))
    assert finding_intervals(result)[0].variance == macro_interval(result).variance == 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"scores_NL": [[0.1], [NAN], [0.3]]}, ValueError, "scores must be finite, found nan"),
        ({"targets_NL": [[0], [2], [1]]}, ValueError, "targets must be 0 or 1, found 2"),
        ({"targets_NL": [0, 1, 1]}, ValueError, r"targets have shape \(3,\), scores \(3, 1\); expected the same, 2-D"),
        ({"patients_N": [1, 2]}, ValueError, "expected one for each of 3 images"),
        ({"patients_N": [1, None, 2]}, ValueError, "a patient is missing"),
        ({"replicates": 0}, ValueError, "replicates is 0, expected 1 or more"),
    ],
)
def test_wrong_input_is_refused(changed, error, message):
    right = {"targets_NL": [[0], [1], [1]], "scores_NL": [[0.1], [0.2], [0.3]], "patients_N": [1, 2, 3]}
    with pytest.raises(error, match=message):
        bootstrap(**{**right, **changed})
