"""Thresholds by finding and rule: thresholds.json beside a model, and what they give on other predictions.

They are chosen on validation predictions; thresholds.json says on which file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Sequence

import numpy as np

from chestxray_vit.errors import InputError, Problems
from chestxray_vit.metrics.operating_points import (
    RULE_NAMES,
    RULES,
    OperatingPoint,
    Table,
    choose_each,
    measure_codes,
)
from chestxray_vit.metrics.ranking import patient_codes
from chestxray_vit.storage.atomic import PathLike, sha256
from chestxray_vit.storage.json_files import read_json, write_json
from chestxray_vit.storage.json_schema import MISSING, UNKNOWN, Mismatch, mismatches, object_of

if TYPE_CHECKING:  # `predict` needs no table of predictions
    from chestxray_vit.artifacts.predictions import Predictions

FILE = "thresholds.json"
CALL = "score >= threshold"
MOST_BYTES = 2**20  # of a thresholds.json: 4 kB for 14 labels
REMEDY = "Give a thresholds.json as chestxray_vit.evaluate writes it."
TEXT = {"type": "string", "title": "a text"}
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$", "title": "64 hex digits"}
COUNT = {"type": "integer", "minimum": 0, "title": "a count"}
THRESHOLD = {"type": ["number", "null"], "minimum": 0, "maximum": 1, "title": "a number in [0, 1] or null"}
ROW = {**object_of(dict.fromkeys(RULE_NAMES, THRESHOLD), closed=True), "title": "an object"}
SCHEMA = {
    "chosen_on": object_of(
        {"file_name": TEXT, "sha256": DIGEST, "num_images": COUNT, "num_patients": COUNT}, closed=True
    ),
    "call_positive_if": {"const": CALL},
    "rules": object_of(dict.fromkeys(RULE_NAMES, TEXT), closed=True),
}


@dataclass(frozen=True)
class ChosenOn:
    """The predictions file on which thresholds were chosen."""

    file_name: str
    sha256: str
    num_images: int
    num_patients: int


@dataclass(frozen=True)
class Thresholds:
    """The content of a thresholds.json."""

    chosen_on: ChosenOn
    table: Table


def write_thresholds(path: PathLike, predictions: Predictions, source: PathLike) -> Thresholds:
    """Choose the thresholds and write thresholds.json, whole or not at all, with every digit.

    Args:
        path: to write to.
        predictions: of the validation images.
        source: the path of their file, which must be there: its base name and sha256 are kept.

    Raises:
        InputError: a file cannot be read or written.
    """
    try:
        num_images, num_patients = len(predictions.file_names), len(set(predictions.patient_ids))
        chosen_on = ChosenOn(Path(source).name, sha256(source), num_images, num_patients)
        table, rules = choose_all(predictions), {rule.name: rule.title for rule in RULES}
        about = {"chosen_on": asdict(chosen_on), "call_positive_if": CALL}
        write_json(path, {**about, "rules": rules, "thresholds": table})
    except OSError as err:
        raise InputError(f"{path}: cannot be made from {source}: {err}. Check both paths.") from err
    return Thresholds(chosen_on, table)


def choose_all(predictions: Predictions) -> Table:
    """Return the thresholds of each finding and rule, in [0, 1]; None where undefined, or above 1."""
    table: Table = {}
    for finding, targets_N, scores_N in predictions.columns():
        chosen = choose_each(targets_N, scores_N)
        table[finding] = {name: threshold if threshold <= 1 else None for name, threshold in chosen.items()}
    return table


def measure_all(predictions: Predictions, table: Table) -> Dict[str, Dict[str, Optional[OperatingPoint]]]:
    """Return the operating point of each threshold of a table, by finding and rule; None where it has none."""
    patients_N = patient_codes(np.asarray(predictions.patient_ids, dtype=str), len(predictions.file_names))
    points: Dict[str, Dict[str, Optional[OperatingPoint]]] = {}
    for finding, targets_N, scores_N in predictions.columns():
        points[finding] = {
            name: None if threshold is None else measure_codes(targets_N == 1, scores_N, threshold, patients_N)
            for name, threshold in table[finding].items()
        }
    return points


def read_thresholds(path: PathLike, names: Optional[Sequence[str]] = None) -> Thresholds:
    """Read thresholds.json, bit for bit as it was written.

    Args:
        path: of the file.
        names: of the findings that it must be of, in any order; None takes those of the file.

    Returns:
        The thresholds, in the order of `names`.

    Raises:
        InputError: the file is not there, or holds something else; all problems at once.
    """
    content = read_json(path, REMEDY, MOST_BYTES, allow_nan=True)
    rows = object_of(dict.fromkeys(names or (), ROW), closed=names is not None)
    if names is None:
        rows["additionalProperties"] = ROW
    problems = Problems(str(path))
    for mismatch in mismatches(content, object_of({**SCHEMA, "thresholds": rows})):
        _note(mismatch, problems)
    problems.raise_if_any()
    table = {name: content["thresholds"][name] for name in names or content["thresholds"]}
    ordered = {finding: {rule: row[rule] for rule in RULE_NAMES} for finding, row in table.items()}
    return Thresholds(ChosenOn(**content["chosen_on"]), ordered)


def _note(mismatch: Mismatch, problems: Problems) -> None:
    where = ".".join(map(str, mismatch.path))
    if mismatch.kind == MISSING:
        problems.add("an entry is missing", where, REMEDY)
    elif mismatch.kind == UNKNOWN:
        problems.add("an unknown entry", where, f"Expected {mismatch.expected}.")
    else:
        problems.add(f"an entry is not {mismatch.expected}", f"{where}: {mismatch.found}", REMEDY)
