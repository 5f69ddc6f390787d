"""What a user can mend, told all at once and without a traceback; and how a stage ends that is told to.

A stage collects the problems of its input by kind, with a count and the first examples, and raises
them together, so that a file is mended in one go and not one line a run."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
import threading
from typing import Callable, Dict, Iterator, List, Optional, Sequence

SHOWN = 3  # examples of one kind of problem; the count tells the rest
LONGEST = 400  # characters of one example: a cell may hold a megabyte

READER_LEFT = 141  # the exit code, as a shell has it of SIGPIPE
NO_MEMORY = ("can't allocate memory", "out of memory")  # words of torch's errors
LOADERS_GRACE = 30  # seconds that a forked process has after SIGTERM, in which its parent finishes
ELSEWHERE = "or write elsewhere"
REMEDIES = {  # errors of a disk that the user can mend; any other is a defect of ours
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
    """The input is wrong in a way that the user can mend; the text says what, where, and how."""


class Stopped(KeyboardInterrupt):
    """The process was told to end: unwinds as Ctrl-C does.

    Attributes:
        number: of the signal; the exit code is 128 more, as a shell has it.
    """

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


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
        """Raise one InputError that tells all that was noted."""
        if self:
            raise InputError(str(self))


def cli_main(main: Callable[[Optional[Sequence[str]]], int]) -> Callable[..., int]:
    """Make a stage's `main` answer what a user can mend with its text and exit code 2, and signals as `handle_signals` says.

    A full disk, a read-only one, a quota and a missing permission are among it: what was there before is whole. Where
    nobody reads what is printed to its end (`| head`), that is no error.
    """

    @functools.wraps(main)
    def stage(argv: Optional[Sequence[str]] = None) -> int:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        for ours in ("chestxray_vit", "__main__"):  # a stage run by `python -m` logs as __main__
            logging.getLogger(ours).setLevel(logging.INFO)
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's has it not
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot hold is no reason to stop
        try:
            with handle_signals(_unwind):
                code = main(argv)
            _printed("")
            return code
        except InputError as error:
            return _told(f"error: {visible(str(error))}", 2)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not _printed("\n"):
                return READER_LEFT
            if not is_disk_error(error):
                raise
            return _told(f"error: {visible(explain_disk_error(error))}", 2)
        except Stopped as stop:
            return _told(visible(str(stop)), 128 + stop.number)
        except KeyboardInterrupt:
            return _told("stopped by the user", 128 + signal.SIGINT)

    return stage


def _printed(text: str) -> bool:
    """Print; if the reader has left, return False and print no more: Python would complain of it at its end."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _told(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def is_disk_error(error: OSError) -> bool:
    """Tell whether an error is of a disk or a permission, which the user can mend."""
    of_a_file = error.filename is not None or error.errno not in (errno.EACCES, errno.EPERM)
    return error.errno in REMEDIES and of_a_file


def explain_disk_error(error: OSError) -> str:
    """Return what to tell of an error for which `is_disk_error` holds."""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{error.strerror}. {REMEDIES[error.errno]}. Earlier outputs are whole."


@contextlib.contextmanager
def explain_out_of_memory(num_images: int, remedy: str) -> Iterator[None]:
    """Tell a lack of memory, Python's or torch's, as what the user can mend.

    Args:
        num_images: that are computed at a time.
        remedy: what to do.

    Raises:
        InputError: in place of the error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            raise InputError(f"no memory for {num_images:,} images at a time: {remedy}.") from error
        raise


@contextlib.contextmanager
def handle_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of the first SIGINT or SIGTERM; the second ends the process at once.

    Signals that are ignored stay so (as of a job in the background), and so does everything outside the main thread.
    Afterwards the handlers of before come back.
    """
    first: List[int] = []
    owner = os.getpid()

    def receive(number: int, _frame) -> None:
        if os.getpid() != owner:  # a loader, which its parent ends; it gets what a terminal or scheduler sends to all
            if number == signal.SIGTERM:
                signal.alarm(LOADERS_GRACE)
            return
        if first:
            os._exit(128 + number)
        first.append(number)
        handle(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: earlier for number, earlier in before.items() if earlier not in (signal.SIG_IGN, None)}
    try:
        for number in taken:
            signal.signal(number, receive)
        yield
    finally:
        for number, earlier in taken.items():
            signal.signal(number, earlier)


def _unwind(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number, "stopped: the process was told to end (SIGTERM)")
