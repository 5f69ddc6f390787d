"""Every hostile input meets its command: exit code, words, and the three promises of this folder."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from chestxray_vit.data.synthetic.release import draw_release
from tests.robustness.hostile import (
    EXIT_CODES,
    OUTPUTS,
    REFUSE,
    STALE,
    Case,
    archives,
    checkpoints,
    csvs,
    images,
    ipu_configs,
    lists,
    predictions_files,
    put,
)

KINDS = {
    "csv": csvs.CASES,
    "image": images.CASES,
    "list": lists.CASES,
    "archive": archives.CASES,
    "checkpoint": checkpoints.CASES,
    "predictions": predictions_files.CASES,
    "ipu": ipu_configs.CASES,
}
CASES = [(kind, case) for kind, cases in KINDS.items() for case in cases]
OWNED = b"#!/bin/sh\ntouch owned\n"
SECONDS = 60  # that a case may take
MOST_SAID = 5_000  # characters of an error
MEMORY = 6 << 30  # bytes of address space of a contained case: torch's libraries take 4 GB of it


# The good folder.


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """Return the folder that every case has a copy of. Shared: never write into it."""
    from chestxray_vit import ingest, report

    root = tmp_path_factory.mktemp("hostile") / "good"
    draw_release(root / "release", num_patients=27, image_size=64, seed=1337)
    assert ingest.main([str(root / "release")]) == 0
    shutil.copytree(root / "release" / "images", root / "expected", ignore=shutil.ignore_patterns("*.png"))
    put(root / "xrays" / "good.png", (root / "release" / "images" / "00000001_000.png").read_bytes())
    put(root / "xrays" / "plain.png", images.png())
    put(root / "outside" / "xray.png", images.png())
    for program in ("gs", "gswin64c"):  # what Pillow starts on an EPS
        put(root / "outside" / "bin" / program, OWNED).chmod(0o755)
    put(root / "config" / "ipu_config.json", json.dumps(ipu_configs.GOOD).encode())
    put(root / "predictions" / "predictions.csv", predictions_files.as_csv(predictions_files.good_rows()))
    assert report.main([str(root / "predictions" / "predictions.csv"), "--output_dir", str(root / "expected")]) == 0
    with contextlib.suppress(ImportError):
        draw_run(root / "run")
    for names in OUTPUTS.values():
        for name in names:
            put(root / name, STALE)
    return root


def draw_run(folder: Path) -> None:
    """Save a tiny ViT as a trained run; the cases that need it are skipped where torch is not."""
    import torch

    from chestxray_vit.models import vit as model
    from chestxray_vit.models.vit_size import ViTSize

    torch.manual_seed(0)
    vit, processor = model.build_from_scratch(ViTSize(64, 16, 3, 16, 2, 2, 32))
    vit.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


# What is there, and what was touched.


def listing(root: Path) -> Dict[str, Tuple]:
    """Return for every path below a folder what it is: kind, and content and time of a file."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            facts = path.lstat()
            content: object = None
            if stat.S_ISLNK(facts.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest(), facts.st_mtime_ns
            found[path.relative_to(root).as_posix()] = stat.S_IFMT(facts.st_mode), content
    return found


class Watch:
    """Python's own account of files opened and programs started, as far as they are none of a case's business."""

    def __init__(self):
        self.outside = ""  # the folder to watch; nothing is watched while it is empty
        self.seen: List[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, args: Tuple) -> None:
        if not self.outside:
            return
        if event == "open" and isinstance(args[0], (str, os.PathLike)):
            if os.path.abspath(os.fspath(args[0])).startswith(self.outside):
                self.seen.append(f"{event} {args[0]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            self.seen.append(f"{event} {args}")

    @contextlib.contextmanager
    def over(self, root: Path) -> Iterator[List[str]]:
        self.outside, self.seen = f"{root / 'outside'}{os.sep}", []
        try:
            yield self.seen
        finally:
            self.outside = ""


WATCH = Watch()  # a hook cannot be taken away again, so there is one


# Running a command.


class TooLong(Exception):
    """A case takes longer than any should."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_here(case: Case, root: Path, capsys, caplog) -> Tuple[int, str]:
    command = importlib.import_module(f"chestxray_vit.{case.program}")
    try:
        with limited(SECONDS), WATCH.over(root) as seen:
            code = command.main(shlex.split(case.command)[1:])
    except TooLong:
        pytest.fail(f"more than {SECONDS} s", pytrace=False)  # pytest stumbles over where a signal may raise
    assert not seen
    captured = capsys.readouterr()
    return code, captured.out + captured.err + caplog.text


def run_contained(case: Case, root: Path) -> Tuple[int, str]:
    """Run a command in a process that is stopped where it hangs, and has little memory to fill."""
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    programs = f"{root / 'outside' / 'bin'}{os.pathsep}{os.environ['PATH']}"  # ours first, whose run leaves a file
    process = subprocess.Popen(
        [sys.executable, "-m", f"chestxray_vit.{case.program}", *shlex.split(case.command)[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PATH": programs},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, said.decode(errors="replace")


# whose outcome or words are those of newer libraries and a newer interpreter
NEWER = (
    "a bomb in compressed text, ingested",
    "a bomb in international text, ingested",
    "a link that leads out",
    "NUL in a patient's id",
    "names that climb",
)


def _marks(case: Case) -> list:
    if case.name not in NEWER:
        return []
    return [pytest.mark.skipif(sys.version_info < (3, 9), reason="Python 3.8's Pillow and csv say it otherwise")]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{kind}: {case.name}",
            marks=_marks(case),
        )
        for kind, case in CASES
    ],
)
def test_a_hostile_input(case: Case, good, tmp_path, monkeypatch, capsys, caplog):
    if case.program in ("predict", "evaluate"):
        pytest.importorskip("torch")
    root = tmp_path / "case"
    shutil.copytree(good, root, symlinks=True)
    case.make(root)
    monkeypatch.chdir(root)
    before = listing(tmp_path)
    with caplog.at_level("INFO"):
        code, said = run_contained(case, root) if case.contained else run_here(case, root, capsys, caplog)
    after = listing(tmp_path)

    assert "Traceback" not in said, said
    assert code == EXIT_CODES[case.outcome], said
    for words in case.words:
        assert words in said
    assert "\x1b" not in said and "\0" not in said
    touched = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if case.outcome == REFUSE:
        assert "error: " in said
        assert len(re.sub(r"\r[^\r\n]*image/s\]", "", said)) < MOST_SAID  # a slow machine shows more progress
        assert not touched
    else:
        may_write = [f"case/{name}" for name in (*OUTPUTS[case.program], *case.writes)]
        assert {name for name in touched if not any(fnmatch.fnmatch(name, one) for one in may_write)} == set()
        assert {f"case/{name}" for name in OUTPUTS[case.program]} <= touched
    if case.check is not None:
        case.check(root, said)
