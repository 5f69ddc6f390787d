"""The same commands give the same bytes; training goes on without its data folder, and does not grow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from chestxray_vit import train
from chestxray_vit.training.engines.progress import LogBeforeSave
from tests.helpers.fork_server import contents
from tests.robustness.command_lines import evaluating, ingesting, training


def test_the_same_bytes_again(commands, release, tmp_path):
    """Metadata, cache, predictions, weights and report; what differs is the run's clock, and its folder's name."""
    for name in ("first", "second"):
        data = shutil.copytree(release, tmp_path / name / "data", copy_function=shutil.copy2)
        run = tmp_path / name / "run"
        for words in (
            ingesting(data, 0.3, "--cache_size", 64),
            ["train", *training(data, run, 2)],
            evaluating(run, data, run / "test"),
            ["report", run / "test" / "predictions.csv", "--output_dir", tmp_path / name / "report"],
        ):
            answer = commands.run(*words)
            assert answer.code == 0, answer.printed
    first, second = (contents(tmp_path / name, but=["lock"]) for name in ("first", "second"))
    assert first.keys() == second.keys()
    differing = {name for name in first if first[name] != second[name]}
    clocks = {
        name for name in first if Path(name).name in ("trainer_state.json", "training_args.bin", "train_config.json")
    }
    assert differing <= clocks
    same = "model.safetensors predictions.csv auc.json auc.html metadata.jsonl ingest_report.json pixels.u8 rows.json"
    assert {Path(name).name for name in first.keys() - differing} >= set(same.split())


# A data folder that goes


@pytest.mark.parametrize("cached", [True, False])
def test_data_that_vanishes_while_training(cached, dataset, tmp_path, monkeypatch, capsys):
    """Cached pixels stay mapped; without a cache the error names the file."""
    data = shutil.copytree(dataset, tmp_path / "data")
    words = [*training(data, tmp_path / "run", 2), "--eval_strategy", "no", "--save_strategy", "no"]
    words += [] if cached else ["--cache_dir", "none"]

    def images_go(*_, **__):
        for path in data.rglob("*.png" if not cached else "pixels.u8"):
            path.unlink()

    monkeypatch.setattr(LogBeforeSave, "on_train_begin", images_go)
    code = train.main([str(word) for word in words])
    told = capsys.readouterr().err
    assert code == (0 if cached else 2), told
    if not cached:
        last = told.strip().splitlines()[-1]
        assert last.startswith(f"error: {data}"), last
        assert ".png" in last


# A long run

LONG = (
    "--from_scratch --image_size 32 --patch_size 16 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 "
    "--intermediate_size 16 --global_batch_size 4 --device cpu --max_steps 10000 --logging_steps 500 "
    "--save_strategy steps --save_steps 500 --eval_strategy steps --eval_steps 500 --disable_tqdm true"
).split()
MEASURED = """
import json, os, sys
from chestxray_vit import train
from chestxray_vit.training.engines.progress import LogBeforeSave

def measure(self, args, state, control, **_):
    if state.global_step % 100 == 0:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        rows.append([state.global_step, resident, len(os.listdir("/proc/self/fd"))])
    return log_before_save(self, args, state, control)

rows, log_before_save = [], LogBeforeSave.on_step_end
LogBeforeSave.on_step_end = measure
code = train.main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump(rows, file)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_ten_thousand_updates_keep_memory_and_files(dataset, tmp_path):
    words = ["--dataset_dir", str(dataset), "--output_dir", str(tmp_path / "run"), *LONG]
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "rows.json"), *words]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    resident = {step: bytes_ for step, bytes_, _ in rows}
    files = {num for step, _, num in rows if step >= 2000}
    grown = resident[10000] / resident[2000] - 1
    print(f"\n10,000 updates in {time.monotonic() - start:.0f} s: {resident[2000] / 1e6:.0f} MB, {100 * grown:+.1f} %")
    assert grown < 0.05
    assert len(files) == 1, files
