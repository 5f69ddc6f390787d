"""Curves and mistakes: the counts by threshold that the page's charts and explorer use, and the worst-ranked images.

Shapes: N images, L findings."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.metrics.ranking import curve

MISTAKES = ("misses", "false_alarms")
NUM_MISTAKES = 5  # of each kind, a finding


def curves(predictions: Predictions, operating_points: Optional[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Return each finding's counts by threshold.

    Args:
        predictions: of N images.
        operating_points: as auc.json holds them; their thresholds are among those of the curves. None for none.
    """
    rows = []
    for index, (finding, targets_N, scores_N) in enumerate(predictions.columns()):
        points = operating_points["findings"][index]["points"].values() if operating_points else ()
        thresholds = [point["threshold"] for point in points if point is not None]
        rows.append({"finding": finding, **curve(targets_N, scores_N, thresholds)})
    return rows


def mistakes(predictions: Predictions) -> List[Dict[str, Any]]:
    """Return for each finding the positives with the lowest scores and the negatives with the highest."""
    rows = []
    for finding, targets_N, scores_N in predictions.columns():
        order = np.argsort(scores_N, kind="stable")
        misses = order[targets_N[order] == 1][:NUM_MISTAKES]
        false_alarms = order[targets_N[order] == 0][::-1][:NUM_MISTAKES]
        listed = {
            kind: [{"file_name": predictions.file_names[row], "score": float(scores_N[row])} for row in images.tolist()]
            for kind, images in zip(MISTAKES, (misses, false_alarms))
        }
        rows.append({"finding": finding, **listed})
    return rows


def mistaken_images(results: Mapping[str, Any]) -> List[str]:
    """Return the file names of all mistakes that a report lists."""
    return [image["file_name"] for row in results["mistakes"] for kind in MISTAKES for image in row[kind]]
