"""Errors that a user can correct, reported all at once and without a traceback.

A command collects the problems of its input by kind, with a count and the first examples, and raises
them together, so that a file is corrected in one go and not one line a run."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Dict, Iterator, List, Sequence

SHOWN = 3  # examples of one kind of problem; the others are counted
LONGEST = 400  # characters of one example: a cell may hold a megabyte

# Libraries raise RuntimeError for what a user can correct: these words of its text tell which kind it is. The tests of
# this module provoke the libraries' own errors, but for the words that need hardware or an older version.
FOREIGN_WORDS = {
    # torch on the CPU; on CUDA
    "out of memory": ("can't allocate memory", "out of memory"),
    # safetensors, both; torch, which does not say why it could not write, in several versions
    "disk full": ("No space left", "os error 28", "PytorchStreamWriter failed", "iostream error", "unexpected pos"),
    # torch.distributed
    "process lost": ("gloo", "NCCL", "Connection reset", "Connection closed"),
    # torch.utils.data
    "loader ended": ("DataLoader worker",),
}
ELSEWHERE = "or write elsewhere"
REMEDIES = {  # errors of a disk that the user can correct; any other is a defect of ours
    errno.ENOSPC: f"Make room there, {ELSEWHERE}",
    errno.EDQUOT: f"Make room in your quota, {ELSEWHERE}",
    errno.EFBIG: f"Raise the limit on a file's size (ulimit -f), {ELSEWHERE}",
    errno.EROFS: "Write elsewhere: this file system is read-only",
    errno.EACCES: "Look at its owner and mode (ls -ld), or name another",
    errno.EPERM: "Look at its owner and mode (ls -ld), or name another",
}


def visible(text: str) -> str:
    """Return a text with what does not print escaped, but for line ends: a file's words must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def shortened(text: str) -> str:
    """Return a text without its middle where it is long."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... ({len(text):,} characters) ... {text[-half:]}"


class InputError(ValueError):
    """The input is wrong in a way that the user can correct; the text says what, where, and how."""


class Problems:
    """Collects problems by kind.

    >>> problems = Problems("Data_Entry_2017.csv")
    >>> problems.add("unknown finding", "line 812: 'Pneumonía'", remedy="Is the file UTF-8?")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    chestxray_vit.errors.InputError: Data_Entry_2017.csv: unknown finding: line 812: 'Pneumonía'. Is the file UTF-8?
    """

    def __init__(self, where: str):
        self.where = where
        self._examples: Dict[str, List[str]] = {}
        self._remedies: Dict[str, str] = {}

    def add(self, kind: str, example: str, remedy: str = "") -> None:
        """Note one occurrence of a kind of problem."""
        self._examples.setdefault(kind, []).append(shortened(example))
        self._remedies[kind] = remedy

    def __bool__(self) -> bool:
        return bool(self._examples)

    def __str__(self) -> str:
        lines = [self._line(kind, examples) for kind, examples in self._examples.items()]
        if len(lines) == 1:
            return f"{self.where}: {lines[0]}"
        return "\n".join([f"{self.where}: {len(lines)} kinds of problems", *(f"  - {line}" for line in lines)])

    def _line(self, kind: str, examples: Sequence[str]) -> str:
        count = f" ({len(examples):,} times; the first {SHOWN}: " if len(examples) > SHOWN else ": "
        close = ")" if len(examples) > SHOWN else ""
        remedy = f". {self._remedies[kind]}" if self._remedies[kind] else "."
        return f"{kind}{count}{'; '.join(examples[:SHOWN])}{close}{remedy}"

    def raise_if_any(self) -> None:
        """Raise one InputError that lists all that was noted."""
        if self:
            raise InputError(str(self))


def is_disk_error(error: OSError) -> bool:
    """Return whether an error is of a disk or a permission, which the user can correct."""
    of_a_file = error.filename is not None or error.errno not in (errno.EACCES, errno.EPERM)
    return error.errno in REMEDIES and of_a_file


def explain_disk_error(error: OSError) -> str:
    """Return what an error for which `is_disk_error` holds means, and what to do."""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{error.strerror}. {REMEDIES[error.errno or 0]}. Earlier outputs are whole."


def is_foreign(error: BaseException, kind: str) -> bool:
    """Return whether a library's error is of a kind, a key of FOREIGN_WORDS, by its text."""
    return any(words in str(error) for words in FOREIGN_WORDS[kind])


@contextlib.contextmanager
def explain_out_of_memory(num_images: int, remedy: str) -> Iterator[None]:
    """Report a lack of memory, Python's or torch's, as what the user can correct.

    Args:
        num_images: that are computed at once.
        remedy: what to do.

    Raises:
        InputError: in place of the error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or is_foreign(error, "out of memory"):
            raise InputError(f"no memory for {num_images:,} images at once: {remedy}.") from error
        raise
