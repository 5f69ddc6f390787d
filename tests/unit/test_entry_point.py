"""Exit codes and signals of a command: what ends it, what it prints, and which errors are the user's to correct."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from chestxray_vit.entry_point import READER_LEFT, Stopped, cli_main, handle_signals
from chestxray_vit.errors import InputError
from chestxray_vit.storage.lock import folder_lock


def test_sigterm_unwinds_and_ends_with_143(tmp_path, capsys):
    @cli_main
    def main(argv=None):
        with folder_lock(tmp_path / "folder_lock", ()):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert main([]) == 143
    assert capsys.readouterr().err == "stopped: the process was asked to end (SIGTERM)\n"
    assert not (tmp_path / "folder_lock").exists()  # unwound
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_ends_with_130(capsys):
    main = cli_main(lambda argv: signal.raise_signal(signal.SIGINT))
    assert main([]) == 130
    assert capsys.readouterr().err == "stopped by the user\n"


def test_an_ignored_signal_stays_ignored():
    """A shell's job in the background ignores Ctrl-C, which is meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert cli_main(lambda argv: signal.raise_signal(signal.SIGINT) or 7)([]) == 7
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    """There signal.signal raises; a notebook's server may run a command in one."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli_main(lambda argv: 7)([])))
    thread.start()
    thread.join()
    assert codes == [7]


def test_a_second_signal_while_the_first_unwinds():
    script = (
        "import signal, sys; from chestxray_vit.entry_point import cli_main\n"
        "def main(argv):\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    finally: signal.raise_signal(signal.SIGINT); print('never')\n"
        "sys.exit(cli_main(main)([]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 130


def test_handle_signals_hands_over_the_first_signal_only():
    seen = []
    with handle_signals(seen.append):
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_stopped_is_no_error_to_be_caught():
    assert not issubclass(Stopped, Exception)
    assert Stopped(15, "text").number == 15


# Errors of the disk

DISK_ERRORS = {
    errno.ENOSPC: "error: a.csv: No space left on device. Make room there, or write elsewhere. Earlier outputs",
    errno.EDQUOT: "error: a.csv: Disk quota exceeded. Make room in your quota, or write elsewhere. Earlier outputs",
    errno.EFBIG: "error: a.csv: File too large. Raise the limit on a file's size (ulimit -f), or write elsewhere. ",
    errno.EROFS: "error: a.csv: Read-only file system. Write elsewhere: this file system is read-only. Earlier outputs",
    errno.EACCES: "error: a.csv: Permission denied. Look at its owner and mode (ls -ld), or name another. Earlier",
    errno.EPERM: "error: a.csv: Operation not permitted. Look at its owner and mode (ls -ld), or name another.",
}


@pytest.mark.parametrize("number", DISK_ERRORS)
def test_a_disk_error_says_what_to_do(number, capsys):
    @cli_main
    def main(argv=None):
        raise OSError(number, os.strerror(number), "a.csv")

    assert main([]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(DISK_ERRORS[number])
    assert printed.endswith(" Earlier outputs are whole.\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O", "a"), OSError("text"), PermissionError(errno.EPERM, "kill")]
)
def test_other_errors_of_the_system_are_defects(error):
    @cli_main
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


# cli_main


def test_a_command_returns_what_main_returns():
    seen = []

    @cli_main
    def main(argv=None):
        """Run the command."""
        seen.append(argv)
        return 7

    assert main() == 7
    assert main(["a"]) == 7
    assert seen == [None, ["a"]]
    assert (main.__name__, main.__doc__) == ("main", "Run the command.")


def test_an_input_error_is_printed_and_exits_2(capsys):
    @cli_main
    def main(argv=None):
        raise InputError("a.csv: no rows.")

    assert main([]) == 2
    assert capsys.readouterr() == ("", "error: a.csv: no rows.\n")


def test_ctrl_c_is_answered_with_130(capsys):
    @cli_main
    def main(argv=None):
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr() == ("", "stopped by the user\n")


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, SystemExit])
def test_no_other_exception_is_hidden(kind):
    @cli_main
    def main(argv=None):
        raise kind("a defect")

    with pytest.raises(kind, match="a defect"):
        main([])


PRINTING = """
import sys
from chestxray_vit.entry_point import cli_main
@cli_main
def main(argv=None):
    for _ in range({lines}):
        print("a line", flush={flush})
    return 7
sys.exit(main())
"""


@pytest.mark.parametrize("lines, flush, code", [(9, False, 7), (9, True, READER_LEFT), (99999, False, READER_LEFT)])
def test_a_reader_that_leaves_is_no_error(lines, flush, code):
    """As `| head` does: what is done by then counts, and nothing is said."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", PRINTING.format(lines=lines, flush=flush)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=buffered, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (code, b"")


def test_another_broken_pipe_is_a_defect():
    @cli_main
    def main(argv=None):
        raise BrokenPipeError("of a loader")

    with pytest.raises(BrokenPipeError, match="of a loader"):
        main([])
