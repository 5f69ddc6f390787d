"""How every command starts and ends: exit codes, signals, logging.

Exit code 0: done. 1: done in part, as the command says. 2: the input is wrong in a way that the user can correct.
128 + N: ended by signal N."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from typing import Callable, Iterator, List, Optional, Sequence

from chestxray_vit.errors import InputError, explain_disk_error, is_disk_error, visible

READER_LEFT = 141  # the exit code, as a shell has it of SIGPIPE
LOADERS_GRACE = 30  # seconds that a forked process has after SIGTERM, in which its parent finishes


class Stopped(KeyboardInterrupt):
    """The process was asked to end: unwinds as Ctrl-C does.

    Attributes:
        number: of the signal; the exit code is 128 more, as a shell has it.
    """

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


def cli_main(main: Callable[[Optional[Sequence[str]]], int]) -> Callable[..., int]:
    """Make a command's `main` print an error that a user can correct and return 2, and end on signals.

    A full disk, a read-only one, a quota and a missing permission are among these errors: what was there before is
    whole. A reader of the output that leaves early (`| head`) is no error.
    """

    @functools.wraps(main)
    def command(argv: Optional[Sequence[str]] = None) -> int:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        for ours in ("chestxray_vit", "__main__"):  # a command run by `python -m` logs as __main__
            logging.getLogger(ours).setLevel(logging.INFO)
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's has none
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot hold is no reason to stop
        try:
            with handle_signals(_unwind):
                code = main(argv)
            _printed("")
            return code
        except InputError as error:
            return _end_with(f"error: {visible(str(error))}", 2)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not _printed("\n"):
                return READER_LEFT
            if not is_disk_error(error):
                raise
            return _end_with(f"error: {visible(explain_disk_error(error))}", 2)
        except Stopped as stop:
            return _end_with(visible(str(stop)), 128 + stop.number)
        except KeyboardInterrupt:
            return _end_with("stopped by the user", 128 + signal.SIGINT)

    return command


def _printed(text: str) -> bool:
    """Print; if the reader has left, return False and print no more: Python would report that as it ends."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _end_with(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


@contextlib.contextmanager
def handle_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of the first SIGINT or SIGTERM; the second ends the process at once.

    Signals that are ignored stay ignored (as in a job in the background); outside the main thread nothing changes.
    Afterwards the earlier handlers are restored.
    """
    first: List[int] = []
    owner = os.getpid()

    def receive(number: int, _frame: object) -> None:
        if os.getpid() != owner:  # a loader, which its parent ends; a terminal or scheduler signals it too
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
    raise Stopped(number, "stopped: the process was asked to end (SIGTERM)")
