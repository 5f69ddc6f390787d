"""One process at a time writes a folder; what killed ones left is removed, and no litter stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("fcntl")

import fcntl

from chestxray_vit.errors import InputError
from chestxray_vit.storage import lock
from chestxray_vit.storage.atomic import atomic_write_many
from chestxray_vit.storage.lock import LOCK, folder_lock

HOLD = (
    "import sys, time; from chestxray_vit.storage.lock import folder_lock\n"
    "with folder_lock(sys.argv[1], ()):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Return a process that locks a folder until its standard input ends."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_by_the_firsts_id(holder, tmp_path):
    with pytest.raises(InputError) as error, folder_lock(tmp_path / "out", (), "--output"):
        pytest.fail("both hold it")
    assert str(error.value) == (
        f"{tmp_path / 'out'}: process {holder.pid} is writing here. Wait for it, or name another place with --output."
    )
    assert os.listdir(tmp_path / "out") == [LOCK]  # the first's, still
    holder.communicate()
    with folder_lock(tmp_path / "out", ()):
        assert (tmp_path / "out" / LOCK).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "out").exists()  # made and taken away again


def test_a_killed_holders_lock_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(tmp_path / "out") == [LOCK]
    with folder_lock(tmp_path / "out", ()):
        assert (tmp_path / "out" / LOCK).read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path / "out") == []


def test_folders_made_for_nothing_go_again(tmp_path):
    with pytest.raises(RuntimeError), folder_lock(tmp_path / "a" / "b", ()):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with folder_lock(tmp_path / "a" / "b", ()):
        (tmp_path / "a" / "b" / "kept").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["kept"]
    (tmp_path / "empty").mkdir()
    with folder_lock(tmp_path / "empty", ()):
        pass
    assert (tmp_path / "empty").is_dir()  # not made here


def test_two_locks_of_one_process(tmp_path):
    """Flock is of an open file: the second is refused, as another process would be."""
    with folder_lock(tmp_path, ()), pytest.raises(InputError, match=f"process {os.getpid()} is writing"), folder_lock(
        tmp_path, ()
    ):
        pass


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lives = os.getppid()
    left = [f".auc.{gone.pid}.json", f".metadata.{gone.pid}.jsonl", ".auc.99999999999999999999.json"]
    left += [f"..auc.{gone.pid}.{gone.pid}.json"]
    kept = [
        f".auc.{lives}.json",
        f".other.{gone.pid}.json",
        f".auc.{gone.pid}.csv",
        f"auc.{gone.pid}.json",
        f".aucx{gone.pid}.json",
        ".auc.json",
        "auc.json",
    ]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".run.abc").mkdir()
    (tmp_path / ".run.abc" / "model.safetensors").touch()
    (tmp_path / ".run.file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / ".run.link").symlink_to(tmp_path / "run")
    with folder_lock(tmp_path, ("auc.json", "metadata.jsonl")):
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".run.file", ".run.link", "run", LOCK])


def test_leftovers_stay_without_the_lock(holder, tmp_path):
    (tmp_path / "out" / ".run.abc").mkdir()
    with pytest.raises(InputError), folder_lock(tmp_path / "out", ()):
        pass
    assert (tmp_path / "out" / ".run.abc").is_dir()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = pytest.raises(InputError, match="cannot be written to: .*[.] Name another with --output_dir[.]")
        with refused, folder_lock(folder, ()):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder_lock(tmp_path, ()), folder_lock(tmp_path, ()):
        assert os.listdir(tmp_path) == []


def test_on_windows_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with folder_lock(tmp_path / "out", ()), folder_lock(tmp_path / "out", ()):
        assert os.listdir(tmp_path / "out") == []


def test_a_lock_file_that_its_holder_removes_meanwhile(tmp_path, monkeypatch):
    """Between opening and locking: the lock would be one on a file that no other process finds."""
    flock, locked = fcntl.flock, []

    def race(file, how):
        flock(file, how)
        if not locked:
            locked.append(file)
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", race)
    with folder_lock(tmp_path, ()):
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(InputError, match="is writing here"), folder_lock(tmp_path, ()):
            pass
    assert os.listdir(tmp_path) == []


CONTEND = """
import os, sys, time
from chestxray_vit.storage.lock import folder_lock
from chestxray_vit.errors import InputError
won = 0
deadline = time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline:
    try:
        with folder_lock(sys.argv[1], ()):
            os.close(os.open(sys.argv[1] + "/alone", os.O_CREAT | os.O_EXCL))  # fails where another is inside
            os.unlink(sys.argv[1] + "/alone")
            won += 1
    except InputError:
        pass
print(won)
"""


def test_contenders_are_never_inside_together(tmp_path):
    words = [sys.executable, "-c", CONTEND, str(tmp_path / "out"), "1.5"]
    (tmp_path / "out").mkdir()
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=60) for process in running]
    assert [errors for _, errors in answers] == [""] * 4
    assert sum(int(won) for won, _ in answers) > 100
    assert os.listdir(tmp_path / "out") == []


# Files that belong together


def test_files_together_come_at_the_end(tmp_path):
    paths = [tmp_path / "a.csv", tmp_path / "b.json"]
    for text in ("old", "new"):
        with atomic_write_many(paths) as asides:
            for aside in asides:
                aside.write_text(text)
            assert [path.exists() and path.read_text() == "old" for path in paths] == [text == "new"] * 2
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.json"]


KILL_AT = """
import os, signal, sys
from chestxray_vit.storage import atomic as files
calls = [0]
def counted(call):
    def counting(*words, **more):
        calls[0] += 1
        if calls[0] == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return counting
files.os.replace, files.os.fsync, files.Path.unlink = map(counted, (os.replace, os.fsync, files.Path.unlink))
paths = sys.argv[2:]
with files.atomic_write_many(paths) as asides:
    for aside in asides:
        aside.write_text("new")
"""


def test_killed_at_any_call_they_are_of_one_writing(tmp_path):
    names = ("a.csv", "b.csv", "c.json")
    seen = set()
    for call in range(1, 20):
        folder = tmp_path / str(call)
        folder.mkdir()
        for name in names:
            (folder / name).write_text("old")
        words = [sys.executable, "-c", KILL_AT, str(call), *(str(folder / name) for name in names)]
        killed = subprocess.run(words, timeout=60).returncode == -signal.SIGKILL
        found = {name: (folder / name).read_text() for name in names if (folder / name).exists()}
        assert len(set(found.values())) == 1
        assert "a.csv" in found  # the first is always there
        seen.add((found["a.csv"], len(found)))
        if not killed:
            break
    assert seen >= {("old", 3), ("old", 1), ("new", 1), ("new", 3)}
    assert not killed


def test_a_disk_error_names_the_file_that_was_meant(tmp_path):
    with pytest.raises(OSError) as error, atomic_write_many([tmp_path / "a.csv", tmp_path / "b.json"]) as asides:
        raise OSError(errno.ENOSPC, "No space left on device", str(asides[1]))
    assert error.value.filename == str(tmp_path / "b.json")
    with pytest.raises(OSError) as error, atomic_write_many([tmp_path / "a.csv"]):
        raise OSError(errno.ENOSPC, "No space left on device")  # of a write: Python names no file
    assert error.value.filename == str(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError) as error, atomic_write_many([tmp_path / "a.csv"]):
        (tmp_path / "input").read_text()
    assert error.value.filename == str(tmp_path / "input")


def test_locking_is_cheap(tmp_path):
    start = time.perf_counter()
    for _ in range(100):
        with folder_lock(tmp_path, ("auc.json",)):
            pass
    assert (time.perf_counter() - start) / 100 < 0.05
