"""The command lines of these tests, and what is looked at afterwards."""

from __future__ import annotations

from tests.helpers.fork_server import contents
from tests.helpers.training import TINY

SAVING = "--save_strategy steps --save_steps 1 --eval_strategy steps --eval_steps 1 --logging_steps 1".split()


def ingesting(folder, fraction, *more):
    return ["ingest", folder, "--val_fraction", fraction, *more]


def training(dataset, run, seed):
    return ["--dataset_dir", dataset, "--output_dir", run, *TINY, *SAVING, "--seed", seed, "--num_train_epochs", "1"]


def evaluating(run, dataset, output_dir):
    return ["evaluate", run, "--dataset_dir", dataset, "--output_dir", output_dir, "--device", "cpu"]


def whole_checkpoints(run):
    from chestxray_vit.training.run_folder import _flaw

    return [folder for folder in run.glob("checkpoint-*") if _flaw(folder) is None]


def shown(folder):
    """Return what is in a folder, if it is there, without what is hidden."""
    found = contents(folder) if folder.exists() else {}
    return {name: content for name, content in found.items() if not name.startswith(".")}
