"""The CSV: every digit of auc.json."""

from __future__ import annotations

import csv

import pytest

from chestxray_vit.labels import FINDINGS
from chestxray_vit.reporting.render.csv_tables import to_csv
from tests.unit.reporting.examples import every_result


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
