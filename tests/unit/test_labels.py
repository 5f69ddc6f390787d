"""The 14 findings: their order, and names to N-hot and back."""

from __future__ import annotations

import itertools
import random

import pytest

from chestxray_vit.labels import FINDINGS, NO_FINDING, decode, encode, label_names


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
    assert label_names() == FINDINGS
    assert label_names(include_no_finding=True) == (*FINDINGS, "No Finding")


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
    row = encode(names)
    assert row == expected
    assert all(type(value) is float for value in row)
    no_finding = float(not any(expected))
    assert encode(iter(names), include_no_finding=True) == [*expected, no_finding]


def test_decode_gives_names_in_nihs_order():
    assert decode([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == ["Cardiomegaly", "Hernia"]
    assert decode([0.0] * 14) == []
    assert decode([0.0] * 14 + [1.0]) == []  # No Finding is not a finding
    assert decode([False] * 13 + [True]) == ["Hernia"]


def test_round_trip_of_all_pairs_and_of_random_subsets():
    draw = random.Random(0)
    subsets = [list(pair) for size in (0, 1, 2) for pair in itertools.combinations(FINDINGS, size)]
    subsets += [draw.sample(FINDINGS, draw.randint(3, 14)) for _ in range(730)]
    assert len(subsets) == 836
    for names in subsets:
        for include_no_finding in (False, True):
            row = encode(names, include_no_finding)
            assert row == [float(name in names) for name in FINDINGS] + [float(not names)] * include_no_finding
            assert decode(row) == sorted(names, key=FINDINGS.index)


@pytest.mark.parametrize("name", ["Pneumonía", "Infiltrate", "mass", "Mass ", "", "Pleural Thickening"])
def test_encode_refuses_an_unknown_finding(name):
    with pytest.raises(ValueError, match=f"^unknown finding '{name}'. Known: Atelectasis, .*, Hernia, No Finding$"):
        encode(["Mass", name])


def test_encode_refuses_no_finding_beside_another():
    with pytest.raises(ValueError, match="^'No Finding' stands beside Edema, Mass$"):
        encode(["Mass", NO_FINDING, "Edema"])


@pytest.mark.parametrize("length", [0, 1, 13, 16])
def test_decode_refuses_another_length(length):
    with pytest.raises(ValueError, match=f"^an N-hot row has 14 or 15 places, found {length}$"):
        decode([0.0] * length)


@pytest.mark.parametrize("value", [0.5, -1.0, 2, float("nan")])
def test_decode_refuses_a_value_between(value):
    with pytest.raises(ValueError, match=f"^an N-hot row holds 0 and 1 only, found {value!r}$"):
        decode([0.0] * 13 + [value])
