"""Curves and mistakes: the thresholds of the operating points are on the curves, and mistakes are the worst ranks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from chestxray_vit.reporting.summary import Options
from tests.unit.reporting.examples import random_predictions, report_of


def test_operating_points_come_of_the_validation_predictions():
    test, validation = random_predictions(seed=1), random_predictions(seed=2)
    results = report_of(test, validation=validation, options=Options(prevalence=0.01))
    for index, row in enumerate(results["operating_points"]["findings"]):
        fpr, tpr, thresholds = roc_curve(validation.targets_NL[:, index], validation.scores_NL[:, index])
        point = row["points"]["youden"]
        assert point["threshold"] in thresholds[np.isclose(tpr - fpr, (tpr - fpr).max())]
        called = test.scores_NL[:, index] >= point["threshold"]
        targets = test.targets_NL[:, index] == 1
        assert point["true_positives"] == (called & targets).sum()
        sensitivity = (called & targets).sum() / targets.sum()
        specificity = (~called & ~targets).sum() / (~targets).sum()
        assert point["ppv_at"] == pytest.approx(
            sensitivity * 0.01 / (sensitivity * 0.01 + (1 - specificity) * 0.99), abs=1e-12
        )
        assert point["threshold"] in results["curves"][index]["thresholds"]
    assert results["validation"] == {"num_images": 400, "num_patients": 100, "shared_patients": 100}
    assert report_of(test)["operating_points"] is None


def test_mistakes_are_the_most_confident_ones():
    table = random_predictions(num_images=400)
    for index, row in enumerate(report_of(table)["mistakes"]):
        scores = dict(zip(table.file_names, table.scores_NL[:, index]))
        positives = {name for name, target in zip(table.file_names, table.targets_NL[:, index]) if target}
        missed = [image["score"] for image in row["misses"]]
        alarmed = [image["score"] for image in row["false_alarms"]]
        assert missed == sorted(scores[name] for name in positives)[:5]
        assert alarmed == sorted((scores[name] for name in set(scores) - positives), reverse=True)[:5]
        assert all(image["file_name"] in positives for image in row["misses"])
