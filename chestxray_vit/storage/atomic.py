"""Files that are whole or not there: written aside, then renamed.

A command that is killed leaves its earlier output, or none; never half of a new one, nor a mixture of two."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Iterator, List, Sequence, Union

from chestxray_vit.errors import InputError

PathLike = Union[str, Path]
ASIDE_RUN = ".run."  # how the folder begins in which a run is written aside


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` at the end, remove it on an error.

    The name keeps the suffix, since libraries choose a format by it. The file is synced before the rename.
    """
    with atomic_write_many([path]) as (aside,):
        yield aside


@contextlib.contextmanager
def atomic_write_many(paths: Sequence[PathLike]) -> Iterator[List[Path]]:
    """Give a path beside each of `paths`, as `atomic_write` does, for files that belong together.

    Killed at any moment, what is there is of one writing: once all are written, the earlier ones go, the first last,
    and the new ones come, the first first. An error of the disk names the file that was to be written.

    Raises:
        InputError: a folder has the name of a file.
    """
    targets = [Path(path) for path in paths]
    folders = ", ".join(str(path) for path in targets if path.is_dir())
    if folders:
        raise InputError(f"{folders}: cannot be written to: a folder of that name is there. Move it away.")
    asides = [path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in targets]
    try:
        yield asides
        for aside in asides:
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        for path in targets[1:]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        for aside, path in zip(asides, targets):
            os.replace(aside, path)
    except OSError as error:
        written = {str(aside): str(path) for aside, path in zip(asides, targets)}
        # of an error in a write Python names no file
        error.filename = str(targets[0]) if error.filename is None else written.get(error.filename, error.filename)
        raise
    finally:
        for aside in asides:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()


def write_bytes(path: PathLike, content: Union[bytes, memoryview]) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_bytes(content)


def write_text(path: PathLike, text: str) -> None:
    """Write a text file in UTF-8 with line feeds, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed processes left when they wrote files of these names, or a run, aside.

    The caller holds the folder's lock.
    """
    parts = "|".join(
        # twice aside, where a file of several was written by a function that does so itself
        f"{re.escape(Path(name).stem)}[.](\\d+)(?:[.]\\d+)?{re.escape(Path(name).suffix)}"
        for name in names
    )
    for entry in [entry for entry in os.scandir(folder) if entry.name.startswith(".")]:
        left = re.fullmatch(f"[.]+(?:{parts})", entry.name)
        if left and not _is_running(int(next(filter(None, left.groups())))):
            os.unlink(entry.path)
        elif entry.name.startswith(ASIDE_RUN) and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)


def _is_running(process: int) -> bool:
    """Return whether a process of this id is running."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def sha256(path: PathLike) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
