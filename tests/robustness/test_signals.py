"""A training that is told to end stops after its update with a checkpoint, and goes on from it as if nothing had been.

The signals come from within, at the chosen update; those from outside are sent to processes of their own."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chestxray_vit import train
from chestxray_vit.entry_point import LOADERS_GRACE, Stopped, cli_main, handle_signals
from chestxray_vit.errors import InputError
from chestxray_vit.storage.lock import folder_lock
from chestxray_vit.training import interruption as stopping
from chestxray_vit.training import run_folder
from chestxray_vit.training.engines.base import RestoringTrainer
from tests.helpers.training import TINY, TINY_VIT, history, trained

TOLD = "stopping: finishing this update and saving a checkpoint; a second Ctrl-C leaves at once"
EPOCHS = "--logging_steps 1 --per_device_train_batch_size 8".split()  # 4 passes an update
STEPS = "--save_strategy steps --save_steps 3 --eval_strategy steps --eval_steps 3 --logging_steps 1".split()


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset, tmp_path_factory):
    """Return the runs that nothing stopped, by their flags."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {"epochs": EPOCHS, "steps": STEPS}
    return {name: trained(synthetic_dataset, folder / name, *flags) for name, flags in runs.items()}


def stop_at(monkeypatch, update, number, passes, evaluating=False):
    """Send this process a signal in the midst of an update, or in the evaluation that follows it."""
    calls = [0]
    compute_loss, evaluate = RestoringTrainer.compute_loss, RestoringTrainer.evaluate

    def disturbed_loss(self, model, *args, **kwargs):
        calls[0] += model.training
        if not evaluating and model.training and calls[0] == (update - 1) * passes + 1:
            signal.raise_signal(number)
        return compute_loss(self, model, *args, **kwargs)

    def disturbed_evaluation(self, *args, **kwargs):
        if evaluating and calls[0] == update * passes:
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
    "kind, place, number",
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
    kind, place, number, undisturbed, synthetic_dataset, tmp_path, monkeypatch, capsys, caplog
):
    total = num_updates(undisturbed[kind])
    updates = {"within an epoch": 2, "an epoch's last": total // 2, "with an evaluation": 3}
    update, flags = updates.get(place, total), EPOCHS if kind == "epochs" else STEPS
    before = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        passes = 4 if kind == "epochs" else 1
        stop_at(patch, update, number, passes, evaluating=place == "the last evaluation")
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


@pytest.mark.parametrize("workers, number", [(0, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)])
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
        "from chestxray_vit.training.engines.base import RestoringTrainer\n"
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


THOROUGH = pytest.mark.slow


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


# cli_main and handle_signals


def test_sigterm_unwinds_and_ends_with_143(tmp_path, capsys):
    @cli_main
    def main(argv=None):
        with folder_lock(tmp_path / "folder_lock", ()):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert main([]) == 143
    assert capsys.readouterr().err == "stopped: the process was told to end (SIGTERM)\n"
    assert not (tmp_path / "folder_lock").exists()  # unwound
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_ends_with_130(capsys):
    main = cli_main(lambda argv: signal.raise_signal(signal.SIGINT))
    assert main([]) == 130
    assert capsys.readouterr().err == "stopped by the user\n"


def test_an_ignored_signal_stays_ignored():
    """A shell's job in the background ignores Ctrl-C, which is meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert cli_main(lambda argv: signal.raise_signal(signal.SIGINT) or 7)([]) == 7
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    """There signal.signal raises; a notebook's server may run a stage in one."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli_main(lambda argv: 7)([])))
    thread.start()
    thread.join()
    assert codes == [7]


def test_a_second_signal_while_the_first_unwinds():
    script = (
        "import signal, sys; from chestxray_vit.entry_point import cli_main\n"
        "def main(argv):\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    finally: signal.raise_signal(signal.SIGINT); print('never')\n"
        "sys.exit(cli_main(main)([]))"
    )
    process = spawn("-c", script)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_obeying_hands_over_the_first_signal_only():
    seen = []
    with handle_signals(seen.append):
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_stopped_is_no_error_to_be_caught():
    assert not issubclass(Stopped, Exception)
    assert Stopped(15, "text").number == 15


# Mishaps

MISHAPS = {
    errno.ENOSPC: "error: a.csv: No space left on device. Make room there, or write elsewhere. Earlier outputs",
    errno.EDQUOT: "error: a.csv: Disk quota exceeded. Make room in your quota, or write elsewhere. Earlier outputs",
    errno.EFBIG: "error: a.csv: File too large. Raise the limit on a file's size (ulimit -f), or write elsewhere. ",
    errno.EROFS: "error: a.csv: Read-only file system. Write elsewhere: this file system is read-only. Earlier outputs",
    errno.EACCES: "error: a.csv: Permission denied. Look at its owner and mode (ls -ld), or name another. Earlier",
    errno.EPERM: "error: a.csv: Operation not permitted. Look at its owner and mode (ls -ld), or name another.",
}


@pytest.mark.parametrize("number", MISHAPS)
def test_a_mishap_is_told(number, capsys):
    @cli_main
    def main(argv=None):
        raise OSError(number, os.strerror(number), "a.csv")

    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith(MISHAPS[number])
    assert told.endswith(" Earlier outputs are whole.\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O", "a"), OSError("text"), PermissionError(errno.EPERM, "kill")]
)
def test_other_errors_of_the_system_are_defects(error):
    @cli_main
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


def test_no_memory_is_told():
    with pytest.raises(InputError) as told, stopping.explain_disk_and_memory_errors("run", 32, 128):
        torch.empty(1 << 60)  # torch's own words
    assert str(told.value) == (
        "no memory for 32 images at a time: lower --per_device_train_batch_size (the global batch of 128 stays)."
    )
    with pytest.raises(InputError, match="no memory for 1 images"), stopping.explain_disk_and_memory_errors(
        "run", 1, 1
    ):
        raise MemoryError
    with pytest.raises(InputError, match="no memory"), stopping.explain_disk_and_memory_errors("run", 1, 1):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), SafetensorError("invalid header")])
def test_other_errors_of_training_are_defects(error):
    with pytest.raises(type(error)), stopping.explain_disk_and_memory_errors("run", 1, 1):
        raise error


# Checkpoints that are not whole


@pytest.fixture
def two_checkpoints(undisturbed, tmp_path):
    whole = sorted(undisturbed["epochs"].glob("checkpoint-*"))[0]
    for number in (1, 2):
        subprocess.run(["cp", "-r", str(whole), str(tmp_path / f"checkpoint-{number}")], check=True)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_checkpoint_cut_short_is_passed_over(name, two_checkpoints, caplog):
    path = two_checkpoints / "checkpoint-2" / name
    content = path.read_bytes()
    assert run_folder.last_checkpoint(str(two_checkpoints)) == str(path.parent)
    lengths = sorted({0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1})
    for length in [length for length in lengths if length < len(content)]:
        path.write_bytes(content[:length])
        if name == "trainer_state.json" and length == len(content) - 1:
            continue  # but for the last line's end it is whole
        caplog.clear()
        assert run_folder.last_checkpoint(str(two_checkpoints)) == str(two_checkpoints / "checkpoint-1"), length
        assert f"checkpoint-2 is not whole, and passed over: {name} cut short" in caplog.text
    path.unlink()
    last = name in ("rng_state.pth", "trainer_state.json")
    assert run_folder.last_checkpoint(str(two_checkpoints)).endswith("1" if last else "2")


def test_no_whole_checkpoint(two_checkpoints):
    for number in (1, 2):
        (two_checkpoints / f"checkpoint-{number}" / "rng_state.pth").write_bytes(b"")
    with pytest.raises(InputError, match="checkpoint-2 cannot be loaded: rng_state.pth cut short; checkpoint-1 cannot"):
        run_folder.last_checkpoint(str(two_checkpoints))


def test_the_size_that_a_header_tells(tmp_path):
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 5)}, tmp_path / "x", metadata={"format": "pt"})
    assert run_folder._told_size(tmp_path / "x") == (tmp_path / "x").stat().st_size
    save_file({}, tmp_path / "empty")
    assert run_folder._told_size(tmp_path / "empty") == (tmp_path / "empty").stat().st_size


def test_checkpoints_have_the_mode_of_the_umask(synthetic_dataset, tmp_path):
    before = os.umask(0o027)
    try:
        run = trained(synthetic_dataset, tmp_path / "run", *EPOCHS)
    finally:
        os.umask(before)
    modes = {path.relative_to(run).as_posix(): path.stat().st_mode & 0o777 for path in run.rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o777 not in (0o640, 0o750)} == {}
    assert load_file(run / "model.safetensors")
