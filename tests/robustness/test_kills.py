"""Killed at any moment, a command leaves what was there whole, or the new; and the next run finishes.

Whole means, command by command:
  ingest    metadata.jsonl is of one run; ingest_report.json is of that metadata, or not there
  cache     the next run gives the undisturbed cache, byte for byte
  train     config.json, weights and train_config.json are of one run, or there is no config.json; resumed, the run
            is the undisturbed one in every bit of its weights and all of its log
  evaluate  predictions.csv is there, and what lies beside it is of the same run
  report    auc.json is there, and what lies beside it is of the same run"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from tests.helpers.fork_server import KILLED, contents
from tests.helpers.training import history
from tests.robustness.command_lines import evaluating, ingesting, shown, training, whole_checkpoints

# kills at random moments, and before file events: in every run of the tests, over an earlier result; and where tests
# may take minutes, with and without one
KILLS = {"ingest": (2, 6), "cache": (2, 3), "train": (1, 2), "evaluate": (1, 2), "report": (1, 2)}
MANY = {"ingest": (9, 27), "cache": (6, 9), "train": (3, 6), "evaluate": (3, 9), "report": (3, 12)}
SLOW = pytest.mark.slow
HOW_OFTEN = pytest.mark.parametrize("times", [KILLS, pytest.param(MANY, marks=SLOW)], ids=["few", "many"])
EARLIER = pytest.mark.parametrize(
    "times, earlier",
    [
        pytest.param(KILLS, True, id="few with earlier"),
        pytest.param(MANY, True, marks=SLOW, id="many with earlier"),
        pytest.param(MANY, False, marks=SLOW, id="many without"),
    ],
)


def moments(command, times, plain, seed):
    """Yield when to kill: at random moments of an undisturbed command's time, and before some of its file events."""
    draw = random.Random(seed)
    by_time, by_event = times[command]
    for _ in range(by_time):
        yield {"delay": draw.uniform(0, 1.05 * plain.seconds)}
    for event in draw.sample(range(1, plain.events + 1), min(plain.events, by_event)):
        yield {"event": event}


# ingest


def ingested(folder):
    images = folder / "images"
    return {
        name: (images / name).read_bytes()
        for name in ("metadata.jsonl", "ingest_report.json")
        if (images / name).exists()
    }


@EARLIER
def test_killed_ingest(times, earlier, commands, release, tmp_path):
    old, new = (shutil.copytree(release, tmp_path / name) for name in ("old", "new"))
    assert commands.run(*ingesting(old, 0.1)).code == 0
    plain = commands.run(*ingesting(new, 0.4), below=new)
    assert plain.code == 0
    wholes = [ingested(old), ingested(new)]
    for index, when in enumerate(moments("ingest", times, plain, 1)):
        folder = shutil.copytree(old if earlier else release, tmp_path / f"trial{index}")
        if commands.run(*ingesting(folder, 0.4), below=folder, **when).code == KILLED:
            found = ingested(folder)
            whole = [of_one for of_one in wholes if found.get("metadata.jsonl") == of_one["metadata.jsonl"]]
            assert whole or (not earlier and not found), when
            assert found.get("ingest_report.json", b"") in (b"", *(of_one["ingest_report.json"] for of_one in whole)), (
                when
            )
            assert_report_is_of_metadata(found)
            assert commands.run(*ingesting(folder, 0.4)).code == 0
        assert contents(folder) == contents(new), when
        shutil.rmtree(folder)


def assert_report_is_of_metadata(found):
    if "ingest_report.json" in found:
        report, lines = json.loads(found["ingest_report.json"]), found["metadata.jsonl"].splitlines()
        assert report["metadata"]["metadata.jsonl"] == hashlib.sha256(found["metadata.jsonl"]).hexdigest()
        splits = [json.loads(line)["split"] for line in lines]
        assert {name: counts["images"] for name, counts in report["splits"].items()} == {
            name: splits.count(name) for name in report["splits"]
        }


@HOW_OFTEN
def test_killed_cache(times, commands, release, tmp_path):
    plain = shutil.copytree(release, tmp_path / "plain", copy_function=shutil.copy2)
    cached = ["--cache_size", 32]
    answer = commands.run(*ingesting(plain, 0.2, *cached), below=plain / "images" / "pixel_cache")
    assert answer.code == 0
    for index, when in enumerate(moments("cache", times, answer, 2)):
        folder = shutil.copytree(release, tmp_path / f"trial{index}", copy_function=shutil.copy2)
        cache = folder / "images" / "pixel_cache"
        commands.run(*ingesting(folder, 0.2, *cached), below=cache, **when)
        assert commands.run(*ingesting(folder, 0.2, *cached)).code == 0
        left = [name for name in contents(cache) if Path(name).name.startswith(".")]
        assert contents(cache, but=["lock", *left]) == contents(plain / "images" / "pixel_cache", but=["lock"]), when
        shutil.rmtree(folder)


# train


def of_one_run(run, wholes):
    """Tell whether what a run's folder holds at its top is of one of these runs, or names no model."""
    names = ("config.json", "model.safetensors", "train_config.json")
    found = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
    if "config.json" not in found:
        return "train_config.json" not in found
    seeds = {
        whole: json.loads((whole / "train_config.json").read_text())["training_arguments"]["seed"] for whole in wholes
    }
    for whole, seed in seeds.items():
        if found["model.safetensors"] == (whole / "model.safetensors").read_bytes():
            marker = found.get("train_config.json")
            return marker is None or json.loads(marker)["training_arguments"]["seed"] == seed
    return False


@EARLIER
def test_killed_training(times, earlier, commands, dataset, runs, tmp_path):
    old, new = runs
    run = shutil.copytree(old, tmp_path / "run") if earlier else tmp_path / "run"
    words = ["train", *training(dataset, run, 2), "--overwrite"]
    plain = commands.run(*words, below=run)
    assert plain.code == 0, plain.printed
    for when in moments("train", times, plain, 3):
        shutil.rmtree(run)
        if earlier:
            shutil.copytree(old, run)
        answer = commands.run(*words, below=run, **when)
        assert answer.code in (0, KILLED), answer.printed
        assert of_one_run(run, runs), when
        begun = not (run / "config.json").exists() and whole_checkpoints(run)
        more = ["--resume_from_checkpoint", "last"] if begun and answer.code == KILLED else []
        if answer.code == KILLED:
            finished = commands.run(*words, *more)
            assert finished.code == 0, (when, finished.printed)
        assert (run / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes(), when
        assert history(run) == history(new), when
        hidden = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert hidden == [], when


# evaluate and report


@EARLIER
def test_killed_evaluation(times, earlier, commands, dataset, runs, tmp_path):
    for name, run in zip(("old", "new"), runs):
        shutil.copytree(run, tmp_path / f"{name}_run")
        plain = commands.run(*evaluating(tmp_path / f"{name}_run", dataset, tmp_path / name), below=tmp_path / name)
        assert plain.code == 0, plain.printed
    wholes = [contents(tmp_path / name) for name in ("old", "new")]
    assert wholes[0]["predictions.csv"] != wholes[1]["predictions.csv"]
    for index, when in enumerate(moments("evaluate", times, plain, 4)):
        output = tmp_path / f"trial{index}"
        if earlier:
            shutil.copytree(tmp_path / "old", output)
        commands.run(*evaluating(tmp_path / "new_run", dataset, output), below=output, **when)
        found = shown(output)
        assert_of_one_run(found, wholes, shas_of(wholes), when)
        assert not earlier or "predictions.csv" in found
        assert commands.run(*evaluating(tmp_path / "new_run", dataset, output)).code == 0
        assert without_command(contents(output)) == without_command(wholes[1]), when
        shutil.rmtree(output)


WITH_COMMAND = {"evaluation.json", "auc.json", "auc.html", "auc.md"}  # the command names the folder


def without_command(found):
    return {name: content for name, content in found.items() if name not in WITH_COMMAND}


def shas_of(wholes):
    """Return how each run's report names its predictions."""
    return [hashlib.sha256(whole["predictions.csv"]).hexdigest()[:16].encode() for whole in wholes]


def assert_of_one_run(found, wholes, shas, when):
    """All files are whole and of the same run; where `shas` are given, they tell of which are those with a command."""
    runs = {0, 1}
    for name, content in found.items():
        if shas and name in WITH_COMMAND:
            assert len(content) == pytest.approx(len(wholes[0][name]), rel=0.05), (when, name)
            runs &= {index for index, sha in enumerate(shas) if sha in content}
        else:
            runs &= {index for index, whole in enumerate(wholes) if whole[name] == content}
    assert runs, (when, sorted(found))


@EARLIER
def test_killed_report(times, earlier, commands, scored, tmp_path):
    for name, predictions in zip(("old", "new"), scored):
        shutil.copytree(predictions, tmp_path / f"{name}_predictions")
        words = ["report", tmp_path / f"{name}_predictions" / "predictions.csv", "--output_dir"]
        plain = commands.run(*words, tmp_path / name, below=tmp_path / name)
        assert plain.code == 0, plain.printed
    wholes = [contents(tmp_path / name) for name in ("old", "new")]
    for index, when in enumerate(moments("report", times, plain, 5)):
        output = tmp_path / f"trial{index}"
        if earlier:
            shutil.copytree(tmp_path / "old", output)
        commands.run(*words, output, below=output, **when)
        found = shown(output)
        assert_of_one_run(found, wholes, [], when)
        assert not earlier or "auc.json" in found
        assert commands.run(*words, output).code == 0
        assert contents(output) == wholes[1], when
        shutil.rmtree(output)
