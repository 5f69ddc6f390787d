"""A schema is checked as the JSON Schema standard has it, and every mismatch is reported with its path."""

from __future__ import annotations

import doctest
import math

import pytest

from chestxray_vit.storage import json_schema
from chestxray_vit.storage.json_schema import (
    MISSING,
    UNKNOWN,
    WRONG,
    Mismatch,
    conforms,
    list_of,
    mismatches,
    object_of,
    shown,
)

INTERVAL = object_of({"low": {"type": ["number", "null"]}, "high": {"type": ["number", "null"]}}, closed=True)
REPORT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "a report",
    "$defs": {"interval": INTERVAL},
    **object_of(
        {
            "name": {"type": "string", "pattern": "^[a-z]+$"},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "title": "64 hex digits"},
            "count": {"type": "integer", "minimum": 0},
            "share": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "split": {"enum": ["train", "test", 1]},
            "version": {"const": 1},
            "intervals": {**list_of({"$ref": "#/$defs/interval"}), "minItems": 1, "maxItems": 2},
            "either": {"anyOf": [{"type": "boolean"}, object_of({"a": {"type": "string"}})]},
        }
    ),
}
GOOD = {
    "name": "abc",
    "sha256": "0" * 64,
    "count": 0,
    "share": None,
    "split": "test",
    "version": 1,
    "intervals": [{"low": 0, "high": 0.5}],
    "either": True,
    "another": object(),
}


def test_examples_of_the_docstrings():
    assert doctest.testmod(json_schema).failed == 0


def test_what_conforms_has_no_mismatch():
    assert mismatches(GOOD, REPORT) == []
    assert conforms(GOOD, REPORT)
    for change in (
        {"share": 1},
        {"share": 0.0},
        {"split": 1},
        {"either": {"a": "b"}},
        {"intervals": [{"low": None, "high": 1}] * 2},
    ):
        assert mismatches({**GOOD, **change}, REPORT) == []


@pytest.mark.parametrize(
    ("change", "path", "kind", "found", "expected"),
    [
        ({"name": "A"}, ("name",), WRONG, '"A"', "a text of the form ^[a-z]+$"),
        ({"name": 3}, ("name",), WRONG, "3", "a text of the form ^[a-z]+$"),
        ({"sha256": "A" * 64}, ("sha256",), WRONG, '"' + "A" * 36 + "...", "64 hex digits"),
        ({"count": -1}, ("count",), WRONG, "-1", "a whole number >= 0"),
        ({"count": 2.0}, ("count",), WRONG, "2.0", "a whole number >= 0"),
        ({"count": True}, ("count",), WRONG, "true", "a whole number >= 0"),
        ({"count": None}, ("count",), WRONG, "null", "a whole number >= 0"),
        ({"share": 1.5}, ("share",), WRONG, "1.5", "a number or null >= 0 and <= 1"),
        ({"share": math.nan}, ("share",), WRONG, "NaN", "a number or null >= 0 and <= 1"),
        ({"share": 10**400}, ("share",), WRONG, "1" + "0" * 36 + "...", "a number or null >= 0 and <= 1"),
        ({"share": [1]}, ("share",), WRONG, "a list", "a number or null >= 0 and <= 1"),
        ({"split": "dev"}, ("split",), WRONG, '"dev"', 'one of "train", "test", 1'),
        ({"split": True}, ("split",), WRONG, "true", 'one of "train", "test", 1'),
        ({"version": True}, ("version",), WRONG, "true", "1"),
        ({"intervals": []}, ("intervals",), WRONG, "a list", "a list of at least 1 items of at most 2 items"),
        ({"intervals": {}}, ("intervals",), WRONG, "an object", "a list of at least 1 items of at most 2 items"),
        ({"intervals": [{"low": 1}]}, ("intervals", 0, "high"), MISSING, "nothing", "a number or null"),
        (
            {"intervals": [{"low": 1, "high": 2}, {"low": 1, "high": 2, "mid": 3}]},
            ("intervals", 1, "mid"),
            UNKNOWN,
            "3",
            "only low, high",
        ),
        ({"either": {"a": 1}}, ("either",), WRONG, "an object", "true or false or an object"),
    ],
)
def test_one_wrong_value_is_one_mismatch(change, path, kind, found, expected):
    content = {**GOOD, **change}
    assert mismatches(content, REPORT) == [Mismatch(path, kind, found, expected)]
    assert not conforms(content, REPORT)


def test_all_mismatches_are_reported_in_order():
    content = {**GOOD, "count": -1, "intervals": [{"low": "x", "high": 1, "z": 1}]}
    del content["name"], content["sha256"]
    assert [mismatch.path for mismatch in mismatches(content, REPORT)] == [
        ("name",),
        ("sha256",),
        ("count",),
        ("intervals", 0, "low"),
        ("intervals", 0, "z"),
    ]
    assert str(mismatches(content, REPORT)[3]) == 'intervals[0].low: found "x", expected a number or null'
    assert str(mismatches([], REPORT)[0]) == "content: found a list, expected a report"


def test_entries_without_a_name_have_a_schema_of_their_own():
    counts = {"type": "object", "additionalProperties": {"type": "integer"}}
    assert mismatches({"a": 1, "b": 2}, counts) == []
    assert [mismatch.path for mismatch in mismatches({"a": 1, "b": "2", "c": None}, counts)] == [("b",), ("c",)]


@pytest.mark.parametrize("schema", [{"minimun": 1}, object_of({"a": {"maxLength": 3}}), {"anyOf": [{"format": "uri"}]}])
def test_a_keyword_that_is_not_understood_is_an_error(schema):
    with pytest.raises(ValueError, match="not understood here"):
        mismatches({"a": "b"}, schema)


def test_values_are_shown_short():
    assert [shown(value) for value in ("ä", {"a": 1}, [1], None, 0.5)] == [
        '"\\u00e4"',
        "an object",
        "a list",
        "null",
        "0.5",
    ]
    assert shown("x" * 38) == '"' + "x" * 38 + '"'
    assert shown("x" * 39) == '"' + "x" * 36 + "..."


def test_the_standards_own_checker_agrees():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.validators.validator_for(REPORT)
    validator.check_schema(REPORT)
    values = [
        None,
        True,
        0,
        1,
        -1,
        0.5,
        1.5,
        "abc",
        "A",
        "0" * 64,
        [],
        {},
        [GOOD["intervals"][0]] * 3,
        {"a": "b"},
        {"a": 1},
    ]
    agreed = 0
    for name in GOOD:
        if name == "another":
            continue
        for value in values:
            content = {**GOOD, name: value, "another": None}
            assert conforms(content, REPORT) == validator(REPORT).is_valid(content), (name, value)
            agreed += conforms(content, REPORT)
    assert agreed > 10
