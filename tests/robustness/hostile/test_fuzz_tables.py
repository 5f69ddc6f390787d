"""Random metadata.jsonl and predictions.csv through their readers: a whole one comes back as it was written, a broken
one is read or refused, and nothing but an InputError escapes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from chestxray_vit.artifacts.metadata import read_metadata
from chestxray_vit.artifacts.predictions import Predictions, read_predictions, write_predictions
from chestxray_vit.artifacts.predictions_rows import ABOUT
from tests.robustness.hostile.fuzz import edited, edits, fuzzed, garbage, read

# metadata.jsonl.

IMAGE_NAMES = [
    "00000001_000.png",
    "a b.png",
    "\u00e4.png",
    "'.png",
    "deeper/00000001_000.png",
    "\U0001fa7b.png",
    "\\.png",
]
ROW = st.fixed_dictionaries(
    {
        "labels": st.lists(st.sampled_from([0.0, 1.0]), min_size=14, max_size=14),
        "split": st.sampled_from(["train", "validation", "test"]),
        "patient_id": st.integers(0, 2**62) | st.text("0123456789patien-ä", min_size=1, max_size=39),
        "age": st.none() | st.integers(0, 120),
        "sex": st.sampled_from([None, "M", "F"]),
        "view": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        "follow_up": st.none() | st.integers(0, 183),
    }
)


@st.composite
def metadata_rows(draw) -> List[Dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(IMAGE_NAMES), unique=True, min_size=1))
    return [{"file_name": name, **draw(ROW)} for name in names]


@pytest.fixture(scope="module")
def image_folder(folder) -> Path:
    """Return a folder with an image of each name; what is in it does not matter here."""
    for name in IMAGE_NAMES:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"")
    return folder / "images"


def json_lines(rows: List[Dict[str, Any]], as_ascii: bool = True) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=as_ascii) + "\n" for row in rows).encode()


@fuzzed
@given(rows=metadata_rows(), as_ascii=st.booleans(), end=st.sampled_from([b"", b"\n\n"]))
def test_whole_metadata_is_read_as_it_was_written(image_folder, rows, as_ascii, end):
    path = image_folder / "metadata.jsonl"
    path.write_bytes(json_lines(rows, as_ascii) + end)
    table = read_metadata(path)
    for name in rows[0]:
        as_text = str if name == "patient_id" else lambda value: value  # numbers are of release 0.5.0
        assert table[name].to_pylist() == [as_text(row[name]) for row in rows]
    for split in ("train", "validation", "test"):
        expected = [row["file_name"] for row in rows if row["split"] == split]
        found = read(lambda split=split: read_metadata(path, split))
        assert ([] if found is None else found["file_name"].to_pylist()) == expected


@fuzzed
@given(rows=metadata_rows(), changes=edits)
def test_edited_metadata_is_read_or_refused(image_folder, rows, changes):
    path = image_folder / "metadata.jsonl"
    path.write_bytes(edited(json_lines(rows), changes))
    table = read(lambda: read_metadata(path))
    if table is not None:
        assert set(table["file_name"].to_pylist()) <= {*IMAGE_NAMES, *os.listdir(image_folder)}
        assert all(set(labels) <= {0.0, 1.0} for labels in table["labels"].to_pylist())


@fuzzed
@given(
    row=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*ABOUT, "labels", "split"]), inner)
        ),
        max_leaves=20,
    )
)
def test_other_json_is_no_metadata(image_folder, row):
    path = image_folder / "metadata.jsonl"
    path.write_bytes(json_lines([row]))
    assert read(lambda: read_metadata(path)) is None


# predictions.csv.

# a CSV has no way to write a lone surrogate
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMED = TEXT.filter(lambda text: text.strip())
ID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).filter(str.strip)
PROBABILITY = st.floats(0, 1) | st.sampled_from(
    [0.0, 1.0, 5e-324, math.nextafter(1, 0) if hasattr(math, "nextafter") else 1.0]
)


@st.composite
def tables(draw) -> Predictions:
    """Draw a table of predictions with any texts that UTF-8 can hold."""
    names = draw(st.lists(NAMED, unique=True, min_size=1, max_size=6))
    each = {"min_size": len(names), "max_size": len(names)}
    rows = st.lists(st.lists(PROBABILITY, min_size=14, max_size=14), **each)
    ages = st.none() | st.integers(0, 150) | st.floats(0, 150).map(lambda age: int(age) if age.is_integer() else age)
    return Predictions(
        file_names=names,
        patient_ids=draw(st.lists(ID, **each)),
        ages=draw(st.lists(ages, **each)),
        sexes=draw(st.lists(TEXT, **each)),
        views=draw(st.lists(TEXT, **each)),
        targets_NL=np.array(draw(rows)).round().astype(int),
        scores_NL=np.array(draw(rows)),
    )


@fuzzed
@given(table=tables())
def test_whole_predictions_are_read_as_they_were_written(folder, table):
    write_predictions(folder / "predictions.csv", table)
    found = read_predictions(folder / "predictions.csv")
    for name in ("file_names", "patient_ids", "ages", "sexes", "views"):
        assert list(getattr(found, name)) == list(getattr(table, name))
    assert (found.targets_NL == table.targets_NL).all()
    assert (found.scores_NL == table.scores_NL).all()


@fuzzed
@given(table=tables(), changes=edits)
def test_edited_predictions_are_read_or_refused(folder, table, changes):
    path = folder / "predictions.csv"
    write_predictions(path, table)
    path.write_bytes(edited(path.read_bytes(), changes))
    found = read(lambda: read_predictions(path))
    if found is not None:
        assert np.isin(found.targets_NL, (0, 1)).all()
        assert ((found.scores_NL >= 0) & (found.scores_NL <= 1)).all()


@fuzzed
@given(content=garbage)
def test_garbage_is_no_predictions(folder, content):
    (folder / "predictions.csv").write_bytes(content)
    assert read(lambda: read_predictions(folder / "predictions.csv")) is None
