"""The real files of NIH ChestX-ray14, where they are there: the published counts, finding by finding and set by set."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data.readers.nih import label_set, read_entries, read_test_list
from chestxray_vit.data.readers.nih_archives import find_images
from chestxray_vit.data.readers.nih_fields import numbers_of, parse_age
from chestxray_vit.data.split import assign, leaked_patients
from chestxray_vit.images.files import check_images, check_pixels
from chestxray_vit.ingest import main as ingest
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.storage.atomic import sha256

CSV_SHA256 = "dc1d2df67fdc1c5a7601d48699cda2b13dc2c4841488b4183dcf04884dbaca11"  # of the unpacked file
COUNTS = {  # finding: all, train_val, test
    "Atelectasis": (11559, 8280, 3279),
    "Cardiomegaly": (2776, 1707, 1069),
    "Effusion": (13317, 8659, 4658),
    "Infiltration": (19894, 13782, 6112),
    "Mass": (5782, 4034, 1748),
    "Nodule": (6331, 4708, 1623),
    "Pneumonia": (1431, 876, 555),
    "Pneumothorax": (5302, 2637, 2665),
    "Consolidation": (4667, 2852, 1815),
    "Edema": (2303, 1378, 925),
    "Emphysema": (2516, 1423, 1093),
    "Fibrosis": (1686, 1251, 435),
    "Pleural_Thickening": (3385, 2242, 1143),
    "Hernia": (227, 141, 86),
    "No Finding": (60361, 50500, 9861),
}


@pytest.fixture(scope="module")
def csv_text(real_release):
    data = gzip.decompress((real_release / "Data_Entry_2017_v2020.csv.gz").read_bytes())
    assert hashlib.sha256(data).hexdigest() == CSV_SHA256
    return data.decode("ascii")


@pytest.fixture(scope="module")
def entries(real_release):
    return read_entries(real_release / "Data_Entry_2017_v2020.csv.gz")


@pytest.fixture(scope="module")
def labels_NL(entries):
    rows, codes_N = dataclasses.replace(entries, label_set=label_set(include_no_finding=True)).labels()
    return np.array(rows)[codes_N]


@pytest.fixture(scope="module")
def in_test_N(real_release, entries):
    lists = real_release / "train_val_list.txt", real_release / "test_list.txt"
    in_test_N = read_test_list(*lists, entries)
    test_names = set((real_release / "test_list.txt").read_text().split())
    assert in_test_N.tolist() == [name in test_names for name in entries.column("file_name")]
    return in_test_N


def test_counts_of_each_finding(labels_NL, in_test_N):
    found = {
        finding: (int(labels_N.sum()), int(labels_N[~in_test_N].sum()), int(labels_N[in_test_N].sum()))
        for finding, labels_N in zip(label_set(include_no_finding=True).names, labels_NL.T)
    }
    assert found == COUNTS


def test_counts_of_images_and_patients(entries, in_test_N):
    patients_N = np.array(entries.column("patient_id"))
    assert (len(entries), len(set(entries.column("file_name"))), len(np.unique(patients_N))) == (
        112_120,
        112_120,
        30_805,
    )
    assert (int((~in_test_N).sum()), int(in_test_N.sum())) == (86_524, 25_596)
    assert len(np.unique(patients_N[~in_test_N])) == 28_008
    assert len(np.unique(patients_N[in_test_N])) == 2_797
    images_of_patient = np.unique(patients_N, return_counts=True)[1]
    assert (images_of_patient.max(), int((images_of_patient == 1).sum())) == (184, 17_503)


def test_sex_view_and_age(entries):
    sexes, views, ages = (entries.column(name) for name in ("sex", "view", "age"))
    assert (sexes.count("M"), sexes.count("F")) == (63_340, 48_780)
    assert (views.count("PA"), views.count("AP")) == (67_310, 44_810)
    assert (min(ages), max(ages)) == (0, 95)
    assert entries.notices == ()


def test_every_field_by_a_plain_split_of_the_lines(csv_text, entries):
    lines = csv_text.splitlines()[1:]
    names = ("file_name", "findings", "follow_up", "patient_id", "age", "sex", "view")
    columns = (map(str, entries.column(name)) for name in names)
    assert [",".join(row) for row in zip(*columns)] == [",".join(line.split(",")[:7]) for line in lines]
    numbers = [int(line[:8] + line[9:12]) for line in lines]
    assert entries.column("number") == numbers_of(entries.arrow("file_name")).tolist() == numbers


def test_every_field_by_a_slow_reader_after_rows_are_left_out(csv_text, entries):
    """What `csv` reads row by row, of the rows that are kept twice over."""
    rows = list(csv.reader(csv_text.splitlines()))[1:]
    rng = np.random.default_rng(1337)
    kept, indices_N = entries, np.arange(len(rows))
    for share in (0.7, 0.4):
        keep_N = rng.random(len(indices_N)) < share
        kept, indices_N = kept.keep(keep_N), indices_N[keep_N]
    names = ("file_name", "findings", "follow_up", "patient_id", "age", "sex", "view")
    expected = [
        (name, cell, int(follow_up), patient, parse_age(age), sex, view)
        for name, cell, follow_up, patient, age, sex, view, *_ in (rows[row_index] for row_index in indices_N)
    ]
    assert list(zip(*map(kept.column, names))) == expected
    assert list(zip(*(kept.arrow(name).to_pylist() for name in names))) == expected
    with_no_finding = label_set(include_no_finding=True)
    labels, codes_N = dataclasses.replace(kept, label_set=with_no_finding).labels()
    assert [labels[code] for code in codes_N] == [with_no_finding.encode(row[1].split("|")) for row in expected]


def test_all_836_combinations_go_to_n_hot_and_back(entries):
    cells = distinct(entries.arrow("findings"))[0]
    assert len(cells) == len(set(cells)) == 836
    for cell in cells:
        names = cell.split("|")
        encoded = NIH_CHESTXRAY14.encode(names)
        assert NIH_CHESTXRAY14.decode(encoded) == [name for name in NIH_CHESTXRAY14.findings if name in names]
    assert max(len(cell.split("|")) for cell in cells) == 9


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("Patient Gender", "Patient Sex"),
        lambda text: text.replace("\n", ",\n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    ],
    ids=["sex", "12-fields", "bom-crlf"],
)
def test_the_forms_of_the_csv_read_alike(csv_text, entries, tmp_path, change):
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_bytes(change(csv_text).encode())
    assert read_entries(path) == entries


def test_nihs_lists_leak_no_patient(entries, in_test_N):
    splits_N = np.where(in_test_N, "test", "train").tolist()
    assert leaked_patients(entries.column("patient_id"), splits_N) == []


def test_split_by_patient_of_the_real_patients(entries):
    split_of = assign(entries.column("patient_id"))
    splits_N = [split_of[patient] for patient in entries.column("patient_id")]
    assert leaked_patients(np.array(entries.column("patient_id")), splits_N) == []
    shares = [splits_N.count(name) / len(splits_N) for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.72, 0.08, 0.20], abs=0.01)


def test_kaggles_sample(real_release):
    entries = read_entries(real_release / "kaggle_sample_labels.csv")
    assert len(entries) == 5_606
    assert entries.notices == ("1 of 5,606 rows have no usable age (such as '411Y'): kept as null",)
    with open(real_release / "kaggle_sample_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert entries.column("file_name") == [row["Image Index"] for row in rows]
    assert entries.column("findings") == [row["Finding Labels"] for row in rows]
    assert entries.column("patient_id") == [row["Patient ID"] for row in rows]
    assert entries.column("follow_up") == [int(row["Follow-up #"]) for row in rows]
    assert entries.column("view") == [row["View Position"] for row in rows]
    assert entries.column("sex") == [row["Patient Gender"] for row in rows]
    odd = {"013M": 1, "001D": 0, "411Y": None}
    texts = [row["Patient Age"] for row in rows]
    assert all(texts.count(text) == 1 for text in odd)
    assert entries.column("age") == [odd[text] if text in odd else int(text[:3]) for text in texts]


def test_every_real_image_decodes(real_release):
    found = find_images(real_release)
    assert list(found) == [real_release / "images"]
    (names,) = found.values()
    assert len(names) == len(set(names)) == 271
    assert check_images([real_release / "images" / name for name in names], check_pixels) == {}


@pytest.fixture(scope="module")
def real_dataset(real_release, tmp_path_factory):
    """Return a folder of the real CSV, lists and linked images, ingested."""
    folder = tmp_path_factory.mktemp("real") / "nih"
    folder.mkdir()
    (folder / "images").symlink_to(real_release / "images")
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv"):
        shutil.copy(str(real_release / name), str(folder / name))
    before = sorted(path.name for path in (real_release / "images").iterdir())
    assert ingest([str(folder), "--allow_missing"]) == 0
    assert sorted(path.name for path in (real_release / "images").iterdir()) == before  # nothing goes through the link
    return folder


def test_ingest_of_the_real_images(real_release, real_dataset, entries, in_test_N):
    rows = [json.loads(line) for line in (real_dataset / "metadata.jsonl").read_text().splitlines()]
    counts = {name: sum(row["split"] == name for row in rows) for name in ("train", "validation", "test")}
    assert (len(rows), counts["train"] + counts["validation"], counts["test"]) == (271, 239, 32)
    assert counts["validation"] > 0
    index_of = {name: row_index for row_index, name in enumerate(entries.column("file_name"))}
    cells, patients = entries.column("findings"), entries.column("patient_id")
    indices = [index_of[row["file_name"][len("images/") :]] for row in rows]
    assert indices == sorted(indices)  # in the order of the CSV
    for row, row_index in zip(rows, indices):
        assert row["labels"] == NIH_CHESTXRAY14.encode(cells[row_index].split("|"))
        assert (row["split"] == "test") == in_test_N[row_index]
        assert row["patient_id"] == patients[row_index]
    report = json.loads((real_dataset / "ingest_report.json").read_text())
    assert report["left_out"] == {"image missing": 111_849}
    assert (report["num_rows"], report["num_images"], report["split"]["leaked_patients"]) == (112_120, 271, 0)
    assert report["sources"] == {
        name: sha256(real_release / name)
        for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt")
    }


def test_the_boxes_are_left_alone(real_release, real_dataset):
    assert sha256(real_dataset / "BBox_List_2017.csv") == sha256(real_release / "BBox_List_2017.csv")
    assert "BBox" not in (real_dataset / "ingest_report.json").read_text()


def test_every_real_image_is_preprocessed_as_by_the_deit_processor(real_dataset, deit_tiny):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    from chestxray_vit.data.dataset import load_xrays, preprocessed
    from chestxray_vit.images.preprocess import Preprocess

    processor = transformers.AutoImageProcessor.from_pretrained(deit_tiny)
    xrays = load_xrays(real_dataset)
    view = preprocessed(xrays, Preprocess(processor))
    assert [tuple(row["pixel_values"].shape) for row in view] == [(3, 224, 224)] * 271
    names = list(xrays["file_name"])
    modes = {}
    for name in names:
        with Image.open(real_dataset / name) as image:
            modes.setdefault(image.mode, []).append(name)
    assert {mode: len(names) for mode, names in modes.items()} == {"L": 269, "RGBA": 2}
    for name in [*modes["RGBA"], *modes["L"][::20]]:  # the full processor takes its time
        with Image.open(real_dataset / name) as image:
            expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(view[names.index(name)]["pixel_values"].numpy(), expected)
