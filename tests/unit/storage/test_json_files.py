"""JSON files are written whole, without NaN, and read with limits."""

from __future__ import annotations

import doctest
import json
import math
import os

import numpy as np
import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.storage import json_files
from chestxray_vit.storage.json_files import none_for_nan, read_json, to_json, write_json


def test_write_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 0.5, None], "a": "Röntgen"})
    assert path.read_bytes().decode() == '{\n  "b": [\n    1,\n    0.5,\n    null\n  ],\n  "a": "Röntgen"\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_write_json_refuses_what_json_has_not(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"auc": [value]})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_examples_of_the_docstrings():
    assert doctest.testmod(json_files).failed == 0


def test_none_stands_for_nan_at_every_depth():
    content = {
        "a": math.nan,
        "b": [1, (math.nan, 0.5)],
        "c": {"d": np.float64("nan"), "e": np.float32(0.5)},
        "f": "nan",
    }
    replaced = none_for_nan(content)
    assert replaced == {"a": None, "b": [1, [None, 0.5]], "c": {"d": None, "e": 0.5}, "f": "nan"}
    assert type(replaced["c"]["e"]) is float
    assert none_for_nan(np.float32("nan")) is None
    assert math.isnan(content["a"])  # a copy


@pytest.mark.parametrize("value", [0, 2**70, True, None, "text", 0.25, math.inf])
def test_other_values_stay_as_they_are(value):
    assert none_for_nan(value) is value or none_for_nan(value) == value
    assert type(none_for_nan(value)) is type(value)
    if value != math.inf:
        assert json.loads(to_json({"a": none_for_nan(value)})) == {"a": value}


def test_read_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": "Röntgen", "b": [1, 0.5]})
    assert read_json(path) == read_json(str(path)) == {"a": "Röntgen", "b": [1, 0.5]}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # Windows editors write this mark
    assert read_json(path)["a"] == "Röntgen"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON in UTF-8: Expecting value"),
        (b"{", "cannot be read as JSON in UTF-8: "),
        (b"\xff\xfe{", "cannot be read as JSON in UTF-8: 'utf-8' codec"),
        (b"[" * 60_000, "cannot be read as JSON in UTF-8: maximum recursion depth"),
        (b'{"a": {"b": 1, "b": 1}}', "cannot be read as JSON in UTF-8: a name stands twice in one object"),
        (b'{"a": NaN}', "cannot be read as JSON in UTF-8: NaN is no JSON"),
        (b'{"a": -Infinity}', "cannot be read as JSON in UTF-8: -Infinity is no JSON"),
        (b"[1, 2]", "expected an object, found a list"),
        (b"null", "expected an object, found null"),
        (b" " * 70_000, "it has more than 65,536 bytes"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_json(path, "Make it again.", max_bytes=2**16)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(". Make it again.")
    with pytest.raises(InputError) as error:
        read_json(path)
    assert str(error.value).endswith(("}", ".", "list", "null", ")")) and not str(error.value).endswith(". ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere.json: there is no such file. Make it."):
        read_json(tmp_path / "nowhere.json", "Make it.")
    with pytest.raises(InputError, match="cannot be read as JSON in UTF-8: .*directory"):
        read_json(tmp_path)


def test_nan_is_read_where_a_schema_is_to_refuse_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN, "b": Infinity}')
    content = read_json(path, allow_nan=True)
    assert math.isnan(content["a"]) and content["b"] == math.inf


def test_the_limit_counts_bytes(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(InputError, match="more than 7 bytes"):
        read_json(path, max_bytes=7)
