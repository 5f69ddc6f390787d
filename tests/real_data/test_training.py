"""A short fine-tuning of the real DeiT-Tiny checkpoint on NIH's real images, where they are at hand."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit import ingest, train


@pytest.fixture(scope="module")
def real_dataset(real_release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "images").mkdir()
    for image in (real_release / "images").glob("*.png"):
        (folder / "images" / image.name).symlink_to(image)
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt"):
        shutil.copy(real_release / name, folder)
    assert ingest.main([str(folder), "--allow_missing"]) == 0
    return folder


def fine_tune(real_dataset, deit_tiny, output_dir, *more):
    command = ["--dataset_dir", str(real_dataset), "--output_dir", str(output_dir), "--device", "cpu"]
    command += ["--model_name_or_path", str(deit_tiny), "--global_batch_size", "8", "--max_steps", "6"]
    command += ["--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "3", "--logging_steps", "1"]
    assert train.main([*command, *more]) == 0
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss_and_resumes_exactly(real_dataset, deit_tiny, tmp_path):
    losses = fine_tune(real_dataset, deit_tiny, tmp_path / "whole")
    assert len(losses) == 6
    assert losses[0] == pytest.approx(0.7, abs=0.15)  # a new head scores about one half: ln 2 = 0.69
    assert losses[-1] < losses[0] - 0.1
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    again = fine_tune(real_dataset, deit_tiny, tmp_path / "resumed", "--resume_from_checkpoint", "last")
    assert again == losses
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]
