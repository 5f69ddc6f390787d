"""NIH's tables: every form in circulation reads alike, and every wrong file is refused with line, value and remedy."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import random
import re

import numpy as np
import pyarrow
import pyarrow.csv
import pytest

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.data.readers.nih import find_file, label_set, read_entries, read_test_list
from chestxray_vit.data.readers.nih_fields import numbers_of, parse_age
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import HEADER, MINI_ROWS, write_csv

KAGGLE_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
)

COLUMNS = ["file_name", "number", "findings", "patient_id", "age", "sex", "view", "follow_up"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Data_Entry_2017.csv"


def row(name="00000004_000.png", findings="Mass", follow_up="0", patient=None, age="50", sex="F", view="AP"):
    """Return a good row, less what is asked to be wrong."""
    patient = str(int(name[:8])) if patient is None else patient
    return f"{name},{findings},{follow_up},{patient},{age},{sex},{view},2500,2048,0.171,0.171"


@pytest.fixture
def small_blocks(monkeypatch):
    """Make Arrow read 512 bytes at a time, as it reads 64 MiB of a longer file."""
    read_options = pyarrow.csv.ReadOptions
    monkeypatch.setattr(pyarrow.csv, "ReadOptions", lambda **options: read_options(**{**options, "block_size": 512}))


def refusal(path, *rows, header=HEADER):
    """Return the text with which a CSV of the mini release's five rows and these more is refused."""
    write_csv(path, (*MINI_ROWS, *rows), header)
    with pytest.raises(InputError) as error:
        read_entries(path)
    return str(error.value)


def assert_is_mini(entries):
    assert len(entries) == 5
    assert entries.table.column_names == COLUMNS
    assert entries.column("file_name") == [row_.split(",")[0] for row_ in MINI_ROWS]
    assert entries.column("number") == [1000, 1001, 3000, 2000, 3001]
    assert entries.column("findings") == [row_.split(",")[1] for row_ in MINI_ROWS]
    assert entries.column("patient_id") == ["1", "1", "3", "2", "3"]
    assert entries.column("age") == [57, 58, 80, 80, 81]
    assert entries.column("sex") == ["M", "M", "F", "M", "F"]
    assert entries.column("view") == ["PA", "PA", "AP", "PA", "PA"]
    assert entries.column("follow_up") == [0, 1, 0, 0, 1]
    assert entries.notices == ()


# The forms in circulation.


@pytest.mark.parametrize("comma_rows", ["", ","])
@pytest.mark.parametrize("comma_header", ["", ","])
@pytest.mark.parametrize("sex", ["Patient Gender", "Patient Sex"])
def test_eleven_and_twelve_fields(path, comma_rows, comma_header, sex):
    header = HEADER.replace("Patient Gender", sex) + comma_header
    assert_is_mini(read_entries(write_csv(path, [line + comma_rows for line in MINI_ROWS], header)))


def test_columns_of_the_kaggle_sample(path):
    assert_is_mini(read_entries(write_csv(path, header=KAGGLE_HEADER)))


def test_columns_are_found_by_name_not_by_place(path):
    lines = ["{6},{5},{4},{3},{2},{1},{0}".format(*line.split(",")[:7]) for line in MINI_ROWS]
    header = "View Position,Patient Sex,Patient Age,Patient ID,Follow-up #,Finding Labels, Image Index "
    assert_is_mini(read_entries(write_csv(path, lines, header)))


def test_quoted_fields(path):
    lines = ['"' + '","'.join(line.split(",")) + '"' for line in MINI_ROWS]
    header = '"' + '","'.join(HEADER.split(",")) + '"'
    assert_is_mini(read_entries(write_csv(path, lines, header)))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,  # a byte order mark
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b",\r\n"),
        lambda data: data.rstrip(b"\n"),
        lambda data: data.replace(b"\n", b"\r\n").rstrip(b"\r\n"),
        lambda data: data + b"\n\r\n\n",
        gzip.compress,
        lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),  # as `cat a.gz b.gz`
    ],
    ids=["bom", "crlf", "bom-crlf-12", "no-newline", "crlf-no-newline", "blank-end", "gzip", "two-gzips"],
)
def test_bytes_in_circulation(path, change):
    write_csv(path)
    path.write_bytes(change(path.read_bytes()))
    assert_is_mini(read_entries(path))


@pytest.mark.parametrize(
    "text, years",
    [
        ("58", 58),
        ("0", 0),
        ("058Y", 58),
        ("013M", 1),
        ("011M", 0),
        ("024M", 2),
        ("001D", 0),
        ("730D", 2),
        ("120", 120),
        ("121", None),
        ("411Y", None),
        ("", None),
        ("-1", None),
        ("58.0", None),
        ("58y", None),
        ("058W", None),
        ("٥٨", None),
        ("58\n", None),
        (" 58", None),
        ("99999", None),
    ],
)
def test_parse_age(text, years):
    assert parse_age(text) == years


def test_what_is_unusable_becomes_null_with_a_notice(path):
    rows = [
        row("00000004_000.png", age="411Y"),
        row("00000004_001.png", age="148", sex="", view=""),
        row("00000004_002.png", age="013M", sex="U", follow_up="first"),
        row("00000004_003.png", age="001D", view="LL", follow_up="9" * 5000),
    ]
    entries = read_entries(write_csv(path, rows))
    assert entries.column("age") == [None, None, 1, 0]
    assert entries.column("sex") == ["F", None, None, "F"]
    assert entries.column("view") == ["AP", None, "AP", "LL"]
    assert entries.column("follow_up") == [0, 0, None, None]
    assert entries.notices == (
        "2 of 4 rows have no usable age (such as '411Y'): kept as null",
        "2 of 4 rows have no usable sex (such as ''): kept as null",
        "1 of 4 rows have no usable view (such as ''): kept as null",
        "2 of 4 rows have no usable follow-up number (such as 'first'): kept as null",
    )


def test_a_column_that_is_null_in_every_row(path):
    rows = [row(f"00000004_00{number}.png", follow_up="", age="", sex="", view="") for number in range(3)]
    entries = read_entries(write_csv(path, rows))
    for name in ("age", "sex", "view", "follow_up"):
        assert entries.column(name) == [None] * 3
        assert distinct(entries.arrow(name))[0] == [None]
    assert [str(entries.arrow(name).type.value_type) for name in ("age", "sex")] == ["int64", "string"]
    assert len(entries.notices) == 4


def test_labels(path):
    write_csv(path)
    for include_no_finding in (False, True):
        entries = read_entries(path, label_set(include_no_finding))
        encode = entries.label_set.encode
        labels, codes_N = entries.labels()
        assert [labels[code] for code in codes_N] == [
            encode(["Cardiomegaly"]),
            encode(["Cardiomegaly", "Emphysema"]),
            encode(["Hernia"]),
            [0.0] * 14 + [1.0] * include_no_finding,
            encode(["Infiltration", "Pleural_Thickening"]),
        ]
        assert entries.label_set == (NIH_CHESTXRAY14.with_negative_column() if include_no_finding else NIH_CHESTXRAY14)


def test_keep(path):
    entries = read_entries(write_csv(path)).keep(np.array([True, False, False, False, True]), ["a notice"])
    assert entries.column("file_name") == ["00000001_000.png", "00000003_001.png"]
    assert entries.column("findings") == ["Cardiomegaly", "Pleural_Thickening|Infiltration"]
    assert [entries.column(name) for name in ("patient_id", "age", "sex")] == [["1", "3"], [57, 81], ["M", "F"]]
    assert [entries.column(name) for name in ("view", "follow_up")] == [["PA", "PA"], [0, 1]]
    assert (len(entries), entries.notices) == (2, ("a notice",))
    left_out = entries.keep(np.array([True, False]), reason="no reason").keep(np.array([False]), reason="another")
    assert (left_out.left_out, left_out.notices) == ((("no reason", 1), ("another", 1)), ("a notice",))
    labels, codes_N = entries.labels()
    assert [labels[code] for code in codes_N] == [
        NIH_CHESTXRAY14.encode(["Cardiomegaly"]),
        NIH_CHESTXRAY14.encode("Infiltration|Pleural_Thickening".split("|")),
    ]


# Against a slow reader: csv's, row by row.


def draw_rows(rng, num_rows):
    """Draw rows of all that a column may hold, a fifth of them doubled and agreeing, some fields quoted."""
    numbers = rng.sample(range(1000 * rng.choice([1, 50, 99_999_999])), num_rows)
    rows = []
    for number in numbers:
        name = f"{number // 1000:08d}_{number % 1000:03d}.png"
        findings = "|".join(rng.sample(NIH_CHESTXRAY14.findings, rng.randrange(4))) or "No Finding"
        age = rng.choice(["58", "058Y", "013M", "730D", "411Y", "", "x", "0", "120", "121"])
        sex, view = (
            rng.choice(["M", "F", "", "U"]),
            rng.choice(["PA", "AP", "", "LL", f'Ä{"," * (num_rows > 99)} "q"', "null", "NA"]),
        )
        fields = [name, findings, rng.choice(["0", "7", "", "x", "-1", "007"]), str(number // 1000), age, sex, view]
        rows.append([*fields, "1", "", "0.1", "0.1"])
    rows += [list(rng.choice(rows)) for _ in range(num_rows // 5)]
    rng.shuffle(rows)

    def cell(field):
        return '"' + field.replace('"', '"' * 2) + '"' if '"' in field or rng.random() < 0.1 else field

    return [",".join(map(cell, fields)) for fields in rows]


def slow_entries(path):
    """Read a CSV of NIH's header with `csv`, each row alone; return its columns by our names."""
    seen, rows = set(), []
    with open(path, encoding="utf-8", newline="") as file:
        for name, findings, follow_up, patient, age, sex, view, *_ in list(csv.reader(file))[1:]:
            if name in seen:
                continue
            seen.add(name)
            number = int(name[:8] + name[9:12])
            follow_up = int(follow_up) if follow_up.isdecimal() else None
            sex = {"M": "M", "F": "F"}.get(sex)
            rows.append((name, number, findings, str(int(patient)), parse_age(age), sex, view or None, follow_up))
    return dict(zip(COLUMNS, map(list, zip(*rows))))


@pytest.mark.parametrize("seed", range(12))
def test_random_files_read_as_by_a_slow_reader(path, seed, small_blocks):
    rng = random.Random(seed)
    for num_rows in (1, 2, 7, 8, 9, 150):
        write_csv(path, draw_rows(rng, num_rows))
        with_no_finding = label_set(include_no_finding=True)
        entries, expected = read_entries(path, with_no_finding), slow_entries(path)
        assert {name: entries.column(name) for name in COLUMNS} == expected
        assert len(entries) == num_rows
        for _ in range(2):  # what was kept once is filtered again
            kept_N = np.array([rng.random() < 0.5 for _ in range(len(entries))], dtype=bool)
            entries = entries.keep(kept_N)
            expected = {name: [v for v, keep in zip(column, kept_N) if keep] for name, column in expected.items()}
            assert {name: entries.column(name) for name in COLUMNS} == expected
            for name in COLUMNS:
                assert entries.arrow(name).to_pylist() == expected[name]
                values, codes_N = distinct(entries.arrow(name))
                assert [values[code] for code in codes_N] == expected[name]
            assert entries.numbers("number").tolist() == expected["number"]
            labels, codes_N = entries.labels()
            assert [labels[code] for code in codes_N] == [
                with_no_finding.encode(cell.split("|")) for cell in expected["findings"]
            ]


def test_a_table_of_several_chunks_and_slices(path):
    """Chunks whose buffers start before them give their own rows."""
    rows = [
        row(f"00000004_{number:03d}.png", age=str(number), view=["", "PA", "AP"][number % 3]) for number in range(40)
    ]
    table = read_entries(write_csv(path, rows)).table
    pieces = [slice(3, 10), slice(30, 40), slice(0, 3), slice(12, 13)]
    entries = Entries(pyarrow.concat_tables([table.slice(p.start, p.stop - p.start) for p in pieces]), NIH_CHESTXRAY14)
    places = [place for piece in pieces for place in range(40)[piece]]
    for kept in (entries, entries.keep(np.arange(len(places)) % 2 == 0)):
        where = places if kept is entries else places[::2]
        assert kept.column("age") == kept.arrow("age").to_pylist() == where
        assert kept.arrow("view").to_pylist() == [[None, "PA", "AP"][place % 3] for place in where]
        assert kept.numbers("number").tolist() == numbers_of(kept.arrow("file_name")).tolist()
        values, codes_N = distinct(kept.arrow("view"))
        assert [values[code] for code in codes_N] == [[None, "PA", "AP"][place % 3] for place in where]


def test_lines_are_counted_over_blocks(path, small_blocks):
    good = [row(f"0000{number // 1000:04d}_{number % 1000:03d}.png") for number in range(1000, 1300)]
    wrong = {60: "x,y", 61: good[61] + ",7,8", 250: "x,y"}
    lines = [wrong.get(place, line) for place, line in enumerate(good)]
    with pytest.raises(InputError) as error:
        read_entries(write_csv(path, lines))
    assert str(error.value) == (
        "Data_Entry_2017.csv: row of another length: line 62 has 2 fields, expected 11; "
        "line 63 has 13 fields, expected 11; line 252 has 2 fields, expected 11. Is the file whole?"
    )
    lines = [line.replace("Mass", "Herz") if place in (0, 77, 299) else line for place, line in enumerate(good)]
    with pytest.raises(InputError, match="unknown finding: line 2: 'Herz'; line 79: 'Herz'; line 301: 'Herz'. Known: "):
        read_entries(write_csv(path, lines))
    lines = [line.replace("Mass", '"Mass') if place == 203 else line for place, line in enumerate(good)]
    with pytest.raises(InputError, match="line break inside a field: line 205. Expected one line an image"):
        read_entries(write_csv(path, lines))


def test_a_file_of_two_of_arrows_blocks(path):
    """More than 64 MiB, as no release has: rows before and after the edge are whole, and so are their lines."""
    rest = ",50,F,AP,2500,2048,0.171,0.171" + "0" * 470
    lines = [f"{n:08d}_000.png,{NIH_CHESTXRAY14.findings[n % 14]},{n % 7},{n}{rest}" for n in range(130_000)]
    write_csv(path, lines)
    assert path.stat().st_size > (1 << 26) + 1_000_000
    entries = read_entries(path)
    assert entries.column("patient_id") == [str(n) for n in range(130_000)]
    assert entries.column("file_name") == [line[:16] for line in lines]
    assert entries.column("findings") == [NIH_CHESTXRAY14.findings[n % 14] for n in range(130_000)]
    assert entries.column("follow_up") == [n % 7 for n in range(130_000)]
    lines[129_500] = lines[129_500][:60]
    with pytest.raises(InputError, match="row of another length: line 129502 has 10 fields, expected 11. Is the file"):
        read_entries(write_csv(path, lines))


# numbers_of


def slow_numbers(names):
    found = [re.fullmatch(r"([0-9]{8})_([0-9]{3})\.png", name) for name in names]
    return [int(match.group(1) + match.group(2)) if match else -1 for match in found]


GOOD_NAMES = ["00000000_000.png", "00030805_000.png", "99999999_999.png", "12345678_901.png"]
OTHER_NAMES = [
    "12345678-901.png",
    "12345678_901.PNG",
    "12345678_901xpng",
    "1234567a_901.png",
    "1234567/_901.png",  # the neighbours of the digits in ASCII
    "1234567:_901.png",
    "12345678_90\x00.png",
    "12345678_90\xff.pn",  # sixteen bytes in UTF-8
    "123456٧_901.png",  # an Arabic digit: sixteen bytes, fifteen signs
    "1234٦٧_901.png",  # two: sixteen bytes, fourteen signs
    "00000４_901.png",  # a wide digit: three bytes
    "12345678_9012png",
    "",
    "12345678_901.pn",
    "12345678_901.png ",
    "12345678_901.png\n",
    "../12345678_901.png",
    "٠٠٠٠٠٠٠٤_000.png",
]


@pytest.mark.parametrize(
    "names", [GOOD_NAMES, *([*GOOD_NAMES[:2], name, GOOD_NAMES[2]] for name in OTHER_NAMES)], ids=repr
)
def test_numbers_of(names):
    numbers_N = numbers_of(pyarrow.array(names, "string"))
    assert numbers_N.dtype == np.int64
    assert numbers_N.tolist() == slow_numbers(names)
    assert (numbers_N.min() == -1) == (names is not GOOD_NAMES)


def test_numbers_of_none_and_one():
    for names in ([], ["00000012_345.png"], ["x"], [""]):
        numbers_N = numbers_of(pyarrow.array(names, "string"))
        assert (numbers_N.dtype, numbers_N.tolist()) == (np.int64, slow_numbers(names))


@pytest.mark.parametrize("names", [GOOD_NAMES * 5, ["x", *GOOD_NAMES, "", *GOOD_NAMES], OTHER_NAMES + GOOD_NAMES])
def test_numbers_of_a_part_of_an_array(names):
    array = pyarrow.array(names, "string")
    for start in range(len(names)):
        for stop in range(start, len(names) + 1):
            assert numbers_of(array[start:stop]).tolist() == slow_numbers(names[start:stop])
            assert numbers_of(array[start:][: stop - start]).tolist() == slow_numbers(names[start:stop])


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_random_names(seed):
    rng = random.Random(seed)
    for _ in range(200):
        names = [list(f"{rng.randrange(10**8):08d}_{rng.randrange(1000):03d}.png") for _ in range(rng.randrange(1, 5))]
        for _ in range(rng.randrange(3)):
            name = rng.choice(names)
            name[rng.randrange(16)] = rng.choice("09/:_.pngPN\x00\n٣é４")
        names = ["".join(name) for name in names]
        assert numbers_of(pyarrow.array(names, "string")).tolist() == slow_numbers(names)


def test_find_file_prefers_the_first_name_and_the_plain_file(tmp_path):
    names = ("new.csv", "old.csv")
    assert find_file(tmp_path, names) is None
    for name in ("old.csv.gz", "old.csv", "new.csv.gz", "new.csv"):
        (tmp_path / name).write_bytes(b"")
        assert find_file(tmp_path, names) == tmp_path / name
    (tmp_path / "new.csv").unlink()
    (tmp_path / "new.csv").mkdir()
    assert find_file(tmp_path, names) == tmp_path / "new.csv.gz"


# Refusals: the header.


@pytest.mark.parametrize(
    "old, new, expected",
    [
        (",View Position", ",View", "missing column: View Position; found: Image Index, .* Is it NIH's CSV\\?"),
        ("Patient Gender", "gender", "missing column: Patient Gender or Patient Sex; found: "),
        ("Patient Age", "Patient ID", "2 kinds of problems\n  - doubled column: Patient ID, Patient ID. Keep one"),
        ("Patient Gender,View", "Patient Gender,Patient Sex,View", "doubled column: Patient Gender, Patient Sex. Keep"),
    ],
)
def test_header(path, old, new, expected):
    write_csv(path, header=HEADER.replace(old, new))
    with pytest.raises(InputError, match="^Data_Entry_2017.csv: " + expected):
        read_entries(path)


def test_a_missing_header_line(path):
    lines = refusal(path, header="00000001_002.png,Mass,2,1,59,M,PA,2500,2048,0.168,0.168")
    assert lines.startswith(
        "Data_Entry_2017.csv: missing column (7 times; the first 3: Image Index; found: 00000001_002.png, Mass, 2"
    )


@pytest.mark.parametrize("data", [b"", b"\n", HEADER.encode(), HEADER.encode() + b"\r\n\r\n\n", b"\xef\xbb\xbf"])
def test_no_rows(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError, match="^Data_Entry_2017.csv: no rows. Expected NIH's Data_Entry_2017 CSV"):
        read_entries(path)


def test_a_binary_file(path):
    path.write_bytes(b"\0\1\0\n\0\n" + b"x" * 200_000)
    with pytest.raises(InputError, match="Is it NIH's CSV"):
        read_entries(path)
    path.write_bytes(b"x" * 200_000 + b"\nx\n")
    with pytest.raises(InputError, match="^Data_Entry_2017.csv line 1: field larger than field limit"):
        read_entries(path)


# Refusals: the bytes.


def test_not_utf8(path):
    write_csv(path, [*MINI_ROWS, row(findings="Pneumonía"), row("00000004_001.png")])
    path.write_bytes(path.read_bytes().decode().encode("latin-1"))
    with pytest.raises(InputError, match="^Data_Entry_2017.csv line 7: not UTF-8. Save the file as UTF-8"):
        read_entries(path)


def test_utf16(path):
    path.write_bytes(HEADER.encode("utf-16"))
    with pytest.raises(InputError, match="^Data_Entry_2017.csv line 1: not UTF-8"):
        read_entries(path)


@pytest.mark.parametrize("cut", [1, 8, 9, 60, 190])
def test_truncated_gzip(path, cut):
    data = gzip.compress(write_csv(path).read_bytes())
    path.write_bytes(data[:-cut])
    with pytest.raises(
        InputError, match="Data_Entry_2017.csv: cannot be read: .*ended before .*. Fetch the file again"
    ):
        read_entries(path)


def test_damaged_gzip(path):
    data = gzip.compress(write_csv(path).read_bytes())
    path.write_bytes(data[:-8] + b"\0\0\0\0" + data[-4:])  # another checksum
    with pytest.raises(InputError, match="cannot be read: CRC check failed"):
        read_entries(path)
    path.write_bytes(data[:15] + bytes(20) + data[35:])
    with pytest.raises(InputError, match="cannot be read: "):
        read_entries(path)


# Refusals: the rows. The five good rows stand on lines 2 to 6.


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (row(findings="Pneumonía"), "unknown finding: line 7: 'Pneumonía'. Known: Atelectasis, Cardiomegaly, "),
        (row(findings="Mass|Infiltrate"), "unknown finding: line 7: 'Mass|Infiltrate'. Known: "),
        (row(findings="Mass|"), "unknown finding: line 7: 'Mass|'. Known: "),
        (row(findings="Mass | Edema"), "unknown finding: line 7: 'Mass | Edema'. Known: "),
        (row(findings="Pleural Thickening"), "unknown finding: line 7: 'Pleural Thickening'. Known: "),
        (row(findings=""), "empty findings: line 7: ''. Write No Finding where there is none."),
        (
            row(findings="No Finding|Mass"),
            "No Finding with another finding: line 7: 'No Finding|Mass'. Remove No Finding or the other.",
        ),
        (
            row(findings="No Finding|No Finding"),
            "No Finding with another finding: line 7: 'No Finding|No Finding'. Remove No Finding or the other.",
        ),
        (row(patient="x"), "patient id is not a number: line 7: 'x'. Expected 1 to 30805."),
        (row(patient=""), "patient id is not a number: line 7: ''. Expected 1 to 30805."),
        (row(patient="-4"), "patient id is not a number: line 7: '-4'. Expected 1 to 30805."),
        (row(patient="٤"), "patient id is not a number: line 7: '٤'. Expected 1 to 30805."),
        (row(patient="0x4"), "patient id is not a number: line 7: '0x4'. Expected 1 to 30805."),
        (row("00000000_000.png", patient="-0"), "patient id is not a number: line 7: '-0'. Expected 1 to 30805."),
        (row(patient="0000000004"), "patient id is not a number: line 7: '0000000004'. Expected 1 to 30805."),
        (row(patient="9" * 20), f"patient id is not a number: line 7: '{'9' * 20}'. Expected 1 to 30805."),
        (
            row(patient="5"),
            "patient id differs from the image's name: line 7: 00000004_000.png has patient 5. "
            "Were columns sorted apart?",
        ),
    ],
)
def test_a_wrong_row(path, wrong, expected):
    assert refusal(path, wrong).startswith(f"Data_Entry_2017.csv: {expected}")


@pytest.mark.parametrize(
    "name",
    [
        "../00000004_000.png",
        "../x.png",
        "/00000004_000.png",
        "/etc/passwd",
        "images/00000004_000.png",
        "0000004_000.png",
        "000000004_000.png",
        "00000004_00.png",
        "00000004_0000.png",
        "00000004-000.png",
        "00000004_000.PNG",
        "00000004_000.jpg",
        "00000004_000xpng",
        "00000004_000.png.png",
        " 00000004_000.png",
        "00000004_000.png ",
        "٠٠٠٠٠٠٠٤_000.png",
        "0000000４_000.png",
        "00000004_000.png\x85",
        "",
    ],
)
def test_a_name_that_is_not_nihs(path, name):
    assert refusal(path, row(name, patient="4")) == (
        f"Data_Entry_2017.csv: image name is not NIH's: line 7: {name!r}. "
        "Expected eight digits, _, three digits, .png: a name in the images' folder."
    )


def test_rows_of_another_length(path):
    long, short = row("00000004_001.png") + ",7,8", "00000004_002.png,Mass"
    assert refusal(path, long, row(), short) == (
        "Data_Entry_2017.csv: row of another length: line 7 has 13 fields, expected 11; "
        "line 9 has 2 fields, expected 11. Is the file whole?"
    )
    write_csv(path, [long, *MINI_ROWS])  # the first row is not the measure of the others
    with pytest.raises(InputError, match="^Data_Entry_2017.csv: row of another length: line 2 has 13 fields, expected"):
        read_entries(path)
    write_csv(path, [f"{line}," for line in (*MINI_ROWS, short, *MINI_ROWS)])
    with pytest.raises(InputError, match="row of another length: line 7 has 3 fields, expected 12. Is the file whole"):
        read_entries(path)


def test_lines_are_counted_over_crlf(path):
    write_csv(path, [*MINI_ROWS, "00000004_001.png", row(findings="x")])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(InputError, match="^Data_Entry_2017.csv: row of another length: line 7 has 1 fields, exp"):
        read_entries(path)


@pytest.mark.parametrize("place", [0, 3])
def test_a_blank_line_inside(path, place):
    write_csv(path, [*MINI_ROWS[:place], "", *MINI_ROWS[place:], row(findings="x")])
    with pytest.raises(InputError) as error:
        read_entries(path)
    assert f"  - empty findings: line {place + 2}: ''." in str(error.value)
    assert "  - unknown finding: line 8: 'x'." in str(error.value)  # the lines after it are counted right


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_line_break_in_a_quoted_field(path, line_break):
    """Such a name would go into metadata.jsonl, and all lines after it would be told wrong."""
    two_names = f'"00000004_000.png{line_break}00000004_001.png",Mass,0,4,50,F,AP,2500,2048,0.171,0.171'
    text = refusal(path, two_names, row("00000004_002.png", findings="x"))
    assert text.startswith("Data_Entry_2017.csv: line break inside a field: line 7")
    assert "Expected one line an image, without quotes." in text


def test_a_carriage_return_inside_a_line(path):
    text = refusal(path, row() + "\r" + row("00000004_001.png"), row("00000004_002.png", findings="x"))
    assert text == (
        "Data_Entry_2017.csv: line break inside a field: line 7. Expected one line an image, without quotes."
    )


@pytest.mark.parametrize("whole", [False, True])
def test_lines_that_end_in_two_carriage_returns(path, whole):
    """As a file that was changed from LF to CRLF twice."""
    data = write_csv(path).read_bytes()
    path.write_bytes(data.replace(b"\n", b"\r\r\n") if whole else data.replace(b"\n", b"\r\r\n", 1))
    with pytest.raises(InputError) as error:
        read_entries(path)
    lines = " (5 times; the first 3: line 1; line 2; line 3)" if whole else ": line 1"
    expected = f"Data_Entry_2017.csv: line break inside a field{lines}. Expected one line an image, without quotes."
    assert str(error.value) == expected


def test_a_line_break_between_lines_of_even_quotes(path):
    two = '00000004_000.png,Mass,0,4,50,x"F,"P', 'A",1,1,1,x"1'
    text = refusal(path, *two, row("00000004_001.png"))
    assert text == (
        "Data_Entry_2017.csv: line break inside a field: line unknown. Expected one line an image, without quotes."
    )


def test_a_quote_that_is_not_closed(path):
    text = refusal(path, row(findings='"Mass'), row("00000004_001.png"))
    assert "line break inside a field: line 7. Expected one line an image" in text
    assert "row of another length: line 7 has 2 fields, expected 11" in text


def test_more_fields_than_names(path):
    write_csv(path, [f"{line},x" for line in MINI_ROWS])
    with pytest.raises(InputError, match="^Data_Entry_2017.csv: more fields than column names: field 12 has no name."):
        read_entries(path)


# Doubled rows.


def test_doubled_rows_that_agree_are_merged(path):
    again = [
        MINI_ROWS[1].replace("Emphysema|Cardiomegaly", "Cardiomegaly|Emphysema").replace(",58,", ",058Y,"),
        MINI_ROWS[3].replace("2500,2048", "1,1"),
        MINI_ROWS[3],
    ]
    entries = read_entries(write_csv(path, [*MINI_ROWS, *again]))
    assert entries.notices == ("3 doubled rows agree with the first of their image: merged",)
    assert_is_mini(dataclasses.replace(entries, notices=()))


@pytest.mark.parametrize(
    "old, new",
    [("Cardiomegaly", "Mass"), ("Cardiomegaly", "No Finding"), (",57,", ",58,"), (",M,", ",F,"), (",PA,", ",AP,")],
)
def test_doubled_rows_that_contradict_are_refused(path, old, new):
    assert refusal(path, MINI_ROWS[0].replace(old, new)) == (
        "Data_Entry_2017.csv: rows of one image contradict each other: 00000001_000.png on lines 2 and 7. "
        "Keep the right one."
    )


def test_all_problems_are_told_at_once(path):
    wrong = [row(f"{10 + number // 1000:08d}_{number % 1000:03d}.png", findings="Masse") for number in range(1100)]
    more = [
        row("00000005_000.png", findings=""),
        row("00000005_001.png", findings="Mass|No Finding"),
        row("00000005_002.png", patient="6"),
        row("00000005_003.png", patient="six"),
        row("x.png", patient="7"),
        MINI_ROWS[0].replace("57", "58"),
    ]
    assert refusal(path, *wrong, *more).splitlines() == [
        "Data_Entry_2017.csv: 7 kinds of problems",
        "  - empty findings: line 1107: ''. Write No Finding where there is none.",
        "  - unknown finding (1,100 times; the first 3: line 7: 'Masse'; line 8: 'Masse'; line 9: 'Masse'). Known: "
        "Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, Consolidation, "
        "Edema, Emphysema, Fibrosis, Pleural_Thickening, Hernia, No Finding. Is the file UTF-8 and the spelling NIH's?",
        "  - No Finding with another finding: line 1108: 'Mass|No Finding'. Remove No Finding or the other.",
        "  - image name is not NIH's: line 1111: 'x.png'. "
        "Expected eight digits, _, three digits, .png: a name in the images' folder.",
        "  - patient id differs from the image's name: line 1109: 00000005_002.png has patient 6. "
        "Were columns sorted apart?",
        "  - patient id is not a number: line 1110: 'six'. Expected 1 to 30805.",
        "  - rows of one image contradict each other: 00000001_000.png on lines 2 and 1112. Keep the right one.",
    ]


# The split lists.

NAMES = [line.split(",")[0] for line in MINI_ROWS]
TRAIN_VAL, TEST = [NAMES[0], NAMES[1], NAMES[3]], [NAMES[2], NAMES[4]]


def read_lists(tmp_path, train_val, test):
    paths = tmp_path / "train_val_list.txt", tmp_path / "test_list.txt"
    for path_, content in zip(paths, (train_val, test)):
        path_.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
    in_test_N = read_test_list(*paths, read_entries(write_csv(tmp_path / "Data_Entry_2017.csv")))
    assert (in_test_N.dtype, len(in_test_N)) == (bool, 5)
    return {name for name, in_test in zip(NAMES, in_test_N) if in_test}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: data + b"\n",
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
        lambda data: data + b"\n" + data,  # doubled lines
        lambda data: data.replace(b"\n", b"\n\n") + b" \n",
        gzip.compress,
    ],
    ids=["nih", "newline", "bom-crlf", "doubled", "blank", "gzip"],
)
def test_split_lists(tmp_path, change):
    train_val, test = (change("\n".join(names).encode()) for names in (TRAIN_VAL, TEST))
    assert read_lists(tmp_path, train_val, test) == {"00000003_000.png", "00000003_001.png"}


def test_split_lists_that_overlap(tmp_path):
    with pytest.raises(InputError) as error:
        read_lists(tmp_path, NAMES, TEST)
    assert str(error.value) == (
        "train_val_list.txt and test_list.txt: image in both lists: '00000003_000.png'; '00000003_001.png'. "
        "Each image belongs to one list."
    )


def test_split_lists_with_unknown_and_missing_names(tmp_path):
    with pytest.raises(InputError) as error:
        read_lists(tmp_path, [*TRAIN_VAL[1:], "Image", "00000009_000.png", "../x.png", "a.png"], TEST[1:])
    assert str(error.value) == (
        "train_val_list.txt and test_list.txt: 2 kinds of problems\n"
        "  - image that the CSV has not (4 times; the first 3: '../x.png'; '00000009_000.png'; 'Image'). "
        "Use the CSV that the lists belong to, or --split patient.\n"
        "  - image of the CSV in neither list: '00000001_000.png'; '00000003_000.png'. "
        "Use NIH's whole lists, or --split patient."
    )


def test_an_empty_test_list_is_no_test_set(tmp_path):
    with pytest.raises(InputError, match="image of the CSV in neither list: '00000003_000.png'"):
        read_lists(tmp_path, TRAIN_VAL, [])
    assert read_lists(tmp_path, NAMES, []) == set()


def test_a_split_list_that_is_not_utf8(tmp_path):
    with pytest.raises(InputError, match="^test_list.txt line 2: not UTF-8"):
        read_lists(tmp_path, TRAIN_VAL, b"00000003_000.png\n\xff\xfe")
