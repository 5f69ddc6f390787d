"""Files that are whole or not there: written aside, then renamed; and folders that one process writes at a time.

A stage that is killed leaves its earlier output, or none; never half of a new one, nor a mixture of two."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import IO, Any, Iterator, List, Optional, Sequence, Union

from chestxray_vit.errors import REMEDIES, InputError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

PathLike = Union[str, Path]
LOCK = ".lock"
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
    paths = [Path(path) for path in paths]
    folders = ", ".join(str(path) for path in paths if path.is_dir())
    if folders:
        raise InputError(f"{folders}: cannot be written to: a folder of that name is there. Move it away.")
    asides = [path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in paths]
    try:
        yield asides
        for aside in asides:
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        for path in paths[1:]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        for aside, path in zip(asides, paths):
            os.replace(aside, path)
    except OSError as error:
        names = {None: paths[0], **{str(aside): path for aside, path in zip(asides, paths)}}
        error.filename = str(names.get(error.filename, error.filename))
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


def write_json(path: PathLike, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, to_json(content))


def to_json(content: Any) -> str:
    """Return what a JSON file of ours holds. NaN and infinity are refused: JSON has none."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextlib.contextmanager
def folder_lock(folder: PathLike, names: Sequence[str], flag: str = "--output_dir") -> Iterator[None]:
    """Let one process at a time write a stage's outputs into a folder, which is made if it is not there.

    The claim is a lock on a hidden file, which ends with its process however that ends. While it is held, what killed
    processes left of these names is removed. A folder made here is taken away again if it stays empty. Where the
    system has no such locks, nothing is folder_lock.

    Args:
        folder: of the outputs.
        names: of the files that the stage writes there.
        flag: that names another place, for the message.

    Raises:
        InputError: another process writes here, or nothing can be written.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / LOCK, flag)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, f"Name another with {flag}")
        raise InputError(f"{folder}: cannot be written to: {error.strerror}. {remedy}.") from error
    try:
        _sweep(folder, names)
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                (folder / LOCK).unlink()
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do: a forked worker shares the file
            lock.close()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _locked(path: Path, flag: str) -> Optional[IO[bytes]]:
    """Return the lock file, locked and with this process's id in it; None where there are no locks."""
    while fcntl is not None:
        with contextlib.ExitStack() as undone:
            file = undone.enter_context(open(path, "a+b", buffering=0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(file.fileno(), 32, 0).decode(errors="replace").strip() or "that has just begun"
                raise InputError(
                    f"{path.parent}: process {holder} is writing here. Wait for it, or name another place with {flag}."
                ) from error
            except OSError:  # a file system without locks
                path.unlink()
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else its holder has just removed it
                    undone.callback(path.unlink)  # where the disk is full
                    file.truncate(0)
                    file.write(f"{os.getpid()}\n".encode())
                    undone.pop_all()
                    return file
    return None


def _sweep(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed processes left when they wrote these names aside, or a run."""
    parts = "|".join(
        # twice aside, where a file of several was written by a function that does so itself
        f"{re.escape(Path(name).stem)}[.](\\d+)(?:[.]\\d+)?{re.escape(Path(name).suffix)}"
        for name in names
    )
    for entry in [entry for entry in os.scandir(folder) if entry.name.startswith(".")]:
        left = re.fullmatch(f"[.]+(?:{parts})", entry.name)
        if left and not _runs(int(next(filter(None, left.groups())))):
            os.unlink(entry.path)
        elif entry.name.startswith(ASIDE_RUN) and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)


def _runs(process: int) -> bool:
    """Tell whether a process of this id runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def fits(content: Any, shape: Any) -> bool:
    """Tell whether what was read from a JSON file holds what a shape names; it may hold more.

    Args:
        content: of the file.
        shape: a type, or a tuple of them; or a dict of names and shapes; or a list of the one shape of all items.
    """
    if isinstance(shape, dict):
        return isinstance(content, dict) and all(fits(content.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(content, list) and all(fits(item, shape[0]) for item in content)
    return isinstance(content, shape) and not (isinstance(content, bool) and shape is not bool)


def sha256(path: PathLike) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
