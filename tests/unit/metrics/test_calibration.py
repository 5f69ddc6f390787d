"""Calibration: bins by hand and on their edges, fits against scikit-learn, scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from chestxray_vit.metrics.calibration import (
    Bin,
    Platt,
    Temperature,
    brier,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    intercept_at_slope_1,
    reliability,
    slope_and_intercept,
)

ABOVE_0, BELOW_1 = 5e-324, 1 - 2**-53


def random_scores(seed, num_images=400, slope=0.6, intercept=-0.7):
    """Draw scores and targets with the given truth."""
    random = np.random.default_rng(seed)
    logits_N = random.normal(-1, 1.5, num_images)
    targets_N = (random.random(num_images) < expit(intercept + slope * logits_N)).astype(int)
    return targets_N, expit(logits_N)


# Bins


def test_bins_by_hand():
    bins = reliability([0, 1, 1, 0, 1], [0.1, 0.2, 0.6, 0.7, 1.0], num_bins=4)
    assert bins[0] == Bin(0.0, 0.25, 2, 1, pytest.approx(0.15))
    assert (bins[1].low, bins[1].high, bins[1].num_images, bins[1].num_positives) == (0.25, 0.5, 0, 0)
    assert math.isnan(bins[1].mean_score)
    assert math.isnan(bins[1].prevalence)
    assert bins[2] == Bin(0.5, 0.75, 2, 1, pytest.approx(0.65))
    assert bins[3] == Bin(0.75, 1.0, 1, 1, 1.0)
    assert [bins[bin_index].prevalence for bin_index in (0, 2, 3)] == [0.5, 0.5, 1.0]
    # 2/5 * |0.5 - 0.15| + 2/5 * |0.5 - 0.65| + 1/5 * |1 - 1| = 0.14 + 0.06
    assert expected_calibration_error(bins) == pytest.approx(0.2)


def test_a_score_on_an_edge_is_in_the_bin_above():
    # 0.1 + 0.2 and 3 * 0.1 are 0.30000000000000004, 0.3 // 0.1 is 2
    for bin_index, edge in enumerate([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]):
        (filled,) = (bin for bin in reliability([1], [edge]) if bin.num_images)
        assert (filled.low, filled) == (edge, reliability([1], [edge])[bin_index])
    assert reliability([1], [1.0])[9].num_images == 1
    assert reliability([1], [-0.0])[0].num_images == 1


@pytest.mark.parametrize("num_bins", [1, 2, 3, 7, 10, 15, 20, 49, 100])
def test_every_edge_and_its_neighbours(num_bins):
    for k in range(num_bins + 1):
        edge = float(f"{k / num_bins!r}")
        neighbours = [(np.nextafter(edge, -1), k - 1), (edge, k), (np.nextafter(edge, 2), k)]
        for score, bin_index in neighbours:
            if 0 <= score <= 1:
                bins = reliability([0], [score], num_bins)
                assert [bin.num_images for bin in bins].index(1) == min(bin_index, num_bins - 1)
                assert len(bins) == num_bins
    assert [bin.low for bin in bins] == [k / num_bins for k in range(num_bins)]
    assert [bin.high for bin in bins] == [(k + 1) / num_bins for k in range(num_bins)]


@pytest.mark.parametrize("num_bins", [5, 10])
def test_bins_equal_scikit_learns(num_bins):
    targets_N, scores_N = random_scores(1)  # none on an edge, where its bins are closed above
    shares, means = calibration_curve(targets_N, scores_N, n_bins=num_bins)
    filled = [bin for bin in reliability(targets_N, scores_N, num_bins) if bin.num_images]
    assert [bin.prevalence for bin in filled] == pytest.approx(shares.tolist(), abs=1e-12)
    assert [bin.mean_score for bin in filled] == pytest.approx(means.tolist(), abs=1e-12)
    assert sum(bin.num_images for bin in filled) == len(targets_N)
    assert sum(bin.num_positives for bin in filled) == targets_N.sum()


def test_one_bin_compares_the_means():
    targets_N, scores_N = random_scores(2)
    bins = reliability(targets_N, scores_N, num_bins=1)
    assert expected_calibration_error(bins) == pytest.approx(abs(targets_N.mean() - scores_N.mean()))


# Brier


def test_brier_by_hand_and_as_scikit_learn():
    assert brier([1, 0, 1], [0.5, 0.25, 1.0]) == pytest.approx((0.25 + 0.0625) / 3)
    for seed in range(3):
        targets_N, scores_N = random_scores(seed)
        assert brier(targets_N, scores_N) == pytest.approx(brier_score_loss(targets_N, scores_N), abs=1e-14)


def test_no_image_is_undefined():
    assert math.isnan(brier([], []))
    assert math.isnan(expected_calibration_error(reliability([], [])))
    assert len(reliability([], [])) == 10


# Slope and intercept


@pytest.mark.parametrize("seed", range(3))
def test_slope_and_intercept_equal_scikit_learns_and_scipys(seed):
    targets_N, scores_N = random_scores(seed)
    logits_N = logit(scores_N)
    slope, intercept = slope_and_intercept(targets_N, scores_N)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(logits_N[:, None], targets_N)
    assert (slope, intercept) == (
        pytest.approx(model.coef_[0, 0], rel=1e-5),
        pytest.approx(model.intercept_[0], rel=1e-5),
    )

    def deviance(parameters):
        linear_N = parameters[0] * logits_N + parameters[1]
        return np.logaddexp(0, np.where(targets_N == 1, -linear_N, linear_N)).sum()

    found = minimize(deviance, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert [slope, intercept] == pytest.approx(found.x.tolist(), rel=1e-5)
    shift = minimize_scalar(lambda value: deviance([1.0, value]), bounds=(-9, 9), method="bounded")
    assert intercept_at_slope_1(targets_N, scores_N) == pytest.approx(shift.x, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_slope_and_intercept_equal_statsmodels(seed):
    models = pytest.importorskip("statsmodels.api")
    targets_N, scores_N = random_scores(seed)
    logits_N, family = logit(scores_N), models.families.Binomial()
    found = models.GLM(targets_N, models.add_constant(logits_N), family=family).fit(tol=1e-14).params
    slope, intercept = slope_and_intercept(targets_N, scores_N)
    assert [intercept, slope] == pytest.approx(found.tolist(), rel=1e-8)
    alone = models.GLM(targets_N, np.ones(len(targets_N)), family=family, offset=logits_N).fit(tol=1e-14).params
    assert intercept_at_slope_1(targets_N, scores_N) == pytest.approx(alone[0], rel=1e-8)


@pytest.mark.parametrize(
    ("targets", "scores"),
    [
        random_scores(3),
        random_scores(3, num_images=25_000, intercept=-6.0),  # rare
        random_scores(4, slope=-2.0),  # turned over
        ([0, 1, 0, 1], [0.2, 0.5, np.nextafter(0.5, 1), 0.8]),  # overlapping by one float
        ([0, 1, 0, 1, 0], [0.2, 0.3, 0.3 + 1e-9, 0.8, 0.1]),
        ([1, 0, 1, 0, 1], 0.5 + 1e-12 * np.arange(5)),  # a slope of 1e11
        ([0, 1, 0, 1, 1, 0], [0.0, 0.0, 1.0, 1.0, 0.5, 0.25]),  # logits of -744 and 37
        (np.arange(300) % 7 == 0, np.append(np.linspace(0.5, 0.6, 299), 0.0)),  # an outlier of 700 deviations
    ],
)
def test_the_likelihood_is_level_at_the_fit(targets, scores):
    logits_N = logit(np.clip(scores, ABOVE_0, BELOW_1))
    slope, intercept = slope_and_intercept(targets, scores)
    errors_N = expit(intercept + slope * logits_N) - np.asarray(targets)
    size = len(errors_N)
    assert abs(errors_N.sum()) < 1e-10 * size
    assert abs((errors_N * (logits_N - logits_N.mean())).sum()) < 1e-10 * size * np.ptp(logits_N)
    shift = intercept_at_slope_1(targets, scores)
    assert abs((expit(logits_N + shift) - np.asarray(targets)).sum()) < 1e-10 * size


def test_fits_by_hand():
    # half of the images at logit -1 of 1 in 4 and half at logit 1 of 3 in 4: logit P = log 3 * logit
    targets, scores = [1, 0, 0, 0, 1, 1, 1, 0], [expit(-1.0)] * 4 + [expit(1.0)] * 4
    assert slope_and_intercept(targets, scores) == (
        pytest.approx(math.log(3), rel=1e-9),
        pytest.approx(0.0, abs=1e-9),
    )
    assert fit_temperature(targets, scores).temperature == pytest.approx(1 / math.log(3), rel=1e-9)
    assert intercept_at_slope_1(targets, scores) == pytest.approx(0.0, abs=1e-9)
    # a constant score of 1/2 and 1 in 4: log(1/3)
    assert intercept_at_slope_1([1, 0, 0, 0], [0.5] * 4) == pytest.approx(-math.log(3))
    # all at 0, whose logit is that of 5e-324: it takes log(1/2) - log(5e-324) to reach 1 in 3
    assert intercept_at_slope_1([1, 0, 0], [0.0] * 3) == pytest.approx(-math.log(2) - math.log(5e-324))
    assert intercept_at_slope_1([1, 0, 0], [1.0] * 3) == pytest.approx(-math.log(2) - 53 * math.log(2))


def test_a_step_that_goes_too_far_is_cut():
    # Two images at logit 20 and three at -100, one positive in all: 2 sigmoid(20 + intercept) = 1. On the way from
    # 98.6 the likelihood is all but a straight line, and Newton's whole step leads far beyond.
    assert intercept_at_slope_1([1, 0, 0, 0, 0], expit([-100, -100, -100, 20, 20])) == pytest.approx(-20, abs=1e-6)


@pytest.mark.parametrize(
    ("targets", "scores"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3]),  # no positive
        ([1, 1, 1], [0.1, 0.2, 0.3]),  # no negative
        ([], []),
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3]),  # constant
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]),  # separated
        ([0, 0, 1, 1], [0.4, 0.3, 0.2, 0.1]),  # the wrong way round
        ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.4]),  # but for a tie: the slope grows without end still
        ([1, 1, 0, 0], [0.1, 0.2, 0.2, 0.4]),
        ([0, 0, 1, 1], [0.1, 0.2, np.nextafter(0.2, 1), 0.4]),  # by one float
        ([0, 1, 1, 0], [0.2, BELOW_1, 1.0, 1.0]),  # the two upper scores have one logit
    ],
)
def test_without_a_finite_maximum_there_is_no_slope(targets, scores):
    assert all(math.isnan(value) for value in slope_and_intercept(targets, scores))
    assert fit_platt(targets, scores) is None
    assert math.isnan(intercept_at_slope_1(targets, scores)) == (len(set(targets)) < 2)


def test_a_hair_of_overlap_is_enough():
    slope, _ = slope_and_intercept([0, 1, 0, 1], [0.2, 0.4, np.nextafter(0.4, 1), 0.8])
    assert 10 < slope < math.inf


def test_slope_and_intercept_follow_what_is_done_to_the_scores():
    targets_N, scores_N = random_scores(5)
    slope, intercept = slope_and_intercept(targets_N, scores_N)
    # logit' = 2 + 4 logit: logit P = intercept + slope (logit' - 2) / 4
    moved = slope_and_intercept(targets_N, expit(2 + 4 * logit(scores_N)))
    assert moved == (pytest.approx(slope / 4, rel=1e-7), pytest.approx(intercept - slope / 2, rel=1e-7))
    turned = slope_and_intercept(1 - targets_N, expit(-logit(scores_N)))
    assert turned == (pytest.approx(slope, rel=1e-9), pytest.approx(-intercept, rel=1e-9))
    shifted = intercept_at_slope_1(targets_N, expit(3 + logit(scores_N)))
    assert shifted == pytest.approx(intercept_at_slope_1(targets_N, scores_N) - 3, rel=1e-8)
    order = np.random.default_rng(0).permutation(len(targets_N))
    assert slope_and_intercept(targets_N[order], scores_N[order]) == (pytest.approx(slope), pytest.approx(intercept))
    doubled = slope_and_intercept(np.tile(targets_N, 3), np.tile(scores_N, 3))
    assert doubled == (pytest.approx(slope), pytest.approx(intercept))


def test_the_truth_is_found():
    targets_N, scores_N = random_scores(6, num_images=200_000, slope=0.6, intercept=-0.7)
    assert slope_and_intercept(targets_N, scores_N) == (pytest.approx(0.6, abs=0.02), pytest.approx(-0.7, abs=0.03))
    targets_N, scores_N = random_scores(6, num_images=200_000, slope=0.6, intercept=0.0)
    assert fit_temperature(targets_N, scores_N).temperature == pytest.approx(1 / 0.6, abs=0.05)


# Recalibration


def test_platt_makes_slope_1_and_intercept_0():
    targets_N, scores_N = random_scores(7)
    platt = fit_platt(targets_N, scores_N)
    assert (platt.slope, platt.intercept) == slope_and_intercept(targets_N, scores_N)
    again_N = platt.apply(scores_N)
    assert slope_and_intercept(targets_N, again_N) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert intercept_at_slope_1(targets_N, again_N) == pytest.approx(0, abs=1e-9)
    assert again_N.mean() == pytest.approx(targets_N.mean())
    assert again_N.tolist() == pytest.approx(expit(platt.intercept + platt.slope * logit(scores_N)).tolist())


def test_recalibration_helps_other_images():
    fitted_on, judged_on = random_scores(8, 5000, slope=0.4), random_scores(9, 5000, slope=0.4)
    before = expected_calibration_error(reliability(*judged_on))
    for fit in (fit_platt(*fitted_on), fit_temperature(*fitted_on)):
        after_N = fit.apply(judged_on[1])
        assert brier(judged_on[0], after_N) < brier(*judged_on)
        assert expected_calibration_error(reliability(judged_on[0], after_N)) < before
        assert roc_auc_score(judged_on[0], after_N) == roc_auc_score(*judged_on)
    after_N = fit_platt(*fitted_on).apply(judged_on[1])
    assert expected_calibration_error(reliability(judged_on[0], after_N)) < before / 5


@pytest.mark.parametrize("seed", range(3))
def test_temperature_equals_scipys(seed):
    targets_N, scores_N = random_scores(seed, intercept=0.0)
    logits_N = np.where(targets_N == 1, -1, 1) * logit(scores_N)
    found = minimize_scalar(
        lambda log_t: np.logaddexp(0, logits_N * math.exp(-log_t)).sum(), bounds=(-5, 5), method="bounded"
    )
    fit = fit_temperature(targets_N, scores_N)
    assert math.log(fit.temperature) == pytest.approx(found.x, abs=1e-5)
    gradient = (logits_N * expit(logits_N / fit.temperature)).sum()
    assert abs(gradient) < 1e-9 * len(logits_N)
    hotter = fit_temperature(targets_N, expit(3 * logit(scores_N)))
    assert hotter.temperature == pytest.approx(3 * fit.temperature)


@pytest.mark.parametrize(
    ("targets", "scores"),
    [
        ([0, 0, 0], [0.1, 0.6, 0.3]),  # one class
        ([1, 1], [0.4, 0.9]),
        ([], []),
        ([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]),  # each on its side: ever colder
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8]),
        ([0, 1], [0.5, 0.5]),  # all temperatures alike
        ([1, 0, 1, 0], [0.6, 0.4, 0.3, 0.6]),  # right by .405 and .405, wrong by .847 and .405: ever hotter
    ],
)
def test_without_a_finite_temperature_there_is_none(targets, scores):
    assert fit_temperature(targets, scores) is None


@pytest.mark.parametrize("seed", range(8))
def test_no_temperature_where_right_and_wrong_cancel(seed):
    scores_N = np.random.default_rng(seed).random(50)
    assert fit_temperature(np.arange(100) < 50, np.tile(scores_N, 2)) is None  # though a rounded sum is not 0


def test_temperature_is_found_where_scores_are_right_by_little():
    assert fit_temperature([0, 1, 0, 1], [0.6, 0.4, 0.3, 0.6]).temperature > 1  # the last case, classes swapped


def test_temperature_is_found_where_the_classes_are_separated_elsewhere():
    fit = fit_temperature([0, 0, 1, 1], [0.6, 0.7, 0.8, 0.9])  # by 0.75, not by 0.5
    assert 0 < fit.temperature < math.inf
    assert fit_platt([0, 0, 1, 1], [0.6, 0.7, 0.8, 0.9]) is None


@pytest.mark.parametrize(
    "fit", [Platt(0.37, -1.1), Platt(5.0, 3.0), Platt(1e-9, 0.0), Temperature(2.5), Temperature(0.1)]
)
def test_recalibration_never_makes_two_images_change_places(fit):
    random = np.random.default_rng(0)
    scores = [0.0, ABOVE_0, 1e-300, 1e-9, BELOW_1, 1.0, *random.random(500)]
    for score in (1e-5, 0.1, 0.25, 0.5, 0.75, 0.999):  # neighbours, float by float
        scores += (np.array([score]).view(np.int64) + np.arange(-300, 300)).view(np.float64).tolist()
    scores_N = np.sort(scores)
    mapped_N = fit.apply(scores_N)
    assert (np.diff(mapped_N) >= 0).all()
    assert ((mapped_N >= 0) & (mapped_N <= 1)).all()
    order = random.permutation(len(scores_N))
    assert np.array_equal(fit.apply(scores_N[order]), mapped_N[order])


def test_maps_of_ones_own_number():
    scores_N = np.array([0.2, 0.2, 0.7, 0.01])
    assert Platt(1.0, 0.0).apply(scores_N).tolist() == pytest.approx(scores_N.tolist(), rel=1e-14)
    assert Temperature(1.0).apply(scores_N).tolist() == pytest.approx(scores_N.tolist(), rel=1e-14)
    assert Platt(-1.0, 0.0).apply(scores_N).tolist() == pytest.approx((1 - scores_N).tolist(), rel=1e-14)
    assert Platt(0.0, 0.0).apply(scores_N).tolist() == [0.5] * 4
    assert Temperature(2.0).apply([0.9]).tolist() == pytest.approx([0.75])  # odds of 9, their root is 3
    assert Platt(1.0, 0.0).apply([0.0, 1.0]).tolist() == [ABOVE_0, pytest.approx(BELOW_1, abs=2e-16)]
    assert len(Platt(1.0, 0.0).apply([])) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Platt(math.nan, 0.0), "slope and intercept must be finite, found nan and 0.0"),
        (lambda: Platt(1.0, math.inf), "must be finite"),
        (lambda: Temperature(0.0), "temperature must be finite and above 0, found 0.0"),
        (lambda: Temperature(math.nan), "temperature must be finite"),
        (lambda: Platt(1.0, 0.0).apply([0.5, 1.1]), r"probabilities must be in \[0, 1\], found 1.1"),
        (lambda: Platt(1.0, 0.0).apply([math.nan]), "found nan"),
        (lambda: reliability([0], [-0.1]), r"probabilities must be in \[0, 1\], found -0.1"),
        (lambda: reliability([0], [0.1], num_bins=0), "num_bins is 0, expected 1 or more"),
        (lambda: brier([2], [0.1]), "targets must be 0 or 1, found 2"),
        (lambda: slope_and_intercept([0, 1], [0.1]), "targets have shape"),
        (lambda: fit_temperature([0, 1], [0.1, 7.0]), "found 7.0"),
        (lambda: intercept_at_slope_1([0, 1], [0.1, math.nan]), "scores must be finite"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
