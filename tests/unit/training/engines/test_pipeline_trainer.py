"""A pipeline of processes, against the plain engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("pipelines on CUDA and CPU need transformers 5", allow_module_level=True)

from safetensors.torch import load_file

from chestxray_vit import evaluate, train
from chestxray_vit.artifacts.predictions import read_predictions
from tests.helpers.training import TINY_VIT, history, losses, trained

# 16 images per update: 8 updates an epoch
CUT = ["--ipu_config_name", "vit-tiny-2ipu", "--per_device_train_batch_size", "2", "--device", "cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(dataset, output_dir, *more):
    where = ["--dataset_dir", str(dataset), "--output_dir", str(output_dir)]
    return ["--pipeline", *where, *TINY_VIT, *CUT, *more]


def command(dataset, output_dir, *more, processes=2):
    """Return the command that trains through a pipeline."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launch, "-m", "chestxray_vit.train", *arguments(dataset, output_dir, *more)]


@pytest.fixture(scope="module")
def piped(commands):
    """Return a function that trains through a pipeline, and returns the run folder and what was printed."""

    def train_through_pipeline(dataset, output_dir, *more, processes=2):
        answer = commands.run("train", *arguments(dataset, output_dir, *more), processes=processes)
        assert answer.code == 0, answer.printed[-3000:]
        return Path(output_dir), answer.printed

    return train_through_pipeline


def scores(run, dataset, output_dir):
    """Return the scores of the test images."""
    where = ["--dataset_dir", str(dataset), "--output_dir", str(output_dir), "--device", "cpu"]
    assert evaluate.main([str(run), *where]) == 0
    return read_predictions(Path(output_dir) / "predictions.csv").scores_NL


LONG = ["--num_train_epochs", "7", "--logging_steps", "1", "--learning_rate", "3e-3", "--save_strategy", "no"]
LONG += ["--load_best_model_at_end", "false", "--pos_weight", "auto"]


@pytest.fixture(scope="module")
def plain(synthetic_dataset, tmp_path_factory):
    """Return the plain engine's run of 56 updates."""
    return trained(synthetic_dataset, tmp_path_factory.mktemp("plain") / "run", *LONG, tiny=[*TINY_VIT, *CUT])


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (2, []),
        pytest.param(2, ["--pipeline_schedule", "gpipe"], marks=pytest.mark.slow),
        # two replicas of two stages
        pytest.param(4, ["--gradient_accumulation_steps", "4"], marks=pytest.mark.slow),
    ],
    ids=["1f1b", "gpipe", "replicas"],
)
def test_fifty_updates_equal_the_plain_run(piped, plain, synthetic_dataset, tmp_path, processes, more):
    run, printed = piped(synthetic_dataset, tmp_path / "run", *LONG, *more, processes=processes)
    assert len(losses(run)) == len(losses(plain)) == 56
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)
    for name in ("learning_rate", "grad_norm", "eval_loss"):  # clipping is of the norm over all stages
        found, expected = ([entry[name] for entry in history(where) if name in entry] for where in (run, plain))
        assert found == pytest.approx(expected, abs=1e-5)
    found, expected = (
        [entry["eval_roc_auc"] for entry in history(where) if "eval_roc_auc" in entry] for where in (run, plain)
    )
    assert len(found) == 8
    assert found == pytest.approx(expected, abs=1e-4)
    assert printed.count("validation AUC") == printed.count("wrote ") == 1  # one process speaks
    assert np.abs(
        scores(run, synthetic_dataset, tmp_path / "a") - scores(plain, synthetic_dataset, tmp_path / "b")
    ).max() < (1e-4)
    facts = json.loads((run / "train_config.json").read_text())
    assert facts["processes"] == processes
    assert facts["global_batch"]["global_batch_size"] == 16


SAVING = "--num_train_epochs 3 --logging_steps 1 --save_strategy steps --save_steps 5 --eval_strategy steps".split()
SAVING += ["--eval_steps", "5", "--save_total_limit", "9"]


@pytest.fixture(scope="module")
def undisturbed(piped, synthetic_dataset, tmp_path_factory):
    """Return a pipeline's run of 24 updates with checkpoints every 5."""
    return piped(synthetic_dataset, tmp_path_factory.mktemp("pipeline") / "run", *SAVING)[0]


def test_checkpoint_is_an_ordinary_one(undisturbed):
    names = {path.name for path in (undisturbed / "checkpoint-10").iterdir()}
    assert names >= {"config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert json.loads((undisturbed / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    weights = load_file(undisturbed / "checkpoint-10" / "model.safetensors")
    state = torch.load(undisturbed / "checkpoint-10" / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(weights)
    best = Path(json.loads((undisturbed / "trainer_state.json").read_text())["best_model_checkpoint"])
    saved, final = load_file(best / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    assert all(torch.equal(saved[name], final[name]) for name in saved)


def as_if_killed(run, target, after):
    """Copy a run as it stood after an update."""
    target.mkdir()
    for folder in run.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) <= after:
            copy = shutil.copytree(folder, target / folder.name)
            state = (copy / "trainer_state.json").read_text()
            (copy / "trainer_state.json").write_text(state.replace(str(run), str(target)))


@pytest.mark.parametrize("engine", ["pipeline", pytest.param("replicas", marks=pytest.mark.slow), "plain"])
def test_any_engine_goes_on_with_a_pipelines_checkpoint(piped, undisturbed, synthetic_dataset, tmp_path, engine):
    as_if_killed(undisturbed, tmp_path / "run", 10)  # in the midst of the second epoch
    more = [*SAVING, "--resume_from_checkpoint", "last"]
    if engine == "plain":
        run = trained(synthetic_dataset, tmp_path / "run", *more, tiny=[*TINY_VIT, *CUT])
    elif engine == "pipeline":
        run, _ = piped(synthetic_dataset, tmp_path / "run", *more)
    else:
        run, _ = piped(synthetic_dataset, tmp_path / "run", *more, "--gradient_accumulation_steps", "4", processes=4)
    assert losses(run) == pytest.approx(losses(undisturbed), abs=1e-6)
    if engine == "pipeline":
        assert history(run) == history(undisturbed)
        assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def wait_for(condition, seconds):
    """Wait until something is so, and return whether it is."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def children_of(process):
    """Return the process numbers of the stages, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (path / "environ").read_bytes()
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        rank = re.search(rb"\0RANK=(\d+)", environment)
        if parent == process.pid and rank:
            found[int(rank.group(1))] = int(path.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killing_one_stage_ends_the_others_and_the_run_goes_on(piped, undisturbed, synthetic_dataset, tmp_path, rank):
    run = tmp_path / "run"
    long = [*SAVING, "--num_train_epochs", "300"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command(synthetic_dataset, run, *long), env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
        assert wait_for(lambda: (run / "checkpoint-10" / "trainer_state.json").is_file(), 120), log.read_text()
        stages = children_of(process)
        assert sorted(stages) == [0, 1]
        os.kill(stages[rank], signal.SIGKILL)
        assert wait_for(lambda: process.poll() is not None, 60)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{number}").exists() for number in stages.values())
    assert "another process of this run has ended" in log.read_text() or "Signal 9 (SIGKILL)" in log.read_text()
    assert "chestxray_vit/train.py" not in log.read_text()  # no traceback of ours
    whole = [path.parent.name for path in run.glob("checkpoint-*/trainer_state.json")]
    last = max(int(name.split("-")[1]) for name in whole)
    more = ["--max_steps", str(last + 5), "--resume_from_checkpoint", "last"]
    _, printed = piped(synthetic_dataset, run, *SAVING, *more)
    assert json.loads((run / "train_config.json").read_text())["updates"] == last + 5
    assert "validation AUC" in printed


REFUSED = {
    "2 stages need a process each, or a multiple; found 3": (3, []),
    "133 training images are fewer than one global batch of 256": (2, ["--gradient_accumulation_steps", "128"]),
    "1 micro-batches do not fill 2 stages by 1F1B": (2, ["--gradient_accumulation_steps", "1"]),
    "--bf16: a pipeline computes in float32": (2, ["--bf16", "true"]),
    "--torch_compile: the stages of a pipeline are not compiled": (2, ["--torch_compile", "true"]),
    "layers_per_ipu [3, 3] places 6 layers, the model has 2": (
        2,
        ["--ipu_config_overrides", "layers_per_ipu=[3 3]"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", REFUSED)
def test_refusals_end_all_processes(text, synthetic_dataset, tmp_path):
    processes, more = REFUSED[text]
    done = subprocess.run(
        command(synthetic_dataset, tmp_path / "run", *more, processes=processes),
        env=ENVIRONMENT,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert text in done.stderr
    assert "chestxray_vit/train.py" not in done.stderr  # no traceback of ours; torchrun has its own
    assert not (tmp_path / "run").exists()


def test_pipeline_without_torchrun_says_how_to_start_it(synthetic_dataset, tmp_path, capsys):
    where = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "run")]
    assert train.main([*where, *TINY_VIT, "--device", "cpu", "--pipeline"]) == 2
    assert "--pipeline goes with --ipu_config_name" in capsys.readouterr().err
    assert train.main([*where, *TINY_VIT, *CUT, "--pipeline"]) == 2
    assert "found 1. Start them: torchrun --nproc-per-node 2 -m chestxray_vit.train" in capsys.readouterr().err


LONE = """
import os
from chestxray_vit.pipeline.ipu_config import read_ipu_config
from chestxray_vit.pipeline.stages import init_stage_rank
from chestxray_vit.training.engines.pipeline_trainer import StageArguments
from transformers import Trainer
import torch

before, rank = dict(os.environ), int(os.environ["RANK"])
rank_of_stage = init_stage_rank(read_ipu_config("vit-tiny-2ipu"), "cpu", int(os.environ["LOCAL_RANK"]))
args = StageArguments(output_dir=os.environ["OUT"], use_cpu=True, report_to="none", per_device_train_batch_size=3)
trainer = Trainer(torch.nn.Linear(1, 1), args)
assert dict(os.environ) == before
assert (rank_of_stage.stage, args.process_index, args.world_size, args.n_gpu) == (rank, rank, 1, 0)
assert (trainer.accelerator.num_processes, str(trainer.accelerator.distributed_type)) == (1, "DistributedType.NO")
assert type(trainer.accelerator.prepare(trainer.model)) is torch.nn.Linear
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_each_stage_trains_alone_and_torchruns_variables_stay(tmp_path):
    (tmp_path / "lone.py").write_text(LONE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**ENVIRONMENT, "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        [*launch, str(tmp_path / "lone.py")], env=environment, timeout=180, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
