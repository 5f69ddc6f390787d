"""The one lock: refuses, or waits, and says for whom. tests/robustness/test_one_writer.py holds it among processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

pytest.importorskip("fcntl")

from chestxray_vit.storage.lock import file_lock

HOLD = (
    "import sys; from pathlib import Path; from chestxray_vit.storage.lock import file_lock\n"
    "with file_lock(Path(sys.argv[1]), print, keep=sys.argv[2] == 'keep'):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def held_elsewhere(path, keep):
    words = [sys.executable, "-c", HOLD, str(path), "keep" if keep else "remove"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def never(holder):
    pytest.fail(f"nobody holds it, not even {holder}")


@pytest.mark.parametrize("keep", [False, True])
def test_the_file_holds_the_process_meanwhile(tmp_path, keep):
    path = tmp_path / "lock"
    path.write_text("a longer text of an earlier holder")
    for _ in range(2):
        with file_lock(path, never, keep) as is_held:
            assert is_held
            assert path.read_text() == f"{os.getpid()}\n"
        assert path.exists() == keep


@pytest.mark.parametrize("keep", [False, True])
def test_one_that_returns_waits_for_the_holder(tmp_path, keep):
    path, holders, entered = tmp_path / "lock", [], threading.Event()
    holder = held_elsewhere(path, keep)

    def wait():
        with file_lock(path, holders.append, keep):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not entered.wait(0.3)
    assert holders == [str(holder.pid)]
    holder.communicate()
    assert entered.wait(10)
    thread.join()
    assert holders == [str(holder.pid)]
    assert path.exists() == keep


def test_one_that_raises_leaves_the_holders_file(tmp_path):
    path = tmp_path / "lock"
    holder = held_elsewhere(path, keep=False)

    def refuse(process):
        raise RuntimeError(f"held by {process}")

    with pytest.raises(RuntimeError, match=f"held by {holder.pid}$"), file_lock(path, refuse):
        pytest.fail("both hold it")
    assert path.read_text() == f"{holder.pid}\n"
    holder.communicate()
    assert not path.exists()


def test_a_holder_that_has_not_written_its_id_yet(tmp_path):
    import fcntl

    holders = []
    with open(tmp_path / "lock", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def release(holder):
            holders.append(holder)
            fcntl.flock(file, fcntl.LOCK_UN)

        with file_lock(tmp_path / "lock", release):
            pass
    assert holders == ["that has just begun"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "nowhere" / "lock", never):
        pass
