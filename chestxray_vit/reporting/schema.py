"""The format of auc.json: its version, its JSON Schema, and how an auc.json is read to be rendered again.

Within one major version, entries are only added; a change of meaning or a removal raises it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import LabelSet
from chestxray_vit.storage.atomic import PathLike
from chestxray_vit.storage.json_files import read_json
from chestxray_vit.storage.json_schema import UNKNOWN, mismatches

SCHEMA_VERSION = "1.0"
SCHEMA = Path(__file__).with_name("auc.schema.json")
REMEDY = "Give an auc.json as chestxray_vit.report writes it."
SECTIONS = ("comparison", "operating_points", "calibration")  # with a row for each finding, beside the lists


def schema_text() -> str:
    """Return the JSON Schema (draft 2020-12) of auc.json."""
    return SCHEMA.read_text(encoding="utf-8")


def read_results(path: PathLike) -> Dict[str, Any]:
    """Read an auc.json, to render it again.

    Raises:
        InputError: the file is not there, is of another major version, or does not conform to the schema.
    """
    results = read_json(path, REMEDY)
    _check_version(path, results.get("schema_version"))
    problems = Problems(str(path))
    is_of_this_version = results["schema_version"] == SCHEMA_VERSION
    for mismatch in mismatches(results, json.loads(schema_text())):
        if is_of_this_version or mismatch.kind != UNKNOWN:  # a later minor version may have added entries
            problems.add("not as auc.schema.json describes it", str(mismatch), REMEDY)
    problems.raise_if_any()
    _check_findings(results, problems)
    problems.raise_if_any()
    return results


def _check_version(path: PathLike, version: Any) -> None:
    major = SCHEMA_VERSION.partition(".")[0]
    if not isinstance(version, str) or version.partition(".")[0] != major:
        found = "none" if version is None else repr(version)
        raise InputError(
            f"{path}: schema_version: found {found}, expected {major}.x. Make the report again from its "
            "predictions.csv, or render it with the version of chestxray_vit that made it."
        )


def _check_findings(results: Dict[str, Any], problems: Problems) -> None:
    """Note sections whose rows are not those of the label set, in its order: renderers pair them by position."""
    try:
        LabelSet.from_dict(results["label_set"])
    except ValueError as error:
        problems.add("label_set holds no label set", str(error), REMEDY)
    expected = results["label_set"]["names"]
    tables = {name: results[name] for name in ("findings", "mistakes", "curves")}
    tables.update({name: results[name]["findings"] for name in SECTIONS if results[name] is not None})
    for grouping in results["subgroups"]["groupings"]:
        tables.update({f"subgroups, {group['group']}": group["findings"] for group in grouping["groups"]})
    for name, rows in tables.items():
        found = [row["finding"] for row in rows]
        if found != expected:
            problems.add("the findings are not those of label_set", f"{name}: {', '.join(found)}", REMEDY)
