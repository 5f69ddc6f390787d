"""NIH's tables: every form in circulation reads alike, and every wrong file is refused with line, value and remedy."""

from __future__ import annotations

import gzip

import pytest

from chestxray_vit.data.readers.nih import find_file, read_entries, read_test_list
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import HEADER, MINI_ROWS, write_csv
from tests.helpers.nih_tables import KAGGLE_HEADER, assert_is_mini, refusal, row

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


def test_lines_are_counted_over_blocks(path, small_blocks):
    good = [row(f"0000{number // 1000:04d}_{number % 1000:03d}.png") for number in range(1000, 1300)]
    wrong = {60: "x,y", 61: good[61] + ",7,8", 250: "x,y"}
    lines = [wrong.get(index, line) for index, line in enumerate(good)]
    with pytest.raises(InputError) as error:
        read_entries(write_csv(path, lines))
    assert str(error.value) == (
        "Data_Entry_2017.csv: row of another length: line 62 has 2 fields, expected 11; "
        "line 63 has 13 fields, expected 11; line 252 has 2 fields, expected 11. Is the file whole?"
    )
    lines = [line.replace("Mass", "Herz") if index in (0, 77, 299) else line for index, line in enumerate(good)]
    with pytest.raises(InputError, match="unknown finding: line 2: 'Herz'; line 79: 'Herz'; line 301: 'Herz'. Known: "):
        read_entries(write_csv(path, lines))
    lines = [line.replace("Mass", '"Mass') if index == 203 else line for index, line in enumerate(good)]
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


@pytest.mark.parametrize("index", [0, 3])
def test_a_blank_line_inside(path, index):
    write_csv(path, [*MINI_ROWS[:index], "", *MINI_ROWS[index:], row(findings="x")])
    with pytest.raises(InputError) as error:
        read_entries(path)
    assert f"  - empty findings: line {index + 2}: ''." in str(error.value)
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
