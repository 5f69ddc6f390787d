"""Metadata that `ingest` would not write is refused, all problems together."""

from __future__ import annotations

import json

import pytest

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from chestxray_vit.data.dataset import load_xrays
from chestxray_vit.errors import InputError
from chestxray_vit.ingest import main as ingest
from tests.helpers.ingesting import rows_of


def refusal(folder, *changes, split=None):
    """Return the text with which metadata is refused after (line, field, value) changes."""
    rows = rows_of(folder)
    for line, field, value in changes:
        rows[line - 1][field] = value
    (folder / "images" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(InputError) as error:
        load_xrays(folder, split)
    assert str(error.value).startswith(f"{folder}/images/")
    return str(error.value).replace(f"{folder}/images/", "")


AGAIN = "Ingest again: python -m chestxray_vit.ingest "


def test_no_metadata(mini_release):
    with pytest.raises(InputError) as error:
        load_xrays(mini_release)
    assert str(error.value) == (
        f"{mini_release}/metadata.jsonl and {mini_release}/images/metadata.jsonl: no such file. "
        f"First: python -m chestxray_vit.ingest {mini_release}"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "\n",
        lambda text: text[:-30],
        lambda text: text.replace('"train"', "train", 1),
        lambda text: text.replace("[0.0, 1.0", "[zero, 1.0", 1),
        lambda text: text.replace('"patient_id": "3"', '"patient_id": ["3"]', 1),
        lambda text: text.replace('"patient_id": "3"', '"patient_id": true', 1),
        lambda text: text.replace('"patient_id": "3"', '"patient_id": 3.5', 1),
        lambda text: text.replace('"labels": [', '"labels": [[', 1).replace("], ", "]], ", 1),
        lambda text: f"[{text}]",
        lambda text: text + "\x00",
    ],
)
def test_broken_json(dataset, spoil):
    path = dataset / "images" / "metadata.jsonl"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=f"^{path}: .*{AGAIN}{dataset}$"):
        load_xrays(dataset)


def test_ragged_labels(dataset):
    assert refusal(dataset, (2, "labels", [0.0] * 13)) == (
        f"metadata.jsonl: labels of another length: found [13, 14], expected 14 in every row. {AGAIN}{dataset}"
    )
    every = [(line, "labels", [0.0] * 16) for line in range(1, 6)]
    assert "labels of another length: found [16], expected 14 in every row." in refusal(dataset, *every)
    assert "found [0, 16], expected" in refusal(dataset, (4, "labels", []))


@pytest.mark.parametrize("value", [0.5, 2, -1, None, 1e-9])
def test_a_label_that_is_neither_0_nor_1(dataset, value):
    assert refusal(dataset, (4, "labels", [0.0] * 13 + [value])) == (
        f"metadata.jsonl: label neither 0 nor 1: line 4. {AGAIN}{dataset}"
    )


@pytest.mark.parametrize("split", [None, "train"])
def test_an_unknown_split(dataset, split):
    assert refusal(dataset, (1, "split", "val"), (5, "split", "Test"), split=split) == (
        f"metadata.jsonl: unknown split: 'Test'; 'val'. Known: train, validation, test. {AGAIN}{dataset}"
    )


def test_a_doubled_image(dataset):
    assert refusal(dataset, (1, "file_name", "00000003_000.png")) == (
        f"metadata.jsonl: doubled image: 00000003_000.png on 2 lines. {AGAIN}{dataset}"
    )


@pytest.mark.parametrize("folder", ["..", "../images", "images/../..", "/etc"])
def test_an_image_outside_the_folder(dataset, folder):
    expected = f"metadata.jsonl: image outside the folder: {folder!r}. {AGAIN}{dataset}"
    assert refusal(dataset, (3, "file_name", f"{folder}/00000003_000.png"), split="train") == expected


@pytest.mark.parametrize("field", ["file_name", "labels", "split", "patient_id"])
def test_a_missing_value(dataset, field):
    expected = f"metadata.jsonl: missing value: line 3: no {field}. {AGAIN}{dataset}"
    assert refusal(dataset, (3, field, None)) == expected
    rows = rows_of(dataset)
    del rows[2][field]
    (dataset / "images" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert refusal(dataset) == expected


def test_all_problems_are_told_at_once(dataset):
    text = refusal(
        dataset,
        (1, "split", "val"),
        (2, "labels", [0.5] * 14),
        (3, "file_name", "../00000003_000.png"),
        (4, "file_name", "00000001_000.png"),
    )
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == [
        "  - label neither 0 nor 1",
        "  - unknown split",
        "  - doubled image",
        "  - image outside the folder",
    ]


def test_an_empty_split(mini_release):
    assert ingest([str(mini_release)]) == 0
    with pytest.raises(InputError) as error:
        load_xrays(mini_release, "validation")
    assert str(error.value) == (
        f"{mini_release}/images/metadata.jsonl: no image in the validation split. "
        "Ingest with other lists or --val_fraction."
    )
