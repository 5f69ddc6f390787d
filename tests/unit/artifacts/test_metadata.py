"""The table does not depend on the blocks, wrong lines are named, the disk is left clean; names keep their order."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chestxray_vit.artifacts import metadata_rows
from chestxray_vit.artifacts.metadata import open_metadata, read_metadata
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet

NAMES = ["b.png", "a/ä.png", "a/z.png", "a.png", "a/b/\U0001f9b4.png", "\ufffd.png", "a b.png", "00000001_000.png", "Z"]


def row_of(name, index=0, **fields):
    labels = [float(index % 14 == finding) for finding in range(14)]
    row = {"file_name": name, "labels": labels, "split": ["train", "test"][index % 2], "patient_id": str(index)}
    return {**row, "age": None if index % 3 else 57, "sex": "F", "view": None, "follow_up": index, **fields}


@pytest.fixture
def path(tmp_path):
    """Return a metadata.jsonl of nine rows with empty files for images."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return written(tmp_path / "metadata.jsonl", [row_of(name, index) for index, name in enumerate(NAMES)])


def written(path, rows, line_end="\n"):
    path.write_bytes("".join(json.dumps(row) + line_end for row in rows).encode())
    return path


def with_report(path, **report):
    """Write an ingest_report.json beside the metadata."""
    (path.parent / "ingest_report.json").write_text(json.dumps(report))
    return path


def refusal(path, split=None):
    with pytest.raises(InputError) as error:
        read_metadata(path, split)
    return str(error.value).replace(f"{path.parent}/", "")


# The table.


@pytest.mark.parametrize("block", [1, 300, 1000, 1 << 18])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_rows_are_those_of_the_file_whatever_the_blocks(path, monkeypatch, block, split):
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    table = read_metadata(path, split)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = [
        {"image": {"bytes": None, "path": f"{path.parent}/{row['file_name']}"}, **row}
        for row in rows
        if split in (None, row["split"])
    ]
    assert table.to_pylist() == expected
    assert [str(kind) for kind in table.schema.types[:2]] == [
        "struct<bytes: binary, path: string>",
        "fixed_size_list<item: float>[14]",
    ]
    assert [str(kind) for kind in table.schema.types[2:]] == [
        *("string", "string", "string", "int64", "string", "string", "int64")
    ]


@pytest.mark.parametrize("block", [1, 1 << 18])
def test_blank_lines_other_fields_and_line_ends(path, monkeypatch, block):
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    expected = read_metadata(path).to_pylist()
    lines = path.read_text().splitlines()
    rows = [{**json.loads(line), "other": index if index < 4 else "text"} for index, line in enumerate(lines)]
    text = "".join(["\ufeff", *(json.dumps(row) + "\r\n\r\n  \r\n" for row in rows)])
    path.write_bytes((text + "\n" * 5).encode())
    assert read_metadata(path).to_pylist() == expected
    path.write_bytes(text.rstrip().encode())  # no line end at the end
    assert read_metadata(path).to_pylist() == expected


def test_the_table_lies_in_a_file_of_which_nothing_is_left(path, monkeypatch):
    folder = path.parent / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def mapped():
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/" in line]

    table = read_metadata(path)
    assert os.listdir(folder) == []
    (line,) = mapped()
    assert line.endswith("(deleted)")
    assert line.split()[1] == "r--s"
    low, high = (int(end, 16) for end in line.split()[0].split("-"))
    for column in table.columns:
        for buffer in filter(None, column.chunk(0).buffers()):
            assert low <= buffer.address < high or not buffer.size
    again = table.slice(3, 2)
    del table, column, buffer
    assert again["file_name"].to_pylist() == NAMES[3:5]
    del again
    gc.collect()
    assert mapped() == []
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(folder) in os.path.realpath(f"/proc/self/fd/{fd}")]


def test_a_temporary_folder_that_is_not_there(path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent / "nowhere"))
    text = refusal(path)
    assert text.startswith("nowhere: the table of the images cannot be laid there: [Errno 2] No such file or directory")
    assert text.endswith(". Make room, or name another folder: TMPDIR=D.")


def test_a_full_temporary_folder(path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from chestxray_vit.artifacts import metadata; from chestxray_vit import errors as problems\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "try: metadata.read_metadata(Path(sys.argv[1]))\n"
        "except problems.InputError as error: print(error)\n"
        "else: print('read')"
    )
    said = []
    for limit in (1 << 20, 600):  # bytes of a file
        command = [sys.executable, "-c", code, str(path), str(limit)]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said[0] == "read\n"
    assert said[1].endswith(
        "the table of the images cannot be laid there: [Errno 27] File too large. "
        "Make room, or name another folder: TMPDIR=D.\n"
    )


@pytest.mark.parametrize("split", [None, "train"])
def test_memory_does_not_grow_with_the_rows(tmp_path, split):
    """At most 100 bytes a row at the highest; as strings and Arrow columns they took 1,800."""
    code = (
        "import sys, tracemalloc, pyarrow; from pathlib import Path\n"
        "from chestxray_vit.artifacts.metadata import read_metadata\n"
        "first, *paths = map(Path, sys.argv[1:])\n"
        "pools = pyarrow.system_memory_pool(), pyarrow.default_memory_pool()\n"
        "read_metadata(first)\n"
        "tracemalloc.start()\n"
        "for path in paths:\n"
        f"    table = read_metadata(path, {split!r})\n"
        "    print(tracemalloc.get_traced_memory()[1] + sum(pool.max_memory() for pool in pools))"
    )
    paths = []
    for count in (100, 4_000, 16_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        names = [f"{number:08d}_000.png" for number in range(count)]
        for name in names:
            (folder / name).touch()
        paths.append(written(folder / "metadata.jsonl", [row_of(name, index) for index, name in enumerate(names)]))
    run = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    small, large = map(int, run.stdout.split())
    assert (large - small) / 12_000 < 100


# Patient ids are texts.

IDS = ["1", "00001", "patient00001", "3" * 39, "ä b", "0", "-4", str(2**63 - 1), "x" * 200]


@pytest.mark.parametrize("block", [1, 300, 1 << 18])
def test_patient_ids_are_read_as_they_stand(path, monkeypatch, block):
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    rows = [row_of(name, index, patient_id=IDS[index]) for index, name in enumerate(NAMES)]
    assert read_metadata(written(path, rows))["patient_id"].to_pylist() == IDS


@pytest.mark.parametrize("block", [1, 300, 1 << 18])
@pytest.mark.parametrize("numbers", [range(9), (3, 4, 8), (0,), (8,)])
def test_numbers_of_release_0_5_are_the_same_ids(path, monkeypatch, block, numbers):
    """A file may hold both, where a tool put two together."""
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    ids = [30_805, 0, 1, 2**63 - 1, -4, 10, 7, 8, 9]
    texts = [id_ if index in numbers else str(id_) for index, id_ in enumerate(ids)]
    written(path, [row_of(name, index, patient_id=texts[index]) for index, name in enumerate(NAMES)])
    assert read_metadata(path)["patient_id"].to_pylist() == [str(id_) for id_ in ids]


@pytest.mark.parametrize("wrong", ["x" * 201, "4\0", "\0"])
def test_a_patient_id_that_predictions_could_not_hold(path, wrong):
    written(path, [row_of(name, index, patient_id=wrong if index == 5 else "4") for index, name in enumerate(NAMES)])
    assert refusal(path) == (
        "metadata.jsonl: patient_id is no id: line 6. Expected up to 200 characters. "
        f"Ingest again: python -m chestxray_vit.ingest {path.parent}"
    )


@pytest.mark.parametrize("wrong", ["", " ", "\t\u00a0"])
def test_a_blank_patient_id_is_none(path, wrong):
    written(path, [row_of(name, index, patient_id=wrong if index == 5 else "4") for index, name in enumerate(NAMES)])
    assert refusal(path).startswith("metadata.jsonl: missing value: line 6: no patient_id. ")


# What `open_metadata` knows of the file.


def test_a_split_is_taken_from_the_table_that_was_read(path):
    opened = open_metadata(path)
    content = path.read_bytes()
    path.unlink()
    (path.parent / "b.png").unlink()
    rows = [json.loads(line) for line in content.decode().splitlines()]
    for split in (None, "train", "test"):
        found = opened.rows(split).select(["file_name", "labels"]).to_pylist()
        assert found == [
            {"file_name": row["file_name"], "labels": row["labels"]} for row in rows if split in (None, row["split"])
        ]
    assert opened.split_names == ("train", "test")
    assert opened.sha256 == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="no image in the validation split"):
        opened.rows("validation")


def test_each_split_is_asked_for_its_own_missing_images(path):
    for name in (NAMES[1], NAMES[5], NAMES[6]):
        (path.parent / name).unlink()
    opened = open_metadata(path)
    assert opened.missing.tolist() == [1, 5, 6]
    for split, found in ((None, "3 of 9"), ("test", "2 of 4"), ("train", "1 of 5")):
        with pytest.raises(InputError, match=f"{found} images are missing"):
            opened.rows(split)


TWO = LabelSet("two", ("Mass", "Nodule"))


@pytest.mark.parametrize(
    ("report", "num_labels", "expected"),
    [
        (None, 14, NIH_CHESTXRAY14),
        (None, 15, NIH_CHESTXRAY14.with_negative_column()),
        ({"package_version": "0.5.0"}, 14, NIH_CHESTXRAY14),
        ({"findings": list(NIH_CHESTXRAY14.names)}, 14, NIH_CHESTXRAY14),
        ({"findings": [*NIH_CHESTXRAY14.names, "No Finding"]}, 15, NIH_CHESTXRAY14.with_negative_column()),
        ({"label_set": TWO.to_dict(), "findings": ["Mass", "Nodule"]}, 2, TWO),
    ],
)
def test_the_label_set_is_the_reports_or_that_of_0_5(path, report, num_labels, expected):
    written(path, [row_of(name, index, labels=[0.0] * num_labels) for index, name in enumerate(NAMES)])
    if report is not None:
        with_report(path, **report)
    assert open_metadata(path).label_set == expected


def test_labels_are_as_many_as_the_report_says(path):
    with_report(path, label_set=TWO.to_dict())
    assert "labels of another length: found [14], expected 2 in every row." in refusal(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "cannot be read as JSON in UTF-8: Expecting value"),
        (b"\xff", "cannot be read as JSON in UTF-8: "),
        (b"[" * 100_000, "cannot be read as JSON in UTF-8: "),
        (b"[1]", "expected an object, found a list"),
        (b'{"label_set": 3}', "no label set: "),
        (b'{"label_set": {"name": "", "names": "Mass"}}', "no label set: names must be a list"),
        (b'{"findings": 3}', "findings is no list"),
        (b'{"findings": ["Mass", "Mass"]}', "label 'Mass' is named twice"),
    ],
    ids=range(8),
)
def test_a_report_that_is_none(path, text, expected):
    (path.parent / "ingest_report.json").write_bytes(text)
    found = refusal(path)
    assert found.startswith(f"ingest_report.json: {expected}")
    assert found.endswith(" Ingest the release again.")


# Rows that are refused.


@pytest.mark.parametrize("block", [1, 700, 1 << 18])
@pytest.mark.parametrize("index", [0, 4, 8])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b'{"file_name": "a.png", ', "JSON parse error: Missing a name for object member"),
        (b'{"patient_id": true}', "JSON parse error: Column(/patient_id) changed from string to boolean"),
        (b'{"patient_id": 3.5}', "Failed to convert JSON to int64"),
        (b'{"patient_id": 9223372036854775808}', "Failed to convert JSON to int64"),
        (b'{"file_name": "\xff.png"}', "Column 0: In chunk 0: Invalid: Invalid UTF8 sequence"),
        (b"[1, 2]", "no JSON object"),
        (b"nul", "no JSON object"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named(path, monkeypatch, block, index, wrong, reason):
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    lines = path.read_bytes().splitlines()
    lines[index : index + 1] = [b"", wrong, b""]
    path.write_bytes(b"\n".join(lines))
    text = refusal(path)
    assert text.startswith(f"metadata.jsonl: line {index + 2}: {reason}")
    assert text.endswith(f". Ingest again: python -m chestxray_vit.ingest {path.parent}")


@pytest.mark.parametrize("block", [1, 1 << 18])
@pytest.mark.parametrize("index", [0, 4])
@pytest.mark.parametrize("wrong", [b"null", b" \t\r\n null", b"\xef\xbb\xbfnull", b"null {}"])
@pytest.mark.parametrize("other", [b"", b"\n{"])
def test_a_line_of_null_does_not_end_the_process(path, monkeypatch, block, index, wrong, other):
    """Arrow reads no memory of its own where that is the first value."""
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    lines = path.read_bytes().splitlines()
    lines[index] = wrong + other
    path.write_bytes(b"\n".join(lines))
    assert re.match(r"metadata.jsonl: .*\bline \d: (no |JSON parse error)", refusal(path))


@pytest.mark.parametrize("block", [1, 700, 1 << 18])
def test_problems_of_all_blocks_are_told_at_once(path, monkeypatch, block):
    monkeypatch.setattr(metadata_rows, "BLOCK", block)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["labels"][3] = 0.5
    rows[5]["labels"][3] = 2
    rows[3]["split"], rows[7]["split"] = "val", "dev"
    rows[8]["file_name"], rows[1]["file_name"] = rows[0]["file_name"], rows[4]["file_name"]
    rows[6]["file_name"] = "../x.png"
    rows[7]["file_name"] = "/x.png"
    written(path, rows)
    again = f"Ingest again: python -m chestxray_vit.ingest {path.parent}"
    assert refusal(path, "train") == (
        "metadata.jsonl: 4 kinds of problems\n"
        f"  - label neither 0 nor 1: line 3. {again}\n"
        f"  - unknown split: 'dev'; 'val'. Known: train, validation, test. {again}\n"
        f"  - doubled image: b.png on 2 lines; a/b/\U0001f9b4.png on 2 lines. {again}\n"
        f"  - image outside the folder: '..'; '/'. {again}"
    )
    rows[4]["labels"].append(0.0)
    written(path, rows)
    assert "  - labels of another length: found [14, 15], expected 14 or 15 in every row." in refusal(path)
    rows[5]["split"], rows[6]["file_name"], rows[7]["file_name"] = None, None, None
    written(path, rows)
    assert refusal(path) == f"metadata.jsonl: missing value: line 7: no file_name; line 6: no split. {again}"


@pytest.mark.parametrize("text", ["", "\n", " \n\n \n"])
def test_no_rows(path, text):
    path.write_text(text)
    again = f"Ingest again: python -m chestxray_vit.ingest {path.parent}"
    assert refusal(path) == refusal(path, "train") == f"metadata.jsonl: no rows. {again}"


def test_a_file_that_cannot_be_read(path):
    assert refusal(path.parent / "a") == "a: cannot be read: Is a directory. Correct that, and run again."


def test_missing_images_are_counted_and_the_first_of_the_file_is_named(path):
    for name in (NAMES[1], NAMES[5], NAMES[6]):
        (path.parent / name).unlink()
    remedy = "Put them back, or ingest again with --allow_missing."
    where = f"{path.parent}: "
    assert refusal(path) == f"{where}3 of 9 images are missing (first: a/ä.png). {remedy}"
    assert refusal(path, "test") == f"{where}2 of 4 images are missing (first: a/ä.png). {remedy}"
    assert refusal(path, "train") == f"{where}1 of 5 images are missing (first: a b.png). {remedy}"


def test_other_files_in_the_folder_do_not_matter(path):
    for name in (b"\xff.png", b"a.png.bak", b"n" * 250):
        (path.parent / os.fsdecode(name)).touch()
    assert read_metadata(path).num_rows == 9
