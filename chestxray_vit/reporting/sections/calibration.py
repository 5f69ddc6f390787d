"""The calibration of each finding, and what recalibration would change, as auc.json holds them.

Shapes: N images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, Optional, Union

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.metrics.calibration import (
    NUM_BINS,
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
from chestxray_vit.storage.json_files import none_for_nan


def calibration_table(predictions: Predictions, validation: Optional[Predictions] = None) -> Dict[str, Any]:
    """Return the calibration of each finding as auc.json holds it: None where undefined.

    Args:
        predictions: that are judged.
        validation: of the same model on other patients, to fit the recalibrations on; without it there are none.
    """
    rows = []
    for index, (finding, targets_N, scores_N) in enumerate(predictions.columns()):
        fits: Dict[str, Union[Platt, Temperature, None]] = {"platt": None, "temperature": None}
        if validation is not None:
            columns = validation.targets_NL[:, index], validation.scores_NL[:, index]
            fits = {"platt": fit_platt(*columns), "temperature": fit_temperature(*columns)}
        row = {"finding": finding, **_judged(targets_N, scores_N)}
        for name, fit in fits.items():
            row[name] = fit and {**asdict(fit), **_errors(targets_N, fit.apply(scores_N))}
        rows.append(row)
    return {"num_bins": NUM_BINS, "findings": rows}


def _judged(targets_N: np.ndarray, probabilities_N: np.ndarray) -> Dict[str, Any]:
    slope, intercept = slope_and_intercept(targets_N, probabilities_N)
    numbers = {
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        "intercept_at_slope_1": intercept_at_slope_1(targets_N, probabilities_N),
    }
    return {**_errors(targets_N, probabilities_N), **none_for_nan(numbers)}


def _errors(targets_N: np.ndarray, probabilities_N: np.ndarray) -> Dict[str, Any]:
    bins = reliability(targets_N, probabilities_N)
    numbers = {
        "brier": brier(targets_N, probabilities_N),
        "expected_calibration_error": expected_calibration_error(bins),
    }
    return {**none_for_nan(numbers), "bins": [none_for_nan(asdict(bin)) for bin in bins]}
