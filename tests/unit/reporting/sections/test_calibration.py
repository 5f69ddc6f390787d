"""The calibration section of a report."""

from __future__ import annotations

import json

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.metrics.calibration import (
    brier,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    intercept_at_slope_1,
    reliability,
    slope_and_intercept,
)
from chestxray_vit.reporting.sections.calibration import calibration_table
from tests.unit.metrics.test_calibration import random_scores

FINDINGS = NIH_CHESTXRAY14.names


def with_findings(targets_N, scores_N, prefix="i"):
    """Return predictions whose first finding is the given one; the others have no positive."""
    num_images, num_findings = len(targets_N), len(FINDINGS)
    targets_NL, scores_NL = np.zeros((num_images, num_findings), int), np.full((num_images, num_findings), 0.25)
    targets_NL[:, 0], scores_NL[:, 0] = targets_N, scores_N
    names = [f"{prefix}{image}" for image in range(num_images)]
    about = [None] * num_images, [""] * num_images, [""] * num_images
    return Predictions(names, names, *about, targets_NL, scores_NL)


# The table


def test_table_holds_the_numbers_and_what_recalibration_gives():
    judged_on, fitted_on = random_scores(10), random_scores(11, intercept=-1.5)
    table = calibration_table(with_findings(*judged_on), with_findings(*fitted_on, prefix="v"))
    json.dumps(table, allow_nan=False)
    assert [row["finding"] for row in table["findings"]] == list(FINDINGS)
    assert table["num_bins"] == 10
    row, slope = table["findings"][0], slope_and_intercept(*judged_on)
    assert row["brier"] == brier(*judged_on)
    assert row["expected_calibration_error"] == expected_calibration_error(reliability(*judged_on))
    assert (row["calibration_slope"], row["calibration_intercept"]) == slope
    assert row["intercept_at_slope_1"] == intercept_at_slope_1(*judged_on)
    assert [bin["num_images"] for bin in row["bins"]] == [bin.num_images for bin in reliability(*judged_on)]
    platt = fit_platt(*fitted_on)
    assert (row["platt"]["slope"], row["platt"]["intercept"]) == (platt.slope, platt.intercept)
    assert row["platt"]["brier"] == brier(judged_on[0], platt.apply(judged_on[1]))
    temperature = fit_temperature(*fitted_on)
    assert row["temperature"]["temperature"] == temperature.temperature
    assert row["temperature"]["brier"] == brier(judged_on[0], temperature.apply(judged_on[1]))


def test_table_is_none_where_undefined():
    row = calibration_table(with_findings(*random_scores(10)), with_findings(*random_scores(11), prefix="v"))[
        "findings"
    ][1]
    assert row["brier"] == 0.0625  # 0.25 everywhere, no positive
    assert row["bins"][2] == {"low": 0.2, "high": 0.3, "num_images": 400, "num_positives": 0, "mean_score": 0.25}
    assert row["bins"][0]["mean_score"] is None
    names = ("calibration_slope", "calibration_intercept", "intercept_at_slope_1", "platt", "temperature")
    assert [row[name] for name in names] == [None] * 5


def test_table_without_validation_has_no_recalibration():
    rows = calibration_table(with_findings(*random_scores(10)))["findings"]
    assert all(row["platt"] is None and row["temperature"] is None for row in rows)
    assert rows[0]["calibration_slope"] is not None
