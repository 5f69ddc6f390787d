"""The AUC of each finding and their mean, with 95 % intervals by patient and what a reader must know of each.

Shapes: N images, L findings."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.metrics.bootstrap import bootstrap, finding_intervals, macro_interval
from chestxray_vit.metrics.intervals import Estimate, Macro, logit_interval
from chestxray_vit.metrics.ranking import average_precision
from chestxray_vit.metrics.roc_auc import macro, obuchowski
from chestxray_vit.storage.json_files import none_for_nan

REPLICATES = 1000
INTERVALS = {
    "wald": "95 %, by patient (Obuchowski 1997), Wald, clipped to [0, 1]",
    "logit": "95 %, by patient (Obuchowski 1997), on the logit scale",
    "bootstrap": f"95 %, percentiles of {REPLICATES:,} bootstrap replicates of patients",
}
FEW_PATIENTS = 30  # with fewer positive patients, a normal interval is a rough approximation
FEW = f"fewer than {FEW_PATIENTS} positive patients"


def auc_table(predictions: Predictions, interval: str) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Return the macro AUC and a row for each finding.

    Args:
        predictions: of N images.
        interval: a key of INTERVALS.
    """
    targets_NL, scores_NL = predictions.targets_NL, predictions.scores_NL
    patients_N = np.unique(np.asarray(predictions.patient_ids, dtype=str), return_inverse=True)[1]
    overall, estimates = _estimates(targets_NL, scores_NL, patients_N, interval)
    rows = [
        _row(finding, targets_N, scores_N, patients_N, estimate)
        for (finding, targets_N, scores_N), estimate in zip(predictions.columns(), estimates)
    ]
    return _macro(overall, rows), rows


def _estimates(
    targets_NL: np.ndarray, scores_NL: np.ndarray, patients_N: np.ndarray, interval: str
) -> Tuple[Macro, List[Estimate]]:
    """Return the macro and each finding's AUC, with the interval that was asked for."""
    if interval == "bootstrap":
        result = bootstrap(targets_NL, scores_NL, patients_N, REPLICATES)
        return macro_interval(result), list(finding_intervals(result))
    overall = macro(targets_NL, scores_NL, patients_N)
    estimates = [obuchowski(targets_N, scores_N, patients_N) for targets_N, scores_N in zip(targets_NL.T, scores_NL.T)]
    if interval == "wald":
        return overall, estimates
    overall = Macro(overall.auc, overall.variance, *logit_interval(overall), overall.num_findings)
    return overall, [Estimate(found.auc, found.variance, *logit_interval(found)) for found in estimates]


def _row(
    finding: str, targets_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray, estimate: Estimate
) -> Dict[str, Any]:
    num_images, num_positives = len(targets_N), int(targets_N.sum())
    num_positive_patients = len(np.unique(patients_N[targets_N == 1]))
    num_negative_patients = len(np.unique(patients_N[targets_N == 0]))
    return {
        "finding": finding,
        "num_images": num_images,
        "num_positives": num_positives,
        "num_positive_patients": num_positive_patients,
        "prevalence": num_positives / num_images if num_images else None,
        **_numbers(estimate),
        "average_precision": none_for_nan(average_precision(targets_N, scores_N)),
        "notes": _notes(num_positive_patients, num_negative_patients, estimate),
    }


def _notes(num_positive_patients: int, num_negative_patients: int, estimate: Estimate) -> List[str]:
    notes = [FEW] if num_positive_patients < FEW_PATIENTS else []
    for count, name in ((num_positive_patients, "positive"), (num_negative_patients, "negative")):
        if count == 0:
            notes.append(f"undefined: there is no {name} image")
        elif count == 1 and not math.isnan(estimate.auc):
            notes.append(f"interval undefined: there is only one {name} patient")
    if estimate.variance == 0:
        notes.append("zero-width interval: not informative")
    return notes


def _macro(estimate: Macro, rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    without_interval = [row["finding"] for row in rows if row["auc"] is not None and row["low"] is None]
    undefined = math.isnan(estimate.low) and without_interval
    notes = [f"interval undefined, as is that of {', '.join(without_interval)}"] if undefined else []
    return {
        **_numbers(estimate),
        "num_findings": estimate.num_findings,
        "findings_left_out": [row["finding"] for row in rows if row["auc"] is None],
        "notes": notes if estimate.num_findings else ["undefined: no finding has a defined AUC"],
    }


def _numbers(estimate: Estimate) -> Dict[str, Optional[float]]:
    return none_for_nan({name: getattr(estimate, name) for name in ("auc", "variance", "low", "high")})
