"""Read the rows of a predictions.csv, from whatever tool wrote it: nothing is trusted.

Shapes: N images, L labels."""

from __future__ import annotations

import logging
import math
from array import array
from operator import itemgetter
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from chestxray_vit.errors import Problems, shortened, visible
from chestxray_vit.labels import LABEL_SETS_OF_0_5, NIH_CHESTXRAY14, LabelSet

logger = logging.getLogger(__name__)

ABOUT = ("file_name", "patient_id", "age", "sex", "view")
LONGEST_ID = 200  # characters; numpy's arrays of ids are as wide as the longest, and drop NULs
REMEDY = "Give a predictions.csv as chestxray_vit.evaluate writes it."


def columns_of(kind: str, names: Sequence[str]) -> List[str]:
    """Return the names of the columns of targets or of scores."""
    return [f"{kind}_{name}" for name in names]


def header_of(names: Sequence[str]) -> List[str]:
    """Return the header of a table whose labels have these names."""
    return [*ABOUT, *columns_of("target", names), *columns_of("score", names)]


def read_rows(rows: Any, problems: Problems) -> Dict[str, Any]:
    """Read the header and all rows.

    Args:
        rows: a `csv.reader`.
        problems: of the file.

    Returns:
        The fields of `Predictions`.

    Raises:
        InputError: all problems at once, with line and column.
    """
    header: List[str] = next(rows, [])
    names = _read_header(header, problems)
    reader = _RowReader(header, columns_of("target", names), columns_of("score", names), problems)
    for row in filter(None, rows):  # without empty lines
        reader.read(row, rows.line_num)
    if not reader.file_names and not problems:
        problems.add("no image", "found a header and no row, expected a row an image", REMEDY)
    problems.raise_if_any()
    numbers_N2L = np.array(reader.numbers).reshape(len(reader.file_names), 2 * len(names))
    return {
        **reader.columns,
        "targets_NL": numbers_N2L[:, : len(names)].astype(np.int64),
        "scores_NL": numbers_N2L[:, len(names) :].copy(),
        "label_set": LabelSet.of_names(names),
    }


class _RowReader:
    """Reads the rows of a table into columns, and notes what is wrong."""

    def __init__(self, header: List[str], targets: Sequence[str], scores: Sequence[str], problems: Problems):
        self.header, self.targets, self.scores, self.problems = header, targets, scores, problems
        self.about_of, self.targets_of, self.scores_of, self.numbers_of = (
            _getter([header.index(column) for column in columns])
            for columns in (ABOUT, targets, scores, (*targets, *scores))
        )
        self.file_names: List[str] = []
        self.patient_ids: List[str] = []
        self.ages: List[Optional[float]] = []
        self.sexes: List[str] = []
        self.views: List[str] = []
        self.numbers = array("d")  # targets and scores, row by row: Python's floats would take four times the memory
        self.line_of: Dict[str, int] = {}

    @property
    def columns(self) -> Dict[str, List[Any]]:
        """The columns that are not targets or scores."""
        names = ("file_names", "patient_ids", "ages", "sexes", "views")
        return {name: getattr(self, name) for name in names}

    def read(self, row: List[str], line: int) -> None:
        """Add a row, or note why it cannot be read."""
        if len(row) != len(self.header):
            kind = f"a row without {len(self.header)} fields"
            self.problems.add(kind, f"line {line} has {len(row)}", "A comma too many or few?")
            return
        name, patient, age, sex, view = self.about_of(row)
        self.check_names(name, patient, line)
        self.file_names.append(name)
        self.patient_ids.append(patient)
        self.ages.append(_read_age(age, line, self.problems))
        self.sexes.append(sex)
        self.views.append(view)
        sound = _sound_numbers(self.numbers_of(row), len(self.targets))
        if sound:
            self.numbers.extend(sound)
            return
        for column, text in zip(self.targets, self.targets_of(row)):
            self.numbers.append(_read_target(text, line, column, self.problems))
        for column, text in zip(self.scores, self.scores_of(row)):
            self.numbers.append(_read_score(text, line, column, self.problems))

    def check_names(self, name: str, patient: str, line: int) -> None:
        """Note a name that is empty or doubled, and what is no id of a patient."""
        add, line_of = self.problems.add, self.line_of
        if not name.strip():
            add("file_name is empty", f"line {line}", "Name the image.")
        elif line_of.setdefault(name, line) != line:
            add("file_name twice", f"{name!r} on lines {line_of[name]} and {line}", "Keep one row an image.")
        if not patient.strip():
            add("patient_id is empty", f"line {line}", "Intervals need to know whose image it is.")
        elif len(patient) > LONGEST_ID or "\0" in patient:
            add("patient_id is no id", f"line {line}: {patient!r}", f"Expected up to {LONGEST_ID} characters.")


def _getter(indices: Sequence[int]) -> Callable[[List[str]], Sequence[str]]:
    """Return what takes these fields of a row, as a tuple."""
    if len(indices) == 1:
        return lambda row: (row[indices[0]],)
    return itemgetter(*indices)


def _sound_numbers(texts: Sequence[str], num_targets: int) -> Optional[List[float]]:
    """Return a row's targets and scores, or None if one is wrong: most rows are right, and are read all at once."""
    try:
        numbers = list(map(float, texts))
    except ValueError:
        return None
    in_range = min(numbers) >= 0 and max(numbers) <= 1 and not math.isnan(sum(numbers))
    return numbers if in_range and {0.0, 1.0}.issuperset(numbers[:num_targets]) else None


def _names_of(kind: str, header: Sequence[str]) -> List[str]:
    """Return the labels that have a column `target_<label>` or `score_<label>`, in the header's order."""
    prefix = f"{kind}_"
    return [column[len(prefix) :] for column in header if column.startswith(prefix) and column[len(prefix) :].strip()]


def _label_names(targets: List[str], scores: List[str]) -> List[str]:
    """Return the labels of the columns found: NIH's in NIH's order, without what is beside them by half."""
    complete = [name for name in targets if name in scores]
    for known in LABEL_SETS_OF_0_5:
        if set(known.names) == set(complete):
            return list(known.names)
    beside_nih = set(NIH_CHESTXRAY14.names) <= set(complete)
    return complete if beside_nih else list(dict.fromkeys([*targets, *scores]))


def _read_header(header: List[str], problems: Problems) -> List[str]:
    """Return the labels, in NIH's order where they are NIH's, else in that of their targets; note what is wrong."""
    if not header:
        problems.add("the file is empty", "expected a header and a row an image", REMEDY)
        problems.raise_if_any()
    names = _label_names(_names_of("target", header), _names_of("score", header))
    columns = header_of(names)
    if not names:
        columns += ["target_<label>", "score_<label>"]
    for column in columns:
        if column not in header:
            problems.add("a column is missing from line 1", column, f"Found {', '.join(header)[:200]}. {REMEDY}")
        elif header.count(column) > 1:
            problems.add("a column is there twice on line 1", column, "Keep one.")
    for name in names:
        if not name.isprintable():
            problems.add("a label is not printable text", f"line 1: {name!r}", "Rename its target_ and score_ columns.")
    problems.raise_if_any()  # no row can be read without its columns
    further = [column for column in header if column not in columns]
    if further:
        named = visible(shortened(", ".join(further)))
        logger.info("%s: %d further columns are ignored: %s", problems.where, len(further), named)
    return names


def _read_age(text: str, line: int, problems: Problems) -> Optional[float]:
    if not text:
        return None
    age = _number(text)
    if not 0 <= age < math.inf:
        problems.add("age is not a number of years", f"line {line}: {text!r}", "Leave it empty where it is unknown.")
        return None
    return int(age) if age.is_integer() else age


def _read_target(text: str, line: int, column: str, problems: Problems) -> int:
    target = _number(text)
    if target not in (0, 1):
        problems.add("a target is not 0 or 1", f"line {line}, {column}: {text!r}", "1 = the finding is there, 0 = not.")
        return 0
    return int(target)


def _read_score(text: str, line: int, column: str, problems: Problems) -> float:
    score = _number(text)
    if math.isnan(score):
        problems.add("a score is not a number", f"line {line}, {column}: {text!r}", "Expected a probability in [0, 1].")
    elif not 0 <= score <= 1:
        remedy = "Expected a probability; chestxray_vit.metrics.probability.probabilities makes them of logits."
        problems.add("a score is outside [0, 1]", f"line {line}, {column}: {text!r}", remedy)
    return score


def _number(text: str) -> float:
    """Return the number that a text stands for, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
