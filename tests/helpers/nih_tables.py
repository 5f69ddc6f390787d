"""Rows of NIH's Data_Entry CSV, and what a file of them is read or refused as."""

from __future__ import annotations

import pytest

from chestxray_vit.data.readers.nih import read_entries
from chestxray_vit.errors import InputError
from tests.conftest import HEADER, MINI_ROWS, write_csv

KAGGLE_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
)


COLUMNS = ["file_name", "number", "findings", "patient_id", "age", "sex", "view", "follow_up"]


def row(name="00000004_000.png", findings="Mass", follow_up="0", patient=None, age="50", sex="F", view="AP"):
    """Return a good row, less what is asked to be wrong."""
    patient = str(int(name[:8])) if patient is None else patient
    return f"{name},{findings},{follow_up},{patient},{age},{sex},{view},2500,2048,0.171,0.171"


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
