"""Random tables, whole and broken, through the readers: a whole one comes back as it was written, a broken one is read
or refused, and nothing but an InputError escapes.

The same 60 examples a test in every run. CHESTXRAY_VIT_FUZZ=N draws N others, new ones each time; a failure prints the
example and how to repeat it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import random
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, configuration, example, given, settings
from hypothesis import strategies as st

from chestxray_vit.artifacts.metadata import read_metadata
from chestxray_vit.artifacts.predictions import COLUMNS, Predictions, read_predictions, write_predictions
from chestxray_vit.data.readers import nih, nih_fields
from chestxray_vit.data.readers import nih_archives as archives
from chestxray_vit.errors import InputError
from chestxray_vit.images.files import check_pixels
from chestxray_vit.labels import FINDINGS, NO_FINDING
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.stage_plan import StagePlan
from tests.conftest import HEADER
from tests.robustness.hostile.archives import member, tar
from tests.robustness.hostile.images import DAMAGED, FORMS, png
from tests.robustness.hostile.ipu_configs import GOOD

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))  # not into the repository
MORE = os.environ.get("CHESTXRAY_VIT_FUZZ")
fuzzed = settings(
    max_examples=int(MORE or 60),
    derandomize=MORE is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MOST_SAID = 20_000  # characters of an error


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder that all examples of this module write into."""
    return tmp_path_factory.mktemp("fuzz")


def read(reader: Callable[[], Any]) -> Any:
    """Return what a reader gives, None if it refuses."""
    try:
        return reader()
    except InputError as error:
        assert 0 < len(str(error)) < MOST_SAID
        return None


# How a file is broken: whole bytes at random, or a good file with some edits.

PIECES = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b",",
    b";",
    b'"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"|",
    b"-",
    b"..",
    b"/",
    b"nan",
    b"1e999",
]
PIECES += [
    b"9" * 30,
    b"\xd9\xa5",
    b"\xe2\x80\xa8",
    b"\x1b[2J",
    b"null",
    b"[",
    b"{",
    b"}",
    b"]",
    b"\\",
    b"\\u0000",
    b":",
]
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 20), st.one_of(st.sampled_from(PIECES), st.binary(max_size=9))),
    min_size=1,
    max_size=6,
)
garbage = st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))


def edited(content: bytes, changes: List[Tuple[float, int, bytes]]) -> bytes:
    """Replace bytes of a good file: (where in it, how many, by what)."""
    for place, length, piece in changes:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


# Data_Entry CSVs.

AGES = st.one_of(
    st.integers(0, 120).map(lambda age: (str(age), age)),
    st.integers(0, 120).map(lambda age: (f"{age:03d}Y", age)),
    st.integers(0, 999).map(lambda months: (f"{months:03d}M", months // 12)),
    st.sampled_from([("", None), ("411Y", None), ("-1", None), ("old", None), ("1.5", None)]),
)
VIEW_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\r\n"'), max_size=9)
ENTRY = st.fixed_dictionaries(
    {
        "cell": st.lists(st.sampled_from(FINDINGS), unique=True, max_size=9).map("|".join),
        "age": AGES,
        "sex": st.sampled_from(["M", "F", "", "X"]),
        "view": st.one_of(st.sampled_from(["PA", "AP"]), VIEW_TEXT),
        "follow_up": st.integers(0, 183),
    }
)
IMAGES = st.lists(
    st.tuples(st.integers(0, 30_805), st.integers(0, 183)), unique=True, min_size=1, max_size=12
)  # patient and study


@st.composite
def releases(draw) -> List[Dict[str, Any]]:
    """Draw rows of a release, each with what it must be read as."""
    return [
        {**draw(ENTRY), "file_name": f"{patient:08d}_{study:03d}.png", "patient_id": patient}
        for patient, study in draw(IMAGES)
    ]


def csv_bytes(rows: List[Dict[str, Any]], quoting: int = csv.QUOTE_MINIMAL, line_end: str = "\n") -> bytes:
    text = io.StringIO()
    text.write(HEADER + line_end)
    writer = csv.writer(text, quoting=quoting, lineterminator=line_end)
    for row in rows:
        about = [row["file_name"], row["cell"] or NO_FINDING, row["follow_up"], row["patient_id"]]
        writer.writerow([*about, row["age"][0], row["sex"], row["view"], "2500", "2048", "0.1", "0.1"])
    return text.getvalue().encode()


COMMA = {"cell": "", "age": ("0", 0), "sex": "M", "view": ",", "follow_up": 0}  # in quotes, it ends no field
COMMA.update(file_name="00000000_000.png", patient_id=0)


@fuzzed
@example(rows=[COMMA], quoting=csv.QUOTE_MINIMAL, line_end="\n", before=b"", pack=bytes)
@given(
    rows=releases(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    before=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    pack=st.sampled_from([bytes, gzip.compress]),
)
def test_a_whole_csv_is_read_as_it_was_written(folder, rows, quoting, line_end, before, pack):
    path = folder / "Data_Entry_2017.csv"
    path.write_bytes(pack(before + csv_bytes(rows, quoting, line_end)))
    entries = nih.read_entries(path)
    for name in ("file_name", "follow_up"):
        assert entries.column(name) == [row[name] for row in rows]
    assert entries.column("patient_id") == [str(row["patient_id"]) for row in rows]
    assert entries.column("age") == [row["age"][1] for row in rows]
    assert entries.column("sex") == [row["sex"] if row["sex"] in ("M", "F") else None for row in rows]
    assert entries.column("view") == [row["view"] or None for row in rows]
    labels, codes_N = entries.labels()
    expected = [[float(finding in row["cell"].split("|")) for finding in FINDINGS] for row in rows]
    assert [labels[code] for code in codes_N] == expected


@fuzzed
@given(rows=releases(), changes=edits)
def test_an_edited_csv_is_read_or_refused(folder, rows, changes):
    path = folder / "Data_Entry_2017.csv"
    path.write_bytes(edited(csv_bytes(rows), changes))
    entries = read(lambda: nih.read_entries(path))
    if entries is not None:  # then it is one that `ingest` can split
        assert all(nih_fields.NAME_PATTERN.fullmatch(name) for name in entries.column("file_name"))
        assert len(set(entries.column("file_name"))) == len(entries)
        assert [str(int(name[:8])) for name in entries.column("file_name")] == entries.column("patient_id")
        assert all(age is None or 0 <= age <= nih_fields.OLDEST for age in entries.column("age"))
        labels, _ = entries.labels()
        assert all(entries.label_set.decode(label) is not None for label in labels)


@fuzzed
@given(content=garbage, pack=st.sampled_from([bytes, gzip.compress]))
def test_garbage_is_no_csv(folder, content, pack):
    path = folder / "Data_Entry_2017.csv"
    path.write_bytes(pack(content))
    assert read(lambda: nih.read_entries(path)) is None


# Split lists.


@st.composite
def split_lists(draw) -> Tuple[List[Dict[str, Any]], List[bool]]:
    rows = draw(releases())
    return rows, draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))


def write_lists(folder: Path, rows: List[Dict[str, Any]], in_test: List[bool], between: str = "\n") -> Tuple:
    path = folder / "Data_Entry_2017.csv"
    path.write_bytes(csv_bytes(rows))
    paths = folder / "train_val_list.txt", folder / "test_list.txt"
    for list_path, wanted in zip(paths, (False, True)):
        names = [row["file_name"] for row, is_test in zip(rows, in_test) if is_test == wanted]
        list_path.write_bytes(between.join(names).encode())
    return nih.read_entries(path), paths


@fuzzed
@given(drawn=split_lists(), between=st.sampled_from(["\n", "\r\n", "\n\n", " \t", "\r"]), seed=st.integers(0, 99))
def test_whole_lists_are_read_as_they_were_written(folder, drawn, between, seed):
    rows, in_test = drawn
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    entries, _ = write_lists(folder, rows, in_test)
    _, paths = write_lists(folder, [rows[place] for place in order], [in_test[place] for place in order], between)
    assert nih.read_test_list(*paths, entries).tolist() == in_test


@fuzzed
@given(drawn=split_lists(), changes=edits, which=st.booleans())
def test_an_edited_list_is_right_or_refused(folder, drawn, changes, which):
    entries, paths = write_lists(folder, *drawn)
    paths[which].write_bytes(edited(paths[which].read_bytes(), changes))
    found = read(lambda: nih.read_test_list(*paths, entries))
    if found is not None:  # an image cannot have changed its list by an edit of one alone
        assert found.tolist() == drawn[1]


@fuzzed
@given(drawn=split_lists(), content=garbage, which=st.booleans())
def test_garbage_is_no_list(folder, drawn, content, which):
    entries, paths = write_lists(folder, *drawn)
    paths[which].write_bytes(content)
    found = read(lambda: nih.read_test_list(*paths, entries))
    assert found is None or found.tolist() == [not which] * len(entries)


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
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*COLUMNS[:5], "labels", "split"]), inner)
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


# IPU configurations, images and archives: nothing to write back, so only that nothing escapes.

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["pod4", "pod16", "default", "pod"]), inner)
    ),
    max_leaves=8,
)


@fuzzed
@given(changes=st.dictionaries(st.sampled_from(ipu_config.FIELDS), VALUE, min_size=1, max_size=4))
def test_any_configuration_is_planned_or_refused(folder, changes):
    path = folder / "ipu_config.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    config = read(lambda: ipu_config.read_ipu_config(str(path)))
    if config is not None:
        for inference in (False, True):
            plan = read(lambda inference=inference: StagePlan.from_config(config, ViTSize(), inference=inference))
            assert plan is None or json.dumps(plan.to_dict(), allow_nan=False)


GOOD_IMAGES = [png(), *(content() for content, _ in FORMS.values()), *(content() for content, _, _ in DAMAGED.values())]


@fuzzed
@given(good=st.sampled_from([content for content in GOOD_IMAGES if len(content) < 20_000]), changes=edits)
def test_an_edited_image_is_read_or_refused(folder, good, changes):
    path = folder / "image.png"
    path.write_bytes(edited(good, changes))
    wrong = check_pixels(path)
    assert wrong is None or 0 < len(wrong) < MOST_SAID


TAR = tar(*(member(f"images/0000000{number}_000.png", png()) for number in range(3)))


@fuzzed
@given(changes=edits, keep_size=st.booleans())
def test_an_edited_archive_is_unpacked_or_refused(tmp_path_factory, changes, keep_size):
    root = tmp_path_factory.mktemp("archive")
    changes = [(place, len(piece) if keep_size else length, piece) for place, length, piece in changes]
    (root / "images_001.tar.gz").write_bytes(gzip.compress(edited(TAR, changes), 1))
    count = read(lambda: archives.extract_archives(root))
    names = sorted(path.name for path in root.rglob("*"))
    images = sorted(path.name for path in root.glob("images/*"))
    assert names == sorted([*images, *["images"] * (root / "images").is_dir(), "images_001.tar.gz"])
    assert len(images) == (count or 0)
    assert all(nih_fields.NAME_PATTERN.fullmatch(name) for name in images)
