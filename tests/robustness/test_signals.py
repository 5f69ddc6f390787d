"""A training that is told to end stops after its update with a checkpoint, and goes on from it as if nothing had been.

The signals come from within, at the chosen update; those from outside are sent to processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


from chestxray_vit import train
from chestxray_vit.entry_point import LOADERS_GRACE, handle_signals
from chestxray_vit.training import run_folder
from chestxray_vit.training.engines.hf_trainer import RestoringTrainer
from tests.helpers.training import TINY, TINY_VIT, history, trained

THOROUGH = pytest.mark.slow
TOLD = "stopping: finishing this update and saving a checkpoint; a second Ctrl-C leaves at once"
EPOCHS = "--logging_steps 1 --per_device_train_batch_size 8".split()  # 4 passes an update
STEPS = "--save_strategy steps --save_steps 3 --eval_strategy steps --eval_steps 3 --logging_steps 1".split()


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset, tmp_path_factory):
    """Return the runs that nothing stopped, by their flags."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {"epochs": EPOCHS, "steps": STEPS}
    return {name: trained(synthetic_dataset, folder / name, *flags) for name, flags in runs.items()}


def stop_at(monkeypatch, update, number, micro_batches, evaluating=False):
    """Send this process a signal in the midst of an update, or in the evaluation that follows it."""
    calls = [0]
    compute_loss, evaluate = RestoringTrainer.compute_loss, RestoringTrainer.evaluate

    def disturbed_loss(self, model, *args, **kwargs):
        calls[0] += model.training
        if not evaluating and model.training and calls[0] == (update - 1) * micro_batches + 1:
            signal.raise_signal(number)
        return compute_loss(self, model, *args, **kwargs)

    def disturbed_evaluation(self, *args, **kwargs):
        if evaluating and calls[0] == update * micro_batches:
            signal.raise_signal(number)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(RestoringTrainer, "compute_loss", disturbed_loss)
    monkeypatch.setattr(RestoringTrainer, "evaluate", disturbed_evaluation)


def command(dataset, output_dir, *more, tiny=TINY):
    return ["--dataset_dir", str(dataset), "--output_dir", str(output_dir), *tiny, *more]


def same_run(run, other):
    """Tell whether two runs agree in every bit of the weights, and in all that they logged."""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, other)]
    best = [json.loads((folder / "trainer_state.json").read_text())["best_metric"] for folder in (run, other)]
    return weights[0] == weights[1] and history(run) == history(other) and best[0] == best[1]


def num_updates(run):
    return json.loads((run / "train_config.json").read_text())["updates"]


@pytest.mark.parametrize(
    "kind, moment, number",
    [
        ("epochs", "within an epoch", signal.SIGINT),
        ("epochs", "an epoch's last", signal.SIGTERM),
        ("epochs", "the last of all", signal.SIGINT),
        ("epochs", "the last evaluation", signal.SIGTERM),
        ("steps", "within an epoch", signal.SIGTERM),
        ("steps", "with an evaluation", signal.SIGINT),
    ],
)
def test_stopped_and_resumed_equals_undisturbed(
    kind, moment, number, undisturbed, synthetic_dataset, tmp_path, monkeypatch, capsys, caplog
):
    last = num_updates(undisturbed[kind])
    updates = {"within an epoch": 2, "an epoch's last": last // 2, "with an evaluation": 3}
    update, flags = updates.get(moment, last), EPOCHS if kind == "epochs" else STEPS
    before = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        micro_batches = 4 if kind == "epochs" else 1
        stop_at(patch, update, number, micro_batches, evaluating=moment == "the last evaluation")
        assert train.main(command(synthetic_dataset, tmp_path / "run", *flags)) == 128 + number
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1] == f"stopped after update {update}; go on with --resume_from_checkpoint last"
    assert [record.getMessage() for record in caplog.records].count(TOLD) == 1
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[-1] == f"checkpoint-{update}"
    assert all(path.name.startswith("checkpoint-") for path in (tmp_path / "run").iterdir())  # no run, no lock
    assert trained(synthetic_dataset, tmp_path / "run", *flags, "--resume_from_checkpoint", "last")
    assert same_run(tmp_path / "run", undisturbed[kind])


def test_the_checkpoint_of_a_stop_stays_where_one_only_is_kept(synthetic_dataset, tmp_path, monkeypatch):
    limit = ["--save_total_limit", "1", "--logging_steps", "100"]
    stop_at(monkeypatch, 5, signal.SIGTERM, 1)  # after the best of the first evaluation
    assert train.main(command(synthetic_dataset, tmp_path / "run", *STEPS, *limit)) == 143
    checkpoint = tmp_path / "run" / "checkpoint-5"
    assert run_folder.last_checkpoint(str(tmp_path / "run")) == str(checkpoint)
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [3, 5]  # the mean of 4 and 5 is not lost


def test_a_stop_saves_though_nothing_else_does(synthetic_dataset, tmp_path, monkeypatch):
    flags = "--save_strategy no --eval_strategy no --logging_steps 1".split()
    whole = trained(synthetic_dataset, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGTERM, 1)
        assert train.main(command(synthetic_dataset, tmp_path / "run", *flags)) == 143
    trained(synthetic_dataset, tmp_path / "run", *flags, "--resume_from_checkpoint", "last")
    assert same_run(tmp_path / "run", whole)


def spawn(*words, **options):
    words = [sys.executable, *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def await_(found, seconds=120):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "workers, number",
    [
        (2, signal.SIGINT),
        pytest.param(0, signal.SIGINT, marks=THOROUGH),
        pytest.param(2, signal.SIGTERM, marks=THOROUGH),
    ],
)
def test_a_signal_reaches_a_process_and_its_loaders(workers, number, undisturbed, synthetic_dataset, tmp_path):
    run = tmp_path / "run"
    more = [*STEPS, "--dataloader_num_workers", workers]
    process = spawn("-m", "chestxray_vit.train", *command(synthetic_dataset, run, *more), start_new_session=True)
    await_(lambda: (run / "checkpoint-3" / "trainer_state.json").is_file())
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: to all processes of the command
    _, told = process.communicate(timeout=20)  # sooner than loaders die of themselves
    assert process.returncode == 128 + number, told
    assert told.count(TOLD) == 1
    assert re.search(r"stopped after update \d+; go on with --resume_from_checkpoint last\n$", told)
    assert "Traceback" not in told
    resumed = [str(word) for word in (*more, "--resume_from_checkpoint", "last")]
    assert same_run(trained(synthetic_dataset, run, *resumed), undisturbed["steps"])


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_forked_process_leaves_signals_to_its_parent(number, code):
    """A loader gets what a terminal sends to all. After SIGTERM an alarm ends it, should its parent not."""
    told = []
    with handle_signals(told.append):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(9 if told else int(0 < signal.alarm(0) <= LOADERS_GRACE))
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == code
    assert told == []


def test_the_second_signal_leaves_at_once(synthetic_dataset, tmp_path):
    """The update in which the first arrives never ends."""
    script = (
        "import sys, time; from chestxray_vit import train\n"
        "from chestxray_vit.training.engines.hf_trainer import RestoringTrainer\n"
        "def slow(*_, **__):\n"
        "    print('in an update', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "RestoringTrainer.compute_loss = slow; sys.exit(train.main(sys.argv[1:]))"
    )
    process = spawn("-c", script, *command(synthetic_dataset, tmp_path / "run"))
    assert process.stdout.readline() == "in an update\n"
    process.send_signal(signal.SIGINT)
    while TOLD not in process.stderr.readline():
        assert process.poll() is None
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in told
    assert train.main(command(synthetic_dataset, tmp_path / "run", *EPOCHS)) == 0  # its claim is no more


def torchrun(dataset, run, *more, tiny=TINY):
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m chestxray_vit.train".split()
    return spawn(*words, *command(dataset, run, *more, tiny=tiny), env={**os.environ, "OMP_NUM_THREADS": "1"})


CUT = '{"layers_per_ipu": [1, 1], "ipus_per_replica": 2, "replication_factor": 1, "gradient_accumulation_steps": 16}'


@pytest.mark.parametrize(
    "pipeline, thorough",
    [(False, False), pytest.param(False, True, marks=THOROUGH), pytest.param(True, True, marks=THOROUGH)],
)
def test_all_processes_stop_at_the_same_update(pipeline, thorough, synthetic_dataset, tmp_path):
    """One of two is told, and not the one that writes."""
    more, tiny = [*STEPS, "--num_train_epochs", "6"], TINY
    if pipeline:
        if int(transformers.__version__.split(".")[0]) < 5:
            pytest.skip("--pipeline needs transformers 5")
        (tmp_path / "cut").mkdir()
        (tmp_path / "cut" / "ipu_config.json").write_text(CUT)
        tiny = [*TINY_VIT, "--device", "cpu", "--ipu_config_name", str(tmp_path / "cut"), "--pipeline", "true"]
        tiny += ["--per_device_train_batch_size", "2"]
    run = tmp_path / "run"
    process = torchrun(synthetic_dataset, run, *more, tiny=tiny)
    await_(lambda: (run / "checkpoint-3" / "trainer_state.json").is_file())
    workers = {environment(child)["RANK"]: child for child in children(process.pid)}
    os.kill(workers["1"], signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    (update,) = re.findall(r"stopped after update (\d+); go on", told)  # one process speaks
    assert told.count(TOLD) <= 1
    assert f"exitcode  : {128 + signal.SIGTERM}" in told
    assert run_folder.last_checkpoint(str(run)) == str(run / f"checkpoint-{update}")
    if thorough:
        finish(torchrun(synthetic_dataset, run, *more, "--resume_from_checkpoint", "last", tiny=tiny))
        finish(torchrun(synthetic_dataset, tmp_path / "whole", *more, tiny=tiny))
        assert same_run(run, tmp_path / "whole")


def finish(process):
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told[-2000:]


def children(process):
    with open(f"/proc/{process}/task/{process}/children") as file:
        return [int(child) for child in file.read().split()]


def environment(process):
    with open(f"/proc/{process}/environ") as file:
        return dict(entry.split("=", 1) for entry in file.read().split("\0") if "=" in entry)
