"""Check and convert the fields of NIH's Data_Entry CSV.

They are checked on the distinct values of a column rather than on 112,120 rows, so that checking costs little more than
reading.

N images."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.errors import Problems
from chestxray_vit.labels import SEPARATOR, LabelSet

NAME_PATTERN = re.compile(r"\d{8}_\d{3}\.png", re.ASCII)
NAME_LENGTH = 16
OLDEST = 120  # years; NIH's older files hold ages such as 411Y


def check_fields(columns: Mapping[str, Any], label_set: LabelSet, problems: Problems) -> Entries:
    """Check the columns of a CSV and convert them to their types.

    Args:
        columns: Arrow string arrays of N values, by our names.
        label_set: NIH's, with or without a column for its negative.
        problems: of the file.

    Raises:
        InputError: all problems of the file.
    """
    import pyarrow

    cells, cell_N = distinct(columns["findings"])
    _check_findings(cells, cell_N, label_set, problems)
    numbers_N = _check_names(columns["file_name"], problems)
    _check_patients(columns, numbers_N, problems)
    notices: List[str] = []
    table = pyarrow.table(
        {
            "file_name": columns["file_name"],
            "number": numbers_N,
            "findings": pyarrow.DictionaryArray.from_arrays(cell_N, cells),
            "patient_id": _as_texts(numbers_N // 1000),
            "age": _converted(columns["age"], parse_age, "int64", "age", notices),
            "sex": _converted(columns["sex"], _parse_sex, "string", "sex", notices),
            "view": _converted(columns["view"], _parse_view, "string", "view", notices),
            "follow_up": _converted(columns["follow_up"], _parse_number, "int64", "follow-up number", notices),
        }
    )
    return _merge_doubled(Entries(table, label_set, tuple(notices)), problems)


def _as_texts(numbers_N: np.ndarray) -> Any:
    """Return whole numbers as an Arrow dictionary array of texts: the patient 1 is "1"."""
    import pyarrow

    encoded = pyarrow.array(numbers_N).dictionary_encode()
    return pyarrow.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast("string"))


def _converted(array: Any, parse: Callable[[str], object], kind: str, what: str, notices: List[str]) -> Any:
    """Return a column with its values parsed, null where `parse` returns None, which a notice counts."""
    import pyarrow

    values, codes_N = distinct(array)
    parsed = [parse(value) for value in values]
    lost = [code for code, value in enumerate(parsed) if value is None]
    if lost:
        count, example = int(np.isin(codes_N, lost).sum()), values[lost[0]]
        notices.append(f"{count:,} of {len(codes_N):,} rows have no usable {what} (such as {example!r}): kept as null")
    return pyarrow.DictionaryArray.from_arrays(codes_N, pyarrow.array(parsed, type=kind))


def _check_findings(cells: List[str], cell_N: np.ndarray, label_set: LabelSet, problems: Problems) -> None:
    """Refuse cells without a finding, with unknown ones, or with the negative beside another."""
    negative = label_set.negative
    names = (*label_set.findings, negative)
    known = f"Known: {', '.join(filter(None, names))}. Is the file UTF-8 and the spelling NIH's?"

    def note(kind: str, is_wrong: Callable[[str], bool], remedy: str) -> None:
        for code in [code for code, cell in enumerate(cells) if is_wrong(cell)]:
            for row in np.flatnonzero(cell_N == code).tolist():
                problems.add(kind, f"line {row + 2}: {cells[code]!r}", remedy)

    def contradicts(cell: str) -> bool:
        return negative in cell.split(SEPARATOR) and cell != negative

    note("empty findings", lambda cell: not cell, f"Write {negative} where there is none.")
    note("unknown finding", lambda cell: bool(cell) and not set(cell.split(SEPARATOR)).issubset(names), known)
    note(f"{negative} with another finding", contradicts, f"Remove {negative} or the other.")


def _parse_number(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _parse_sex(text: str) -> Optional[str]:
    return text if text in ("M", "F") else None


def _parse_view(text: str) -> Optional[str]:
    return text or None


def parse_age(text: str) -> Optional[int]:
    """Read `58`, `058Y`, `013M` or `001D` as completed years; None if it is none of these or above 120 years."""
    match = re.fullmatch(r"(\d{1,4})([YMD]?)", text, re.ASCII)
    if not match:
        return None
    years = int(match.group(1)) // {"": 1, "Y": 1, "M": 12, "D": 365}[match.group(2)]
    return years if years <= OLDEST else None


def numbers_of(names: Any) -> np.ndarray:
    """Return the eleven digits of each name (an Arrow string array) as a number, -1 where a name is not NIH's.

    The bytes of all names are checked together: a regular expression for each would take as long as the reading.
    """
    import pyarrow.compute as compute

    if len(names) and compute.all(compute.equal(compute.binary_length(names), NAME_LENGTH)).as_py():
        first = np.frombuffer(names.buffers()[1], dtype=np.int32)[names.offset]
        size = NAME_LENGTH * len(names)
        bytes_NB = np.frombuffer(names.buffers()[2], dtype=np.uint8, count=size, offset=first).reshape(-1, NAME_LENGTH)
        digits_ND = np.delete(bytes_NB[:, :12], 8, axis=1) - np.uint8(ord("0"))
        rest_N = (bytes_NB[:, [8, 12, 13, 14, 15]] == np.frombuffer(b"_.png", dtype=np.uint8)).all(axis=1)
        whole_N = rest_N & (digits_ND <= 9).all(axis=1)
        return np.where(whole_N, digits_ND @ 10 ** np.arange(10, -1, -1), -1)
    matches = [NAME_PATTERN.fullmatch(name) for name in names.to_pylist()]
    return np.array([int(match[0][:8] + match[0][9:12]) if match else -1 for match in matches], dtype=np.int64)


def _check_names(names: Any, problems: Problems) -> np.ndarray:
    numbers_N = numbers_of(names)
    for row in np.flatnonzero(numbers_N < 0).tolist():
        remedy = "Expected eight digits, _, three digits, .png: a name in the images' folder."
        problems.add("image name is not NIH's", f"line {row + 2}: {names[row].as_py()!r}", remedy)
    return numbers_N


def _check_patients(columns: Mapping[str, Any], numbers_N: np.ndarray, problems: Problems) -> None:
    """Refuse patient ids that are no number, or differ from the image's name."""
    import pyarrow.compute as compute

    texts = columns["patient_id"]
    # Arrow takes 0x4 for a number, `_parse_number` does not
    plain = (
        compute.all(compute.ascii_is_decimal(texts)).as_py() and compute.max(compute.binary_length(texts)).as_py() < 10
    )
    if plain and np.array_equal(texts.cast("int64").to_numpy(), numbers_N // 1000):
        return
    for row, text in enumerate(texts.to_pylist()):
        if _parse_number(text) is None:
            problems.add("patient id is not a number", f"line {row + 2}: {text!r}", "Expected 1 to 30805.")
        elif numbers_N[row] >= 0 and int(text) != numbers_N[row] // 1000:
            example = f"line {row + 2}: {columns['file_name'][row]} has patient {int(text)}"
            problems.add("patient id differs from the image's name", example, "Were columns sorted apart?")


def _merge_doubled(entries: Entries, problems: Problems) -> Entries:
    """Keep one of the rows of an image that agree; refuse rows that contradict each other."""
    ordered = np.sort(entries.numbers("number"))
    if (ordered[1:] != ordered[:-1]).all():
        problems.raise_if_any()
        return entries
    first_row: Dict[str, int] = {}
    first_N = np.ones(len(entries), dtype=bool)
    facts = list(zip(*(entries.column(name) for name in ("age", "sex", "view", "follow_up"))))
    cells = entries.column("findings")
    for row, name in enumerate(entries.column("file_name")):
        first = first_row.setdefault(name, row)
        if first == row:
            continue
        first_N[row] = False
        if facts[first] != facts[row] or set(cells[first].split(SEPARATOR)) != set(cells[row].split(SEPARATOR)):
            example = f"{name} on lines {first + 2} and {row + 2}"
            problems.add("rows of one image contradict each other", example, "Keep the right one.")
    problems.raise_if_any()
    doubled = len(entries) - int(first_N.sum())
    return entries.keep(first_N, [f"{doubled:,} doubled rows agree with the first of their image: merged"])
