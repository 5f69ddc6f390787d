"""What is handed on tells nothing of the machine that made it: no path, no user; and nothing tells a secret."""

from __future__ import annotations

import getpass
import platform

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit import evaluate, explain, ingest, predict, report, train
from chestxray_vit.data.synthetic.release import draw_release
from tests.helpers.training import STEPS, TINY

SECRETS = {"HF_TOKEN": "hf_telltale", "WANDB_API_KEY": "wandb_telltale", "AWS_SECRET_ACCESS_KEY": "aws_telltale"}

# of a run, which hold the arguments as they were given; and the scores of images by the paths that were named
AS_GIVEN = {"train_config.json", "trainer_state.json", "training_args.bin", "scores.csv"}
HANDED_ON = {"metadata.jsonl", "ingest_report.json", "predictions.csv", "evaluation.json", "auc.json", "auc.html"}
HANDED_ON |= {"auc.md", "auc.csv", "README.md", "config.json", "model.safetensors", "loss.png", "thresholds.json"}


def test_no_output_tells_of_the_machine(tmp_path, monkeypatch, capfd):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home_of_ann"
    release, run, scores = (str(home / name) for name in ("release", "run", "scores"))
    draw_release(release, num_patients=40, image_size=64, seed=7)
    image = str(sorted((home / "release" / "images").iterdir())[0])
    cpu = ["--device", "cpu"]
    assert ingest.main([release, "--val_fraction", "0.3"]) == 0
    training = ["--dataset_dir", release, "--output_dir", run, *TINY, *STEPS, "--num_train_epochs", "1"]
    assert train.main([str(word) for word in training]) == 0
    assert evaluate.main([run, "--dataset_dir", release, *cpu]) == 0
    assert evaluate.main([run, "--dataset_dir", release, "--output_dir", scores, *cpu, "--thumbnails", "true"]) == 0
    assert report.main([f"{scores}/predictions.csv", "--compare", f"{run}/test/predictions.csv"]) == 0
    assert explain.main([run, image, *cpu]) == 0
    assert predict.main([run, image, "--output", f"{scores}/scores.csv", *cpu]) == 0

    told = capfd.readouterr()
    assert "telltale" not in told.out + told.err
    telling = ["home_of_ann", getpass.getuser() + "/", platform.node()]
    names = set()
    for path in (path for path in home.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"telltale" not in content, path
        if path.name not in AS_GIVEN:
            names.add(path.name)
            assert [word for word in telling if len(word) > 5 and word.encode() in content] == [], path
    assert names >= HANDED_ON
