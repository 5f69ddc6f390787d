"""The operating points of a report: what the thresholds chosen on validation predictions give on others."""

from __future__ import annotations

import json
import math

from chestxray_vit.artifacts.thresholds import choose_all, measure_all
from chestxray_vit.metrics.operating_points import at_prevalence
from chestxray_vit.reporting.sections.operating_points import operating_table
from tests.unit.artifacts.test_predictions import random_predictions


def test_table_holds_the_points_of_the_thresholds_chosen_on_validation():
    test, validation = random_predictions(40, seed=2), random_predictions(60, seed=1)
    found = operating_table(test, validation, prevalence=0.1)
    points = measure_all(test, choose_all(validation))
    for index, row in enumerate(found["findings"]):
        positives = {
            patient for patient, target in zip(validation.patient_ids, validation.targets_NL[:, index]) if target
        }
        assert row["chosen_on_positive_patients"] == len(positives)
        for name, point in points[row["finding"]].items():
            cells = row["points"][name]
            if point is None:
                assert cells is None
                continue
            assert (cells["threshold"], cells["true_positives"]) == (point.threshold, point.true_positives)
            sensitivity = None if math.isnan(point.sensitivity.value) else point.sensitivity.value
            assert cells["sensitivity"]["value"] == sensitivity
            ppv, npv = at_prevalence(point.sensitivity.value, point.specificity.value, 0.1)
            assert [cells["ppv_at"], cells["npv_at"]] == [None if math.isnan(value) else value for value in (ppv, npv)]
    json.dumps(found, allow_nan=False)
    assert "ppv_at" not in operating_table(test, validation)["findings"][0]["points"]["youden"]
