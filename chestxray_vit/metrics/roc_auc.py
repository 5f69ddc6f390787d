"""AUC-ROC per finding, its variance by patient, the macro, and the paired comparison of two runs.

Images of one patient are not independent: by image, a nominal 95 % interval covers the truth as little as 56 %
of the time on NIH's test list. So every variance here is the generalised DeLong of Obuchowski (Biometrics 1997),
which sums what each patient adds to the AUC; DeLong's own is the case of one image a patient.

Conventions are those of R's pROC: a higher score means the finding, a tie counts half, variances divide by n - 1,
the 95 % interval is Wald's, clipped to [0, 1]. What is undefined is NaN, never 0 and never 0.5.

Shapes: N images, L findings, P patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.errors import InputError
from chestxray_vit.labels import FINDINGS, label_names

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


def auc(targets_N: ArrayLike, scores_N: ArrayLike) -> float:
    """Return the share of (positive, negative) pairs that the scores order rightly; a tie counts half.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        The exact AUC in [0, 1]; NaN if there is no positive or no negative.

    Raises:
        ValueError: shapes differ, a score is not finite, or a target is neither 0 nor 1.
    """
    targets_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    positives, negatives = scores_N[targets_N], scores_N[~targets_N]
    pairs = len(positives) * len(negatives)
    negatives.sort()
    wins = sum(int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return wins / (2 * pairs) if pairs else math.nan


def delong(targets_N: ArrayLike, scores_N: ArrayLike) -> Estimate:
    """Return the AUC with DeLong's variance (Biometrics 1988), which takes the images as independent.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        The estimate; with one positive or one negative the AUC is defined and its interval is not.

    Raises:
        ValueError: as `auc`.
    """
    return obuchowski(targets_N, scores_N, np.arange(len(targets_N)))


def obuchowski(targets_N: ArrayLike, scores_N: ArrayLike, patients_N: ArrayLike) -> Estimate:
    """Return the AUC with its variance when images cluster in patients (Obuchowski, Biometrics 1997).

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.
        patients_N: integers or strings, equal for the images of one patient.

    Returns:
        The estimate; the interval is undefined if only one patient has positives, or only one has negatives.

    Raises:
        ValueError: as `auc`, or a patient is missing.
    """
    targets_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    estimate = macro(targets_N[:, None], scores_N[:, None], patients_N)
    return Estimate(estimate.auc, estimate.variance, estimate.low, estimate.high)


def macro(targets_NL: ArrayLike, scores_NL: ArrayLike, patients_N: Optional[ArrayLike] = None) -> Macro:
    """Return the mean AUC over the findings where it is defined, with its variance by patient.

    The findings share their patients, so their AUCs are correlated: the variance is the mean of the L x L
    covariance matrix, not that of independent findings.

    Args:
        targets_NL: 0 or 1.
        scores_NL: any finite score, higher = more likely.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        The macro estimate; its interval is undefined if that of a finding which counts is.

    Raises:
        ValueError: as `auc`, or a patient is missing.
    """
    targets_NL, scores_NL = checked(targets_NL, scores_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    targets_NL, scores_NL = _defined(targets_NL, scores_NL)
    return mean_estimate(*_influences(targets_NL, scores_NL, patients_N))


def mean_estimate(aucs: Sequence[float], influences: Sequence[np.ndarray]) -> Macro:
    """Return the mean of AUCs, with its variance and Wald's interval; NaN of none.

    Args:
        aucs: L values.
        influences: L arrays influence_4P, as `influence` returns them.
    """
    if not aucs:
        return Macro(math.nan, math.nan, math.nan, math.nan, 0)
    mean, spread = float(np.mean(aucs)), variance_of(np.mean(influences, axis=0))
    low, high = np.clip([mean - Z_95 * math.sqrt(spread), mean + Z_95 * math.sqrt(spread)], 0.0, 1.0)
    return Macro(mean, spread, float(low), float(high), len(aucs))


def compare(
    targets_N: ArrayLike, scores_a_N: ArrayLike, scores_b_N: ArrayLike, patients_N: Optional[ArrayLike] = None
) -> Difference:
    """Compare the AUCs of two runs on the same images, paired, by patient.

    Args:
        targets_N: 0 or 1.
        scores_a_N: any finite score, higher = more likely.
        scores_b_N: the other run's, in the same order.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        a minus b. z = 0 and p = 1 if the runs do not differ at all; z and p are NaN if they do while the variance
        is zero or undefined.

    Raises:
        ValueError: as `auc`, or a patient is missing.
    """
    targets_N, scores_a_N = checked(targets_N, scores_a_N, num_axes=1)
    _, scores_b_N = checked(targets_N, scores_b_N, num_axes=1)
    return compare_macro(targets_N[:, None], scores_a_N[:, None], scores_b_N[:, None], patients_N)


def compare_macro(
    targets_NL: ArrayLike, scores_a_NL: ArrayLike, scores_b_NL: ArrayLike, patients_N: Optional[ArrayLike] = None
) -> Difference:
    """Compare the macro AUCs of two runs on the same images, paired, by patient.

    Args:
        targets_NL: 0 or 1.
        scores_a_NL: any finite score, higher = more likely.
        scores_b_NL: the other run's, in the same order.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        As `compare`, over the findings where the AUC is defined.

    Raises:
        ValueError: as `auc`, or a patient is missing.
    """
    targets_NL, scores_a_NL = checked(targets_NL, scores_a_NL, num_axes=2)
    _, scores_b_NL = checked(targets_NL, scores_b_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    _, scores_a_NL = _defined(targets_NL, scores_a_NL)
    targets_NL, scores_b_NL = _defined(targets_NL, scores_b_NL)
    if targets_NL.shape[1] == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    aucs_a, influences_a = _influences(targets_NL, scores_a_NL, patients_N)
    aucs_b, influences_b = _influences(targets_NL, scores_b_NL, patients_N)
    difference = float(np.subtract(aucs_a, aucs_b).mean())
    variance = variance_of(np.mean(influences_a, axis=0) - np.mean(influences_b, axis=0))
    return Difference(0.0, 0.0, 0.0, 1.0) if difference == variance == 0 else normal_test(difference, variance)


def normal_test(difference: float, variance: float) -> Difference:
    """Return a difference with its z and two-sided normal p; both NaN if the variance is zero or undefined."""
    z = difference / math.sqrt(variance) if variance > 0 else math.nan
    return Difference(difference, variance, z, math.erfc(abs(z) / math.sqrt(2)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none ends below a smaller one's, or above 1.

    Args:
        p_values: in [0, 1], in any order; NaN for a test that was not made, which does not count.

    Returns:
        One for each, in the same order; NaN stays NaN.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    places = np.flatnonzero(~np.isnan(p_values))
    places = places[np.argsort(p_values[places])]
    ordered = p_values[places]
    if ((ordered < 0) | (ordered > 1)).any():
        raise ValueError(f"p-values must be in [0, 1], found {ordered[(ordered < 0) | (ordered > 1)][0]}")
    adjusted = np.full(p_values.shape, math.nan)
    adjusted[places] = np.minimum(np.maximum.accumulate(np.arange(len(ordered), 0, -1) * ordered), 1.0)
    return adjusted


def logit_interval(estimate: Estimate) -> Tuple[float, float]:
    """Return the 95 % interval that is Wald's on the logit scale (Pepe 2003, p. 107), so that none need be clipped.

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


def compute_metrics(eval_prediction: Any) -> Dict[str, float]:
    """Return the AUCs of an evaluation, for `transformers.Trainer(compute_metrics=...)`.

    The logits themselves are ranked, as float32: a half-precision sigmoid ties what differs, and a softmax across
    findings makes them compete.

    Args:
        eval_prediction: has `predictions` (logits, N x 14, or N x 15 with `No Finding`; or a tuple that begins with
            them) and `label_ids` (0 or 1, the same shape).

    Returns:
        `roc_auc` (mean over the findings where it is defined), `roc_auc_<Finding>` each, and `num_findings`;
        `roc_auc_No_Finding` too where there are 15 columns, outside the mean. NaN where undefined.

    Raises:
        InputError: a logit is not finite.
        ValueError: as `auc`, or there are neither 14 nor 15 columns.
    """
    predictions = eval_prediction.predictions
    logits_NL = finite_logits(predictions[0] if isinstance(predictions, tuple) else predictions)
    targets_NL, logits_NL = checked(eval_prediction.label_ids, logits_NL, num_axes=2)
    names = label_names(include_no_finding=logits_NL.shape[1] == len(FINDINGS) + 1)
    if logits_NL.shape[1] != len(names):
        raise ValueError(f"logits have {logits_NL.shape[1]} columns, expected {len(FINDINGS)} or {len(FINDINGS) + 1}")
    aucs = {name: auc(targets_NL[:, place], logits_NL[:, place]) for place, name in enumerate(names)}
    defined = [aucs[finding] for finding in FINDINGS if not math.isnan(aucs[finding])]
    metrics = {"roc_auc": sum(defined) / len(defined) if defined else math.nan}
    metrics.update({f"roc_auc_{name.replace(' ', '_')}": value for name, value in aucs.items()})
    metrics["num_findings"] = len(defined)
    return metrics


def finite_logits(logits: ArrayLike) -> np.ndarray:
    """Return logits as float32.

    Raises:
        InputError: a logit is NaN or infinite, or too large for float32.
    """
    with np.errstate(over="ignore"):
        logits = np.asarray(logits).astype(np.float32)
    wrong = int((~np.isfinite(logits)).sum())
    if wrong:
        raise InputError(
            f"{wrong:,} of {logits.size:,} logits are NaN or infinite: training diverged. "
            "Lower --learning_rate and train again, or evaluate an earlier checkpoint."
        )
    return logits


def checked(targets: ArrayLike, scores: ArrayLike, num_axes: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return targets as booleans and scores as float64, or raise ValueError."""
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if targets.shape != scores.shape or targets.ndim != num_axes:
        raise ValueError(f"targets have shape {targets.shape}, scores {scores.shape}; expected the same, {num_axes}-D")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, found {scores[~np.isfinite(scores)][0]}")
    positive = targets == 1
    wrong = ~(positive | (targets == 0))
    if wrong.any():
        raise ValueError(f"targets must be 0 or 1, found {targets[wrong][0]}")
    return positive, scores


def patient_codes(patients_N: Optional[ArrayLike], num_images: int) -> np.ndarray:
    """Return patients as codes 0 to P - 1."""
    if patients_N is None:
        return np.arange(num_images)
    patients_N = np.asarray(patients_N)
    if patients_N.shape != (num_images,):
        raise ValueError(f"patients have shape {patients_N.shape}, expected one for each of {num_images} images")
    may_lack = patients_N.dtype.kind not in "iuUS"
    if may_lack and any(patient is None or patient != patient for patient in patients_N.tolist()):  # NaN is not NaN
        raise ValueError("a patient is missing (NaN or None)")
    return np.unique(patients_N, return_inverse=True)[1]


def _defined(targets_NL: np.ndarray, scores_NL: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Keep the findings that have positives and negatives."""
    defined_L = targets_NL.any(axis=0) & ~targets_NL.all(axis=0)
    return targets_NL[:, defined_L], scores_NL[:, defined_L]


def _wins_and_losses(targets_N: np.ndarray, scores_N: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return of each positive twice the negatives below it, of each negative twice the positives above; ties once.

    Args: targets_N: booleans; scores_N: in ascending order.
    """
    starts = np.flatnonzero(np.append(True, scores_N[1:] != scores_N[:-1]))  # of runs of equal scores
    ends = np.append(starts[1:], len(scores_N))
    positives_before = np.append(0, np.cumsum(targets_N))
    positives_N = np.repeat(positives_before[starts] + positives_before[ends], ends - starts)
    images_N = np.repeat(starts + ends, ends - starts)
    return (images_N - positives_N)[targets_N], 2 * positives_before[-1] - positives_N[~targets_N]


def _influences(
    targets_NL: np.ndarray, scores_NL: np.ndarray, patients_N: np.ndarray
) -> Tuple[List[float], List[np.ndarray]]:
    num_patients = int(patients_N.max(initial=-1)) + 1
    pairs = [influence(*columns, patients_N, num_patients) for columns in zip(targets_NL.T, scores_NL.T)]
    return [value for value, _ in pairs], [influence_4P for _, influence_4P in pairs]


def influence(
    targets_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray, num_patients: int
) -> Tuple[float, np.ndarray]:
    """Return the AUC of one finding, and what each patient adds to its deviation.

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
    if (scores_N[1:] < scores_N[:-1]).any():
        order_N = np.argsort(scores_N)
        targets_N, scores_N, patients_N = targets_N[order_N], scores_N[order_N], patients_N[order_N]
    wins, losses = _wins_and_losses(targets_N, scores_N)
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


def variance_of(influence_4P: np.ndarray) -> float:
    """Return the variance of the AUC, or mean or difference of AUCs, that has this influence.

    It is the sum over patients of f10 a^2 + f01 b^2 + 2 f a b: of one AUC, Obuchowski's S10 / M + S01 / N +
    2 S11 / (M N); of the mean of L, the mean of their L x L covariance matrix.
    """
    positive_P, negative_P, all_positive_P, all_negative_P = influence_4P
    total = float((positive_P**2 + negative_P**2 + 2 * all_positive_P * all_negative_P).sum())
    return max(total, 0.0)


def num_different(patients: np.ndarray) -> int:
    """Return how many patients there are among codes."""
    return int(np.count_nonzero(np.bincount(patients)))
