"""Whether a score of 0.3 means three in ten: reliability, its errors, and what would correct them.

An AUC only ranks: scores may rank well and still be far too high, as they are after training with `pos_weight`.
Recalibration is fitted on validation predictions and applied to others; fitted on the images that it is judged by,
it would flatter. It keeps the ranking, so it changes no AUC.

The fits work on float64 logits. A score of exactly 0 or 1, which has none, gets that of the next float inside,
-744.4 or 36.7. What is undefined is NaN, None in a table.

Shapes: N images, D distinct scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.metrics.probability import logit, maximum_likelihood, sigmoid
from chestxray_vit.metrics.ranking import checked

NUM_BINS = 10


@dataclass(frozen=True)
class Bin:
    """The images of one finding whose score is in [low, high), or [low, high] in the last bin.

    Attributes:
        mean_score: of these images; NaN if there is none.
    """

    low: float
    high: float
    num_images: int
    num_positives: int
    mean_score: float

    @property
    def prevalence(self) -> float:
        """The share of positives, which `mean_score` should equal; NaN if there is no image."""
        return self.num_positives / self.num_images if self.num_images else math.nan


@dataclass(frozen=True)
class Platt:
    """Recalibration with two parameters: logit P = intercept + slope * logit(score).

    The form is Platt's (Advances in Large Margin Classifiers 1999). His targets, drawn in from 0 and 1, are not
    used: the fit is plain maximum likelihood, so that on the images it was fitted on `slope_and_intercept` gives
    1 and 0.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        """Refuse what is no map."""
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError(f"slope and intercept must be finite, found {self.slope} and {self.intercept}")

    def apply(self, probabilities_N: ArrayLike) -> np.ndarray:
        """Return the recalibrated probabilities.

        With slope > 0 no two images change places; scores that differ in their last digits, above all near 0 or 1,
        may become equal. With slope < 0 the ranking is turned over, with slope = 0 all are equal.

        Args:
            probabilities_N: in [0, 1].

        Returns:
            float64 in [0, 1].

        Raises:
            ValueError: a probability is not in [0, 1].
        """
        probabilities_N = _checked_probabilities(probabilities_N)
        distinct_D, index_N = np.unique(probabilities_N, return_inverse=True)
        mapped_D = sigmoid(self.slope * logit(distinct_D) + self.intercept)
        # Logarithms are rounded, so that neighbours could change places.
        keep_order = np.maximum if self.slope > 0 else np.minimum
        return keep_order.accumulate(mapped_D)[index_N]


@dataclass(frozen=True)
class Temperature:
    """Recalibration with one parameter: P = sigmoid(logit(score) / temperature) (Guo et al., ICML 2017)."""

    temperature: float

    def __post_init__(self) -> None:
        """Refuse what is no map."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, found {self.temperature}")

    def apply(self, probabilities_N: ArrayLike) -> np.ndarray:
        """Return the recalibrated probabilities, in the same order, as `Platt.apply` of slope 1 / temperature."""
        return Platt(1 / self.temperature, 0.0).apply(probabilities_N)


def reliability(targets_N: ArrayLike, probabilities_N: ArrayLike, num_bins: int = NUM_BINS) -> List[Bin]:
    """Return bins of equal width with how many images and positives each holds.

    >>> reliability([0, 1, 1], [0.1, 0.3, 0.9], num_bins=2)[0]
    Bin(low=0.0, high=0.5, num_images=2, num_positives=1, mean_score=0.2)

    The edges are the floats k / num_bins, so a score of 0.3 is in [0.3, 0.4).

    Args:
        targets_N: 0 or 1.
        probabilities_N: in [0, 1].
        num_bins: 1 or more.

    Returns:
        All bins from 0 to 1, the empty ones too.

    Raises:
        ValueError: shapes differ, a value is out of range, or there are no bins.
    """
    targets_N, probabilities_N = _checked(targets_N, probabilities_N)
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected 1 or more")
    edges = np.arange(num_bins + 1) / num_bins  # not linspace, whose steps add up to 0.30000000000000004
    index_N = np.minimum(np.searchsorted(edges, probabilities_N, side="right"), num_bins) - 1
    images, positives = np.bincount(index_N, minlength=num_bins), np.bincount(index_N[targets_N], minlength=num_bins)
    sums = np.bincount(index_N, weights=probabilities_N, minlength=num_bins)
    return [
        Bin(float(low), float(high), int(count), int(positive), float(total / count) if count else math.nan)
        for low, high, count, positive, total in zip(edges, edges[1:], images, positives, sums)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean over images of |share of positives - mean score| of their bin (Naeini et al., AAAI 2015).

    >>> round(expected_calibration_error(reliability([0, 1, 1], [0.1, 0.3, 0.9], num_bins=2)), 4)
    0.2333

    It depends on the bins: values of other bins are not comparable.

    Args:
        bins: of `reliability`.

    Returns:
        In [0, 1]; NaN if there is no image.
    """
    filled = [bin for bin in bins if bin.num_images]
    errors = [bin.num_images * abs(bin.prevalence - bin.mean_score) for bin in filled]
    return sum(errors) / sum(bin.num_images for bin in filled) if filled else math.nan


def brier(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float:
    """Return the mean squared difference of probability and target (Brier, Monthly Weather Review 1950).

    >>> round(brier([0, 1], [0.2, 0.9]), 4)
    0.025

    Args:
        targets_N: 0 or 1.
        probabilities_N: in [0, 1].

    Returns:
        In [0, 1], lower = better; NaN if there is no image. That of a constant score at the prevalence is
        prevalence * (1 - prevalence), so it is not comparable between findings.

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    targets_N, probabilities_N = _checked(targets_N, probabilities_N)
    return float(np.mean((probabilities_N - targets_N) ** 2)) if len(targets_N) else math.nan


def slope_and_intercept(targets_N: ArrayLike, probabilities_N: ArrayLike) -> Tuple[float, float]:
    """Return slope and intercept of logit P = intercept + slope * logit(score) (Cox, Biometrika 1958).

    >>> slope, intercept = slope_and_intercept([0, 0, 1, 0, 1, 1], [0.1, 0.3, 0.4, 0.6, 0.7, 0.8])
    >>> round(slope, 4), round(intercept, 4)
    (1.6175, 0.0771)

    By maximum likelihood. Slope 1 and intercept 0 are right; a slope below 1 says that scores are too far apart.

    Args:
        targets_N: 0 or 1.
        probabilities_N: in [0, 1].

    Returns:
        slope, intercept; both NaN where the likelihood has no finite maximum: one class only, or no score of one
        class is inside those of the other (constant scores among them).

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    targets_N, probabilities_N = _checked(targets_N, probabilities_N)
    logits_N = logit(probabilities_N)
    if _one_class(targets_N) or _separated(logits_N[targets_N], logits_N[~targets_N]):
        return math.nan, math.nan
    mean, spread = logits_N.mean(), logits_N.std()
    columns_NK = np.stack([np.ones(len(logits_N)), (logits_N - mean) / spread], axis=1)
    first, second = maximum_likelihood(targets_N, columns_NK, np.full(len(logits_N), _prevalence_logit(targets_N)))
    return float(second / spread), float(_prevalence_logit(targets_N) + first - second * mean / spread)


def intercept_at_slope_1(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float:
    """Return the intercept of logit P = intercept + logit(score): calibration in the large (Cox, Biometrika 1958).

    >>> round(intercept_at_slope_1([0, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]), 4)
    1.3863

    Args:
        targets_N: 0 or 1.
        probabilities_N: in [0, 1].

    Returns:
        The intercept, 0 where mean score and prevalence agree, below 0 where scores are too high; NaN if there is
        one class only.

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    targets_N, probabilities_N = _checked(targets_N, probabilities_N)
    if _one_class(targets_N):
        return math.nan
    logits_N = logit(probabilities_N)
    start = _prevalence_logit(targets_N) - float(np.median(logits_N))
    return start + float(maximum_likelihood(targets_N, np.ones((len(logits_N), 1)), logits_N + start)[0])


def fit_platt(targets_N: ArrayLike, probabilities_N: ArrayLike) -> Optional[Platt]:
    """Fit on validation predictions; None where `slope_and_intercept` is undefined. The slope may be negative.

    >>> round(fit_platt([0, 0, 1, 0, 1, 1], [0.1, 0.3, 0.4, 0.6, 0.7, 0.8]).slope, 4)
    1.6175
    """
    slope, intercept = slope_and_intercept(targets_N, probabilities_N)
    return None if math.isnan(slope) else Platt(slope, intercept)


def fit_temperature(targets_N: ArrayLike, probabilities_N: ArrayLike) -> Optional[Temperature]:
    """Fit on validation predictions, by maximum likelihood.

    >>> round(fit_temperature([0, 0, 1, 0, 1, 1], [0.1, 0.3, 0.4, 0.6, 0.7, 0.8]).temperature, 4)
    0.616

    Args:
        targets_N: 0 or 1.
        probabilities_N: in [0, 1].

    Returns:
        None if there is one class only, or the likelihood has no maximum at a finite temperature above 0: every
        score is on its target's side of 0.5, or together they are no better than 0.5 is.

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    targets_N, probabilities_N = _checked(targets_N, probabilities_N)
    logits_N = logit(probabilities_N)
    right_N = np.where(targets_N, logits_N, -logits_N)  # above 0 on the target's side
    # The likelihood rises from 1 / temperature = 0 on if the sum is above 0, and for ever if nothing is wrong.
    if _one_class(targets_N) or right_N.min() >= 0 or math.fsum(right_N) <= 0:
        return None
    spread = math.sqrt(np.mean(logits_N**2))
    (inverse,) = maximum_likelihood(targets_N, logits_N[:, None] / spread, np.zeros(len(logits_N))) / spread
    return Temperature(float(1 / inverse)) if inverse > 0 else None


def _checked(targets_N: ArrayLike, probabilities_N: ArrayLike) -> Tuple[np.ndarray, np.ndarray]:
    targets_N, probabilities_N = checked(targets_N, probabilities_N, num_axes=1)
    return targets_N, _checked_probabilities(probabilities_N)


def _checked_probabilities(probabilities_N: ArrayLike) -> np.ndarray:
    probabilities_N = np.asarray(probabilities_N, dtype=np.float64)
    wrong_N = ~((probabilities_N >= 0) & (probabilities_N <= 1))
    if wrong_N.any():
        raise ValueError(f"probabilities must be in [0, 1], found {probabilities_N[wrong_N][0]}")
    return probabilities_N


def _one_class(targets_N: np.ndarray) -> bool:
    return bool(targets_N.all() or not targets_N.any())


def _separated(positives: np.ndarray, negatives: np.ndarray) -> bool:
    """Tell whether some cut has each class on its own side, images on the cut aside."""
    return bool(negatives.max() <= positives.min() or positives.max() <= negatives.min())


def _prevalence_logit(targets_N: np.ndarray) -> float:
    num_positives = int(targets_N.sum())
    return math.log(num_positives) - math.log(len(targets_N) - num_positives)
