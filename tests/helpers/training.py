"""What the tests of training share: a ViT that trains in a second, and how to read a run's log."""

from __future__ import annotations

import json
from pathlib import Path

from chestxray_vit import train

TINY_VIT = (
    "--from_scratch --image_size 64 --patch_size 16 --hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 "
    "--intermediate_size 48 --num_train_epochs 2 --learning_rate 1e-2"
).split()
TINY = [*TINY_VIT, "--global_batch_size", "32", "--device", "cpu"]
STEPS = "--save_strategy steps --save_steps 3 --eval_strategy steps --eval_steps 3 --logging_steps 2".split()
TIMES = ("runtime", "per_second", "flos", "train_loss")


def trained(dataset, output_dir, *more, tiny=TINY):
    """Train a tiny ViT in this process and return its run folder."""
    command = ["--dataset_dir", str(dataset), "--output_dir", str(output_dir), *tiny, *more]
    assert train.main(command) == 0
    return Path(output_dir)


def history(run):
    """Return a run's log without what depends on the clock."""
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if not any(part in key for part in TIMES)} for entry in log]


def losses(run):
    """Return the training losses that a run logged."""
    return [entry["loss"] for entry in history(run) if "loss" in entry]
