"""A data set is opened once; its rows equal ImageFolder's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from chestxray_vit.artifacts.metadata import find_metadata
from chestxray_vit.data.dataset import collate, load_xrays, names_of, open_dataset, preprocessed, targets_of
from chestxray_vit.errors import InputError
from chestxray_vit.images.preprocess import Preprocess
from chestxray_vit.ingest import main as ingest
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import MINI_ROWS, write_release
from tests.helpers.images import reference
from tests.helpers.ingesting import rows_of
from tests.helpers.opens import count_opens

COLUMNS = ["image", "labels", "file_name", "split", "patient_id", "age", "sex", "view", "follow_up"]


@pytest.fixture(scope="module")
def processor():
    """Return an image processor with a mean and std of its own for each channel."""
    return transformers.ViTImageProcessor(
        size={"height": 48, "width": 40}, image_mean=[0.485, 0.5, 0.406], image_std=[0.229, 0.5, 0.225], resample=3
    )


def plain(row):
    """Return a row without its image."""
    return {name: value for name, value in row.items() if name != "image"}


# load_xrays


@pytest.mark.parametrize("split", [None, "train", "validation", "test"])
def test_rows_are_those_of_the_metadata(synthetic_dataset, split):
    expected = [row for row in rows_of(synthetic_dataset) if split in (None, row["split"])]
    xrays = load_xrays(synthetic_dataset, split)
    assert xrays.column_names == COLUMNS
    assert len(xrays) == len(expected) > 20
    for row, wanted in zip(xrays, expected):
        assert plain(row) == wanted
        with Image.open(synthetic_dataset / "images" / wanted["file_name"]) as image:
            assert row["image"].tobytes() == image.tobytes()


def test_types(dataset):
    features = load_xrays(dataset).features
    assert features["labels"].feature == datasets.Value("float32")
    assert features["labels"].length == 14
    kinds = [features[name].dtype for name in COLUMNS[2:]]
    assert kinds == ["string", "string", "string", "int64", "string", "string", "int64"]


def test_the_table_stays_where_it_is_mapped(dataset, monkeypatch):
    """A schema that is not that of the features would be cast, a missing fingerprint made of a pickled table."""
    monkeypatch.setattr(datasets.table, "table_cast", None)
    monkeypatch.setattr(datasets.arrow_dataset, "generate_fingerprint", None)
    xrays = load_xrays(dataset)
    assert xrays.data.nbytes > 0
    fingerprints = [load_xrays(dataset, split)._fingerprint for split in (None, "train", "test", None)]
    assert fingerprints[0] == fingerprints[3] == xrays._fingerprint
    assert len(set(fingerprints)) == 3


def test_a_pickled_data_set_is_the_same(dataset):
    xrays = load_xrays(dataset, "train")
    again = pickle.loads(pickle.dumps(xrays))
    assert again.features == xrays.features
    assert again.to_dict() == xrays.to_dict()


def test_row_for_row_what_imagefolder_gives(synthetic_dataset, tmp_path):
    read = datasets.load_dataset(
        "imagefolder",
        data_dir=str(synthetic_dataset / "images"),
        split="train",
        cache_dir=str(tmp_path),
    ).cast_column("image", datasets.Image(decode=False))
    xrays = load_xrays(synthetic_dataset)
    # datasets 2 gives the rows in the order of the files, datasets 5 in that of the metadata
    of_imagefolder = {row["image"]["path"]: plain(row) for row in read}
    assert len(of_imagefolder) == len(read) == len(xrays)
    for row in xrays.cast_column("image", datasets.Image(decode=False)):
        path = row["image"]["path"]
        assert path == f"{synthetic_dataset}/images/{row.pop('file_name')}"
        assert plain(row) == of_imagefolder[path]


def test_nulls_and_fifteen_labels(tmp_path):
    rows = [*MINI_ROWS, "00000004_000.png,No Finding,,4,411Y,,,2500,2048,0.171,0.171"]
    release = write_release(tmp_path / "release", rows)
    assert ingest([str(release), "--include_no_finding"]) == 0
    row = load_xrays(release)[5]
    assert row["labels"] == [0.0] * 14 + [1.0]
    assert [row[name] for name in ("patient_id", "age", "sex", "view", "follow_up")] == ["4", None, None, None, None]


def test_relative_folder_and_layout_of_the_kaggle_mirror(tmp_path, monkeypatch):
    release = write_release(tmp_path / "Röntgen 1", images="images_001/images")
    assert ingest([str(release)]) == 0
    monkeypatch.chdir(tmp_path)
    row = load_xrays("Röntgen 1")[4]
    assert row["file_name"] == "images_001/images/00000003_001.png"
    assert row["image"].tobytes() == bytes([160]) * 64


def test_an_absent_image_of_another_split_does_not_matter(dataset):
    (dataset / "images" / "00000003_000.png").unlink()
    assert len(load_xrays(dataset, "train")) == 2
    with pytest.raises(InputError) as error:
        load_xrays(dataset, "test")
    assert str(error.value) == (
        f"{dataset}/images: 1 of 2 images are missing (first: 00000003_000.png). "
        "Put them back, or ingest again with --allow_missing."
    )


def test_a_missing_image_folder(dataset):
    assert ingest([str(dataset), "--output", str(dataset / "metadata.jsonl")]) == 0
    shutil.rmtree(str(dataset / "images"))
    with pytest.raises(InputError, match="5 of 5 images are missing .first: images/00000001_000.png.. Put them back"):
        load_xrays(dataset)


# open_dataset


def test_a_data_set_is_opened_once(synthetic_dataset):
    """However many splits and facts of it are asked for."""
    code = (
        "from chestxray_vit.data.dataset import open_dataset\n"
        f"opened = open_dataset({str(synthetic_dataset)!r})\n"
        "print([len(opened.split(name)) for name in (None, *opened.split_names)], len(list(opened.file_names)))\n"
        "print(opened.fingerprint, opened.label_set.name, opened.is_synthetic, opened.root, opened.metadata_path)"
    )
    count, run = count_opens("metadata.jsonl", ["-c", code])
    assert (count, run.returncode) == (1, 0), run.stderr
    rows = rows_of(synthetic_dataset)
    sizes = [sum(row["split"] == name for row in rows) for name in ("train", "validation", "test")]
    path = synthetic_dataset / "images" / "metadata.jsonl"
    assert run.stdout.splitlines() == [
        f"{[len(rows), *sizes]} {len(rows)}",
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} NIH ChestX-ray14 True {path.parent} {path}",
    ]


def test_what_an_open_data_set_knows(dataset):
    opened = open_dataset(str(dataset))
    assert len(opened) == 5
    assert list(opened.file_names) == [row["file_name"] for row in rows_of(dataset)]
    assert list(opened.file_names) == list(opened.file_names)
    assert opened.split_names == ("train", "validation", "test")
    assert (opened.label_set, opened.is_synthetic) == (NIH_CHESTXRAY14, False)
    for split in (None, "train", "validation", "test"):
        rows, again = opened.split(split), load_xrays(dataset, split)
        assert (rows.to_dict(), rows._fingerprint) == (again.to_dict(), again._fingerprint)
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.metadata = None


def test_a_data_set_of_release_0_5(dataset):
    """It holds patient ids as numbers, and a report without a label set: the rows are the same."""
    expected = open_dataset(dataset).split().to_dict()
    path = dataset / "images" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(re.sub(r'"patient_id": "(\d)"', r'"patient_id": \1', line) + "\n" for line in lines))
    assert '"patient_id": 3, ' in path.read_text()
    report = json.loads((dataset / "images" / "ingest_report.json").read_text())
    del report["label_set"]
    (dataset / "images" / "ingest_report.json").write_text(json.dumps(report))
    opened = open_dataset(dataset)
    assert (opened.split().to_dict(), opened.label_set) == (expected, NIH_CHESTXRAY14)
    (dataset / "images" / "ingest_report.json").unlink()
    assert open_dataset(dataset).label_set == NIH_CHESTXRAY14


# find_metadata


def test_metadata_is_found_in_the_folder_and_beside_the_images(dataset):
    path = dataset / "images" / "metadata.jsonl"
    assert find_metadata(dataset) == find_metadata(str(dataset)) == path
    assert find_metadata(dataset / "images") == path
    beside = [plain(row) for row in load_xrays(dataset)]
    assert [plain(row) for row in load_xrays(dataset / "images")] == beside
    assert ingest([str(dataset), "--val_fraction", "0.2", "--output", str(dataset / "metadata.jsonl")]) == 0
    path.unlink()
    assert find_metadata(dataset) == dataset / "metadata.jsonl"
    above = [plain(row) for row in load_xrays(dataset)]
    assert above == [{**row, "file_name": f"images/{row['file_name']}"} for row in beside]


def test_metadata_in_both_places(dataset):
    shutil.copy(str(dataset / "images" / "metadata.jsonl"), str(dataset / "metadata.jsonl"))
    for find in (find_metadata, load_xrays):
        with pytest.raises(InputError) as error:
            find(dataset)
        assert str(error.value) == (
            f"{dataset}/metadata.jsonl and {dataset}/images/metadata.jsonl are both there. "
            "Name the folder of one, or remove the older."
        )
    assert find_metadata(dataset / "images") == dataset / "images" / "metadata.jsonl"
    (dataset / "metadata.jsonl").unlink()
    (dataset / "metadata.jsonl").mkdir()  # no file
    assert find_metadata(dataset) == dataset / "images" / "metadata.jsonl"


def test_metadata_beyond_a_link_is_anothers(dataset, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "images").symlink_to(dataset / "images")
    assert find_metadata(own) == own / "images" / "metadata.jsonl"
    theirs = (dataset / "images" / "metadata.jsonl").read_bytes()
    shutil.copy(str(dataset / "Data_Entry_2017_v2020.csv"), str(own))
    assert ingest([str(own)]) == 0
    assert find_metadata(own) == own / "metadata.jsonl"
    assert load_xrays(own)[0]["file_name"] == "images/00000001_000.png"
    assert (dataset / "images" / "metadata.jsonl").read_bytes() == theirs


@pytest.mark.parametrize("images", ["images", "images_001/images"])
def test_where_ingest_writes_the_other_stages_find(tmp_path, images):
    release = write_release(tmp_path / "release", images=images)
    assert ingest([str(release)]) == 0
    assert len(load_xrays(release)) == 5


def test_a_column_that_is_null_in_every_row(tmp_path):
    rows = [f"0000000{n}_000.png,Mass,,{n},411Y,,,1,1,1,1" for n in range(1, 4)]
    release = write_release(tmp_path / "release", rows)
    assert ingest([str(release)]) == 0
    xrays = load_xrays(release)
    assert [xrays.features[name].dtype for name in COLUMNS[5:]] == ["int64", "string", "string", "int64"]
    assert [[row[name] for name in COLUMNS[5:]] for row in xrays] == [[None] * 4] * 3


# From folder to batch.


def test_batches_hold_exactly_two_fields(dataset, processor):
    view = preprocessed(load_xrays(dataset), Preprocess(processor))
    assert len(view) == 5
    batch = collate([view[index] for index in (4, 0, 3)])
    assert list(batch) == ["pixel_values", "labels"]
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((3, 3, 48, 40), torch.float32)
    expected = [rows_of(dataset)[index]["labels"] for index in (4, 0, 3)]
    assert (batch["labels"].tolist(), batch["labels"].dtype) == (expected, torch.float32)
    for pixels, index in zip(batch["pixel_values"], (4, 0, 3)):
        assert np.array_equal(pixels.numpy(), reference(processor, Image.new("L", (8, 8), 40 * index)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_every_row_once(synthetic_dataset, processor, num_workers):
    xrays = load_xrays(synthetic_dataset, "validation")
    view = preprocessed(xrays, Preprocess(processor))
    batches = list(torch.utils.data.DataLoader(view, batch_size=4, collate_fn=collate, num_workers=num_workers))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [row["labels"] for row in xrays]
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    assert np.array_equal(pixels.numpy(), np.stack([reference(processor, row["image"]) for row in xrays]))


def test_a_damaged_image_is_named(dataset, processor):
    path = dataset / "images" / "00000002_000.png"
    path.write_bytes(path.read_bytes()[:45])
    view = preprocessed(load_xrays(dataset), Preprocess(processor))
    with pytest.raises(InputError, match=f"^{path}: cannot be decoded: "):
        view[3]


@pytest.mark.parametrize("split", [None, "test"])
def test_targets_of(synthetic_dataset, split):
    targets_NL = targets_of(load_xrays(synthetic_dataset, split))
    expected = [row["labels"] for row in rows_of(synthetic_dataset) if split in (None, row["split"])]
    assert (targets_NL.dtype, targets_NL.shape) == (np.float32, (len(expected), len(NIH_CHESTXRAY14)))
    assert targets_NL.tolist() == expected


def test_names_and_targets_of_a_selection(synthetic_dataset, monkeypatch):
    monkeypatch.setattr("chestxray_vit.data.dataset.CHUNK", 7)
    xrays = load_xrays(synthetic_dataset)
    rows = rows_of(synthetic_dataset)
    for places in ([3, 0, 40, 41, 42, 2, 9, 8, 7], [5], range(14), range(len(rows)), []):
        chosen = xrays.select(places)
        assert list(names_of(chosen)) == [rows[index]["file_name"] for index in places]
        targets_NL = targets_of(chosen)
        assert (targets_NL.dtype, targets_NL.shape) == (np.float32, (len(places), 14))
        assert targets_NL.tolist() == [rows[index]["labels"] for index in places]
        assert targets_NL.flags.writeable  # torch warns of what is not
