"""Hostile inputs, and the three promises that hold on each of them.

The output is right, or a clear error says how to correct the input; nothing of the user's is lost or half overwritten
by an output; nothing outside the folder is read, written or executed. A case says how to spoil a good input, which
command meets it, and what must come of it; test_corpus.py holds the promises on every case, test_fuzz_*.py on random
ones.

A case's folder is a copy of a good one:

    release/      a synthetic release, 64 px; its metadata.jsonl and report are stale, to be replaced or left
    expected/     the metadata.jsonl that the good release gives
    run/          a tiny ViT, drawn at random
    xrays/        plain.png, good.png
    predictions/  a good predictions.csv, and a stale report
    config/       a good ipu_config.json
    outside/      what nothing may touch: an image, a table, weights"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

ACCEPT, NOTICE, PARTLY, REFUSE = "accept", "notice", "partly", "refuse"
EXIT_CODES = {ACCEPT: 0, NOTICE: 0, PARTLY: 1, REFUSE: 2}  # PARTLY: `predict` left out an image that it cannot read
STALE = b"of an earlier run\n"

# What a command may write, by its first word; all of it is stale before.
OUTPUTS: Dict[str, Tuple[str, ...]] = {
    "ingest": ("release/images/metadata.jsonl", "release/images/ingest_report.json"),
    "predict": ("scores.csv",),
    "evaluate": tuple(
        f"scored/{name}"
        for name in (
            "predictions.csv predictions_validation.csv evaluation.json auc.json auc.schema.json auc.csv auc.md "
            "auc.html operating_points.csv subgroups.csv"
        ).split()
    ),
    "report": tuple(
        f"predictions/{name}"
        for name in "auc.json auc.schema.json auc.csv auc.md auc.html operating_points.csv subgroups.csv".split()
    ),
    "plan": (),
}


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: in a few words, unique within its kind.
        make: spoils the copy of the good folder that it is given.
        command: its name and its arguments; paths are relative to the folder.
        outcome: ACCEPT, NOTICE, PARTLY or REFUSE.
        words: that the message must hold.
        check: of what was written and said, given the folder and the message; raises where that is wrong.
        writes: patterns of paths that may be written besides the outputs of the command.
        contained: run in a process of its own, with a limit of time and memory: it might hang, crash, or fill both.
    """

    name: str
    make: Callable[[Path], object]
    command: str
    outcome: str
    words: Tuple[str, ...] = ()
    check: Optional[Callable[[Path, str], None]] = None
    writes: Tuple[str, ...] = ()
    contained: bool = False

    @property
    def program(self) -> str:
        """The first word of the command."""
        return self.command.split()[0]


def put(path: Path, content: bytes) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
