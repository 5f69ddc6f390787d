"""Read NIH's tables: the Data_Entry CSV in its old and new form, and the split lists.

The CSV's header has unquoted commas in brackets, copies of it end in a comma, and ages come as `58` or
`058Y`: readers that guess shift columns silently. Here every field is checked, on the distinct values of
a column rather than on 112,120 rows, so that checking costs little more than reading.

N images."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from chestxray_vit.findings import FINDINGS, NO_FINDING, SEPARATOR, encode
from chestxray_vit.problems import InputError, Problems

CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
NAME_PATTERN = re.compile(r"(\d{8})_\d{3}\.png", re.ASCII)
OLDEST = 120  # years; NIH's older files hold ages such as 411Y

# What a column is called here, and the names it has in the copies of the release.
COLUMNS: Dict[str, Tuple[str, ...]] = {
    "file_name": ("Image Index",),
    "findings": ("Finding Labels",),
    "follow_up": ("Follow-up #",),
    "patient_id": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}


@dataclass(frozen=True)
class Entries:
    """The images of a Data_Entry CSV, in its order.

    Attributes:
        file_names: N names, each `########_###.png`, all different.
        finding_cells: the distinct cells of the findings column, e.g. `Edema|Effusion`.
        finding_codes: N indices into `finding_cells`.
        patient_ids: N integers, the first eight digits of the names.
        ages: N completed years, None where absurd.
        sexes: N of `M`, `F` or None.
        views: N of `PA`, `AP` or what the CSV says; None where empty.
        follow_ups: N integers, None where not a number.
        notices: what was mended in reading, in words.
    """

    file_names: List[str]
    finding_cells: List[str]
    finding_codes: List[int]
    patient_ids: List[int]
    ages: List[Optional[int]]
    sexes: List[Optional[str]]
    views: List[Optional[str]]
    follow_ups: List[Optional[int]]
    notices: Tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.file_names)

    def take(self, rows: Sequence[int], notices: Sequence[str] = ()) -> Entries:
        """Return the entries of the given rows, with more notices."""

        def pick(column: List) -> List:
            return [column[row] for row in rows]

        return Entries(
            pick(self.file_names),
            self.finding_cells,
            pick(self.finding_codes),
            pick(self.patient_ids),
            pick(self.ages),
            pick(self.sexes),
            pick(self.views),
            pick(self.follow_ups),
            (*self.notices, *notices),
        )


def find_file(dataset_dir: Path, names: Sequence[str]) -> Optional[Path]:
    """Return the first of `names` in a folder, plain or with `.gz`; None if none is there."""
    candidates = [dataset_dir / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_entries(path: Path) -> Entries:
    """Read a Data_Entry CSV, plain or gzipped, of 11 or 12 fields, old or new column names.

    Raises:
        InputError: every problem of the file, by kind, with lines, counts and remedies.
    """
    from pyarrow import csv as arrow_csv

    text = _read_text(path)
    header, width = _read_header(path, text)
    problems = Problems(path.name)
    ragged = []

    def note_ragged(row) -> str:
        ragged.append((row.number, row.actual_columns))
        return "skip"

    table = arrow_csv.read_csv(
        io.BytesIO(text.rstrip("\r\n").encode()),
        # one thread: only then does Arrow know the line of a bad row
        read_options=arrow_csv.ReadOptions(
            column_names=[str(place) for place in range(width)], skip_rows=1, use_threads=False, block_size=1 << 26
        ),
        parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note_ragged),
        convert_options=arrow_csv.ConvertOptions(
            column_types={str(place): "string" for place in range(width)}, strings_can_be_null=False
        ),
    )
    if table.num_rows + len(ragged) != text.rstrip("\r\n").count("\n"):
        for line in _broken_lines(text):
            problems.add("line break inside a field", f"line {line}", "Expected one line an image, without quotes.")
    for line, fields in ragged:
        problems.add(
            "row of another length", f"line {line} has {fields} fields, expected {width}", "Is the file whole?"
        )
    problems.raise_if_any()  # with rows skipped, the lines of all others would be told wrong
    for place in range(len(header), width):
        if set(table[place].unique().to_pylist()) - {""}:
            problems.add("more fields than column names", f"field {place + 1} has no name", "Repair the header line.")
    columns = {name: table[header.index(_alias(header, name))] for name in COLUMNS}
    return _check_columns(columns, problems)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}. Fetch the file again.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name} line {line}: not UTF-8. Save the file as UTF-8 without changing it.") from error


def _read_header(path: Path, text: str) -> Tuple[List[str], int]:
    """Return the column names, less empty ones at the end, and the number of fields in a row."""
    first, _, rows = text.partition("\n")
    if not rows.strip():
        raise InputError(f"{path.name}: no rows. Expected NIH's Data_Entry_2017 CSV, a header and one line an image.")
    try:
        header = [name.strip() for name in next(csv.reader([first.rstrip("\r")]))]
    except csv.Error as error:
        raise InputError(f"{path.name} line 1: {error}. Is it NIH's CSV?") from error
    while header and not header[-1]:
        header.pop()
    problems = Problems(path.name)
    for aliases in COLUMNS.values():
        found = [name for name in header if name in aliases]
        if not found:
            problems.add("missing column", f"{' or '.join(aliases)}; found: {', '.join(header)}", "Is it NIH's CSV?")
        if len(found) > 1:
            problems.add("doubled column", ", ".join(found), "Keep one of them.")
    problems.raise_if_any()
    usual, _ = Counter(line.count(",") for line in rows.rstrip("\r\n").split("\n")).most_common(1)[0]
    return header, max(usual + 1, len(header))


def _broken_lines(text: str) -> List[int]:
    """Return the numbers of the lines that end inside a quoted field, or hold a carriage return before their end."""
    lines = enumerate(text.rstrip("\r\n").split("\n"), start=1)
    return [number for number, line in lines if line.count('"') % 2 or "\r" in line.rstrip("\r")]


def _alias(header: Sequence[str], column: str) -> str:
    return next(name for name in header if name in COLUMNS[column])


def _check_columns(columns: Dict, problems: Problems) -> Entries:
    """Check the columns of a CSV (Arrow string columns of equal length), and give them their types."""
    encoded = {name: _encode(columns[name]) for name in COLUMNS if name != "file_name"}
    file_names = columns["file_name"].to_pylist()
    cells, finding_codes = encoded["findings"]
    notices: List[str] = []

    def note(column: str, kind: str, is_wrong: Callable[[str], bool], remedy: str) -> None:
        values, codes = encoded[column]
        for code in [code for code, value in enumerate(values) if is_wrong(value)]:
            for row in np.flatnonzero(codes == code).tolist():
                problems.add(kind, f"line {row + 2}: {values[code]!r}", remedy)

    known = f"Known: {', '.join(FINDINGS)}, {NO_FINDING}. Is the file UTF-8 and the spelling NIH's?"
    note("findings", "empty findings", lambda cell: not cell, f"Write {NO_FINDING} where there is none.")
    note("findings", "unknown finding", lambda cell: bool(cell) and bool(_unknown(cell)), known)
    note("findings", f"{NO_FINDING} with another finding", _contradicts, f"Remove {NO_FINDING} or the other.")
    note("patient_id", "patient id is not a number", lambda value: _number(value) is None, "Expected 1 to 30805.")

    name_ids = _ids_of_names(file_names, problems)
    values, codes = encoded["patient_id"]
    numbers = [_number(value) for value in values]
    ids = np.array([-1 if number is None else number for number in numbers], dtype=np.int64)[codes]
    for row in np.flatnonzero((ids != name_ids) & (ids >= 0) & (name_ids >= 0)).tolist():
        example = f"line {row + 2}: {file_names[row]} has patient {ids[row]}"
        problems.add("patient id differs from the image's name", example, "Were columns sorted apart?")

    def convert(column: str, parse: Callable[[str], object], what: str) -> List:
        values, codes = encoded[column]
        parsed = [parse(value) for value in values]
        lost = sum(int((codes == code).sum()) for code, value in enumerate(parsed) if value is None)
        if lost:
            example = next(value for value, result in zip(values, parsed) if result is None)
            notices.append(f"{lost:,} of {len(codes):,} rows have no usable {what} (such as {example!r}): kept as null")
        return [parsed[code] for code in codes.tolist()]

    entries = Entries(
        file_names,
        cells,
        finding_codes.tolist(),
        ids.tolist(),
        convert("age", parse_age, "age"),
        convert("sex", lambda value: value if value in ("M", "F") else None, "sex"),
        convert("view", lambda value: value or None, "view"),
        convert("follow_up", _number, "follow-up number"),
        tuple(notices),
    )
    return _merge_doubled(entries, problems)


def _encode(column) -> Tuple[List[str], np.ndarray]:
    """Return the distinct values of an Arrow column, and for each row the place of its value."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _number(text: str) -> Optional[int]:
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _unknown(cell: str) -> Set[str]:
    return set(cell.split(SEPARATOR)).difference(FINDINGS, [NO_FINDING])


def _contradicts(cell: str) -> bool:
    return NO_FINDING in cell.split(SEPARATOR) and cell != NO_FINDING


def _ids_of_names(file_names: Sequence[str], problems: Problems) -> np.ndarray:
    """Return the patient id in each name, -1 for a name that is not NIH's."""
    if re.fullmatch(r"(?:\d{8}_\d{3}\.png\n)*", "\n".join(file_names) + "\n", re.ASCII):  # all at once: 10x faster
        return np.array([name[:8] for name in file_names], dtype=np.int64)
    ids = np.full(len(file_names), -1, dtype=np.int64)
    for row, name in enumerate(file_names):
        match = NAME_PATTERN.fullmatch(name)
        if match:
            ids[row] = int(match.group(1))
        else:
            remedy = "Expected eight digits, _, three digits, .png: a name in the images' folder."
            problems.add("image name is not NIH's", f"line {row + 2}: {name!r}", remedy)
    return ids


def _merge_doubled(entries: Entries, problems: Problems) -> Entries:
    """Keep one of the rows of an image that agree; refuse rows that contradict each other."""
    if len(set(entries.file_names)) == len(entries):
        problems.raise_if_any()
        return entries
    first_row: Dict[str, int] = {}
    kept = []
    columns = (entries.ages, entries.sexes, entries.views, entries.follow_ups)
    for row, name in enumerate(entries.file_names):
        first = first_row.setdefault(name, row)
        if first == row:
            kept.append(row)
            continue
        cells = (set(entries.finding_cells[entries.finding_codes[place]].split(SEPARATOR)) for place in (first, row))
        same_findings = next(cells) == next(cells)
        if not same_findings or any(column[first] != column[row] for column in columns):
            example = f"{name} on lines {first + 2} and {row + 2}"
            problems.add("rows of one image contradict each other", example, "Keep the right one.")
    problems.raise_if_any()
    doubled = len(entries) - len(kept)
    return entries.take(kept, [f"{doubled:,} doubled rows agree with the first of their image: merged"])


def parse_age(text: str) -> Optional[int]:
    """Read `58`, `058Y`, `013M` or `001D` as completed years; None if it is none of these or above 120 years."""
    match = re.fullmatch(r"(\d{1,4})([YMD]?)", text, re.ASCII)
    if not match:
        return None
    years = int(match.group(1)) // {"": 1, "Y": 1, "M": 12, "D": 365}[match.group(2)]
    return years if years <= OLDEST else None


def labels_of(entries: Entries, include_no_finding: bool = False) -> List[List[float]]:
    """Return the N-hot row of each distinct cell, in the order of `entries.finding_cells`."""
    return [encode(cell.split(SEPARATOR), include_no_finding) for cell in entries.finding_cells]


def read_test_names(train_val_list: Path, test_list: Path, file_names: Sequence[str]) -> Set[str]:
    """Read NIH's two lists and return the names of the test images.

    Raises:
        InputError: the lists overlap, name an image that the CSV has not, or leave one of its images out.
    """
    train_val, test = (set(_read_text(path).split()) for path in (train_val_list, test_list))
    known = set(file_names)
    problems = Problems(f"{train_val_list.name} and {test_list.name}")
    groups = (
        ("image in both lists", train_val & test, "Each image belongs to one list."),
        (
            "image that the CSV has not",
            (train_val | test) - known,
            "Use the CSV that the lists belong to, or --split patient.",
        ),
        ("image of the CSV in neither list", known - train_val - test, "Use NIH's whole lists, or --split patient."),
    )
    for kind, names, remedy in groups:
        for name in sorted(names):
            problems.add(kind, repr(name), remedy)
    problems.raise_if_any()
    return test
