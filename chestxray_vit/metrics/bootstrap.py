"""Bootstrap of AUCs by patient: an interval that assumes no normal distribution, to hold beside Obuchowski's.

Patients are drawn with replacement and bring all their images (the cluster bootstrap of Field and Welsh, JRSS B 2007):
drawing images would take those of one patient as independent. An image weighs as often as its patient was drawn, and
a replicate's AUC is that of the rows repeated so often: a pair weighs the product, a tie counts half. Scores are
therefore ranked once, not once a replicate, and as weights are whole numbers every sum is exact.

Replicate r draws its patients by the r-th row of `numpy.random.default_rng(seed).integers(P, size=(R, P))`, numbered
as `numpy.unique` sorts them: the order of the images changes no number.

Shapes: N images, L findings, P patients, R replicates, B replicates at a time, G distinct scores of positives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.metrics.intervals import Estimate, Macro
from chestxray_vit.metrics.ranking import checked, patient_codes
from chestxray_vit.metrics.roc_auc import roc_auc

NUM_CELLS = 2**22  # of a table of replicates by images: about 100 MB in all
MOST_AT_ONCE = 100  # replicates: their counts stay in the processor's cache; a power of two would make rows collide


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """The AUCs of all images and of each replicate; NaN where a class is absent.

    Attributes:
        aucs_L: the AUCs of the images as they are.
        aucs_RL: the AUCs of the replicates.
        num_patients_L: patients who have positives or patients who have negatives, whichever are fewer.
    """

    aucs_L: np.ndarray
    aucs_RL: np.ndarray
    num_patients_L: np.ndarray


@dataclass(frozen=True)
class Percentile(Estimate):
    """An AUC with the variance and the 95 % percentile interval of its replicates; NaN where undefined.

    Attributes:
        num_undefined: replicates that lack a class; variance and interval are of the others.
    """

    num_undefined: int


@dataclass(frozen=True)
class MacroPercentile(Macro):
    """The mean AUC over the findings where it is defined, with the variance and interval of its replicates.

    Attributes:
        num_undefined: replicates where no finding is defined; variance and interval are of the others.
        num_incomplete: replicates where one or more of the `num_findings` are undefined, these included.
    """

    num_undefined: int
    num_incomplete: int


class _Finding(NamedTuple):
    """What turns the patients' counts into the wins of a finding's positives.

    A positive wins over the negatives below it and over those not above it, which counts a tie half of two. Row g
    of `rises` holds by how much that number grows from the positives' score g - 1 to g: by 1 for each negative
    that is now not above, by 1 for each that is now below.
    """

    rises_GP: Any  # scipy.sparse.csr_matrix
    positives_GP: Any  # the same; how many positives have score g


class _Ranked(NamedTuple):
    """All that does not depend on the draw."""

    findings: Dict[int, _Finding]  # by column; only those that have both classes
    positives_LP: np.ndarray  # images by patient; float64, so that BLAS multiplies them
    negatives_LP: np.ndarray
    dtype: Any


def bootstrap(
    targets_NL: ArrayLike,
    scores_NL: ArrayLike,
    patients_N: Optional[ArrayLike],
    replicates: int = 1000,
    seed: int = 1337,
) -> Bootstrap:
    """Return the AUCs of replicates in which patients are drawn with replacement.

    >>> targets, scores = [[0], [1], [0], [1], [0], [1]], [[0.1], [0.4], [0.6], [0.8], [0.2], [0.3]]
    >>> result = bootstrap(targets, scores, ["a", "a", "b", "b", "c", "c"], replicates=200)
    >>> result.aucs_RL.shape, round(float(result.aucs_L[0]), 4)
    ((200, 1), 0.7778)

    Args:
        targets_NL: 0 or 1.
        scores_NL: any finite score, higher = more likely.
        patients_N: integers or strings; None takes each image as a patient of its own.
        replicates: how many, 1 or more.
        seed: the same gives the same draws; the first replicates do not depend on how many there are.

    Returns:
        The exact AUCs; NaN where a replicate lacks a class.

    Raises:
        ValueError: as `macro`, or no replicates.
    """
    targets_NL, scores_NL = checked(targets_NL, scores_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, expected 1 or more")
    ranked = _rank(targets_NL, scores_NL, patients_N)
    aucs_LR = np.full((targets_NL.shape[1], replicates), math.nan)
    if ranked.findings:
        at_once = max(1, min(MOST_AT_ONCE, NUM_CELLS // len(patients_N)))
        draws = _draw(ranked.positives_LP.shape[1], replicates, seed, at_once)
        aucs_LR = np.concatenate([_weighted_aucs(ranked, counts_PB) for counts_PB in draws], axis=1)
    aucs_L = np.array([roc_auc(*columns) for columns in zip(targets_NL.T, scores_NL.T)], dtype=np.float64)
    num_positive_L, num_negative_L = (ranked.positives_LP > 0).sum(axis=1), (ranked.negatives_LP > 0).sum(axis=1)
    return Bootstrap(aucs_L, aucs_LR.T, np.minimum(num_positive_L, num_negative_L))


def finding_intervals(result: Bootstrap) -> List[Percentile]:
    """Return each finding's AUC with the variance and 95 % percentile interval of its replicates.

    >>> targets, scores = [[0], [1], [0], [1], [0], [1]], [[0.1], [0.4], [0.6], [0.8], [0.2], [0.3]]
    >>> result = bootstrap(targets, scores, ["a", "a", "b", "b", "c", "c"], replicates=200)
    >>> interval = finding_intervals(result)[0]
    >>> round(interval.auc, 4), interval.low <= interval.auc <= interval.high
    (0.7778, True)

    The limits are the 2.5 and 97.5 % quantiles, linear between ranks, of the replicates that have both classes
    (Efron and Tibshirani 1993, chapter 13); the variance divides by their number less one.

    Args:
        result: of `bootstrap`.

    Returns:
        One for each finding. As with `obuchowski` the interval is undefined if only one patient has positives,
        or only one has negatives.
    """
    estimates = []
    for value, aucs_R, num_patients in zip(result.aucs_L, result.aucs_RL.T, result.num_patients_L):
        defined = aucs_R[~np.isnan(aucs_R)]
        spread = _spread(defined, informed=num_patients > 1)
        estimates.append(Percentile(float(value), *spread, len(aucs_R) - len(defined)))
    return estimates


def macro_interval(result: Bootstrap) -> MacroPercentile:
    """Return the mean AUC with the variance and 95 % percentile interval of its replicates.

    >>> targets, scores = [[0], [1], [0], [1], [0], [1]], [[0.1], [0.4], [0.6], [0.8], [0.2], [0.3]]
    >>> result = bootstrap(targets, scores, ["a", "a", "b", "b", "c", "c"], replicates=200)
    >>> macro_interval(result).num_findings
    1

    A replicate's macro is the mean over the findings that are defined in it, so one that drew no patient with a
    rare finding averages over fewer: how many did is reported.

    Args:
        result: of `bootstrap`.

    Returns:
        The macro estimate; its interval is undefined if that of a finding which counts is, as with `macro`.
    """
    counts_L = ~np.isnan(result.aucs_L)
    num_findings, num_replicates = int(counts_L.sum()), len(result.aucs_RL)
    if num_findings == 0:
        return MacroPercentile(math.nan, math.nan, math.nan, math.nan, 0, num_replicates, num_replicates)
    num_defined_R = (~np.isnan(result.aucs_RL)).sum(axis=1)
    some_R = num_defined_R > 0
    macros = np.nansum(result.aucs_RL[some_R], axis=1) / num_defined_R[some_R]
    spread = _spread(macros, informed=result.num_patients_L[counts_L].min() > 1)
    num_missing = int((~some_R).sum()), int((num_defined_R < num_findings).sum())
    return MacroPercentile(float(result.aucs_L[counts_L].mean()), *spread, num_findings, *num_missing)


def _spread(values: np.ndarray, informed: bool) -> Tuple[float, float, float]:
    """Return variance, 2.5 and 97.5 % quantile; NaN of fewer than two values, or if not informed."""
    if not informed or len(values) < 2:
        return math.nan, math.nan, math.nan
    # rounding in the mean must not give equal values a variance
    variance = 0.0 if values.min() == values.max() else float(values.var(ddof=1))
    low, high = np.quantile(values, [0.025, 0.975])
    return variance, float(low), float(high)


def _draw(num_patients: int, replicates: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """Yield counts_PB, how often each patient is drawn in the next replicates; their sizes do not change the draws."""
    random = np.random.default_rng(seed)
    for start in range(0, replicates, at_once):
        number = min(at_once, replicates - start)
        cells_BP = random.integers(num_patients, size=(number, num_patients), dtype=np.int64)
        cells_BP *= number
        cells_BP += np.arange(number)[:, None]
        yield np.bincount(cells_BP.ravel(), minlength=num_patients * number).reshape(num_patients, number)


def _rank(targets_NL: np.ndarray, scores_NL: np.ndarray, patients_N: np.ndarray) -> _Ranked:
    """Return what does not depend on the draw; patients are codes 0 to P - 1."""
    num_images_P = np.bincount(patients_N)
    num_patients = len(num_images_P)
    positives = [np.bincount(patients_N[column_N], minlength=num_patients) for column_N in targets_NL.T]
    positives_LP = np.array(positives, dtype=np.float64).reshape(targets_NL.shape[1], num_patients)
    most_wins = 2 * num_patients * int(num_images_P.max(initial=0))  # of one positive, had one patient all draws
    dtype = np.int32 if most_wins < 2**31 else np.int64
    findings = {
        index: _rank_finding(is_positive_N, scores_N, patients_N, num_patients, dtype)
        for index, (is_positive_N, scores_N) in enumerate(zip(targets_NL.T, scores_NL.T))
        if is_positive_N.any() and not is_positive_N.all()
    }
    return _Ranked(findings, positives_LP, num_images_P - positives_LP, dtype)


def _rank_finding(
    is_positive_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray, num_patients: int, dtype: Any
) -> _Finding:
    """Return the finding's two sparse tables, of at most 2 N cells, in O(N log N)."""
    from scipy.sparse import csr_matrix  # here, since it takes 0.1 s to import

    def table(rows: np.ndarray, patients: np.ndarray) -> csr_matrix:
        ones = np.ones(len(rows), dtype)
        return csr_matrix((ones, (rows, patients)), shape=(len(scores_G), num_patients))  # sums what falls together

    scores_G, rows_of_positives = np.unique(scores_N[is_positive_N], return_inverse=True)
    order = np.argsort(scores_N[~is_positive_N])  # a search for sorted values stays in the cache
    negatives, patients = scores_N[~is_positive_N][order], patients_N[~is_positive_N][order]
    rows = np.concatenate([np.searchsorted(scores_G, negatives, side) for side in ("left", "right")])
    reached = rows < len(scores_G)
    rises_GP = table(rows[reached], np.tile(patients, 2)[reached])
    return _Finding(rises_GP, table(rows_of_positives, patients_N[is_positive_N]))


def _weighted_aucs(ranked: _Ranked, counts_PB: np.ndarray) -> np.ndarray:
    """Return aucs_LB, where an image weighs its patient's count; NaN where a class has no weight."""
    weights_PB = counts_PB.astype(np.float64)
    pairs_LB = (ranked.positives_LP @ weights_PB) * (ranked.negatives_LP @ weights_PB)
    counts_PB = np.ascontiguousarray(counts_PB, dtype=ranked.dtype)
    aucs_LB = np.full(pairs_LB.shape, math.nan)
    for index, finding in ranked.findings.items():
        pairs_B = pairs_LB[index]
        np.divide(_wins(finding, counts_PB), 2 * pairs_B, out=aucs_LB[index], where=pairs_B > 0)
    return aucs_LB


def _wins(finding: _Finding, counts_PB: np.ndarray) -> np.ndarray:
    """Return twice the wins of the positives in each replicate, as int64."""
    wins_GB = finding.rises_GP @ counts_PB
    np.cumsum(wins_GB, axis=0, out=wins_GB)
    return np.einsum("gb,gb->b", finding.positives_GP @ counts_PB, wins_GB, dtype=np.int64)
