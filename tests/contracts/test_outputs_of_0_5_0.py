"""What version 0.5.0 wrote is still read: data set, pixel cache, run, checkpoint, predictions, evaluation, thresholds.

outputs_of_0_5_0.tar.xz is by that version: a synthetic release of 27 patients at 64 pixels, ingested; a ViT of two
layers trained for two epochs with vit-tiny-2ipu, and evaluated."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import pytest

from chestxray_vit import report
from chestxray_vit.artifacts.metadata import find_metadata
from chestxray_vit.artifacts.predictions import read_predictions
from chestxray_vit.artifacts.thresholds import read_thresholds
from chestxray_vit.labels import NIH_CHESTXRAY14

ARCHIVE = Path(__file__).with_name("outputs_of_0_5_0.tar.xz")


@pytest.fixture
def outputs(tmp_path):
    """Return a folder with `dataset` and `run` as 0.5.0 left them, with the times of images that the cache knows."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    images = tmp_path / "dataset" / "images"
    (rows,) = images.glob("pixel_cache/*/rows.json")
    for name, _, mtime in json.loads(rows.read_text()):
        os.utime(images / name, ns=(mtime, mtime))
    return tmp_path


def scores(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["file_name"] for row in rows], [
        [float(value) for name, value in row.items() if name.startswith(("score_", "target_"))] for row in rows
    ]


def without_prose(content):
    """Return a section of auc.json without the entries that are sentences: their English has changed."""
    if isinstance(content, dict):
        prose = ("notes", "method", "interval", "rules", "call_positive_if")
        return {key: without_prose(value) for key, value in content.items() if key not in prose}
    return [without_prose(value) for value in content] if isinstance(content, list) else content


def assert_same(found, expected, where):
    """Numbers agree but for the last digits, which other versions of NumPy and SciPy round otherwise."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6), where
    else:
        assert found == expected, where


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_the_data_set_is_opened_with_patients_as_text(outputs):
    pytest.importorskip("datasets")
    from chestxray_vit.data.dataset import open_dataset

    dataset = open_dataset(outputs / "dataset")
    lines = [json.loads(line) for line in find_metadata(outputs / "dataset").read_text().splitlines()]
    assert isinstance(lines[0]["patient_id"], int)
    assert dataset.label_set == NIH_CHESTXRAY14
    assert dataset.is_synthetic
    test = [line for line in lines if line["split"] == "test"]
    assert dataset.split("test")["patient_id"][:] == [str(line["patient_id"]) for line in test]
    assert dataset.split("test")["labels"][:] == [line["labels"] for line in test]


def test_the_run_is_evaluated_from_its_cache(outputs):
    pytest.importorskip("transformers")
    from chestxray_vit import evaluate

    cache, run = outputs / "dataset" / "images" / "pixel_cache", outputs / "run"
    before, (names, expected) = snapshot(cache), scores(run / "test" / "predictions.csv")
    old = json.loads((run / "test" / "auc.json").read_text())
    command = [str(run), "--dataset_dir", str(outputs / "dataset"), "--device", "cpu"]
    assert evaluate.main([*command, "--output_dir", str(outputs / "again")]) == 0
    after = {path: content for path, content in snapshot(cache).items() if path.name != ".lock"}
    assert after == {path: content for path, content in before.items() if path.name != ".lock"}
    found_names, found = scores(outputs / "again" / "predictions.csv")
    assert found_names == names
    assert [value for row in found for value in row] == pytest.approx(
        [value for row in expected for value in row], abs=1e-5
    )
    new = json.loads((outputs / "again" / "auc.json").read_text())
    assert new["macro"]["num_findings"] == old["macro"]["num_findings"]
    assert new["provenance"]["synthetic"] is True


def test_predictions_make_the_numbers_of_the_old_report(outputs):
    old = json.loads((outputs / "run" / "test" / "auc.json").read_text())
    assert report.main([str(outputs / "run" / "test" / "predictions.csv"), "--output_dir", str(outputs / "again")]) == 0
    new = json.loads((outputs / "again" / "auc.json").read_text())
    for section in ("num_images", "num_patients", "macro", "findings", "operating_points", "calibration", "subgroups"):
        assert_same(without_prose(new[section]), without_prose(old[section]), section)
    assert_same(new["curves"], old["curves"], "curves")
    assert new["mistakes"] == old["mistakes"]
    assert new["validation"] == old["validation"]
    assert new["provenance"]["synthetic"] is True  # `drawn` in 0.5.0
    training = new["provenance"]["training"]  # `images an update` and `learning rate` in 0.5.0
    assert (training["global_batch_size"], training["learning_rate"]) == (8, 0.01)
    assert new["published"] == old["published"]  # none beside synthetic images


def test_predictions_and_thresholds_are_read(outputs):
    predictions = read_predictions(outputs / "run" / "test" / "predictions.csv")
    assert predictions.label_set == NIH_CHESTXRAY14
    assert len(predictions.file_names) == 26
    thresholds = read_thresholds(outputs / "run" / "thresholds.json")
    assert tuple(thresholds.table) == NIH_CHESTXRAY14.names
    assert thresholds.chosen_on.num_images == 39


def test_the_run_predicts(outputs, capsys):
    pytest.importorskip("transformers")
    from chestxray_vit import predict

    names, expected = scores(outputs / "run" / "test" / "predictions.csv")
    image = outputs / "dataset" / "images" / names[0]
    assert predict.main([str(outputs / "run"), str(image), "--device", "cpu", "--output", str(outputs / "s.csv")]) == 0
    _, ((*found,),) = scores(outputs / "s.csv")
    assert found == pytest.approx(expected[0][-len(NIH_CHESTXRAY14) :], abs=1e-5)


def test_its_checkpoint_is_resumed(outputs, monkeypatch):
    """In the folder where it was trained, with the command of then and one more epoch."""
    pytest.importorskip("transformers")
    from chestxray_vit import train

    monkeypatch.chdir(outputs)
    flags = json.loads((outputs / "run" / "train_config.json").read_text())["flags"]
    sizes = [name for name in flags if name.endswith(("_size", "_layers", "_heads")) and flags[name] is not None]
    command = ["--dataset_dir", "dataset", "--output_dir", "run", "--device", "cpu", "--from_scratch"]
    command += [word for name in sizes for word in (f"--{name}", str(flags[name]))]
    command += ["--ipu_config_name", "vit-tiny-2ipu", "--learning_rate", "1e-2", "--num_train_epochs", "3"]
    assert train.main([*command, "--resume_from_checkpoint", "last"]) == 0
    state = json.loads((outputs / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 18
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry][:3] == [6, 12, 18]
    config = json.loads((outputs / "run" / "train_config.json").read_text())
    assert config["data"]["synthetic"] is True
    assert config["global_batch"]["global_batch_size"] == 8
