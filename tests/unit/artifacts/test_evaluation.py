from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from chestxray_vit import ingest
from chestxray_vit.artifacts import evaluation
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.storage.atomic import sha256


@pytest.fixture
def known(mini_release, tmp_path):
    """The provenance of predictions of an ingested release, by a run of ours."""
    assert ingest.main([str(mini_release)]) == 0
    path = tmp_path / "predictions.csv"
    path.write_text("predictions")
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(b"weights")
    metadata = mini_release / "images" / "metadata.jsonl"
    config = {
        "flags": {"from_scratch": False, "model_name_or_path": "/home/ann/models/vit"},
        "training_arguments": {"num_train_epochs": 3, "learning_rate": 2e-4, "seed": 7},
        "global_batch": {"total": 128},
        "data": {"metadata.jsonl": "ab", "images": {"train": 5}},
    }
    (run / "train_config.json").write_text(json.dumps(config))
    command = ["python", "-m", "x", str(run), "--dataset_dir", str(mini_release), f"--output_dir={tmp_path}/a b"]
    data = evaluation.IngestedData(metadata, sha256(metadata), NIH_CHESTXRAY14, is_synthetic=False)
    content = evaluation.provenance(path, "test", command, {"torch": "2"}, run, data)
    return path, content, metadata


def test_provenance_tells_data_weights_and_training(known):
    path, content, metadata = known
    report = json.loads(metadata.with_name("ingest_report.json").read_text())
    assert content["schema_version"] == "1.0"
    assert LabelSet.from_dict(content["label_set"]) == NIH_CHESTXRAY14
    assert content["data"]["splits"] == report["splits"]
    assert content["data"]["split"]["leaked_patients"] == 0
    assert content["data"]["metadata_sha256"] == sha256(metadata)
    assert content["data"]["trained_on_sha256"] == "ab"
    assert content["training"]["global_batch_size"] == 128
    assert content["training"]["start"] == "vit"
    assert content["checkpoint"]["sha256"] == sha256(path.parent / "run" / "model.safetensors")


def test_provenance_holds_no_absolute_path(known, tmp_path):
    _, content, metadata = known
    text = json.dumps(content)
    assert str(tmp_path) not in text and "/home/ann" not in text
    assert content["command"] == f"python -m x run --dataset_dir {metadata.parents[1].name} '--output_dir=a b'"


def test_provenance_is_read_back_where_it_belongs(known, caplog):
    path, content, _ = known
    assert evaluation.read_provenance(path) is None
    evaluation.write_provenance(path.with_name(evaluation.FILE), content)
    assert evaluation.read_provenance(path) == json.loads(json.dumps(content))
    path.write_text("other predictions")
    with caplog.at_level(logging.WARNING):
        assert evaluation.read_provenance(path) is None
    assert "evaluation.json is not of predictions.csv" in caplog.text


def test_keys_of_0_5_0_are_read_by_current_names(known):
    path, content, _ = known
    old = {("drawn" if name == "synthetic" else name): value for name, value in content.items()}
    del old["schema_version"], old["label_set"]
    old["training"] = {"images an update": 128, "learning rate": 2e-4, "epochs": 3}
    path.with_name(evaluation.FILE).write_text(json.dumps(old))
    found = evaluation.read_provenance(path)
    assert found is not None and found["synthetic"] is False and "drawn" not in found
    assert found["training"] == {"global_batch_size": 128, "learning_rate": 2e-4, "epochs": 3}


@pytest.mark.parametrize(
    "change",
    [
        {"synthetic": "yes"},
        {"data": []},
        {"versions": None},
        {"data": {"splits": {"train": 1}}},
        {"data": {"splits": {}, "split": {"method": "x", "leaked_patients": True}}},
    ],
)
def test_what_is_no_provenance_is_left_out(known, change):
    path, content, _ = known
    path.with_name(evaluation.FILE).write_text(json.dumps({**content, **change}))
    assert evaluation.read_provenance(path) is None


def test_another_major_version_is_refused_and_a_minor_one_read(known):
    path, content, _ = known
    path.with_name(evaluation.FILE).write_text(json.dumps({**content, "schema_version": "2.0"}))
    with pytest.raises(InputError, match="evaluation.json: schema_version is '2.0', expected 1.0 or another of its"):
        evaluation.read_provenance(path)
    path.with_name(evaluation.FILE).write_text(json.dumps({**content, "schema_version": "1.7", "more": 1}))
    assert evaluation.read_provenance(path)["more"] == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00"])
def test_what_is_no_json_is_left_out(tmp_path, text):
    path = tmp_path / "predictions.csv"
    path.write_text("x")
    Path(tmp_path, evaluation.FILE).write_text(text)
    assert evaluation.read_provenance(path) is None
