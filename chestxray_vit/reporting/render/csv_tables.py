"""auc.json as CSV files, with every digit; cells are empty where a number is undefined."""

from __future__ import annotations

import csv
import io
from typing import Any, Dict, Iterable, List, Mapping

Row = Dict[str, Any]
Results = Mapping[str, Any]


def to_csv(results: Results) -> str:
    """Return a row for each finding and one for the macro AUC."""
    published = results["published"]["findings"]
    macro_row = {**results["macro"], "finding": "macro", "num_images": results["num_images"]}
    compared = results["comparison"]
    differences = [*compared["findings"], compared["macro"]] if compared else [{}] * (len(results["findings"]) + 1)
    table = []
    for row, difference in zip([*results["findings"], macro_row], differences):
        row = {**row, **difference, "finding": row["finding"], "notes": "; ".join(row["notes"])}
        row.update({model: values["auc"].get(row["finding"]) for model, values in published.items()})
        table.append(row)
    of_difference = list(compared["findings"][0])[1:] if compared else []
    return _csv([*results["findings"][0], *published, *of_difference], table)


def to_operating_csv(results: Results) -> str:
    """Return a row for each finding and rule: threshold, the four counts, and the rates with their intervals."""
    table = []
    for row in (results["operating_points"] or {"findings": []})["findings"]:
        for rule, point in row["points"].items():
            table.append({"finding": row["finding"], "rule": rule, **_cells(point or {})})
    return _csv(_columns(["finding", "rule"], table), table)


def to_subgroup_csv(results: Results) -> str:
    """Return a row for each group and finding, and one for each group's macro AUC."""
    columns = ["grouping", "group", "num_images", "num_patients", "finding"]
    table = []
    for grouping in results["subgroups"]["groupings"]:
        for group in grouping["groups"]:
            about = {name: group[name] for name in columns[1:4]}
            for row in [*group["findings"], {**group["macro"], "finding": "macro"}]:
                table.append({"grouping": grouping["grouping"], **about, **row})
    return _csv(_columns(columns, table), table)


def _cells(point: Mapping[str, Any]) -> Row:
    """Return an operating point in cells: each rate takes three."""
    cells: Row = {}
    for name, value in point.items():
        if isinstance(value, dict):
            cells.update({name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]})
        else:
            cells[name] = value
    return cells


def _columns(first: Iterable[str], table: Iterable[Row]) -> List[str]:
    """Return the names of all columns, in the order in which they come."""
    return list(dict.fromkeys([*first, *(name for row in table for name in row)]))


def _csv(columns: List[str], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
