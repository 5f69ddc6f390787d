"""The CSV: every digit of auc.json."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.reporting.render.csv_tables import to_csv, to_operating_csv, to_subgroup_csv
from chestxray_vit.reporting.summary import Options
from tests.unit.reporting.examples import edge_cases, every_result, random_predictions, report_of

FINDINGS = NIH_CHESTXRAY14.names


@pytest.mark.parametrize("results", every_result())
def test_csv_holds_every_digit_of_the_json(results):
    rows = list(csv.DictReader(to_csv(results).splitlines()))
    assert [row["finding"] for row in rows] == [*FINDINGS, "macro"]
    compared = results["comparison"] or {"findings": [{}] * 14, "macro": {}}
    published = results["published"]["findings"]
    for cells, numbers, difference in zip(
        rows, [*results["findings"], results["macro"]], [*compared["findings"], compared["macro"]]
    ):
        expected = {**numbers, **difference}
        for name in ("num_positives", "num_positive_patients", "prevalence", "auc", "variance", "low", "high"):
            assert cells[name] == ("" if expected.get(name) is None else str(expected[name]))
        for name in ("auc_a", "auc_b", "difference", "se", "z", "p"):
            assert cells.get(name) == (
                None if name not in difference else str(expected[name] if expected[name] is not None else "")
            )
        assert cells["notes"] == "; ".join(expected["notes"])
        assert cells["Wang 2017"] == str(published["Wang 2017"]["auc"].get(cells["finding"], ""))


def cell(value):
    return "" if value is None else str(value)


def test_operating_csv_holds_every_digit_of_the_json():
    results = report_of(edge_cases(), validation=random_predictions(), options=Options(prevalence=0.1))
    rows = iter(csv.DictReader(to_operating_csv(results).splitlines()))
    for found in results["operating_points"]["findings"]:
        for rule, point in found["points"].items():
            cells = next(rows)
            assert (cells["finding"], cells["rule"]) == (found["finding"], rule)
            for name in ("threshold", "true_positives", "false_negatives", "ppv_at", "npv_at"):
                assert cells[name] == cell(point[name])
            for name in ("sensitivity", "specificity", "ppv", "npv"):
                numbers = [cells[name], cells[f"{name}_low"], cells[f"{name}_high"]]
                assert numbers == [cell(point[name][key]) for key in ("value", "low", "high")]
    assert next(rows, None) is None


def test_operating_csv_leaves_cells_empty_where_no_threshold_was_chosen():
    results = report_of(random_predictions(), validation=edge_cases())
    row = next(csv.DictReader(to_operating_csv(results).splitlines()))
    assert (row["finding"], row["rule"], row["threshold"], row["ppv"]) == ("Atelectasis", "youden", "", "")
    assert to_operating_csv(report_of(edge_cases())) == "finding,rule\n"


def test_subgroup_csv_holds_every_digit_of_the_json():
    predictions = random_predictions()
    predictions = dataclasses.replace(predictions, sexes=["F", "M"] * 200)
    results = report_of(predictions)
    rows = iter(csv.DictReader(to_subgroup_csv(results).splitlines()))
    for grouping in results["subgroups"]["groupings"]:
        for group in grouping["groups"]:
            for found in [*group["findings"], {**group["macro"], "finding": "macro"}]:
                cells = next(rows)
                assert (cells["grouping"], cells["group"]) == (grouping["grouping"], group["group"])
                assert (cells["num_images"], cells["finding"]) == (str(group["num_images"]), found["finding"])
                for name in ("auc", "low", "high", "difference", "se", "p", "p_holm"):
                    assert cells[name] == cell(found[name])
    assert next(rows, None) is None
