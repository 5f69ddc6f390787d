"""The subgroups section of a report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.metrics.intervals import holm
from chestxray_vit.metrics.subgroups import GROUPINGS, UNKNOWN
from chestxray_vit.reporting.sections.subgroups import subgroup_table
from tests.helpers.statistics import group_of
from tests.unit.metrics.test_subgroups import L, changed, made


def copies(predictions, number):
    """Return predictions where each image is there several times."""
    rows = list(range(len(predictions.file_names))) * number
    names = [f"{row}.png" for row in range(len(rows))]
    columns = {
        name: [getattr(predictions, name)[row] for row in rows] for name in ("patient_ids", "ages", "sexes", "views")
    }
    tiled = np.tile(predictions.targets_NL, (number, 1)), np.tile(predictions.scores_NL, (number, 1))
    return Predictions(names, *columns.values(), *tiled)


# The table


@pytest.mark.parametrize("ages", ["five bands", "two bands"])
def test_holm_counts_each_test_once(ages):
    predictions = made(num_images=2000, num_patients=500, seed=6)
    if ages == "two bands":
        predictions = changed(predictions, ages=[30 if age < 50 else 50 for age in predictions.ages])
    table = subgroup_table(predictions)
    once = [("sex", ["F"]), ("age", GROUPINGS["age"] if ages == "five bands" else ["18-39"]), ("view", ["PA"])]
    found = [group_of(table, grouping, group) for grouping, groups in once for group in groups]
    rows = [row for group in found for row in group["findings"]]
    p_values = [math.nan if row["p"] is None else row["p"] for row in rows]
    expected = [None if math.isnan(p) else p for p in holm(p_values).tolist()]
    assert [row["p_holm"] for row in rows] == expected
    assert table["num_tests"] == sum(p is not None for p in expected)
    num_once = L * (7 if ages == "five bands" else 3)
    assert num_once - 8 <= table["num_tests"] <= num_once  # all but those of rare findings
    smallest = min(rows, key=lambda row: math.inf if row["p"] is None else row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, table["num_tests"] * smallest["p"]))
    macros = [group["macro"] for group in found]
    macro_p = [math.nan if row["p"] is None else row["p"] for row in macros]
    assert [math.nan if row["p_holm"] is None else row["p_holm"] for row in macros] == pytest.approx(
        holm(macro_p).tolist(), nan_ok=True
    )
    assert table["num_macro_tests"] == sum(not math.isnan(p) for p in macro_p) >= 2
    others = [("sex", "F", "M"), ("view", "PA", "AP"), *([("age", "18-39", "40-59")] if ages == "two bands" else [])]
    for grouping, first, second in others:
        pair = [group_of(table, grouping, group) for group in (first, second)]
        columns = [[row["p_holm"] for row in [*group["findings"], group["macro"]]] for group in pair]
        assert columns[0] == columns[1]


def test_table_is_json_without_nan():
    table = subgroup_table(made())
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert list(table) == ["method", "min_patients", "num_tests", "num_macro_tests", "groupings"]
    assert [row["grouping"] for row in table["groupings"]] == ["sex", "age", "view"]
    group = group_of(table, "view", "PA")
    assert list(group) == ["group", "num_images", "num_patients", "macro", "findings"]
    names = "finding auc low high num_positives num_positive_patients difference se p p_holm too_small"
    assert set(group["findings"][0]) == set(names.split())
    assert set(group["macro"]) == set("auc low high num_findings difference se p p_holm".split())


def test_order_names_and_copies_change_nothing():
    predictions = made(seed=2)
    expected = subgroup_table(predictions)
    order = np.random.default_rng(0).permutation(900).tolist()
    names = [f"patient {7 * int(patient) % 1000}" for patient in predictions.patient_ids]
    shuffled = subgroup_table(changed(changed(predictions, patient_ids=names), rows=order))
    copied = copies(predictions, 3)
    for other in (shuffled, subgroup_table(copied)):
        for grouping in GROUPINGS:
            for group in (*GROUPINGS[grouping], UNKNOWN):
                before, after = group_of(expected, grouping, group), group_of(other, grouping, group)
                for a, b in zip([*before["findings"], before["macro"]], [*after["findings"], after["macro"]]):
                    for name in ("auc", "low", "high", "difference", "se", "p", "p_holm"):
                        assert a[name] == (None if b[name] is None else pytest.approx(b[name], rel=1e-8))
                assert before["num_patients"] == after["num_patients"]


def test_no_image_and_one_class_have_no_numbers():
    none = Predictions([], [], [], [], [], np.zeros((0, L)), np.zeros((0, L)))
    for predictions in (none, changed(made(), targets_NL=np.zeros((900, L)))):
        table = subgroup_table(predictions)
        assert (table["num_tests"], table["num_macro_tests"]) == (0, 0)
        for grouping in table["groupings"]:
            for group in grouping["groups"]:
                assert all(row["too_small"] and row["auc"] is None for row in group["findings"])
                assert (group["macro"]["auc"], group["macro"]["num_findings"]) == (None, 0)
