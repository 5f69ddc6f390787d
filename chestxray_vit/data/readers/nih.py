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
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import FINDINGS, NO_FINDING, SEPARATOR, encode

CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
NAME_PATTERN = re.compile(r"\d{8}_\d{3}\.png", re.ASCII)
NAME_LENGTH = 16
MOST_BYTES = 1 << 28  # of a table, unpacked; NIH's CSV has 9 MB
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
        table: a pyarrow table with a row an image. `file_name`: `########_###.png`, all different; `number`: its
            eleven digits; `findings`: a cell such as `Edema|Effusion`; `patient_id`: the first eight digits; `age`:
            completed years, null where absurd; `sex`: `M`, `F` or null; `view`: `PA`, `AP` or what the CSV says;
            `follow_up`: a number, null where it is none.
        notices: what was mended in reading, in words.
    """

    table: Any
    notices: Tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.table.num_rows

    def arrow(self, name: str):
        """Return a column of the table as one Arrow array of N values."""
        return self.table[name].combine_chunks()

    def column(self, name: str) -> List:
        """Return a column of the table as a list of N values."""
        return self.table[name].to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of whole numbers without nulls as an array of N int64."""
        return self.table[name].to_numpy()

    def keep(self, rows_N: np.ndarray, notices: Sequence[str] = ()) -> Entries:
        """Return the entries whose place in `rows_N` (bool) is true, with more notices."""
        import pyarrow

        return Entries(self.table.filter(pyarrow.array(rows_N)), (*self.notices, *notices))

    def labels(self, include_no_finding: bool = False) -> Tuple[List[List[float]], np.ndarray]:
        """Return the N-hot rows of the distinct cells, and for each image the place of its row."""
        cells, codes_N = distinct(self.arrow("findings"))
        return [encode(cell.split(SEPARATOR), include_no_finding) for cell in cells], codes_N


def find_file(dataset_dir: Path, names: Sequence[str]) -> Optional[Path]:
    """Return the first of `names` in a folder, plain or with `.gz`; None if none is there."""
    candidates = [dataset_dir / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_entries(path: Path) -> Entries:
    """Read a Data_Entry CSV, plain or gzipped, of 11 or 12 fields, old or new column names.

    Raises:
        InputError: every problem of the file, by kind, with lines, counts and remedies.
    """
    import pyarrow
    from pyarrow import csv as arrow_csv

    text = _read_text(path).rstrip("\r\n")
    header, width = _read_header(path, text)
    problems = Problems(path.name)
    ragged = []

    def note_ragged(row) -> str:
        ragged.append((row.number, row.actual_columns))
        return "skip"

    data = text.encode()
    names = [str(place) for place in range(width)]
    wanted = {name: str(header.index(_alias(header, name))) for name in COLUMNS}
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(data),
            # one thread: only then does Arrow know the line of a bad row
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False, block_size=1 << 26),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note_ragged),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=[*wanted.values(), *names[len(header) :]],
                column_types=dict.fromkeys(names, "string"),
                strings_can_be_null=False,
            ),
        )
    except pyarrow.ArrowInvalid as error:  # a field does not end where a block of the file does
        _note_line_breaks(text, problems)
        raise InputError(str(problems)) from error
    if table.num_rows + len(ragged) != data.count(b"\n"):
        _note_line_breaks(text, problems)
    for line, fields in ragged:
        problems.add(
            "row of another length", f"line {line} has {fields} fields, expected {width}", "Is the file whole?"
        )
    problems.raise_if_any()  # with rows skipped, the lines of all others would be told wrong
    for place in range(len(header), width):
        if set(table[str(place)].unique().to_pylist()) - {""}:
            problems.add("more fields than column names", f"field {place + 1} has no name", "Repair the header line.")
    return _check_columns({name: table[place].combine_chunks() for name, place in wanted.items()}, problems)


def _read_text(path: Path) -> str:
    try:
        data = _read_bytes(path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}. Fetch the file again.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name} line {line}: not UTF-8. Save the file as UTF-8 without changing it.") from error


def _read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked; a few kB of gzip may hold more than the memory does."""
    parts, size = [], 0
    with open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = gzip.GzipFile(fileobj=file) if is_packed else file
        for part in iter(lambda: source.read(1 << 20), b""):
            size += len(part)
            if size > MOST_BYTES:
                raise InputError(f"{path}: larger than {MOST_BYTES:,} bytes{' unpacked' * is_packed}. Is it NIH's?")
            parts.append(part)
    return b"".join(parts)


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
    lines = rows.split("\n", 100)[:100]  # one odd row among the first is not the measure
    usual, _ = Counter(map(_num_fields, lines)).most_common(1)[0]
    return header, max(usual, len(header))


def _num_fields(line: str) -> int:
    try:
        return len(next(csv.reader([line]), []))
    except csv.Error:
        return line.count(",") + 1


def _note_line_breaks(text: str, problems: Problems) -> None:
    """Note the lines that end inside a quoted field, or hold a carriage return before their end."""
    lines = enumerate(text.split("\n"), start=1)
    broken = [number for number, line in lines if line.count('"') % 2 or "\r" in line[:-1]]
    for line in broken or ["unknown"]:
        problems.add("line break inside a field", f"line {line}", "Expected one line an image, without quotes.")


def _alias(header: Sequence[str], column: str) -> str:
    return next(name for name in header if name in COLUMNS[column])


def _check_columns(columns: Dict, problems: Problems) -> Entries:
    """Check the columns of a CSV (Arrow string arrays of equal length), and give them their types."""
    import pyarrow

    encoded = {name: distinct(columns[name]) for name in ("findings", "age", "sex", "view", "follow_up")}
    notices: List[str] = []

    def note(kind: str, is_wrong: Callable[[str], bool], remedy: str) -> None:
        cells, codes = encoded["findings"]
        for code in [code for code, cell in enumerate(cells) if is_wrong(cell)]:
            for row in np.flatnonzero(codes == code).tolist():
                problems.add(kind, f"line {row + 2}: {cells[code]!r}", remedy)

    known = f"Known: {', '.join(FINDINGS)}, {NO_FINDING}. Is the file UTF-8 and the spelling NIH's?"
    note("empty findings", lambda cell: not cell, f"Write {NO_FINDING} where there is none.")
    note("unknown finding", lambda cell: bool(cell) and bool(_unknown(cell)), known)
    note(f"{NO_FINDING} with another finding", _contradicts, f"Remove {NO_FINDING} or the other.")
    numbers_N = _check_names(columns["file_name"], problems)
    _check_patients(columns, numbers_N, problems)

    def convert(column: str, parse: Callable[[str], object], kind: str, what: str):
        values, codes_N = encoded[column]
        parsed = [parse(value) for value in values]
        lost = [code for code, value in enumerate(parsed) if value is None]
        if lost:
            count, example = int(np.isin(codes_N, lost).sum()), values[lost[0]]
            notices.append(
                f"{count:,} of {len(codes_N):,} rows have no usable {what} (such as {example!r}): kept as null"
            )
        return pyarrow.DictionaryArray.from_arrays(codes_N, pyarrow.array(parsed, type=kind))

    table = pyarrow.table(
        {
            "file_name": columns["file_name"],
            "number": numbers_N,
            "findings": pyarrow.DictionaryArray.from_arrays(encoded["findings"][1], encoded["findings"][0]),
            "patient_id": numbers_N // 1000,
            "age": convert("age", parse_age, "int64", "age"),
            "sex": convert("sex", lambda value: value if value in ("M", "F") else None, "string", "sex"),
            "view": convert("view", lambda value: value or None, "string", "view"),
            "follow_up": convert("follow_up", _number, "int64", "follow-up number"),
        }
    )
    return _merge_doubled(Entries(table, tuple(notices)), problems)


def distinct(array) -> Tuple[List, np.ndarray]:
    """Return the distinct values of an Arrow array, null being one, and for each row the place of its value."""
    encoded = array if hasattr(array, "dictionary") else array.dictionary_encode("encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _number(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _unknown(cell: str) -> Set[str]:
    return set(cell.split(SEPARATOR)).difference(FINDINGS, [NO_FINDING])


def _contradicts(cell: str) -> bool:
    return NO_FINDING in cell.split(SEPARATOR) and cell != NO_FINDING


def numbers_of(names) -> np.ndarray:
    """Return the eleven digits of each name (an Arrow string array) as a number, -1 where a name is not NIH's.

    The bytes of all names are looked at together: a regular expression for each would take as long as the reading.
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


def _check_names(names, problems: Problems) -> np.ndarray:
    numbers_N = numbers_of(names)
    for row in np.flatnonzero(numbers_N < 0).tolist():
        remedy = "Expected eight digits, _, three digits, .png: a name in the images' folder."
        problems.add("image name is not NIH's", f"line {row + 2}: {names[row].as_py()!r}", remedy)
    return numbers_N


def _check_patients(columns: Dict, numbers_N: np.ndarray, problems: Problems) -> None:
    """Refuse patient ids that are no number, or differ from the image's name."""
    import pyarrow.compute as compute

    texts = columns["patient_id"]
    # Arrow takes 0x4 for a number, `_number` does not
    plain = (
        compute.all(compute.ascii_is_decimal(texts)).as_py() and compute.max(compute.binary_length(texts)).as_py() < 10
    )
    if plain and np.array_equal(texts.cast("int64").to_numpy(), numbers_N // 1000):
        return
    for row, text in enumerate(texts.to_pylist()):
        if _number(text) is None:
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


def parse_age(text: str) -> Optional[int]:
    """Read `58`, `058Y`, `013M` or `001D` as completed years; None if it is none of these or above 120 years."""
    match = re.fullmatch(r"(\d{1,4})([YMD]?)", text, re.ASCII)
    if not match:
        return None
    years = int(match.group(1)) // {"": 1, "Y": 1, "M": 12, "D": 365}[match.group(2)]
    return years if years <= OLDEST else None


def read_test_list(train_val_list: Path, test_list: Path, entries: Entries) -> np.ndarray:
    """Read NIH's two lists and tell for each image of the CSV whether it is in the test list.

    Returns:
        N bool.

    Raises:
        InputError: the lists overlap, name an image that the CSV has not, or leave one of its images out.
    """
    import pyarrow

    train_val, test = (_read_text(path).split() for path in (train_val_list, test_list))
    train_val_numbers, test_numbers = (numbers_of(pyarrow.array(names, "string")) for names in (train_val, test))
    numbers_N = entries.numbers("number")
    if not np.array_equal(np.sort(np.concatenate([train_val_numbers, test_numbers])), np.sort(numbers_N)):
        _compare_lists(train_val_list, test_list, set(train_val), set(test), set(entries.column("file_name")))
    return np.isin(numbers_N, test_numbers)


def _compare_lists(train_val_list: Path, test_list: Path, train_val: Set[str], test: Set[str], known: Set[str]) -> None:
    problems = Problems(f"{train_val_list.name} and {test_list.name}")
    unknown, missing = (train_val | test) - known, known - train_val - test
    groups = (
        ("image in both lists", train_val & test, "Each image belongs to one list."),
        ("image that the CSV has not", unknown, "Use the CSV that the lists belong to, or --split patient."),
        ("image of the CSV in neither list", missing, "Use NIH's whole lists, or --split patient."),
    )
    for kind, names, remedy in groups:
        for name in sorted(names):
            problems.add(kind, repr(name), remedy)
    problems.raise_if_any()
