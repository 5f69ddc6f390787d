"""Variances, intervals and tests by patient, of AUCs and of rates.

Images of one patient are not independent, so what each patient adds is summed: Obuchowski's variance for AUCs (its
influence form), Rao and Scott's effective number of images for rates. Intervals are 95 %.

Shapes: N images, L findings, P patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.metrics.ranking import Ranking, num_different, rank

Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """An AUC with its variance and 95 % interval; NaN where undefined."""

    auc: float
    variance: float
    low: float
    high: float

    @property
    def informative(self) -> bool:
        """False if the interval has no width (perfect or constant scores) or is undefined."""
        return self.variance > 0


@dataclass(frozen=True)
class Macro(Estimate):
    """The mean AUC over the findings where it is defined, and over how many that is."""

    num_findings: int


@dataclass(frozen=True)
class Difference:
    """AUC of a minus AUC of b on the same images, with its variance and two-sided normal p; NaN where undefined."""

    difference: float
    variance: float
    z: float
    p: float


def influence(
    targets_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray, num_patients: int
) -> Tuple[float, np.ndarray]:
    """Return the AUC of one finding, and what each patient adds to its deviation.

    >>> auc, influence_4P = influence(np.array([False, True, True]), np.array([0.1, 0.2, 0.3]), np.arange(3), 3)
    >>> auc, bool(np.isnan(influence_4P).all())  # only one patient has negatives
    (1.0, True)

    That is linear: a mean or a difference of AUCs has the mean or the difference of their influences, on the same
    images or on others of the same patients, and `variance_of` it counts every covariance. Of a patient, let
    a = (sum of V10 - m * AUC) / M and b = (sum of V01 - n * AUC) / N in Obuchowski's notation, and f = n / (n - 1)
    of the n patients with positives (f10), with negatives (f01), and of all who have an image here: the rows are
    sqrt(f10) a, sqrt(f01) b, sqrt(f) a and sqrt(f) b. The sums are of whole numbers, so that a variance which is
    zero comes out as zero.

    Args:
        targets_N: booleans, of both classes.
        scores_N: any finite score, higher = more likely; ascending ones are not sorted again.
        patients_N: codes from 0 to P - 1. A patient without an image adds nothing.
        num_patients: P.

    Returns:
        The AUC and influence_4P, all NaN if only one patient has positives, or only one has negatives.
    """
    ranking = rank(targets_N, scores_N)
    targets_N, patients_N = ranking.targets_N, patients_N[ranking.order_N]
    wins, losses = _wins_and_losses(ranking)
    double_pairs = 2 * len(wins) * len(losses)
    total = int(wins.sum())
    sums_2P, num_of_class = np.empty((2, num_patients)), []
    for values, of_class_N, sums_P in zip((wins, losses), (targets_N, ~targets_N), sums_2P):
        patients = patients_N[of_class_N]
        deviations = len(values) * values - total
        sums_P[:] = np.bincount(patients, deviations, num_patients) / (len(values) * double_pairs)
        num_of_class.append(num_different(patients))
    if min(num_of_class) < 2:
        return total / double_pairs, np.full((4, num_patients), math.nan)
    counts_4 = np.array([*num_of_class, *[num_different(patients_N)] * 2])
    return total / double_pairs, np.tile(sums_2P, (2, 1)) * np.sqrt(counts_4 / (counts_4 - 1))[:, None]


def _wins_and_losses(ranking: Ranking) -> Tuple[np.ndarray, np.ndarray]:
    """Return of each positive twice the negatives below it, of each negative twice the positives above; ties once."""
    targets_N, starts = ranking.targets_N, ranking.starts_S
    ends = np.append(starts[1:], len(targets_N))
    positives_before = np.append(0, np.cumsum(targets_N))
    positives_N = np.repeat(positives_before[starts] + positives_before[ends], ends - starts)
    images_N = np.repeat(starts + ends, ends - starts)
    return (images_N - positives_N)[targets_N], 2 * positives_before[-1] - positives_N[~targets_N]


def variance_of(influence_4P: np.ndarray) -> float:
    """Return the variance of the AUC, or mean or difference of AUCs, that has this influence.

    >>> targets, scores = np.array([False, True, False, True]), np.array([0.1, 0.4, 0.6, 0.8])
    >>> round(variance_of(influence(targets, scores, np.arange(4), 4)[1]), 4)  # DeLong's: one image a patient
    0.125

    It is the sum over patients of f10 a^2 + f01 b^2 + 2 f a b: of one AUC, Obuchowski's S10 / M + S01 / N +
    2 S11 / (M N); of the mean of L, the mean of their L x L covariance matrix.
    """
    positive_P, negative_P, all_positive_P, all_negative_P = influence_4P
    total = float((positive_P**2 + negative_P**2 + 2 * all_positive_P * all_negative_P).sum())
    return max(total, 0.0)


def mean_estimate(aucs: Sequence[float], influences: Sequence[np.ndarray]) -> Macro:
    """Return the mean of AUCs, with its variance and Wald's interval; NaN of none.

    >>> targets, scores = np.array([False, True, False, True]), np.array([0.1, 0.4, 0.6, 0.8])
    >>> auc, influence_4P = influence(targets, scores, np.arange(4), 4)
    >>> mean = mean_estimate([auc, auc], [influence_4P, influence_4P])  # of a finding and its copy: the finding's
    >>> mean.auc, round(mean.variance, 4), mean.num_findings
    (0.75, 0.125, 2)

    Args:
        aucs: L values.
        influences: L arrays influence_4P, as `influence` returns them.
    """
    if not aucs:
        return Macro(math.nan, math.nan, math.nan, math.nan, 0)
    mean, spread = float(np.mean(aucs)), variance_of(np.mean(influences, axis=0))
    low, high = np.clip([mean - Z_95 * math.sqrt(spread), mean + Z_95 * math.sqrt(spread)], 0.0, 1.0)
    return Macro(mean, spread, float(low), float(high), len(aucs))


def normal_test(difference: float, variance: float) -> Difference:
    """Return a difference with its z and two-sided normal p; both NaN if the variance is zero or undefined.

    >>> round(normal_test(0.05, 0.0004).p, 4)
    0.0124
    """
    z = difference / math.sqrt(variance) if variance > 0 else math.nan
    return Difference(difference, variance, z, math.erfc(abs(z) / math.sqrt(2)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]

    The smallest of m is multiplied by m, the next by m - 1 and so on; none ends below a smaller one's, or above 1.

    Args:
        p_values: in [0, 1], in any order; NaN for a test that was not made, which does not count.

    Returns:
        One for each, in the same order; NaN stays NaN.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    indices = np.flatnonzero(~np.isnan(p_values))
    indices = indices[np.argsort(p_values[indices])]
    ordered = p_values[indices]
    if ((ordered < 0) | (ordered > 1)).any():
        raise ValueError(f"p-values must be in [0, 1], found {ordered[(ordered < 0) | (ordered > 1)][0]}")
    adjusted = np.full(p_values.shape, math.nan)
    adjusted[indices] = np.minimum(np.maximum.accumulate(np.arange(len(ordered), 0, -1) * ordered), 1.0)
    return adjusted


def logit_interval(estimate: Estimate) -> Tuple[float, float]:
    """Return the 95 % interval that is Wald's on the logit scale (Pepe 2003, p. 107), so that none need be clipped.

    >>> low, high = logit_interval(Estimate(0.9, 0.0025, 0.802, 0.998))
    >>> round(low, 4), round(high, 4)
    (0.7518, 0.9639)

    The logit of the AUC has variance / (AUC (1 - AUC))^2, by the delta method.

    Returns:
        low, high; NaN if the AUC is 0, 1 or undefined, or its variance is undefined.
    """
    if not (0 < estimate.auc < 1 and estimate.variance >= 0):
        return math.nan, math.nan
    logit = math.log(estimate.auc) - math.log1p(-estimate.auc)
    half = Z_95 * math.sqrt(estimate.variance) / (estimate.auc * (1 - estimate.auc))
    low, high = np.exp(-np.logaddexp(0.0, [half - logit, -half - logit]))  # the sigmoid; never overflows
    return float(low), float(high)


def wilson(count: float, total: int) -> Tuple[float, float]:
    """Return the 95 % interval of a share of independent images (Wilson, JASA 1927); NaN where total is 0.

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)

    Args:
        count: of images with what the rate counts.
        total: of images, 0 or more.

    Raises:
        ValueError: not 0 <= count <= total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count is {count}, expected from 0 to {total}")
    return wilson_interval(count / total, total) if total else (math.nan, math.nan)


def wilson_interval(share: float, number: float) -> Tuple[float, float]:
    """Return Wilson's interval of a share of an effective number of images, above 0.

    >>> wilson_interval(0.8, 10) == wilson(8, 10)
    True
    """
    half = Z_95 * math.sqrt(share * (1 - share) / number + Z_95**2 / (4 * number**2))
    spread = Z_95**2 / (2 * number) + half
    # The roots of Wilson's quadratic, each without a difference of near numbers: exactly 0 and 1 at the ends.
    return share**2 / (share + spread), 1 - (1 - share) ** 2 / (1 - share + spread)


def effective_number(counts_P: np.ndarray, others_P: np.ndarray) -> float:
    """Return how many independent images would carry as much information: total / max(1, design effect).

    >>> effective_number(np.array([2, 0, 2]), np.array([0, 2, 0]))  # two images of each patient, always alike
    3

    The design effect (Rao and Scott, Biometrics 1992) is the variance of p = count / total as a ratio of sums over
    m patients, m / (m - 1) * sum (c_i - p n_i)^2 / total^2, over that of independent images. The latter,
    p (1 - p) / total, takes the factor m / (m - 1) too: with one image a patient the design effect is then exactly 1,
    and copies of every image change nothing. So that the bound of 1 does not take copies for images either, a divisor
    which all counts share is first taken out. With fewer than 30 patients the design effect is a rough guess; where
    there is none, as p is 0 or 1 or m is 1, the effective number is m, as if all images of a patient were alike.

    Args:
        counts_P: images of each patient that the rate counts.
        others_P: the patient's other images.
    """
    totals_P = counts_P + others_P
    count, total, num_patients = int(counts_P.sum()), int(totals_P.sum()), int(np.count_nonzero(totals_P))
    if count in (0, total) or num_patients == 1:
        return num_patients
    # Python's integers, since these pass 64 bits: sums of squares times total^2, by patient and by image
    squares, products, sizes = int(counts_P @ counts_P), int(counts_P @ totals_P), int(totals_P @ totals_P)
    by_patient = total**2 * squares - 2 * total * count * products + count**2 * sizes
    by_image = total * count * (total - count)
    most = total // int(np.gcd.reduce(np.append(counts_P, totals_P)))
    return most if by_patient * most <= by_image * total else by_image * total / by_patient
