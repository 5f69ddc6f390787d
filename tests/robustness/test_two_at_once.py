"""Two commands that write one folder: one is refused, or they write in turn; never do their files mix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from chestxray_vit.storage.lock import folder_lock
from tests.helpers.fork_server import contents
from tests.robustness.command_lines import ingesting, training


@pytest.mark.parametrize("command", ["ingest", "train", "report"])
def test_of_two_at_once_one_is_refused(command, commands, release, dataset, scored, tmp_path):
    """The claim is held here, by this process; the command's own process is refused and writes nothing."""
    folder = shutil.copytree(release, tmp_path / "release")
    output = {"ingest": folder / "images", "train": tmp_path / "run", "report": tmp_path / "report"}[command]
    predictions = shutil.copytree(scored[0], tmp_path / "predictions") / "predictions.csv"
    words = {
        "ingest": ingesting(folder, 0.2),
        "train": ["train", *training(dataset, output, 2)],
        "report": ["report", predictions, "--output_dir", output],
    }[command]
    with folder_lock(output, ()):
        before = contents(output)
        answer = commands.run(*words)
        flag = "--output" if command == "ingest" else "--output_dir"
        assert (
            f"error: {output}: process {os.getpid()} is writing here. Wait for it, or name another place"
            in answer.printed
        )
        assert answer.printed.rstrip().endswith(f"with {flag}.")
        assert answer.code == 2
        assert contents(output) == before
    assert commands.run(*words).code == 0


@pytest.mark.parametrize("command", ["ingest", "report"])
def test_many_at_once_never_mix(command, commands, release, scored, tmp_path):
    """Different settings at once: one wins, or several in turn; the result is one of theirs."""
    folder = shutil.copytree(release, tmp_path / "release")
    if command == "report":
        predictions = shutil.copytree(scored[0], tmp_path / "predictions") / "predictions.csv"
        lines = [["report", predictions, "--prevalence", share, "--output_dir"] for share in (0.1, 0.2, 0.3)]
        outputs = [tmp_path / name for name in "abc"]
    else:
        lines = [["ingest", folder, "--val_fraction", share, "--output"] for share in (0.1, 0.2, 0.4)]
        outputs = [folder / f"{name}.jsonl" for name in "abc"]
    expected = []
    for line, output in zip(lines, outputs):
        assert commands.run(*line, output).code == 0
        expected.append(contents(output) if command == "report" else output.read_bytes())
    shared = tmp_path / "shared" if command == "report" else folder / "metadata.jsonl"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"chestxray_vit.{line[0]}", *map(str, line[1:]), str(shared)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in lines
    ]
    told = [process.communicate(timeout=120)[1] for process in running]
    codes = [process.returncode for process in running]
    assert 0 in codes and set(codes) <= {0, 2}, told
    assert all("is writing here" in text for code, text in zip(codes, told) if code == 2)
    assert (contents(shared) if command == "report" else shared.read_bytes()) in expected
