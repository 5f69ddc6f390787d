"""Data_Entry CSVs as mirrors, spreadsheets and malice leave them: all are read by `ingest`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Callable, List

from tests.robustness.hostile import ACCEPT, NOTICE, REFUSE, Case

INGEST = "ingest release"
NAME = "release/Data_Entry_2017_v2020.csv"
NAMES, CELLS, PATIENTS, AGES, SEXES, VIEWS = 0, 1, 3, 4, 5, 6  # fields of a row; two names stand for two fields each
FIELDS = {
    "Image Index": 0,
    "Finding Labels": 1,
    "Follow-up #": 2,
    "Patient ID": 3,
    "Patient Age": 4,
    "Patient Gender": 5,
    "View Position": 6,
}


# How it is spoilt.


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the bytes of the CSV."""
    return lambda root: (root / NAME).write_bytes(change((root / NAME).read_bytes()))


def replaced(old: bytes, new: bytes) -> Callable[[Path], object]:
    """Replace the first of some bytes, which must be there."""

    def replace(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return changed(replace)


def lines(change: Callable[[List[List[str]]], List[List[str]]]) -> Callable[[Path], object]:
    """Change the lines of the CSV, each a list of its fields; the first is the header."""

    def rewrite(content: bytes) -> bytes:
        rows = change([line.split(",") for line in content.decode().splitlines()])
        return "".join(",".join(row) + "\n" for row in rows).encode()

    return changed(rewrite)


def cells(field: int, *values: str) -> Callable[[Path], object]:
    """Put values into a field of the first rows."""

    def change(rows: List[List[str]]) -> List[List[str]]:
        for row, value in zip(rows[1:], values):
            row[field] = value
        return rows

    return lines(change)


def without(index: int) -> Callable[[Path], object]:
    return lines(lambda rows: [row[:index] + row[index + 1 :] for row in rows])


def packed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Put a changed .gz in the place of the CSV."""

    def make(root: Path) -> None:
        content = (root / NAME).read_bytes()
        (root / NAME).unlink()
        (root / f"{NAME}.gz").write_bytes(change(gzip.compress(content)))

    return make


def quoted(content: bytes) -> bytes:
    """Quote every field, as a spreadsheet does."""
    text = io.StringIO()
    rows = csv.reader(io.StringIO(content.decode()))
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def in_place_of_it(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Remove the CSV and put something else there."""

    def change(root: Path) -> None:
        (root / NAME).unlink()
        make(root / NAME)

    return change


def many_problems(rows: List[List[str]]) -> List[List[str]]:
    rows[1][CELLS] = "Masse"
    rows[2][CELLS] = ""
    rows[3][CELLS] = "No Finding|Mass"
    rows[4][NAMES] = "x.png"
    rows[5][PATIENTS] = "P5"
    rows[6][PATIENTS] = "30000"
    return rows


# What must be true.


def rows_of(root: Path) -> List[dict]:
    text = (root / "release" / "images" / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def same(root: Path, said: str) -> None:
    """The metadata is that of the good release, to the last byte."""
    written = (root / "release" / "images" / "metadata.jsonl").read_bytes()
    assert written == (root / "expected" / "metadata.jsonl").read_bytes()


def firsts(field: str, *values) -> Callable[[Path, str], None]:
    """The first rows hold these values, and all else is as in the good release."""

    def check(root: Path, said: str) -> None:
        expected = [json.loads(line) for line in (root / "expected" / "metadata.jsonl").read_text().splitlines()]
        for row, value in zip(expected, values):
            row[field] = value
        assert rows_of(root) == expected

    return check


def short(root: Path, said: str) -> None:
    """A huge cell does not fill the terminal."""
    assert len(said) < 2_000


SAME = {"command": INGEST, "outcome": ACCEPT, "check": same}
KNOWN = "Known: Atelectasis, Cardiomegaly"

HEADERS = (
    *(
        Case(f"without {name}", without(index), INGEST, REFUSE, ("missing column", name, "Is it NIH's CSV?"))
        for name, index in FIELDS.items()
    ),
    Case("as drawn", lambda root: None, **SAME),
    Case("Gender renamed", replaced(b"Patient Gender", b"Gender"), INGEST, REFUSE, ("Patient Gender or Patient Sex",)),
    Case("Patient Sex", replaced(b"Patient Gender", b"Patient Sex"), **SAME),
    Case(
        "doubled column",
        lines(lambda rows: [[*row, row[SEXES]] for row in rows]),
        INGEST,
        REFUSE,
        ("doubled column", "Patient Gender", "Keep one of them"),
    ),
    Case("reordered columns", lines(lambda rows: [[*row[3:7], *row[:3]] for row in rows]), **SAME),
    Case("names in capitals", changed(lambda content: content.upper()), INGEST, REFUSE, ("missing column",)),
    Case("no header", lines(lambda rows: rows[1:]), INGEST, REFUSE, ("missing column", "Image Index")),
    Case(
        "terminal codes in the header",
        replaced(b"Patient Age", b"\x1b]0;owned\x07\x1b[2J"),
        INGEST,
        REFUSE,
        ("missing column", "Patient Age", r"\x1b[2J"),
    ),
    Case(
        "a header of 300 kB",
        replaced(b"Patient Age", b"Age" * 100_000),
        INGEST,
        REFUSE,
        ("Is it NIH's CSV?",),
        check=short,
    ),
    Case(
        "a header of many columns",
        changed(lambda content: b"Column," * 20_000 + content),
        INGEST,
        REFUSE,
        ("row of another length",),
        check=short,
    ),
)

FORMS = (
    Case("byte order mark", changed(lambda content: b"\xef\xbb\xbf" + content), **SAME),
    Case("CRLF", changed(lambda content: content.replace(b"\n", b"\r\n")), **SAME),
    Case("CR alone", changed(lambda content: content.replace(b"\n", b"\r")), INGEST, REFUSE, ("no rows",)),
    Case("semicolons", changed(lambda content: content.replace(b",", b";")), INGEST, REFUSE, ("missing column",)),
    Case("tabs", changed(lambda content: content.replace(b",", b"\t")), INGEST, REFUSE, ("missing column",)),
    Case("every field quoted", changed(quoted), **SAME),
    Case(
        "every line quoted",
        changed(lambda content: b"".join(b'"%s"\n' % line for line in content.splitlines())),
        INGEST,
        REFUSE,
        ("missing column",),
    ),
    Case("trailing commas", changed(lambda content: content.replace(b"\n", b",\n")), **SAME),
    Case("trailing commas on rows alone", lines(lambda rows: [rows[0], *([*row, ""] for row in rows[1:])]), **SAME),
    Case("no final newline", changed(bytes.rstrip), **SAME),
    Case("blank lines at the end", changed(lambda content: content + b"\n\n\n"), **SAME),
    Case("a blank line inside", replaced(b"\n00000002_000", b"\n\n00000002_000"), INGEST, REFUSE, ("line 4: ''",)),
    Case("a line break in a cell", cells(VIEWS, '"P\nA"'), INGEST, REFUSE, ("line break inside a field", "line 2")),
    Case("a quote that is not closed", cells(VIEWS, '"PA'), INGEST, REFUSE, ("line break inside a field", "line 2")),
    Case("cut in the last line", changed(lambda content: content[:-25]), INGEST, REFUSE, ("Is the file whole?",)),
    Case("empty", changed(lambda content: b""), INGEST, REFUSE, ("no rows",)),
    Case("header alone", lines(lambda rows: rows[:1]), INGEST, REFUSE, ("no rows",)),
    Case("UTF-16", changed(lambda content: content.decode().encode("utf-16")), INGEST, REFUSE, ("not UTF-8",)),
    Case("a byte that is not UTF-8", replaced(b",PA,", b",P\xc4,"), INGEST, REFUSE, ("not UTF-8", "line ")),
    Case("NUL in a finding", replaced(b",No Finding,", b",No\0Finding,"), INGEST, REFUSE, ("unknown finding", "x00")),
    Case("NUL in the header", replaced(b"Patient Age", b"Patient\0Age"), INGEST, REFUSE, ("Is it NIH's CSV?",)),
    Case("NULs alone", changed(lambda content: b"\0" * 4096), INGEST, REFUSE, ("NIH's",)),
    Case("a PNG", changed(lambda content: b"\x89PNG\r\n\x1a\n" + content), INGEST, REFUSE, ("not UTF-8",)),
    Case("an HTML page", changed(lambda content: b"<!DOCTYPE html>\n<p>Sign in</p>\n"), INGEST, REFUSE, ("NIH's CSV",)),
    Case(
        "a Git LFS pointer", changed(lambda content: b"version https://git-lfs\noid 1\n"), INGEST, REFUSE, ("missing",)
    ),
    Case("gzipped", packed(lambda content: content), **SAME),
    Case("cut gzip", packed(lambda content: content[:-20]), INGEST, REFUSE, ("cannot be read", "Fetch the file again")),
    Case("gzip with a wrong checksum", packed(lambda content: content[:-8] + b"\0" * 8), INGEST, REFUSE, ("CRC",)),
    Case("gzip of a PNG", packed(lambda content: gzip.compress(b"\x89PNG" * 9)), INGEST, REFUSE, ("not UTF-8",)),
    Case(
        "gzip bomb",
        packed(lambda content: gzip.compress(b"\0" * 2**20) * 6_000),  # 6 MB hold 6 GB
        INGEST,
        REFUSE,
        ("larger than",),
        contained=True,
    ),
    Case("a folder", in_place_of_it(Path.mkdir), INGEST, REFUSE, ("no such file", "--csv")),
    Case(
        "a link to nowhere",
        in_place_of_it(lambda path: path.symlink_to("../outside/nothing.csv")),
        INGEST,
        REFUSE,
        ("no such file",),
    ),
    Case("a pipe", in_place_of_it(os.mkfifo), INGEST, REFUSE, ("no such file",), contained=True),
)

ROWS = (
    Case("unknown finding", cells(CELLS, "Pneumonitis"), INGEST, REFUSE, ("line 2: 'Pneumonitis'", KNOWN)),
    Case("misspelt finding", cells(CELLS, "Pleural Thickening"), INGEST, REFUSE, ("'Pleural Thickening'", KNOWN)),
    Case("lower case", cells(CELLS, "mass"), INGEST, REFUSE, ("unknown finding: line 2: 'mass'",)),
    Case("a blank before a finding", cells(CELLS, "Edema| Mass"), INGEST, REFUSE, ("'Edema| Mass'",)),
    Case("empty cell", cells(CELLS, ""), INGEST, REFUSE, ("empty findings: line 2", "Write No Finding")),
    Case("NA for a finding", cells(CELLS, "NA"), INGEST, REFUSE, ("unknown finding: line 2: 'NA'",)),
    Case("a bar too many", cells(CELLS, "Mass|"), INGEST, REFUSE, ("unknown finding: line 2: 'Mass|'",)),
    Case("No Finding and a finding", cells(CELLS, "No Finding|Mass"), INGEST, REFUSE, ("No Finding with another",)),
    Case(
        "a finding twice",
        cells(CELLS, "Mass|Mass"),
        INGEST,
        ACCEPT,
        check=firsts("labels", [0.0] * 4 + [1.0] + [0.0] * 9),
    ),
    Case("a letter that looks like another", cells(CELLS, "M\u0430ss"), INGEST, REFUSE, ("unknown finding", "UTF-8")),
    Case("a finding of 1 MB", cells(CELLS, "Mass" * 250_000), INGEST, REFUSE, ("unknown finding",), check=short),
    Case(
        "doubled row that agrees",
        lines(lambda rows: [*rows, rows[1]]),
        INGEST,
        NOTICE,
        ("1 doubled rows agree",),
        check=same,
    ),
    Case(
        "doubled row that does not",
        lines(lambda rows: [*rows, [*rows[1][:CELLS], "Hernia|Mass|Edema", *rows[1][2:]]]),
        INGEST,
        REFUSE,
        ("rows of one image contradict each other", "on lines 2 and "),
    ),
    Case(
        "ages that cannot be",
        cells(AGES, "411Y", "-5", "old", "", "1e2", "NA", "999999999999"),
        INGEST,
        NOTICE,
        ("7 of ", "rows have no usable age (such as '411Y')"),
        check=firsts("age", *[None] * 7),
    ),
    Case("ages in months and days", cells(AGES, "013M", "060Y", "400D"), INGEST, ACCEPT, check=firsts("age", 1, 60, 1)),
    Case(
        "ages in other digits",
        cells(AGES, "\u0665\u0668"),
        INGEST,
        NOTICE,
        ("no usable age",),
        check=firsts("age", None),
    ),
    Case("NA for a sex", cells(SEXES, "NA"), INGEST, NOTICE, ("no usable sex",), check=firsts("sex", None)),
    Case("NA for a view", cells(VIEWS, "NA"), INGEST, ACCEPT, check=firsts("view", "NA")),
    Case(
        "a view that JSON must escape",
        cells(VIEWS, '"""\\, ""labels"": []\u2028\0"'),
        INGEST,
        ACCEPT,
        check=firsts("view", '"\\, "labels": []\u2028\0'),
    ),
    Case("a follow-up that is none", cells(2, "0x10"), INGEST, NOTICE, ("follow-up",), check=firsts("follow_up", None)),
    Case("another patient's id", cells(PATIENTS, "9"), INGEST, REFUSE, ("differs from the image's name", "line 2")),
    Case("ids of 20 digits", cells(PATIENTS, "9" * 20), INGEST, REFUSE, ("patient id is not a number",)),
    Case(
        "an id that Arrow would take", cells(PATIENTS, "0x1"), INGEST, REFUSE, ("patient id is not a number: line 2",)
    ),
    Case("a negative id", cells(PATIENTS, "-1"), INGEST, REFUSE, ("patient id is not a number: line 2: '-1'",)),
    Case("ids with zeros before", cells(PATIENTS, "00000001"), **SAME),
    Case("a name that climbs", cells(NAMES, "../../outside/x.png"), INGEST, REFUSE, ("image name is not NIH's",)),
    Case("a name from the root", cells(NAMES, "/etc/passwd"), INGEST, REFUSE, ("line 2: '/etc/passwd'",)),
    Case("a name with a folder", cells(NAMES, "images/00000001_000.png"), INGEST, REFUSE, ("not NIH's",)),
    Case("a name with a backslash", cells(NAMES, "..\\00000001_000.png"), INGEST, REFUSE, ("not NIH's",)),
    Case("a name in capitals", cells(NAMES, "00000001_000.PNG"), INGEST, REFUSE, ("image name is not NIH's",)),
    Case("a name with a line end", cells(NAMES, '"00000001_000.png\n"'), INGEST, REFUSE, ("line break",)),
    Case("a name in other digits", cells(NAMES, "0000000\u0661_000.png"), INGEST, REFUSE, ("not NIH's",)),
    Case(
        "an image that is not there",
        cells(NAMES, "00000001_999.png"),
        INGEST,
        REFUSE,
        ("image of the CSV in neither list: '00000001_999.png'",),
    ),
    Case("a huge unread cell", cells(7, "x" * 300_000), **SAME),
    Case("a formula in an unread cell", cells(7, "=cmd|' /C calc'!A0"), **SAME),
    Case("a field too many", cells(VIEWS, "PA,PA"), INGEST, REFUSE, ("line 2 has 12 fields, expected 11",)),
    Case(
        "many problems, told at once",
        lines(many_problems),
        INGEST,
        REFUSE,
        (
            "6 kinds of problems",
            "'Masse'",
            "line 3: ''",
            "line 4: 'No Finding|Mass'",
            "line 5: 'x.png'",
            "line 6: 'P5'",
            "has patient 30000",
        ),
    ),
)

CASES = (*HEADERS, *FORMS, *ROWS)
