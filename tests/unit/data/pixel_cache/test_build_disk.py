"""A disk that is full, or fails, is reported with a remedy, and what was whole stays."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from chestxray_vit.data.pixel_cache import build as build_module
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.cache import cache_bytes
from chestxray_vit.data.pixel_cache.key import Resize
from tests.helpers.pixel_cache import BICUBIC, REMEDY, built, expected_HW, refusal, write_images


@contextlib.contextmanager
def small_disk(folder, num_bytes):
    """Mount a file system of so many bytes, or skip: only root may."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_too_small(data, tmp_path):
    with small_disk(tmp_path / "cache", 1 << 20):
        text = refusal(data, tmp_path, size=(500, 400))
        (folder,) = (tmp_path / "cache").iterdir()
        needed = cache_bytes(7, (500, 400))
        assert re.sub(r"[\d,]+ are free", "F are free", text) == (
            f"cache/{folder.name}: no room for the pixel cache of 7 images: it takes {needed:,} bytes, {needed:,} of "
            f"them are still needed, F are free. What is done stays. Make room and run again, {REMEDY}."
        )
        free = int(re.search(r"([\d,]+) are free", text).group(1).replace(",", ""))
        assert 900_000 < free <= 1 << 20
        assert os.listdir(folder) == ["lock"]
        assert built(data, tmp_path, size=(50, 40)).pixels_NHW.shape == (7, 40, 50)


def test_a_disk_that_others_fill_meanwhile(data, tmp_path, monkeypatch):
    """The check of the free space passes, and the reservation fails: the space is given back."""
    with small_disk(tmp_path / "cache", 1 << 20):
        usage = os.statvfs(tmp_path / "cache")
        monkeypatch.setattr(build_module, "_needed_bytes", lambda key: 0)
        assert re.search(r"no room .*\(No space left on device\)$", refusal(data, tmp_path, size=(500, 400)))
        assert usage.f_bavail - os.statvfs(tmp_path / "cache").f_bavail < 8


def test_a_file_system_with_a_limit_on_files(data, tmp_path):
    code = """
        import os, resource, sys
        from chestxray_vit.data.pixel_cache.build import build_cache
        from chestxray_vit.data.pixel_cache.key import Resize
        from chestxray_vit.errors import InputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            build_cache(sys.argv[1], sorted(os.listdir(sys.argv[1])), Resize((500, 400), 3), sys.argv[2])
        except InputError as error:
            print(error)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(data[0]), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert re.search(
        r"no room for the pixel cache of 7 images: it takes 1,400,455 bytes, .*\(File too large\)$", done.stdout
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("sync", [2, 3])  # of the syncs: the pixels of the second half window, or its marks
def test_a_disk_that_fails_later_keeps_what_was_whole(tmp_path, monkeypatch, decoded, code, sync):
    data = tmp_path / "data", write_images(tmp_path / "data", 400)
    fsync, calls = os.fsync, []

    def failing(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith(("pixels.u8", "done.u8")):
            calls.append(file)
            if len(calls) == sync + 1:
                raise OSError(code, os.strerror(code))
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)
    text = refusal(data, tmp_path)
    assert ("cannot be used" if code == errno.EIO else "no room for the pixel cache") in text
    assert os.strerror(code) in text
    assert REMEDY in text
    decoded.clear()
    cache = built(data, tmp_path)
    assert sum(decoded.values()) <= 400 - 128
    for row in (0, 127, 128, 399):
        assert np.array_equal(cache.pixels_NHW[row], expected_HW(data[0] / data[1][row], (6, 5)))


def test_a_file_system_that_reserves_nothing(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    expected = built(data, tmp_path).pixels_NHW.tobytes()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    cache = build_cache(*data, Resize((6, 5), BICUBIC), tmp_path / "other")
    assert cache.pixels_NHW.tobytes() == expected


def test_a_reservation_that_fails_half_way_is_given_back(data, tmp_path, monkeypatch):
    def half(file, offset, length):
        os.ftruncate(file, length // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", half)
        assert "no room for the pixel cache of 7 images" in refusal(data, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    assert (folder / "pixels.u8").stat().st_size == 0
    assert len(built(data, tmp_path).file_names) == 7
