"""Read NIH's tables: the Data_Entry CSV in its old and new form, and the split lists.

The CSV's header has unquoted commas in brackets, copies of it end in a comma, and ages come as `58` or
`058Y`: readers that guess shift columns silently. Here every row must have the fields of the header, and nih_fields
checks what they hold.

N images."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.data.readers.nih_fields import check_fields, numbers_of
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.storage.file_index import indices_of

if TYPE_CHECKING:
    import pyarrow

CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
MOST_BYTES = 1 << 28  # of a table, unpacked; NIH's CSV has 9 MB

# Our name of each column, and the names it has in the copies of the release.
COLUMNS: Dict[str, Tuple[str, ...]] = {
    "file_name": ("Image Index",),
    "findings": ("Finding Labels",),
    "follow_up": ("Follow-up #",),
    "patient_id": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}


def label_set(include_no_finding: bool = False) -> LabelSet:
    """Return NIH's 14 findings, or those and `No Finding` as the last column."""
    return NIH_CHESTXRAY14.with_negative_column() if include_no_finding else NIH_CHESTXRAY14


def find_file(dataset_dir: Path, names: Sequence[str]) -> Optional[Path]:
    """Return the first of `names` in a folder, plain or with `.gz`; None if none is there."""
    candidates = [dataset_dir / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_entries(path: Path, label_set: LabelSet = NIH_CHESTXRAY14) -> Entries:
    """Read a Data_Entry CSV, plain or gzipped, of 11 or 12 fields, old or new column names.

    Args:
        path: of the CSV.
        label_set: NIH's, with or without a column for `No Finding`.

    Raises:
        InputError: every problem of the file, by kind, with lines, counts and remedies.
    """
    text = _read_text(path).rstrip("\r\n")
    header, width = _read_header(path, text)
    problems = Problems(path.name)
    wanted = {name: str(header.index(_alias(header, name))) for name in COLUMNS}
    unnamed = [str(index) for index in range(len(header), width)]
    table = _read_rows(text, width, [*wanted.values(), *unnamed], problems)
    for index in unnamed:
        if set(table[index].unique().to_pylist()) - {""}:
            where = f"field {int(index) + 1} has no name"
            problems.add("more fields than column names", where, "Repair the header line.")
    columns = {name: table[index].combine_chunks() for name, index in wanted.items()}
    return check_fields(columns, label_set, problems)


def _read_rows(text: str, width: int, columns: Sequence[str], problems: Problems) -> pyarrow.Table:
    """Read some columns, named by their indices, of the rows below the header as texts.

    Raises:
        InputError: rows do not have `width` fields, or break lines inside a field.
    """
    import pyarrow
    from pyarrow import csv as arrow_csv

    ragged: List[Any] = []  # rows

    def note_ragged(row: Any) -> str:
        ragged.append(row)
        return "skip"

    data = text.encode()
    names = [str(index) for index in range(width)]
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(data),
            # one thread: only then does Arrow know the line of a bad row
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False, block_size=1 << 26),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note_ragged),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns), column_types=dict.fromkeys(names, "string"), strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowInvalid as error:  # a field does not end where a block of the file does
        _note_line_breaks(text, problems)
        raise InputError(str(problems)) from error
    if table.num_rows + len(ragged) != data.count(b"\n"):
        _note_line_breaks(text, problems)
    for row in ragged:
        example = f"line {row.number} has {row.actual_columns} fields, expected {width}"
        problems.add("row of another length", example, "Is the file whole?")
    problems.raise_if_any()  # with rows skipped, the line numbers of all others would be wrong
    return table


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
    parts: List[bytes] = []
    size = 0
    with open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: Any = gzip.GzipFile(fileobj=file) if is_packed else file
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
    usual, _ = Counter(_num_fields(line) for line in lines).most_common(1)[0]
    return header, max(usual, len(header))


def _num_fields(line: str) -> int:
    try:
        return len(next(csv.reader([line]), []))
    except csv.Error:
        return line.count(",") + 1


def _note_line_breaks(text: str, problems: Problems) -> None:
    """Note the lines that end inside a quoted field, or hold a carriage return before their end."""
    lines = enumerate(text.split("\n"), start=1)
    broken = [str(number) for number, line in lines if line.count('"') % 2 or "\r" in line[:-1]]
    for line in broken or ["unknown"]:
        problems.add("line break inside a field", f"line {line}", "Expected one line an image, without quotes.")


def _alias(header: Sequence[str], column: str) -> str:
    return next(name for name in header if name in COLUMNS[column])


def read_test_list(train_val_list: Path, test_list: Path, entries: Entries) -> np.ndarray:
    """Read NIH's two lists and return for each image of the CSV whether it is in the test list.

    Returns:
        N bool.

    Raises:
        InputError: the lists overlap, name an image that the CSV has not, or leave one of its images out.
    """
    train_val, test = (_split_words(_read_text(path)) for path in (train_val_list, test_list))
    numbers_N = entries.numbers("number")
    order_N = np.argsort(numbers_N, kind="stable")
    rows = indices_of(numbers_N[order_N], np.concatenate([numbers_of(train_val), numbers_of(test)]))
    if len(rows) != len(entries) or (rows < 0).any() or (np.bincount(rows) != 1).any():
        names = set(train_val.to_pylist()), set(test.to_pylist())
        _compare_lists(train_val_list, test_list, *names, set(entries.column("file_name")))
    in_test_N = np.zeros(len(entries), bool)
    in_test_N[order_N[rows[len(train_val) :]]] = True
    return in_test_N


def _split_words(text: str) -> Any:
    """Return the words of a text as an Arrow string array."""
    import pyarrow
    import pyarrow.compute as compute

    split = compute.ascii_split_whitespace if text.isascii() else compute.utf8_split_whitespace
    words = split(pyarrow.array([text], "string")).flatten()
    return words.filter(compute.not_equal(words, ""))


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
