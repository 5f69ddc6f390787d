"""Full disks and folders that may not be written: the error says what to do, and what was there stays whole."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from tests.helpers.fork_server import contents
from tests.robustness.command_lines import evaluating, ingesting, training, whole_checkpoints

NOBODY = 65534


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a small disk, or skip."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(words, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("a small disk cannot be mounted here: that takes root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, kilobytes_free):
    """Fill a disk but for so much."""
    free = shutil.disk_usage(folder).free
    (folder / "filling").write_bytes(bytes(max(0, free - kilobytes_free * 1024)))


def refused(answer, *words):
    assert answer.code == 2, answer.printed[-3000:]
    assert "Traceback" not in answer.printed
    (line,) = [line for line in answer.printed.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line


@pytest.mark.parametrize("free", [0, 4, 12])
def test_full_disk_ingest(free, commands, release, disk):
    folder = shutil.copytree(release, disk(4000) / "release")
    assert commands.run(*ingesting(folder, 0.1)).code == 0
    before = contents(folder)
    fill(folder.parent, free)
    refused(commands.run(*ingesting(folder, 0.4)), "No space left on device. Make room")
    assert contents(folder) == before
    (folder.parent / "filling").unlink()
    assert commands.run(*ingesting(folder, 0.4)).code == 0


def test_full_disk_cache(commands, release, disk):
    folder = shutil.copytree(release, disk(4000) / "release")
    assert commands.run(*ingesting(folder, 0.1)).code == 0
    before = contents(folder)
    fill(folder.parent, 100)
    refused(commands.run(*ingesting(folder, 0.1, "--cache_size", 32)), "no room for the pixel cache", "Make room")
    assert contents(folder, but=["pixel_cache"]) == before
    (folder.parent / "filling").unlink()
    assert commands.run(*ingesting(folder, 0.1, "--cache_size", 32)).code == 0


AT_THE_END = "--save_strategy no --eval_strategy no".split()


@pytest.mark.parametrize(
    "free, more",
    [(free, []) for free in (0, 60, 150, 230, 250, 700)] + [(free, AT_THE_END) for free in (40, 90)],
)
def test_full_disk_training(free, more, commands, dataset, runs, disk):
    """A checkpoint takes 250 kB: the disk is full in its weights, its optimizer, the next one's, or the run's end."""
    folder = disk(4000)
    run = folder / "run"
    old = shutil.copytree(runs[0], folder / "old_run")
    before = contents(old)
    fill(folder, free)
    words = ["train", *training(dataset, run, 2), *more]
    answer = commands.run(*words)
    refused(answer, "Make room there, or write elsewhere", str(folder))
    assert contents(old) == before
    assert not (run / "config.json").exists()
    begun = run.exists() and whole_checkpoints(run)
    (folder / "filling").unlink()
    finished = commands.run(*words, *(["--resume_from_checkpoint", "last"] if begun else ["--overwrite"]))
    assert finished.code == 0, finished.printed
    assert more or (run / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "command, free", [("evaluate", 0), ("evaluate", 20), ("evaluate", 60), ("report", 0), ("report", 60)]
)
def test_full_disk_scoring(command, free, commands, dataset, runs, scored, disk):
    output = disk(2000) / "output"
    shutil.copytree(scored[0], output)
    before = contents(output)
    fill(output.parent, free)
    words = evaluating(runs[1], dataset, output)
    if command == "report":
        words = ["report", output / "predictions.csv", "--prevalence", 0.3]
    refused(commands.run(*words), "No space left on device", str(output))
    assert contents(output) == before
    (output.parent / "filling").unlink()
    assert commands.run(*words).code == 0


# Folders that may not be written, and modes


def open_to_all(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("command", ["ingest", "train", "evaluate", "report", "predict"])
def test_read_only_folder(command, commands, release, dataset, runs, scored, tmp_path):
    """As a user who owns nothing; root may write anywhere."""
    if os.getuid() != 0:
        pytest.skip("another user's process can be started by root alone")
    folder = shutil.copytree(release, tmp_path / "release")
    predictions = shutil.copytree(scored[0], tmp_path / "predictions")
    data, run = shutil.copytree(dataset, tmp_path / "data"), shutil.copytree(runs[0], tmp_path / "run")
    words = {
        "ingest": ingesting(folder, 0.2),
        "train": ["train", *training(data, run, 2), "--overwrite", "--cache_dir", "none"],
        "evaluate": [*evaluating(run, data, predictions), "--cache_dir", "none"],
        "report": ["report", predictions / "predictions.csv"],
        "predict": ["predict", run, next((data / "images").glob("*.png")), "--output", predictions / "scores.csv"],
    }[command]
    assert commands.run(*words).code == 0  # which also loads what that user may not read
    open_to_all(tmp_path)
    for folder in tmp_path.parents[:3]:  # pytest's own
        folder.chmod(folder.stat().st_mode | 0o011)
    before = contents(tmp_path)
    answer = commands.run(*words, user=NOBODY)
    if answer.code == 1 and "site-packages" in answer.printed.splitlines()[-1]:
        pytest.skip(f"an ordinary user cannot load the package here: {answer.printed.splitlines()[-1]}")
    refused(answer, "Permission denied", str(tmp_path))
    assert contents(tmp_path) == before


def test_modes_are_those_of_the_umask(commands, release, tmp_path):
    data, run = shutil.copytree(release, tmp_path / "data"), tmp_path / "run"
    image = next((data / "images").glob("*.png"))
    open_to_all(tmp_path)
    before = set(tmp_path.rglob("*"))
    for words in (
        ingesting(data, 0.3, "--cache_size", 32),
        ["train", *training(data, run, 2)],
        evaluating(run, data, run / "test"),
        ["report", run / "test" / "predictions.csv", "--output_dir", tmp_path / "report"],
        ["predict", run, image, "--output", tmp_path / "scores.csv"],
        ["explain", run, image],
    ):
        answer = commands.run(*words, umask=0o027)
        assert answer.code == 0, answer.printed
    made = set(tmp_path.rglob("*")) - before
    wrong = {
        path: oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o777 != 0o640 + 0o110 * path.is_dir()
    }
    assert len(made) > 60
    assert wrong == {}
