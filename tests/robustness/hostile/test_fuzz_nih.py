"""Random Data_Entry CSVs and split lists through their readers: a whole one comes back as it was written, a broken one
is read or refused, and nothing but an InputError escapes."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

pytest.importorskip("hypothesis")

from hypothesis import example, given
from hypothesis import strategies as st

from chestxray_vit.data.readers import nih, nih_fields
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import HEADER
from tests.robustness.hostile.fuzz import edited, edits, fuzzed, garbage, read

FINDINGS = NIH_CHESTXRAY14.names
NO_FINDING = NIH_CHESTXRAY14.negative

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
@given(sampled=split_lists(), between=st.sampled_from(["\n", "\r\n", "\n\n", " \t", "\r"]), seed=st.integers(0, 99))
def test_whole_lists_are_read_as_they_were_written(folder, sampled, between, seed):
    rows, in_test = sampled
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    entries, _ = write_lists(folder, rows, in_test)
    _, paths = write_lists(folder, [rows[index] for index in order], [in_test[index] for index in order], between)
    assert nih.read_test_list(*paths, entries).tolist() == in_test


@fuzzed
@given(sampled=split_lists(), changes=edits, which=st.booleans())
def test_an_edited_list_is_right_or_refused(folder, sampled, changes, which):
    entries, paths = write_lists(folder, *sampled)
    paths[which].write_bytes(edited(paths[which].read_bytes(), changes))
    found = read(lambda: nih.read_test_list(*paths, entries))
    if found is not None:  # an image cannot have changed its list by an edit of one alone
        assert found.tolist() == sampled[1]


@fuzzed
@given(sampled=split_lists(), content=garbage, which=st.booleans())
def test_garbage_is_no_list(folder, sampled, content, which):
    entries, paths = write_lists(folder, *sampled)
    paths[which].write_bytes(content)
    found = read(lambda: nih.read_test_list(*paths, entries))
    assert found is None or found.tolist() == [not which] * len(entries)
