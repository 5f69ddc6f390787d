"""Label sets: NIH's 14 findings and their order, names to N-hot and back, what no label set may be."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import pytest

from chestxray_vit.labels import NIH_CHESTXRAY14, SINGLE_LABEL, LabelSet

FINDINGS = NIH_CHESTXRAY14.names
WITH_NEGATIVE = NIH_CHESTXRAY14.with_negative_column()


def test_order_is_that_of_the_published_tables():
    assert FINDINGS == (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
    )
    assert WITH_NEGATIVE.names == (*FINDINGS, "No Finding")
    assert WITH_NEGATIVE.findings == NIH_CHESTXRAY14.findings == FINDINGS
    assert (len(NIH_CHESTXRAY14), len(WITH_NEGATIVE)) == (14, 15)
    assert NIH_CHESTXRAY14.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    "names, expected",
    [
        (["Cardiomegaly", "Atelectasis"], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (["Pleural_Thickening", "Edema", "Hernia"], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]),
        (["Mass", "Mass"], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (["No Finding"], [0] * 14),
        ([], [0] * 14),
    ],
)
def test_encode(names, expected):
    row = NIH_CHESTXRAY14.encode(names)
    assert row == expected
    assert all(type(value) is float for value in row)
    no_finding = float(not any(expected))
    assert WITH_NEGATIVE.encode(iter(names)) == [*expected, no_finding]


def test_decode_gives_names_in_the_sets_order():
    assert NIH_CHESTXRAY14.decode([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == ["Cardiomegaly", "Hernia"]
    assert NIH_CHESTXRAY14.decode([0.0] * 14) == []
    assert WITH_NEGATIVE.decode([0.0] * 14 + [1.0]) == []  # No Finding is not a finding
    assert NIH_CHESTXRAY14.decode([False] * 13 + [True]) == ["Hernia"]


def test_round_trip_of_all_pairs_and_of_random_subsets():
    draw = random.Random(0)
    subsets = [list(pair) for size in (0, 1, 2) for pair in itertools.combinations(FINDINGS, size)]
    subsets += [draw.sample(FINDINGS, draw.randint(3, 14)) for _ in range(730)]
    assert len(subsets) == 836
    for names in subsets:
        for labels, last in ((NIH_CHESTXRAY14, []), (WITH_NEGATIVE, [float(not names)])):
            row = labels.encode(names)
            assert row == [float(name in names) for name in FINDINGS] + last
            assert labels.decode(row) == sorted(names, key=FINDINGS.index)


@pytest.mark.parametrize("name", ["Pneumonía", "Infiltrate", "mass", "Mass ", "", "Pleural Thickening"])
def test_encode_refuses_an_unknown_finding(name):
    with pytest.raises(ValueError, match=f"^unknown finding '{name}'. Known: Atelectasis, .*, Hernia, No Finding$"):
        NIH_CHESTXRAY14.encode(["Mass", name])


def test_encode_refuses_the_negative_beside_another():
    with pytest.raises(ValueError, match="^'No Finding' stands beside Edema, Mass$"):
        NIH_CHESTXRAY14.encode(["Mass", "No Finding", "Edema"])


@pytest.mark.parametrize("length", [0, 1, 13, 15, 16])
def test_decode_refuses_another_length(length):
    with pytest.raises(ValueError, match=f"^an N-hot row of NIH ChestX-ray14 has 14 columns, found {length}$"):
        NIH_CHESTXRAY14.decode([0.0] * length)


@pytest.mark.parametrize("value", [0.5, -1.0, 2, float("nan")])
def test_decode_refuses_a_value_between(value):
    with pytest.raises(ValueError, match=f"^an N-hot row holds 0 and 1 only, found {value!r}$"):
        NIH_CHESTXRAY14.decode([0.0] * 13 + [value])


def test_a_single_label_set_has_one_class_an_image():
    digits = LabelSet("digits", ("0", "1", "2"), SINGLE_LABEL)
    assert digits.encode(["1"]) == [0.0, 1.0, 0.0]
    assert digits.problem_type == "single_label_classification"
    with pytest.raises(ValueError, match="^an image has one class, found 2: 0, 1$"):
        digits.encode(["0", "1"])
    with pytest.raises(ValueError, match="^an image has one class, found 0: none$"):
        digits.encode([])


def test_a_multi_label_set_without_a_negative_has_a_row_of_zeros():
    assert LabelSet("two", ("a", "b")).encode([]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="the label set two has no negative label"):
        LabelSet("two", ("a", "b")).with_negative_column()


@pytest.mark.parametrize("labels", [NIH_CHESTXRAY14, WITH_NEGATIVE, LabelSet("d", ("0", "1"), SINGLE_LABEL)])
def test_a_label_set_travels_as_json(labels):
    assert LabelSet.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_label_sets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NIH_CHESTXRAY14.name = "another"


def test_the_set_of_columns_is_nihs_by_all_names_in_order():
    assert LabelSet.of_names(FINDINGS) is NIH_CHESTXRAY14
    assert LabelSet.of_names([*FINDINGS, "No Finding"]) == WITH_NEGATIVE
    assert LabelSet.of_names(FINDINGS[:3]) == LabelSet("3 labels", FINDINGS[:3])
    assert LabelSet.of_names(sorted(FINDINGS)).negative is None


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((("a", "b", "a"),), "label 'a' is named twice"),
        (((),), "at least one label"),
        ((("none",), "multi_label", "none"), "at least one label"),
        ((("a", " "),), "printable texts"),
        ((("a", "b\n"),), "printable texts"),
        ((("a", 1),), "printable texts"),
        ((("a",), "both"), "unknown kind 'both' of a label set. Known: multi_label, single_label"),
        ((("none", "a"), "multi_label", "none"), "'none' must be the last label"),
    ],
)
def test_what_no_label_set_may_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        LabelSet("wrong", *arguments)


@pytest.mark.parametrize("content", [{}, {"name": "x"}, {"name": "x", "names": "abc"}, [], {"name": "x", "names": 5}])
def test_what_is_no_label_set_in_json(content):
    with pytest.raises(ValueError, match="^no label set"):
        LabelSet.from_dict(content)
