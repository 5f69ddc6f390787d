"""The bytes of metadata.jsonl are those of `json`, row by row, and every text comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pytest

from chestxray_vit.artifacts.metadata import read_metadata
from chestxray_vit.artifacts.metadata_writer import distinct, metadata_lines

TEXTS = ["1", "00001", "patient00001", "3" * 39, 'a "quoted"\\one', "ä\u2028\U0001f9b4", "1"]
COLUMNS = ("split", "patient_id", "age", "sex", "view", "follow_up")


def columns(num_rows):
    rows = range(num_rows)
    return {
        "file_name": [f"{row}.png" for row in rows],
        "split": [("train", "test")[row % 2] for row in rows],
        "patient_id": [TEXTS[row % len(TEXTS)] for row in rows],
        "age": [None if row % 3 else row for row in rows],
        "sex": [(None, "M", "F")[row % 3] for row in rows],
        "view": [TEXTS[-1 - row % len(TEXTS)] for row in rows],
        "follow_up": [None] * num_rows,
    }


def table_of(content):
    arrays = {name: pyarrow.array(values) for name, values in content.items()}
    arrays["follow_up"] = arrays["follow_up"].cast("int64")
    arrays["split"] = arrays["split"].dictionary_encode()
    return pyarrow.table(arrays)


@pytest.mark.parametrize("folders", [[""], ["a/"], ["a/", 'b \\"c\\"/', ""]])
@pytest.mark.parametrize("num_rows", [1, 6, 7, 8, 40])
def test_lines_are_those_of_json(num_rows, folders):
    content, rows = columns(num_rows), [[0.0, 1.0], [1.0, 1.0]]
    folder_N, label_N = np.arange(num_rows) % len(folders), np.arange(num_rows) // 2 % 2
    found = bytes(metadata_lines(table_of(content), (folders, folder_N), (rows, label_N))).decode()
    expected = [
        {
            "file_name": json.loads(f'"{folders[folder_N[row]]}"') + content["file_name"][row],
            "labels": rows[label_N[row]],
            **{name: content[name][row] for name in COLUMNS},
        }
        for row in range(num_rows)
    ]
    assert found == "".join(json.dumps(row) + "\n" for row in expected)


def test_patient_ids_go_to_the_file_and_back(tmp_path):
    """Ids of 39 digits or with leading zeros are no numbers."""
    content = columns(7)
    for name in content["file_name"]:
        (tmp_path / name).touch()
    labels = [[0.0] * 14], np.zeros(7, int)
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(metadata_lines(table_of(content), ([""], np.zeros(7, int)), labels))
    table = read_metadata(path)
    for name in ("file_name", *COLUMNS):
        assert table[name].to_pylist() == content[name]


@pytest.mark.parametrize("encode", [lambda array: array, lambda array: array.dictionary_encode()])
def test_distinct_values(encode):
    values, codes_N = distinct(encode(pyarrow.array(["b", "a", "b", "c", "a"])))
    assert (values, codes_N.tolist()) == (["b", "a", "c"], [0, 1, 0, 2, 1])
    values, codes_N = distinct(pyarrow.array([None, 3, None]))
    assert [values[code] for code in codes_N] == [None, 3, None]
