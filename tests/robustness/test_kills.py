"""Killed at any moment, out of disk, twice at once: what was there is whole or the new is, and the next run finishes.

Whole means, stage by stage:
  ingest    metadata.jsonl is of one run; ingest_report.json is of that metadata, or not there
  cache     the next run gives the undisturbed cache, byte for byte
  train     config.json, weights and train_config.json are of one run, or there is no config.json; resumed, the run
            is the undisturbed one in every bit of its weights and all of its log
  evaluate  predictions.csv is there, and what lies beside it is of the same run
  report    auc.json is there, and what lies beside it is of the same run"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from chestxray_vit import ingest, train
from chestxray_vit.data.synthetic.release import draw_release
from chestxray_vit.storage.lock import folder_lock
from chestxray_vit.training.engines.base import LogBeforeSave
from tests.helpers.kills import KILLED, Stages, contents
from tests.helpers.training import TINY, history

# kills at random moments, and before file events; each with and without an earlier result
KILLS = {"ingest": (3, 9), "cache": (2, 3), "train": (1, 2), "evaluate": (1, 3), "report": (1, 4)}
SLOW_TIMES = 3  # as many, where tests may take minutes
OFTEN = [1, pytest.param(SLOW_TIMES, marks=pytest.mark.slow)]
EARLIER = pytest.mark.parametrize("earlier", [False, True], ids=["without", "with earlier"])
HOW_OFTEN = pytest.mark.parametrize("times", OFTEN)
NOBODY = 65534
SAVING = "--save_strategy steps --save_steps 1 --eval_strategy steps --eval_steps 1 --logging_steps 1".split()


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Return what runs and kills stages; it says at the end how many it killed."""
    result = Stages(tmp_path_factory.mktemp("crashes"), ["ingest", "train", "evaluate", "report", "predict", "explain"])
    yield result
    result.close()
    print(f"\n{result.kills} processes were killed")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return a small release, not ingested. Shared: copy it."""
    return draw_release(tmp_path_factory.mktemp("crashes") / "release", num_patients=40, image_size=64, seed=7)


@pytest.fixture(scope="module")
def dataset(release, tmp_path_factory):
    """Return a small ingested release. Shared."""
    folder = shutil.copytree(release, tmp_path_factory.mktemp("crashes") / "dataset")
    assert ingest.main([str(folder), "--val_fraction", "0.3"]) == 0
    return folder


def training(dataset, run, seed):
    return ["--dataset_dir", dataset, "--output_dir", run, *TINY, *SAVING, "--seed", seed, "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Return two trained runs that nothing disturbed: an earlier and a later one. Shared."""
    folder = tmp_path_factory.mktemp("crashes")
    for seed in (1, 2):
        assert train.main([str(word) for word in training(dataset, folder / str(seed), seed)]) == 0
    return folder / "1", folder / "2"


def moments(stage, times, plain, seed):
    """Yield when to kill: at random moments of an undisturbed stage's time, and before some of its file events."""
    draw = random.Random(seed)
    by_time, by_event = (times * count for count in KILLS[stage])
    for _ in range(by_time):
        yield {"delay": draw.uniform(0, 1.05 * plain.seconds)}
    for event in draw.sample(range(1, plain.events + 1), min(plain.events, by_event)):
        yield {"event": event}


# ingest


def ingesting(folder, fraction, *more):
    return ["ingest", folder, "--val_fraction", fraction, *more]


def ingested(folder):
    images = folder / "images"
    return {
        name: (images / name).read_bytes()
        for name in ("metadata.jsonl", "ingest_report.json")
        if (images / name).exists()
    }


@HOW_OFTEN
@EARLIER
def test_killed_ingest(times, earlier, stages, release, tmp_path):
    old, new = (shutil.copytree(release, tmp_path / name) for name in ("old", "new"))
    assert stages.run(*ingesting(old, 0.1)).code == 0
    plain = stages.run(*ingesting(new, 0.4), below=new)
    assert plain.code == 0
    wholes = [ingested(old), ingested(new)]
    for place, when in enumerate(moments("ingest", times, plain, 1)):
        folder = shutil.copytree(old if earlier else release, tmp_path / f"trial{place}")
        if stages.run(*ingesting(folder, 0.4), below=folder, **when).code == KILLED:
            found = ingested(folder)
            whole = [of_one for of_one in wholes if found.get("metadata.jsonl") == of_one["metadata.jsonl"]]
            assert whole or (not earlier and not found), when
            assert found.get("ingest_report.json", b"") in (b"", *(of_one["ingest_report.json"] for of_one in whole)), (
                when
            )
            assert_report_is_of_metadata(found)
            assert stages.run(*ingesting(folder, 0.4)).code == 0
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
def test_killed_cache(times, stages, release, tmp_path):
    plain = shutil.copytree(release, tmp_path / "plain", copy_function=shutil.copy2)
    cached = ["--cache_size", 32]
    answer = stages.run(*ingesting(plain, 0.2, *cached), below=plain / "images" / "pixel_cache")
    assert answer.code == 0
    for place, when in enumerate(moments("cache", times, answer, 2)):
        folder = shutil.copytree(release, tmp_path / f"trial{place}", copy_function=shutil.copy2)
        cache = folder / "images" / "pixel_cache"
        stages.run(*ingesting(folder, 0.2, *cached), below=cache, **when)
        assert stages.run(*ingesting(folder, 0.2, *cached)).code == 0
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


def whole_checkpoints(run):
    from chestxray_vit.training.run_folder import _flaw

    return [folder for folder in run.glob("checkpoint-*") if _flaw(folder) is None]


@HOW_OFTEN
@EARLIER
def test_killed_training(times, earlier, stages, dataset, runs, tmp_path):
    old, new = runs
    run = shutil.copytree(old, tmp_path / "run") if earlier else tmp_path / "run"
    words = ["train", *training(dataset, run, 2), "--overwrite"]
    plain = stages.run(*words, below=run)
    assert plain.code == 0, plain.told
    for when in moments("train", times, plain, 3):
        shutil.rmtree(run)
        if earlier:
            shutil.copytree(old, run)
        answer = stages.run(*words, below=run, **when)
        assert answer.code in (0, KILLED), answer.told
        assert of_one_run(run, runs), when
        begun = not (run / "config.json").exists() and whole_checkpoints(run)
        more = ["--resume_from_checkpoint", "last"] if begun and answer.code == KILLED else []
        if answer.code == KILLED:
            finished = stages.run(*words, *more)
            assert finished.code == 0, (when, finished.told)
        assert (run / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes(), when
        assert history(run) == history(new), when
        hidden = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert hidden == [], when


# evaluate and report


def evaluating(run, dataset, output_dir):
    return ["evaluate", run, "--dataset_dir", dataset, "--output_dir", output_dir, "--device", "cpu"]


@HOW_OFTEN
@EARLIER
def test_killed_evaluation(times, earlier, stages, dataset, runs, tmp_path):
    for name, run in zip(("old", "new"), runs):
        shutil.copytree(run, tmp_path / f"{name}_run")
        plain = stages.run(*evaluating(tmp_path / f"{name}_run", dataset, tmp_path / name), below=tmp_path / name)
        assert plain.code == 0, plain.told
    wholes = [contents(tmp_path / name) for name in ("old", "new")]
    assert wholes[0]["predictions.csv"] != wholes[1]["predictions.csv"]
    for place, when in enumerate(moments("evaluate", times, plain, 4)):
        output = tmp_path / f"trial{place}"
        if earlier:
            shutil.copytree(tmp_path / "old", output)
        stages.run(*evaluating(tmp_path / "new_run", dataset, output), below=output, **when)
        found = shown(output)
        assert_of_one_run(found, wholes, shas_of(wholes), when)
        assert not earlier or "predictions.csv" in found
        assert stages.run(*evaluating(tmp_path / "new_run", dataset, output)).code == 0
        assert without_command(contents(output)) == without_command(wholes[1]), when
        shutil.rmtree(output)


def shown(folder):
    """Return what is in a folder, if it is there, without what is hidden."""
    found = contents(folder) if folder.exists() else {}
    return {name: content for name, content in found.items() if not name.startswith(".")}


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
            runs &= {place for place, sha in enumerate(shas) if sha in content}
        else:
            runs &= {place for place, whole in enumerate(wholes) if whole[name] == content}
    assert runs, (when, sorted(found))


@HOW_OFTEN
@EARLIER
def test_killed_report(times, earlier, stages, dataset, runs, tmp_path):
    for name, run in zip(("old", "new"), runs):
        shutil.copytree(run, tmp_path / f"{name}_run")
        assert stages.run(*evaluating(tmp_path / f"{name}_run", dataset, tmp_path / f"{name}_predictions")).code == 0
        words = ["report", tmp_path / f"{name}_predictions" / "predictions.csv", "--output_dir"]
        plain = stages.run(*words, tmp_path / name, below=tmp_path / name)
        assert plain.code == 0, plain.told
    wholes = [contents(tmp_path / name) for name in ("old", "new")]
    for place, when in enumerate(moments("report", times, plain, 5)):
        output = tmp_path / f"trial{place}"
        if earlier:
            shutil.copytree(tmp_path / "old", output)
        stages.run(*words, output, below=output, **when)
        found = shown(output)
        assert_of_one_run(found, wholes, [], when)
        assert not earlier or "auc.json" in found
        assert stages.run(*words, output).code == 0
        assert contents(output) == wholes[1], when
        shutil.rmtree(output)


# Two at once


@pytest.mark.parametrize("stage", ["ingest", "train", "report"])
def test_of_two_at_once_one_is_refused(stage, stages, release, dataset, runs, tmp_path, monkeypatch):
    """The claim is held here, by this process; the stage's own process is refused and writes nothing."""
    folder = shutil.copytree(release, tmp_path / "release")
    output = {"ingest": folder / "images", "train": tmp_path / "run", "report": tmp_path / "report"}[stage]
    assert stages.run(*evaluating(runs[0], dataset, tmp_path / "predictions")).code == 0
    words = {
        "ingest": ingesting(folder, 0.2),
        "train": ["train", *training(dataset, output, 2)],
        "report": ["report", tmp_path / "predictions" / "predictions.csv", "--output_dir", output],
    }[stage]
    with folder_lock(output, ()):
        before = contents(output)
        answer = stages.run(*words)
        flag = "--output" if stage == "ingest" else "--output_dir"
        assert (
            f"error: {output}: process {os.getpid()} is writing here. Wait for it, or name another place" in answer.told
        )
        assert answer.told.rstrip().endswith(f"with {flag}.")
        assert answer.code == 2
        assert contents(output) == before
    assert stages.run(*words).code == 0


@pytest.mark.parametrize("stage", ["ingest", "report"])
def test_many_at_once_never_mix(stage, release, dataset, runs, stages, tmp_path):
    """Different settings at once: one wins, or several in turn; the result is one of theirs."""
    folder = shutil.copytree(release, tmp_path / "release")
    if stage == "report":
        assert stages.run(*evaluating(runs[0], dataset, tmp_path / "predictions")).code == 0
        predictions = tmp_path / "predictions" / "predictions.csv"
        commands = [["report", predictions, "--prevalence", share, "--output_dir"] for share in (0.1, 0.2, 0.3)]
        outputs = [tmp_path / name for name in "abc"]
    else:
        commands = [["ingest", folder, "--val_fraction", share, "--output"] for share in (0.1, 0.2, 0.4)]
        outputs = [folder / f"{name}.jsonl" for name in "abc"]
    expected = []
    for command, output in zip(commands, outputs):
        assert stages.run(*command, output).code == 0
        expected.append(contents(output) if stage == "report" else output.read_bytes())
    shared = tmp_path / "shared" if stage == "report" else folder / "metadata.jsonl"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"chestxray_vit.{command[0]}", *map(str, command[1:]), str(shared)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    told = [process.communicate(timeout=120)[1] for process in running]
    codes = [process.returncode for process in running]
    assert 0 in codes and set(codes) <= {0, 2}, told
    assert all("is writing here" in text for code, text in zip(codes, told) if code == 2)
    assert (contents(shared) if stage == "report" else shared.read_bytes()) in expected


# Full disks


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
    assert answer.code == 2, answer.told[-3000:]
    assert "Traceback" not in answer.told
    (line,) = [line for line in answer.told.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line


@pytest.mark.parametrize("free", [0, 4, 12])
def test_full_disk_ingest(free, stages, release, disk):
    folder = shutil.copytree(release, disk(4000) / "release")
    assert stages.run(*ingesting(folder, 0.1)).code == 0
    before = contents(folder)
    fill(folder.parent, free)
    refused(stages.run(*ingesting(folder, 0.4)), "No space left on device. Make room")
    assert contents(folder) == before
    (folder.parent / "filling").unlink()
    assert stages.run(*ingesting(folder, 0.4)).code == 0


def test_full_disk_cache(stages, release, disk):
    folder = shutil.copytree(release, disk(4000) / "release")
    assert stages.run(*ingesting(folder, 0.1)).code == 0
    before = contents(folder)
    fill(folder.parent, 100)
    refused(stages.run(*ingesting(folder, 0.1, "--cache_size", 32)), "no room for the pixel cache", "Make room")
    assert contents(folder, but=["pixel_cache"]) == before
    (folder.parent / "filling").unlink()
    assert stages.run(*ingesting(folder, 0.1, "--cache_size", 32)).code == 0


AT_THE_END = "--save_strategy no --eval_strategy no".split()


@pytest.mark.parametrize(
    "free, more",
    [(free, []) for free in (0, 60, 150, 230, 250, 700)] + [(free, AT_THE_END) for free in (40, 90)],
)
def test_full_disk_training(free, more, stages, dataset, runs, disk):
    """A checkpoint takes 250 kB: the disk is full in its weights, its optimizer, the next one's, or the run's end."""
    folder = disk(4000)
    run = folder / "run"
    old = shutil.copytree(runs[0], folder / "old_run")
    before = contents(old)
    fill(folder, free)
    words = ["train", *training(dataset, run, 2), *more]
    answer = stages.run(*words)
    refused(answer, "Make room there, or write elsewhere", str(folder))
    assert contents(old) == before
    assert not (run / "config.json").exists()
    begun = run.exists() and whole_checkpoints(run)
    (folder / "filling").unlink()
    finished = stages.run(*words, *(["--resume_from_checkpoint", "last"] if begun else ["--overwrite"]))
    assert finished.code == 0, finished.told
    assert more or (run / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "stage, free", [("evaluate", 0), ("evaluate", 20), ("evaluate", 60), ("report", 0), ("report", 60)]
)
def test_full_disk_scoring(stage, free, stages, dataset, runs, disk, tmp_path):
    output = disk(2000) / "output"
    assert stages.run(*evaluating(runs[0], dataset, output)).code == 0
    before = contents(output)
    fill(output.parent, free)
    words = evaluating(runs[1], dataset, output)
    if stage == "report":
        words = ["report", output / "predictions.csv", "--prevalence", 0.3]
    refused(stages.run(*words), "No space left on device", str(output))
    assert contents(output) == before
    (output.parent / "filling").unlink()
    assert stages.run(*words).code == 0


# Folders that may not be written, and modes


def open_to_all(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("stage", ["ingest", "train", "evaluate", "report", "predict"])
def test_read_only_folder(stage, stages, release, dataset, runs, tmp_path):
    """As a user who owns nothing; root may write anywhere."""
    if os.getuid() != 0:
        pytest.skip("another user's process can be started by root alone")
    folder = shutil.copytree(release, tmp_path / "release")
    predictions = tmp_path / "predictions"
    assert stages.run(*evaluating(runs[0], dataset, predictions)).code == 0
    data, run = shutil.copytree(dataset, tmp_path / "data"), shutil.copytree(runs[0], tmp_path / "run")
    words = {
        "ingest": ingesting(folder, 0.2),
        "train": ["train", *training(data, run, 2), "--overwrite", "--cache_dir", "none"],
        "evaluate": [*evaluating(run, data, predictions), "--cache_dir", "none"],
        "report": ["report", predictions / "predictions.csv"],
        "predict": ["predict", run, next((data / "images").glob("*.png")), "--output", predictions / "scores.csv"],
    }[stage]
    assert stages.run(*words).code == 0  # which also loads what that user may not read
    open_to_all(tmp_path)
    for folder in tmp_path.parents[:3]:  # pytest's own
        folder.chmod(folder.stat().st_mode | 0o011)
    before = contents(tmp_path)
    answer = stages.run(*words, user=NOBODY)
    if answer.code == 1 and "site-packages" in answer.told.splitlines()[-1]:
        pytest.skip(f"an ordinary user cannot load the package here: {answer.told.splitlines()[-1]}")
    refused(answer, "Permission denied", str(tmp_path))
    assert contents(tmp_path) == before


def test_modes_are_those_of_the_umask(stages, release, tmp_path):
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
        answer = stages.run(*words, umask=0o027)
        assert answer.code == 0, answer.told
    made = set(tmp_path.rglob("*")) - before
    wrong = {
        path: oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o777 != 0o640 + 0o110 * path.is_dir()
    }
    assert len(made) > 60
    assert wrong == {}


# The same again


def test_the_same_bytes_again(stages, release, tmp_path):
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
            answer = stages.run(*words)
            assert answer.code == 0, answer.told
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
from chestxray_vit.training.engines.base import LogBeforeSave

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
