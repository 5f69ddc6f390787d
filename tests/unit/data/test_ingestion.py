"""Ingestion knows no NIH where it need not: ids of any text, labels of any set, folders of any name."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow
import pytest

from chestxray_vit.artifacts.ingest_report import left_out_text
from chestxray_vit.data import ingestion
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.data.split import SPLITS, assign
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet

TWO = LabelSet("two", ("Mass", "Nodule"), negative="Nothing")
PATIENTS = [f"patient{row // 3:05d}" for row in range(150)] + ["3" * 39] * 3
FINDINGS = ["Mass", "Nothing", "Nodule|Mass"] * 51


@pytest.fixture
def entries():
    """Return 51 patients of three images each."""
    rows = range(len(PATIENTS))
    table = {
        "file_name": [f"{row}.png" for row in rows],
        "number": list(rows),
        "findings": FINDINGS,
        "patient_id": PATIENTS,
        "view": ["PA" if row % 2 else None for row in rows],
    }
    return Entries(pyarrow.table(table), TWO)


def test_patients_of_any_id_stay_together(entries):
    found = ingestion.assign_splits(entries, (), by_image=False, val_fraction=0.2, seed=1)
    assert found.column("split") == [assign(PATIENTS, val_fraction=0.2, seed=1)[patient] for patient in PATIENTS]
    assert set(found.column("split")) == set(SPLITS)
    assert ingestion.count_leaked_patients(found, is_allowed=False) == 0
    assert (found.label_set, found.notices, found.left_out) == (TWO, (), ())


def test_a_split_by_image_leaks_and_is_counted(entries, caplog):
    found = ingestion.assign_splits(entries, (), by_image=True, val_fraction=0.2, seed=1)
    split_of = assign(map(str, range(len(PATIENTS))), val_fraction=0.2, seed=1)
    assert found.column("split") == [split_of[str(row)] for row in range(len(PATIENTS))]
    sets = {}
    for patient, split in zip(PATIENTS, found.column("split")):
        sets.setdefault(patient, set()).add(split)
    leaked = sum(len(found_in) > 1 for found_in in sets.values())
    with caplog.at_level(logging.WARNING):
        assert ingestion.count_leaked_patients(found, is_allowed=True) == leaked > 10
    assert f"warning: {leaked} patients are in more than one set" in caplog.text
    first = next(patient for patient, found_in in sets.items() if len(found_in) > 1)
    with pytest.raises(InputError, match=f"{leaked} patients are in more than one set .first: {first}.: a defect"):
        ingestion.count_leaked_patients(found, is_allowed=False)


@pytest.mark.parametrize("val_fraction", [-0.1, 1, float("nan")])
def test_a_fraction_out_of_range(entries, val_fraction):
    with pytest.raises(InputError, match=f"^--val_fraction is {val_fraction}, expected 0 <= fraction < 1"):
        ingestion.assign_splits(entries, (), by_image=False, val_fraction=val_fraction, seed=1)


def test_counts_are_of_the_label_set(entries):
    found = entries.with_splits(SPLITS, np.array([0] * 90 + [1] * 30 + [2] * 33))
    assert ingestion.count_splits(found) == {
        "train": {"images": 90, "patients": 30, "positives": {"Mass": 60, "Nodule": 30}},
        "validation": {"images": 30, "patients": 10, "positives": {"Mass": 20, "Nodule": 10}},
        "test": {"images": 33, "patients": 11, "positives": {"Mass": 22, "Nodule": 11}},
    }


def test_what_is_left_out_is_counted(entries, tmp_path):
    (tmp_path / "other").mkdir()
    images = {tmp_path: ["0.png", "1.png", "3.png"], tmp_path / "other": ["5.png", "x.png"]}
    assert ingestion.folder_codes(entries, images)[:7].tolist() == [0, 0, -1, 0, -1, 1, -1]
    for path in (tmp_path / "1.png", tmp_path / "3.png"):
        path.write_bytes(b"\xff\xd8\xff")
    kept = ingestion.keep_views(entries, "PA")
    with pytest.raises(InputError) as error:
        ingestion.keep_images(kept, images, "here", "header", allow_missing=False)
    assert str(error.value).splitlines() == [
        "here: 2 kinds of problems",
        "  - images missing: 73 of 76 (first: 7.png). Unpack all archives, or pass --allow_missing.",
        "  - unreadable image: 5.png: cannot be read: No such file or directory. "
        "Fetch it again, or pass --allow_missing.",
    ]
    kept = ingestion.keep_images(kept, images, "here", "header", allow_missing=True)
    assert kept.column("file_name") == ["1.png", "3.png"]
    assert kept.left_out == (("view other than PA", 77), ("image missing", 73), ("image unreadable", 1))
    assert left_out_text(dict(kept.left_out)) == "77 view other than PA, 73 image missing, 1 image unreadable"


def test_folders_as_seen_from_the_metadata(tmp_path):
    images = {tmp_path: [], tmp_path / "a" / 'b "c"': []}
    assert ingestion.relative_folders(images, tmp_path / "metadata.jsonl") == ["", 'a/b \\"c\\"/']
    with pytest.raises(InputError, match="are not below its folder, and ImageFolder reads no others"):
        ingestion.relative_folders(images, tmp_path / "a" / "metadata.jsonl")
