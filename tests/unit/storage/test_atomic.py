"""A file is whole or not there: whatever stops its writer, the old one stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from chestxray_vit.storage.atomic import atomic_write, sha256, write_text


def test_write_text_is_utf8_with_line_feeds(tmp_path):
    path = tmp_path / "a.txt"
    write_text(str(path), "Röntgen\n1\n")
    assert path.read_bytes() == b"R\xc3\xb6ntgen\n1\n"
    write_text(path, "2")
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_raising_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as aside:
        aside.write_text("half of a new")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_writer_that_wrote_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.parametrize("old", [None, "old"])
def test_a_killed_writer_leaves_the_old_file_or_none(tmp_path, old):
    path = tmp_path / "a.jsonl"
    if old is not None:
        path.write_text(old)
    script = (
        "import os, signal, sys; from chestxray_vit.storage.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as aside:\n"
        "    aside.write_text('half of a new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert path.exists() == (old is not None)
    assert not path.exists() or path.read_text() == old
    leftovers = [name for name in os.listdir(tmp_path) if name != "a.jsonl"]
    assert all(name.startswith(".") for name in leftovers)  # ImageFolder and glob pass over hidden files


def test_the_new_file_appears_at_the_end_only(tmp_path):
    path = tmp_path / "deep.name.json"
    with atomic_write(path) as aside:
        assert aside.parent == tmp_path
        assert aside.suffix == ".json"  # libraries choose a format by it
        aside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["deep.name.json"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"")
    assert sha256(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(str(path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000)  # appendix B.3
    assert sha256(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    path.write_bytes(bytes((1 << 20) + 1))  # one byte more than a block
    assert sha256(path) == "2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264"
