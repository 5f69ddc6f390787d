"""Run every step on synthetic X-rays: draw a release, ingest, train, evaluate and report; three minutes on any CPU.

    python -m chestxray_vit.demo

Each step is a command of its own, printed before it runs: what the demo does, a user can do by hand."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional, Sequence

from chestxray_vit.data.synthetic.release import draw_release
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.storage.atomic import write_text
from chestxray_vit.storage.lock import LOCK, folder_lock

logger = logging.getLogger(__name__)

MARKER = "this_is_a_demo.txt"  # only a folder with this file is ever replaced
NUM_PATIENTS, IMAGE_SIZE, SEED = 1000, 64, 1337
RECIPE = (
    "--from_scratch --image_size 64 --patch_size 8 --hidden_size 96 --num_hidden_layers 4 --num_attention_heads 4 "
    "--intermediate_size 384 --global_batch_size 32 --num_train_epochs 9 --learning_rate 1e-3"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command's arguments."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.demo",
        description="Draw synthetic X-rays, ingest them, train a small ViT, report its AUC: three minutes on a CPU.",
        allow_abbrev=False,
    )
    result.add_argument("--output_dir", type=Path, default=Path("demo"), help="folder to make (default: demo)")
    result.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="engine (default: auto)")
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    start = time.monotonic()
    _check(args.output_dir)
    with folder_lock(args.output_dir, (MARKER,)):
        _make_room(args.output_dir)
        _run_steps(args)
    print(
        f"\nThe demo took {time.monotonic() - start:.0f} s. "
        "The X-rays are synthetic: these AUCs say nothing about patients."
    )
    return 0


def _run_steps(args: argparse.Namespace) -> None:
    """Run every step, in an empty folder."""
    release, run, report = (args.output_dir / name for name in ("release", "run", "report"))
    logger.info("drawing synthetic X-rays of %s patients into %s", NUM_PATIENTS, release)
    draw_release(release, num_patients=NUM_PATIENTS, image_size=IMAGE_SIZE, seed=SEED)
    _run_command("ingest", str(release))
    recipe = ["--device", args.device, *RECIPE.split()]
    _run_command("train", "--dataset_dir", str(release), "--output_dir", str(run), *recipe)
    device = ["--device", args.device, "--thumbnails", "true"]  # thumbnails: no patients' data here
    _run_command("evaluate", str(run), "--dataset_dir", str(release), "--output_dir", str(report), *device)
    print(f"\nOpen {report / 'auc.html'} (the report), {run / 'loss.png'} (training), {release / 'images'} (X-rays).")


def _check(folder: Path) -> None:
    """Refuse a folder that holds something, unless it is an earlier demo's."""
    if folder.is_dir() and not (folder / MARKER).is_file() and os.listdir(folder) not in ([], [LOCK]):
        raise InputError(f"{folder}: exists and is not a demo's folder. Name another with --output_dir.")


def _make_room(folder: Path) -> None:
    """Empty the folder of an earlier demo, except for its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (MARKER, LOCK):
            path.unlink()
    write_text(folder / MARKER, "Made by python -m chestxray_vit.demo, which replaces this folder when run again.\n")


def _run_command(name: str, *arguments: str) -> None:
    """Run a command in a process of its own, and stop the demo where it fails."""
    print(f"\n$ python -m chestxray_vit.{name} {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", f"chestxray_vit.{name}", *arguments]
    code = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
    if code:
        raise InputError(f"the demo stopped: {name} ended with exit code {code}; its messages are above.")


if __name__ == "__main__":
    sys.exit(main())
