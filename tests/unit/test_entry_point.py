"""Exit codes and signals of a command: what ends it, what it prints, and which errors are the user's to mend."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from chestxray_vit.entry_point import Stopped, cli_main, handle_signals
from chestxray_vit.storage.lock import folder_lock


def test_sigterm_unwinds_and_ends_with_143(tmp_path, capsys):
    @cli_main
    def main(argv=None):
        with folder_lock(tmp_path / "folder_lock", ()):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert main([]) == 143
    assert capsys.readouterr().err == "stopped: the process was told to end (SIGTERM)\n"
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
    told = capsys.readouterr().err
    assert told.startswith(DISK_ERRORS[number])
    assert told.endswith(" Earlier outputs are whole.\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O", "a"), OSError("text"), PermissionError(errno.EPERM, "kill")]
)
def test_other_errors_of_the_system_are_defects(error):
    @cli_main
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])
