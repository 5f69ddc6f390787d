"""Operating points: thresholds chosen on the validation predictions, and what they give on those of the report.

Shapes: N images, L findings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, Optional

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.artifacts.thresholds import CALL, choose_all, measure_all
from chestxray_vit.metrics.operating_points import RULES, OperatingPoint, at_prevalence
from chestxray_vit.storage.json_files import none_for_nan

INTERVAL = "95 % Wilson intervals on the effective number of images, by patient (Rao and Scott 1992)"


def operating_table(
    predictions: Predictions, validation: Predictions, prevalence: Optional[float] = None
) -> Dict[str, Any]:
    """Return what thresholds chosen on validation patients give on others, as auc.json holds it: None where undefined.

    Args:
        predictions: to measure on.
        validation: of the same model, to choose on.
        prevalence: at which PPV and NPV are given as well, in [0, 1]; None for none.
    """
    points = measure_all(predictions, choose_all(validation))
    patients_N = np.asarray(validation.patient_ids, dtype=str)
    return {
        "call_positive_if": CALL,
        "rules": {rule.name: rule.title for rule in RULES},
        "interval": INTERVAL,
        "prevalence": prevalence,
        "findings": [
            {
                "finding": finding,
                "chosen_on_positive_patients": len(set(patients_N[validation.targets_NL[:, index] == 1])),
                "points": {name: _as_json(point, prevalence) for name, point in points[finding].items()},
            }
            for index, finding in enumerate(points)
        ],
    }


def _as_json(point: Optional[OperatingPoint], prevalence: Optional[float]) -> Optional[Dict[str, Any]]:
    if point is None:
        return None
    content = asdict(point)
    if prevalence is not None:
        ppv, npv = at_prevalence(point.sensitivity.value, point.specificity.value, prevalence)
        content.update(ppv_at=ppv, npv_at=npv)
    return none_for_nan(content)
