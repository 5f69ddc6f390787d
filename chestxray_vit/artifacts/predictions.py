"""The table of targets and scores, one row an image, and its CSV: what `evaluate` writes and `report` reads.

Any tool may write one, so reading trusts nothing and tells all problems at once. Scores are written with every
digit: an AUC ranks them, and a rounded score ties images that the model told apart.

Shapes: N images, L = 14 findings in NIH's order."""

from __future__ import annotations

import csv
import logging
import math
from array import array
from dataclasses import dataclass
from operator import itemgetter
from typing import Dict, Iterator, List, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.errors import InputError, Problems, shortened, visible
from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics.roc_auc import finite_logits
from chestxray_vit.storage.atomic import PathLike, atomic_write

logger = logging.getLogger(__name__)

TARGET_COLUMNS = tuple(f"target_{finding}" for finding in FINDINGS)
SCORE_COLUMNS = tuple(f"score_{finding}" for finding in FINDINGS)
COLUMNS = ("file_name", "patient_id", "age", "sex", "view", *TARGET_COLUMNS, *SCORE_COLUMNS)
VALIDATION = "predictions_validation.csv"  # lies beside predictions.csv: what thresholds are chosen on
LONGEST_ID = 200  # characters; numpy's arrays of ids are as wide as the longest, and drop NULs
REMEDY = "Give a predictions.csv as chestxray_vit.evaluate writes it."


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so == would raise
class Predictions:
    """What a model said of N images, beside what their labels say.

    Attributes:
        file_names: N names, each once.
        patient_ids: N texts, equal for the images of one patient.
        ages: N numbers of years, None where unknown.
        sexes: N texts, empty where unknown.
        views: N texts (PA, AP), empty where unknown.
        targets_NL: 0 or 1.
        scores_NL: probabilities in [0, 1], float64.
    """

    file_names: Sequence[str]
    patient_ids: Sequence[str]
    ages: Sequence[Optional[float]]
    sexes: Sequence[str]
    views: Sequence[str]
    targets_NL: np.ndarray
    scores_NL: np.ndarray

    def __post_init__(self) -> None:
        """Refuse a table that its own CSV would not hold."""
        num_images = len(self.file_names)
        for name in ("patient_ids", "ages", "sexes", "views"):
            if len(getattr(self, name)) != num_images:
                raise ValueError(f"{name} holds {len(getattr(self, name))} values, file_names {num_images}")
        for name in ("targets_NL", "scores_NL"):
            if np.shape(getattr(self, name)) != (num_images, len(FINDINGS)):
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}, not {(num_images, len(FINDINGS))}")
        if len(set(self.file_names)) < num_images:
            raise ValueError("file_names holds a name twice")
        for name in ("file_names", "patient_ids"):
            if not all(str(value).strip() for value in getattr(self, name)):
                raise ValueError(f"{name} holds an empty text")
        if not ((self.targets_NL == 0) | (self.targets_NL == 1)).all():
            raise ValueError("targets_NL must be 0 or 1")
        if not ((self.scores_NL >= 0) & (self.scores_NL <= 1)).all():
            raise ValueError("scores_NL must be in [0, 1]; `probabilities` makes such of logits")


def probabilities(logits_NL: ArrayLike) -> np.ndarray:
    """Return the sigmoid of each logit, in the strict order of the float32 logits of its finding.

    A float64 sigmoid ties float32 logits above 36 or so, and ties cost AUC. Where it does, the lower logit gets the
    next float below (above, near 0): a change in the sixteenth digit that keeps the ranking.

    Args:
        logits_NL: any real dtype; ranked as float32.

    Returns:
        float64 in [0, 1]; equal logits of a finding stay equal.

    Raises:
        InputError: a logit is not finite.
    """
    logits_NL = finite_logits(logits_NL).astype(np.float64)
    return np.stack([_ordered_sigmoid(logits_N) for logits_N in logits_NL.T], axis=1)


def _ordered_sigmoid(logits_N: np.ndarray) -> np.ndarray:
    logits, place_N = np.unique(logits_N, return_inverse=True)
    small = np.exp(-np.abs(logits))  # never overflows
    sigmoid = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    # The bits of floats >= 0, read as integers, count the floats: one less is the next float below.
    steps = np.arange(len(logits))
    bits = sigmoid.view(np.int64) - steps
    bits = np.minimum.accumulate(bits[::-1])[::-1] + steps  # from the top down, each at least one below the next
    bits = np.maximum.accumulate(np.maximum(bits, 0) - steps) + steps  # from 0 up, each at least one above the last
    return bits.view(np.float64)[place_N]


def write_predictions(path: PathLike, predictions: Predictions) -> None:
    """Write predictions.csv, whole or not at all; `read_predictions` gives back every digit."""
    columns = (predictions.file_names, predictions.patient_ids, predictions.ages, predictions.sexes, predictions.views)
    texts = (predictions.file_names, predictions.patient_ids, predictions.sexes, predictions.views)
    # a carriage return that is not quoted ends the line, and `csv` quotes it only with all other texts
    breaks = any("\r" in str(text) for column in texts for text in column)
    quoting = csv.QUOTE_NONNUMERIC if breaks else csv.QUOTE_MINIMAL
    targets = np.asarray(predictions.targets_NL).astype(int).tolist()
    scores = np.asarray(predictions.scores_NL, dtype=np.float64).tolist()
    with atomic_write(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=quoting)
        writer.writerow(COLUMNS)
        for *about, target_L, score_L in zip(*columns, targets, scores):
            writer.writerow([*about, *target_L, *score_L])  # csv writes a float by repr: all its digits


def read_predictions(path: PathLike) -> Predictions:
    """Read predictions.csv, from whatever tool wrote it. Further columns are ignored, with a notice.

    Raises:
        InputError: the file is not there, or is no such table; all problems at once, with line and column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _read_rows(csv.reader(file), Problems(str(path)))
    except FileNotFoundError as err:
        raise InputError(f"{path}: there is no such file. {REMEDY}") from err
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8: {err}. {REMEDY}") from err


def _read_rows(rows: Iterator[List[str]], problems: Problems) -> Predictions:
    header = next(rows, [])
    _check_header(header, problems)
    about_of, targets_of, scores_of, numbers_of = (
        itemgetter(*map(header.index, columns))
        for columns in (COLUMNS[:5], TARGET_COLUMNS, SCORE_COLUMNS, (*TARGET_COLUMNS, *SCORE_COLUMNS))
    )
    file_names, patient_ids, ages, sexes, views = [], [], [], [], []
    numbers = array("d")  # targets and scores, row by row: as Python floats 200,000 would take half a gigabyte
    line_of: Dict[str, int] = {}
    for row in filter(None, rows):  # without empty lines
        line = rows.line_num
        if len(row) != len(header):
            problems.add(
                f"a row without {len(header)} fields", f"line {line} has {len(row)}", "A comma too many or few?"
            )
            continue
        name, patient, age, sex, view = about_of(row)
        if not name.strip():
            problems.add("file_name is empty", f"line {line}", "Name the image.")
        elif line_of.setdefault(name, line) != line:
            problems.add("file_name twice", f"{name!r} on lines {line_of[name]} and {line}", "Keep one row an image.")
        if not patient.strip():
            problems.add("patient_id is empty", f"line {line}", "Intervals need to know whose image it is.")
        elif len(patient) > LONGEST_ID or "\0" in patient:
            problems.add("patient_id is no id", f"line {line}: {patient!r}", f"Expected up to {LONGEST_ID} characters.")
        file_names.append(name)
        patient_ids.append(patient)
        ages.append(_read_age(age, line, problems))
        sexes.append(sex)
        views.append(view)
        sound = _sound_numbers(numbers_of(row))
        if sound:
            numbers.extend(sound)
            continue
        for column, text in zip(TARGET_COLUMNS, targets_of(row)):
            numbers.append(_read_target(text, line, column, problems))
        for column, text in zip(SCORE_COLUMNS, scores_of(row)):
            numbers.append(_read_score(text, line, column, problems))
    if not file_names and not problems:
        problems.add("no image", "found a header and no row, expected a row an image", REMEDY)
    problems.raise_if_any()
    numbers_N2L = np.array(numbers).reshape(len(file_names), 2 * len(FINDINGS))
    targets_NL, scores_NL = numbers_N2L[:, : len(FINDINGS)].astype(np.int64), numbers_N2L[:, len(FINDINGS) :].copy()
    return Predictions(file_names, patient_ids, ages, sexes, views, targets_NL, scores_NL)


def _sound_numbers(texts: Sequence[str]) -> Optional[List[float]]:
    """Return a row's targets and scores, or None if one is wrong: most rows are right, and asked all at once."""
    try:
        numbers = list(map(float, texts))
    except ValueError:
        return None
    in_range = min(numbers) >= 0 and max(numbers) <= 1 and not math.isnan(sum(numbers))
    return numbers if in_range and {0.0, 1.0}.issuperset(numbers[: len(FINDINGS)]) else None


def _check_header(header: List[str], problems: Problems) -> None:
    if not header:
        problems.add("the file is empty", "expected a header and a row an image", REMEDY)
        problems.raise_if_any()
    for column in COLUMNS:
        if column not in header:
            problems.add("a column is missing from line 1", column, f"Found {', '.join(header)[:200]}. {REMEDY}")
        elif header.count(column) > 1:
            problems.add("a column is there twice on line 1", column, "Keep one.")
    problems.raise_if_any()  # no row can be read without its columns
    further = [column for column in header if column not in COLUMNS]
    if further:
        named = visible(shortened(", ".join(further)))
        logger.info("%s: %d further columns are ignored: %s", problems.where, len(further), named)


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
        remedy = "Expected a probability; chestxray_vit.artifacts.predictions.probabilities makes them of logits."
        problems.add("a score is outside [0, 1]", f"line {line}, {column}: {text!r}", remedy)
    return score


def _number(text: str) -> float:
    """Return the number that a text stands for, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
