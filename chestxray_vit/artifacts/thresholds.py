"""Thresholds by finding and rule: thresholds.json beside a model, and what they give, as auc.json holds it.

They are chosen on validation predictions; thresholds.json says on which file."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics.operating_points import (
    RULE_NAMES,
    RULES,
    OperatingPoint,
    Table,
    at_prevalence,
    choose_all,
    measure_all,
)
from chestxray_vit.storage.atomic import PathLike, sha256
from chestxray_vit.storage.json_files import write_json

FILE = "thresholds.json"
CALL = "score >= threshold"
INTERVAL = "95 % Wilson intervals on the effective number of images, by patient (Rao and Scott 1992)"
MOST_BYTES = 2**16  # of a thresholds.json; ours take 4 kB
REMEDY = "Give a thresholds.json as chestxray_vit.evaluate writes it."
CHOSEN_ON = {"file_name": "a text", "sha256": "64 hex digits", "num_images": "a count", "num_patients": "a count"}
IS: Dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "64 hex digits": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "a count": lambda value: type(value) is int and value >= 0,  # True is an instance of int
    "a number in [0, 1] or null": lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1),
    "an object": lambda value: isinstance(value, dict),
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


def read_thresholds(path: PathLike) -> Thresholds:
    """Read thresholds.json, bit for bit as it was written.

    Raises:
        InputError: the file is not there, or holds something else; all problems at once.
    """
    content, problems = _read_json(path), Problems(str(path))
    call = content.get("call_positive_if")
    if call != CALL:
        problems.add("call_positive_if is another", f"{_shown(call)}, expected {_shown(CALL)}", REMEDY)
    _entries(content, "rules", dict.fromkeys(RULE_NAMES, "a text"), problems)
    chosen_on = _entries(content, "chosen_on", CHOSEN_ON, problems)
    rows = _entries(content, "thresholds", dict.fromkeys(FINDINGS, "an object"), problems)
    kinds = dict.fromkeys(RULE_NAMES, "a number in [0, 1] or null")
    table = {finding: _entries(rows, finding, kinds, problems) for finding, row in rows.items() if IS["an object"](row)}
    problems.raise_if_any()
    return Thresholds(ChosenOn(**chosen_on), table)


def operating_table(
    predictions: Predictions, validation: Predictions, prevalence: Optional[float] = None
) -> Dict[str, Any]:
    """Return what thresholds chosen on validation patients give on others, as auc.json holds it: None where undefined.

    Args:
        predictions: to measure on.
        validation: of the same model, to choose on.
        prevalence: at which PPV and NPV are given besides, in [0, 1]; None for none.
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
                "chosen_on_positive_patients": len(set(patients_N[validation.targets_NL[:, place] == 1])),
                "points": {name: _as_json(point, prevalence) for name, point in points[finding].items()},
            }
            for place, finding in enumerate(FINDINGS)
        ],
    }


def _as_json(point: Optional[OperatingPoint], prevalence: Optional[float]) -> Optional[Dict[str, Any]]:
    if point is None:
        return None
    content = asdict(point)
    if prevalence is not None:
        ppv, npv = at_prevalence(point.sensitivity.value, point.specificity.value, prevalence)
        content.update(ppv_at=ppv, npv_at=npv)
    return _without_nan(content)


def _without_nan(content: Dict[str, Any]) -> Dict[str, Any]:
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for name, value in content.items()
    }


def _read_json(path: PathLike) -> Dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
    except FileNotFoundError as err:
        raise InputError(f"{path}: there is no such file. {REMEDY}") from err
    except (OSError, ValueError, RecursionError) as err:
        raise InputError(f"{path}: cannot be read as JSON in UTF-8: {err}. {REMEDY}") from err
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {_shown(content)}. {REMEDY}")
    return content


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # the last of equal names would win in silence
        raise ValueError("a name stands twice in one object")
    return content


def _entries(content: Dict[str, Any], name: str, kinds: Dict[str, str], problems: Problems) -> Dict[str, Any]:
    """Return the entries of content[name] in the order of `kinds`; note what is missing, unknown or of another kind."""
    entries = content.get(name)
    if not isinstance(entries, dict):
        problems.add("an entry is missing or not an object", name, REMEDY)
        return {}
    for entry in [entry for entry in kinds if entry not in entries]:
        problems.add("an entry is missing", f"{name}: {entry}", REMEDY)
    for entry, value in entries.items():
        if entry not in kinds:
            problems.add("an unknown entry", f"{name}: {_shown(entry)}", f"Known of the last: {', '.join(kinds)}.")
        elif not IS[kinds[entry]](value):
            problems.add(f"an entry is not {kinds[entry]}", f"{name}, {entry}: {_shown(value)}", REMEDY)
    return {entry: entries[entry] for entry in kinds if entry in entries}


def _shown(value: Any) -> str:
    """Return a value as short JSON; a list or an object only as such."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
