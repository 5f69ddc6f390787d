"""Images in the order of their scores, which variances, thresholds, curves and subgroups start from.

`roc_auc` and the bootstrap sort each class apart instead.

Also what a threshold does, at up to 200 thresholds a finding, for the ROC and precision-recall curves: the counts at
each threshold are exact.

Shapes: N images, S distinct scores, T thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

NUM_THRESHOLDS = 200


@dataclass(frozen=True, eq=False)
class Ranking:
    """The images of one finding from the lowest score to the highest.

    Attributes:
        order_N: the index of each image before it was sorted; equal scores in any order.
        targets_N: booleans.
        scores_N: ascending.
        starts_S: the index of the first image of each run of equal scores.
    """

    order_N: np.ndarray
    targets_N: np.ndarray
    scores_N: np.ndarray
    starts_S: np.ndarray

    @property
    def scores_S(self) -> np.ndarray:
        """The distinct scores, ascending: every threshold that makes a difference."""
        return self.scores_N[self.starts_S]

    def called_positive(self) -> Tuple[np.ndarray, np.ndarray]:
        """Return with each distinct score as threshold the numbers of true and of false positives (S each)."""
        positives_before = np.append(0, np.cumsum(self.targets_N, dtype=np.int64))
        true_positives_S = positives_before[-1] - positives_before[self.starts_S]
        return true_positives_S, len(self.scores_N) - self.starts_S - true_positives_S


def rank(targets_N: np.ndarray, scores_N: np.ndarray) -> Ranking:
    """Sort the images of one finding by score.

    >>> rank(np.array([True, False, True]), np.array([0.9, 0.2, 0.2])).called_positive()
    (array([2, 1]), array([1, 0]))

    Args:
        targets_N: booleans.
        scores_N: any finite score, higher = more likely; ascending ones are not sorted again.
    """
    if (scores_N[1:] < scores_N[:-1]).any():
        order_N = np.argsort(scores_N)
        targets_N, scores_N = targets_N[order_N], scores_N[order_N]
    else:
        order_N = np.arange(len(scores_N))
    starts_S = np.flatnonzero(np.append(len(scores_N) > 0, scores_N[1:] != scores_N[:-1]))
    return Ranking(order_N, targets_N, scores_N, starts_S)


def curve(targets_N: np.ndarray, scores_N: np.ndarray, thresholds: Sequence[float] = ()) -> Dict[str, List[Any]]:
    """Return how many positives and negatives reach each of some thresholds, from the highest down.

    >>> curve(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    {'thresholds': [0.8, 0.4, 0.1], 'true_positives': [1, 2, 2], 'false_positives': [0, 1, 2]}

    Half of the thresholds are even steps along the ROC curve (the sum of both rates), half even steps in the logarithm
    of the images called positive: precision changes where few are.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.
        thresholds: further ones to give, of the operating points.

    Returns:
        `thresholds`, `true_positives`, `false_positives`: lists of the same length; an image is called positive where
        its score is at least the threshold. Empty if there is no image.
    """
    ranking = rank(np.asarray(targets_N) == 1, np.asarray(scores_N))
    true_positives_S, false_positives_S = (counts_S[::-1] for counts_S in ranking.called_positive())
    kept = _kept(true_positives_S, false_positives_S)
    values = np.union1d(ranking.scores_S[::-1][kept], np.asarray(thresholds, dtype=np.float64))[::-1]
    below = np.searchsorted(ranking.scores_N, values)
    true_positives = np.append(np.cumsum(ranking.targets_N[::-1])[::-1], 0)[below]
    return {
        "thresholds": values.tolist(),
        "true_positives": true_positives.tolist(),
        "false_positives": (len(ranking.scores_N) - below - true_positives).tolist(),
    }


def average_precision(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Return the mean of the precisions at each threshold, weighted by what it adds to the recall.

    >>> average_precision(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.8333333333333333

    One of three numbers that are called PR-AUC; scikit-learn's convention, without interpolation (Davis and Goadrich,
    ICML 2006, tell why), equal scores at once.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        In [0, 1]; NaN if there is no positive.
    """
    ranking = rank(np.asarray(targets_N) == 1, np.asarray(scores_N))
    true_positives_S, false_positives_S = (counts_S[::-1] for counts_S in ranking.called_positive())
    if not len(true_positives_S) or true_positives_S[-1] == 0:
        return math.nan
    gains = np.diff(true_positives_S, prepend=0)
    precisions_S = true_positives_S / (true_positives_S + false_positives_S)
    return float((gains * precisions_S).sum() / true_positives_S[-1])


def _kept(true_positives_T: np.ndarray, false_positives_T: np.ndarray) -> np.ndarray:
    """Return which thresholds to keep."""
    if len(true_positives_T) <= NUM_THRESHOLDS:
        return np.arange(len(true_positives_T))
    along_T = sum(counts / max(1, counts[-1]) for counts in (true_positives_T, false_positives_T))
    called_T = np.log(true_positives_T + false_positives_T)
    indices = []
    for measure_T in (along_T, called_T):
        steps = np.linspace(measure_T[0], measure_T[-1], NUM_THRESHOLDS // 2)
        indices.append(np.searchsorted(measure_T, steps).clip(0, len(measure_T) - 1))
    return np.unique(np.concatenate(indices))


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


def num_different(patients: np.ndarray) -> int:
    """Return how many patients there are among codes."""
    return int(np.count_nonzero(np.bincount(patients)))
