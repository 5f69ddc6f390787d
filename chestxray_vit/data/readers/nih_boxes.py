"""Read NIH's BBox_List_2017.csv: where radiologists saw a finding, on 984 boxes of 880 test images.

Its header has unquoted commas in brackets and three columns without a name, and it writes `Infiltrate` where the
labels write `Infiltration`: columns are found by name, and findings get the names of the label set."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Sequence, Tuple

from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.storage.atomic import PathLike

SIDE = 1024  # pixels of NIH's images, which the boxes are measured in
TOLERANCE = 1.0  # pixels that a box may stand out of the image: coordinates are rounded
NAME, FINDING = "Image Index", "Finding Label"
NUMBERS = ("Bbox [x", "y", "w", "h]")  # one name, `Bbox [x,y,w,h]`, which its commas cut
COLUMNS = (NAME, FINDING, *NUMBERS)
NIH_NAMES = {"Infiltrate": "Infiltration"}
REMEDY = "Give NIH's BBox_List_2017.csv."


@dataclass(frozen=True)
class Box:
    """A box that a radiologist drew around a finding.

    Attributes:
        file_name: of the image, without a folder.
        finding: one of NIH's label set.
        x, y: left and upper edge, in pixels of 1024 x 1024.
        width, height: likewise, above 0.
    """

    file_name: str
    finding: str
    x: float
    y: float
    width: float
    height: float


def read_boxes(path: PathLike) -> List[Box]:
    """Read the boxes in the file's order. Columns of other names are ignored.

    Raises:
        InputError: the file is not there, or is no such table; all problems at once, with their lines.
    """
    problems = Problems(Path(path).name)
    rows = csv.reader(io.StringIO(_read_text(Path(path)), newline=""))
    try:
        boxes = _read_rows(rows, problems)
    except csv.Error as error:
        raise InputError(f"{Path(path).name} line {rows.line_num}: {error}. {REMEDY}") from error
    problems.raise_if_any()
    return boxes


def by_case(boxes: Sequence[Box], images: Collection[str]) -> Dict[Tuple[str, str], List[Box]]:
    """Return the boxes of each (image, finding), of the images that are there, in the file's order."""
    cases: Dict[Tuple[str, str], List[Box]] = {}
    for box in boxes:
        if box.file_name in images:
            cases.setdefault((box.file_name, box.finding), []).append(box)
    return cases


def count_used(boxes: Sequence[Box], used: Collection[str], images: Collection[str]) -> Dict[str, Any]:
    """Return how many boxes were used, and the images of the others.

    Args:
        boxes: all of the file.
        used: the images whose boxes were used.
        images: of the data set; an image of these that was not used could not be read.
    """
    left_out = list(dict.fromkeys(box.file_name for box in boxes if box.file_name not in used))
    num_used = sum(box.file_name in used for box in boxes)
    return {
        "num_boxes": len(boxes),
        "num_used": num_used,
        "num_left_out": len(boxes) - num_used,
        "images_not_in_dataset": [name for name in left_out if name not in images],
        "images_unreadable": [name for name in left_out if name in images],
    }


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}. {REMEDY}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name} line {line}: not UTF-8. Save the file as UTF-8 without changing it.") from error


def _read_rows(rows: Any, problems: Problems) -> List[Box]:
    header = [name.strip() for name in next(rows, [])]
    if not any(header):
        problems.add("the file is empty", "expected a header and a line a box", REMEDY)
        return []
    for column in COLUMNS:
        if header.count(column) != 1:
            kind = "doubled column" if column in header else "missing column"
            problems.add(kind, repr(column), f"Found: {', '.join(filter(None, header))[:200]}. {REMEDY}")
    if problems:
        return []
    index_of = {column: header.index(column) for column in COLUMNS}
    named = max(index_of.values()) + 1
    boxes: List[Optional[Box]] = []
    for row in filter(None, rows):
        if not named <= len(row) <= len(header):
            example = f"line {rows.line_num} has {len(row)} fields, expected {named} to {len(header)}"
            problems.add("row of another length", example, "A comma too many or few?")
            continue
        boxes.append(
            _read_box({column: row[index].strip() for column, index in index_of.items()}, rows.line_num, problems)
        )
    if not boxes and not problems:
        problems.add("no box", "found a header and no row", REMEDY)
    return [box for box in boxes if box is not None]


def _read_box(row: Dict[str, str], line: int, problems: Problems) -> Optional[Box]:
    """Return the box of a row, or None where a field is no number; note what is wrong with it."""
    finding = NIH_NAMES.get(row[FINDING], row[FINDING])
    if not row[NAME]:
        problems.add("image name is empty", f"line {line}", "Name the image.")
    if finding not in NIH_CHESTXRAY14.findings:
        problems.add("unknown finding", f"line {line}: {finding!r}", f"Known: {', '.join(NIH_CHESTXRAY14.findings)}.")
    numbers = [_number(row[column]) for column in NUMBERS]
    wrong = [row[column] for column, number in zip(NUMBERS, numbers) if not math.isfinite(number)]
    for text in wrong:
        problems.add("not a number", f"line {line}: {text!r}", "Expected x, y, width and height in pixels.")
    if wrong:
        return None
    _check_position(numbers, line, problems)
    return Box(row[NAME], finding, *numbers)


def _check_position(numbers: Sequence[float], line: int, problems: Problems) -> None:
    x, y, width, height = numbers
    if min(x, y) < -TOLERANCE or min(width, height) < 0:
        problems.add("negative number", f"line {line}: x {x:g}, y {y:g}, width {width:g}, height {height:g}", REMEDY)
    elif min(width, height) == 0:
        problems.add("box without an area", f"line {line}: width {width:g}, height {height:g}", REMEDY)
    if max(x + width, y + height) > SIDE + TOLERANCE:
        example = f"line {line}: reaches to x {x + width:g}, y {y + height:g}"
        remedy = f"Expected pixels of {SIDE} x {SIDE}, as x, y, width, height (not two corners)."
        problems.add("box outside the image", example, remedy)


def _number(text: str) -> float:
    """Return the number that a text stands for, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
