"""What a threshold does, at up to 200 thresholds a finding: the ROC and precision-recall curves, and the explorer.

The counts at each threshold are exact; the curves are drawn through them.

Shapes: N images, T thresholds."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

NUM_THRESHOLDS = 200


def curve(targets_N: np.ndarray, scores_N: np.ndarray, thresholds: Sequence[float] = ()) -> Dict[str, List[Any]]:
    """Return how many positives and negatives reach each of some thresholds, from the highest down.

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
    scores, positives, last = _ranked(targets_N, scores_N)
    kept = _kept(positives[last], last + 1 - positives[last])
    values = np.union1d(scores[last[kept]], np.asarray(thresholds, dtype=np.float64))[::-1]
    called = np.searchsorted(-scores, -values, side="right")
    true_positives = np.append(0, positives)[called]
    return {
        "thresholds": values.tolist(),
        "true_positives": true_positives.tolist(),
        "false_positives": (called - true_positives).tolist(),
    }


def average_precision(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Return the mean of the precisions at each threshold, weighted by what it adds to the recall.

    One of three numbers that are called PR-AUC; scikit-learn's convention, without interpolation (Davis and Goadrich,
    ICML 2006, tell why), equal scores at once.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        In [0, 1]; NaN if there is no positive.
    """
    positives, last = _ranked(targets_N, scores_N)[1:]
    if not len(last) or positives[-1] == 0:
        return math.nan
    gains = np.diff(positives[last], prepend=0)
    return float((gains * (positives[last] / (last + 1))).sum() / positives[-1])


def _ranked(targets_N: np.ndarray, scores_N: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores from the highest down, the positives up to each, and the last place of each run of equals."""
    order = np.argsort(-scores_N, kind="stable")
    scores = scores_N[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], len(scores) > 0))
    return scores, np.cumsum(targets_N[order]), last


def _kept(true_positives_T: np.ndarray, false_positives_T: np.ndarray) -> np.ndarray:
    """Return which thresholds to keep."""
    if len(true_positives_T) <= NUM_THRESHOLDS:
        return np.arange(len(true_positives_T))
    along_T = sum(counts / max(1, counts[-1]) for counts in (true_positives_T, false_positives_T))
    called_T = np.log(true_positives_T + false_positives_T)
    places = []
    for measure_T in (along_T, called_T):
        steps = np.linspace(measure_T[0], measure_T[-1], NUM_THRESHOLDS // 2)
        places.append(np.searchsorted(measure_T, steps).clip(0, len(measure_T) - 1))
    return np.unique(np.concatenate(places))
