"""Every field of NIH's CSV is checked: values become null with a notice, or are refused with line and remedy."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pyarrow
import pyarrow.csv
import pytest

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data.readers.nih import read_entries
from chestxray_vit.data.readers.nih_fields import numbers_of, parse_age
from tests.conftest import MINI_ROWS, write_csv
from tests.helpers.nih_tables import assert_is_mini, refusal, row


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
