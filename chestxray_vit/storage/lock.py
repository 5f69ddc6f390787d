"""Locks on files: one process at a time writes a folder. They end with their process, however that ends.

The lock is flock's. On Windows, and on file systems that have no such locks, nothing is locked."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Callable, Iterator, Optional, Sequence

from chestxray_vit.errors import REMEDIES, InputError
from chestxray_vit.storage.atomic import PathLike, remove_leftovers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # name of the file that is locked in a folder of outputs


@contextlib.contextmanager
def folder_lock(folder: PathLike, names: Sequence[str], flag: str = "--output_dir") -> Iterator[None]:
    """Let one process at a time write a command's outputs into a folder, which is made if it is not there.

    While the lock is held, what killed processes left of these names is removed. A folder made here is removed again
    if it stays empty.

    Args:
        folder: of the outputs.
        names: of the files that the command writes there.
        flag: of the command line that names another folder, for the message.

    Raises:
        InputError: another process writes here, or nothing can be written.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]

    def refuse(holder: str) -> None:
        raise InputError(f"{folder}: process {holder} is writing here. Wait for it, or name another place with {flag}.")

    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(folder / LOCK, refuse))
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, f"Name another with {flag}")
            raise InputError(f"{folder}: cannot be written to: {error.strerror}. {remedy}.") from error
        try:
            remove_leftovers(folder, names)
            yield
        finally:
            held.close()  # which removes the lock file
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


@contextlib.contextmanager
def file_lock(path: Path, on_held: Callable[[str], None], keep: bool = False) -> Iterator[bool]:
    """Hold the lock on a file, which is made if it is not there and holds this process's id meanwhile.

    Args:
        path: of the file; its folder must exist.
        on_held: called with the id of the process that holds the lock, if one does. It raises, or returns in order to
            wait for that process.
        keep: leave the file there afterwards, for programs that wait for it without looking whether it was removed.

    Yields:
        Whether the lock is held: False where the system or the file system has none.

    Raises:
        OSError: the file cannot be made or written.
    """
    file = _acquire(path, on_held, keep)
    try:
        yield file is not None
    finally:
        if file is not None:
            if not keep:
                with contextlib.suppress(OSError):  # the folder may be gone
                    path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do: a forked worker shares the file
            file.close()


def _acquire(path: Path, on_held: Callable[[str], None], keep: bool) -> Optional[IO[bytes]]:
    """Return the lock file, locked and with this process's id in it; None where there are no locks."""
    while fcntl is not None:
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(open(path, "a+b", buffering=0))
            try:
                _flock(file, on_held)
            except OSError:  # a file system without locks
                path.unlink()
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else its holder has just removed it
                    if not keep:
                        undo.callback(path.unlink)  # where the disk is full
                    file.truncate(0)
                    file.write(f"{os.getpid()}\n".encode())
                    undo.pop_all()
                    return file
    return None


def _flock(file: IO[bytes], on_held: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_held(os.pread(file.fileno(), 32, 0).decode(errors="replace").strip() or "that has just begun")
        fcntl.flock(file, fcntl.LOCK_EX)
