"""Variances, intervals and tests by patient."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from chestxray_vit.metrics import operating_points as module
from chestxray_vit.metrics.intervals import (
    Z_95,
    Estimate,
    holm,
    influence,
    logit_interval,
    mean_estimate,
    normal_test,
    variance_of,
    wilson,
)
from chestxray_vit.metrics.operating_points import (
    at_prevalence,
    measure,
)
from chestxray_vit.metrics.roc_auc import delong, obuchowski
from tests.helpers.statistics import clustered, slow_obuchowski_covariance
from tests.unit.metrics.test_operating_points import NAN, RATES, one_finding


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
    for index in range(7):
        sets = [[other for other in range(7) if code >> other & 1] for code in range(1, 2**7) if code >> index & 1]
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


def slow_effective_number(counts, totals):
    """Return total over the design effect, with both variances as written; there must be one, and 1 or more."""
    patients = [(count, total) for count, total in zip(counts, totals) if total]
    m, total = len(patients), sum(totals)
    p = Fraction(sum(counts), total)
    by_patient = Fraction(m, m - 1) * sum((c - p * n) ** 2 for c, n in patients) / total**2
    by_image = Fraction(m, m - 1) * p * (1 - p) / total
    assert by_patient >= by_image
    return float(total / (by_patient / by_image))


# Intervals


def test_wilson_by_hand():
    # z^2 = 3.84146; 8 of 10: (0.8 + 0.192073 -+ 1.95996 * sqrt(0.016 + 0.00960365)) / 1.384146
    #                         = (0.992073 -+ 0.313617) / 1.384146
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    # none of 10: from 0 to z^2 / (10 + z^2) = 3.84146 / 13.84146
    assert wilson(0, 10) == (0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(1 - 0.277533, abs=1e-6), 1)
    assert wilson(0, 0) == pytest.approx((NAN, NAN), nan_ok=True)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 2), (1, 200_000), (8, 10), (199_999, 200_000), (700, 1000)])
def test_wilson_solves_its_equation(count, total):
    # the limits are the p with (share - p)^2 = z^2 p (1 - p) / total
    for limit in wilson(count, total):
        left, right = (count / total - limit) ** 2, 1.959963984540054**2 * limit * (1 - limit) / total
        assert left == pytest.approx(right, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (3, 7), (7, 7), (1, 25_596), (25_000, 25_596)])
def test_wilson_equals_statsmodels(count, total):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(count, total, alpha=0.05, method="wilson")
    assert wilson(count, total) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_other_counts(count, total):
    with pytest.raises(ValueError, match=f"count is {count}, expected from 0 to {total}"):
        wilson(count, total)


def effective_number(counts, totals):
    counts, totals = np.array(counts), np.array(totals)
    return module.effective_number(counts, totals - counts)


def test_effective_number_by_hand():
    # p = 3/5; c - p n = 0.8, -1.2, 0.4: squares 2.24, where independent images have 5 * 0.6 * 0.4 = 1.2
    assert effective_number([2, 0, 1], [2, 2, 1]) == pytest.approx(5 / (2.24 / 1.2), rel=1e-15)
    assert effective_number([2, 0, 1, 0], [2, 2, 1, 0]) == effective_number([2, 0, 1], [2, 2, 1])
    # patients differ less than if images were independent: bounded by the number of images
    assert effective_number([1, 1, 2], [2, 2, 3]) == 7
    assert effective_number([1, 1, 2], [2, 2, 2]) == 6
    assert effective_number([2, 2, 4], [4, 4, 4]) == 6  # the same, twice
    # all or none of each of 4 patients: two images tell as much as one
    assert effective_number([2, 2, 2, 0], [2, 2, 2, 2]) == 4


@pytest.mark.parametrize(
    ("counts", "totals", "expected"),
    [
        ([3, 2, 4], [3, 2, 4], 3),  # all
        ([0, 0, 0], [3, 2, 4], 3),  # none
        ([1, 1, 1, 0], [1, 1, 1, 0], 3),  # one image a patient: their number is that of the images
        ([2, 0], [5, 0], 1),  # one patient
    ],
)
def test_without_a_design_effect_patients_count(counts, totals, expected):
    assert effective_number(counts, totals) == expected


@pytest.mark.parametrize("seed", range(5))
def test_effective_number_equals_the_papers_variances(seed):
    random = np.random.default_rng(seed)
    totals = random.integers(0, 6, 30)
    counts = random.binomial(totals, random.beta(0.4, 0.2, 30))
    assert effective_number(counts, totals) == pytest.approx(slow_effective_number(counts.tolist(), totals.tolist()))


def test_effective_number_equals_statsmodels():
    regression = pytest.importorskip("statsmodels.api")
    for seed in range(3):
        random = np.random.default_rng(seed)
        totals = random.integers(1, 6, 30)
        counts = random.binomial(totals, random.beta(0.4, 0.2, 30))
        counts_N = np.concatenate([np.arange(total) < count for count, total in zip(counts, totals)]).astype(float)
        patients_N = np.repeat(np.arange(30), totals)
        # the mean as a regression on nothing; its variance by cluster has the factor m / (m - 1)
        fit = regression.OLS(counts_N, np.ones(len(counts_N))).fit(cov_type="cluster", cov_kwds={"groups": patients_N})
        share = counts_N.mean()
        expected = share * (1 - share) * (30 / 29) / fit.bse[0] ** 2
        assert effective_number(counts, totals) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_one_image_a_patient_is_wilson(seed):
    targets_N, scores_N, _ = one_finding(seed)
    shuffled = np.random.default_rng(0).permutation(len(targets_N))
    for threshold in np.unique(scores_N):
        point = measure(targets_N, scores_N, threshold, shuffled)
        assert point == measure(targets_N, scores_N, threshold)
        for found in (getattr(point, name) for name in RATES):
            if found.total:
                assert (found.low, found.high) == wilson(found.count, found.total)  # to the last bit


def test_copies_of_every_image_change_no_interval_by_patient():
    num_below_1 = 0
    for seed in range(20):
        targets_N, scores_N, patients_N = one_finding(seed, decimals=0)
        for threshold in np.unique(scores_N):
            once = measure(targets_N, scores_N, threshold, patients_N)
            num_below_1 += sum(
                bool(found.total) and (found.low, found.high) == wilson(found.count, found.total)
                for found in (getattr(once, name) for name in RATES)
            )
            for copies in (2, 5):
                copied = measure(
                    *(np.tile(column, copies) for column in (targets_N, scores_N)),
                    threshold,
                    np.tile(patients_N, copies),
                )
                for name in RATES:
                    before, after = getattr(once, name), getattr(copied, name)
                    assert (after.value, after.low, after.high) == pytest.approx(
                        (before.value, before.low, before.high), rel=0, abs=0, nan_ok=True
                    )
                    assert after.total == copies * before.total
    assert num_below_1 > 20  # where only the bound speaks


def test_copies_beyond_64_bits():
    once = effective_number([2, 0, 1], [2, 2, 1])
    assert effective_number([2 * 10**8, 0, 10**8], [2 * 10**8, 2 * 10**8, 10**8]) == once


def test_intervals_by_patient_cover_and_by_image_do_not():
    """On 120 patients of 1 to 7 images, scores correlate by 0.6 within a patient, and so do most targets."""
    random = np.random.default_rng(1992)
    num_repeats, truth = 1000, 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))  # Phi(0.5), for positives and negatives
    ppv, npv = at_prevalence(truth, truth, 0.4)
    covered = {unit: dict.fromkeys(RATES, 0) for unit in ("patient", "image")}
    for _ in range(num_repeats):
        patients_N = np.repeat(np.arange(120), random.integers(1, 8, 120))
        ill_P, shared_P, num_images = random.random(120) < 0.4, random.normal(size=120), len(patients_N)
        targets_N = np.where(random.random(num_images) < 0.9, ill_P[patients_N], random.random(num_images) < 0.4)
        scores_N = targets_N + math.sqrt(0.6) * shared_P[patients_N] + math.sqrt(0.4) * random.normal(size=num_images)
        for unit, units_N in (("patient", patients_N), ("image", None)):
            point = measure(targets_N, scores_N, 0.5, units_N)
            for name, value in zip(RATES, (truth, truth, ppv, npv)):
                found = getattr(point, name)
                covered[unit][name] += found.low <= value <= found.high
    assert all(0.93 <= covered["patient"][name] / num_repeats <= 0.97 for name in RATES)
    assert all(covered["image"][name] / num_repeats < 0.85 for name in RATES)
