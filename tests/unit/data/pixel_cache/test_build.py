"""A build names what it cannot read, survives a kill and a rival, and repairs what is damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.pixel_cache import build as build_module
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.errors import InputError
from tests.helpers.pixel_cache import BICUBIC, REMEDY, built, cut, expected_HW, refusal, start, wait_for, write_images


def stopped(path):
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["rewritten", "replaced", "removed"])
def test_an_image_that_changes_during_the_build_stops_it(data, tmp_path, monkeypatch, how):
    path, read = data[0] / data[1][4], build_module._read

    def changing(source):
        if source == str(path) and how == "rewritten":
            Image.new("L", (9, 9)).save(path)
        elif source == str(path):
            path.unlink()
            if how == "replaced":
                os.link(data[0] / data[1][5], path)
        return read(source)

    monkeypatch.setattr(build_module, "_read", changing)
    expected = f"data/{data[1][4]}: changed while the pixel cache was being built. Run again when all is in place."
    assert refusal(data, tmp_path) == expected


@pytest.mark.parametrize("name", ["pixels.u8", "cache.json", "unreadable.json", "done.u8"])
@pytest.mark.parametrize("keep", [None, 0, 70])
def test_a_damaged_cache_is_mended(data, tmp_path, decoded, name, keep):
    cache = built(data, tmp_path)
    whole = cache.pixels_NHW.tobytes()
    if keep is None:
        (cache.folder / name).unlink()
    else:
        os.truncate(cache.folder / name, keep if name == "pixels.u8" else keep // 7)
    again = built(data, tmp_path)
    assert again.pixels_NHW.tobytes() == whole
    # 70 bytes are two rows of 30
    assert sum(decoded.values()) - 7 == ({None: 7, 0: 7, 70: 5}[keep] if name == "pixels.u8" else 0)


def test_a_mending_that_is_stopped_leaves_no_whole_cache(data, tmp_path, monkeypatch):
    cache = built(data, tmp_path)
    whole = cache.pixels_NHW.tobytes()
    os.truncate(cache.folder / "pixels.u8", 0)
    monkeypatch.setattr(build_module, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        built(data, tmp_path)
    monkeypatch.undo()
    assert built(data, tmp_path).pixels_NHW.tobytes() == whole


def test_unreadable_images_stop_the_build_at_its_end(data, tmp_path, decoded):
    cut(data, 0, 2, 5)
    (data[0] / data[1][6]).write_bytes(b"")
    text = refusal(data, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    reason = "cannot be decoded: [^;]+?"  # each version of Pillow has its own words
    pattern = (
        rf"data: 4 of 7 images cannot be read \(first: {data[1][0]}: {reason}; {data[1][2]}: {reason}; "
        rf"{data[1][5]}: {reason}; all: cache/{folder.name}/unreadable.json\). "
        r"Fetch them again, or leave them out with --allow_unreadable."
    )
    assert re.fullmatch(pattern, text)
    assert json.loads((folder / "unreadable.json").read_text())[data[1][6]] == "an empty file"
    assert (folder / "done.u8").read_bytes() == b"\2\1\2\1\1\2\2"
    assert not (folder / "cache.json").exists()
    decoded.clear()
    assert refusal(data, tmp_path) == text
    assert set(decoded) == {data[1][row] for row in (0, 2, 5, 6)}  # the good ones stay done


def test_unreadable_images_are_left_out_if_allowed(data, tmp_path, decoded, caplog):
    caplog.set_level(logging.INFO)
    cut(data, 2)
    folder, names = data
    cache = built(data, tmp_path, allow_unreadable=True)
    assert list(cache.unreadable) == [names[2]]
    assert "7 images of 6x5, 1 unreadable ones left out, in" in caplog.text
    assert not cache.pixels_NHW[2].any()
    assert cache.rows_of([names[3], names[1]]).tolist() == [3, 1]
    assert np.array_equal(cache.pixels_NHW[3], expected_HW(folder / names[3], (6, 5)))
    with pytest.raises(InputError, match=re.escape(f"1 of 7 images are not in the pixel cache (first: {names[2]}: ")):
        cache.rows_of(names)
    decoded.clear()
    again = built(data, tmp_path, allow_unreadable=True)
    assert (again.unreadable, decoded) == (cache.unreadable, {})
    assert "1 of 7 images cannot be read" in refusal(data, tmp_path)  # not allowed: tried again
    assert set(decoded) == {names[2]}
    assert built(data, tmp_path, allow_unreadable=True).unreadable == cache.unreadable


def test_an_image_that_can_be_read_again_is_taken_in(data, tmp_path, monkeypatch):
    read = build_module._read

    def forbidden(path):
        if os.path.basename(path) == data[1][2]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(build_module, "_read", forbidden)
    reasons = built(data, tmp_path, allow_unreadable=True).unreadable
    assert reasons == {data[1][2]: "cannot be read: Permission denied"}
    monkeypatch.undo()
    cache = built(data, tmp_path)  # a mode is no part of the key
    assert cache.unreadable == {}
    assert np.array_equal(cache.pixels_NHW[2], expected_HW(data[0] / data[1][2], (6, 5)))


def test_a_cache_folder_that_is_a_file(data, tmp_path):
    (tmp_path / "cache").write_text("")
    text = refusal(data, tmp_path)
    assert re.match(r"cache/\w{16}: the pixel cache cannot be used: .*Not a directory", text)
    assert text.endswith(f"Correct that, {REMEDY}.")


def test_a_killed_build_goes_on_and_does_at_most_256_again(tmp_path):
    names = write_images(tmp_path / "data", 1500)
    data, log, generator = (tmp_path / "data", names), tmp_path / "decoded", random.Random(1337)
    log.write_bytes(b"")
    again, status = 0, None
    while status != 0:
        stop = log.read_bytes().count(b"\n") + generator.randint(1, 700)
        process = start(data, tmp_path, pause=0.0005)
        wait_for(lambda p=process, stop=stop: p.poll() is not None or log.read_bytes().count(b"\n") >= stop)
        time.sleep(generator.random() / 50)
        process.kill()
        process.communicate()
        status = process.returncode
        assert status in (0, -signal.SIGKILL)
        done = log.read_text().split()
        repeated = len(done) - len(set(done)) - again
        assert repeated <= 256
        again += repeated
    assert again > 0
    assert set(done) == set(names)
    undisturbed = build_cache(data[0], names, Resize((6, 5), BICUBIC), tmp_path / "undisturbed")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == undisturbed.folder.name
    assert (folder / "pixels.u8").read_bytes() == undisturbed.pixels_NHW.tobytes()


def test_marks_follow_pixels_to_the_disk(tmp_path, monkeypatch, decoded):
    """What is marked when a file is synced had its pixels synced before; unmarked are at most 256."""
    names = write_images(tmp_path / "data", 700)
    synced, fsync = [], os.fsync

    def watched(file):
        fsync(file)
        target = os.readlink(f"/proc/self/fd/{file}")
        if target.endswith(("pixels.u8", "done.u8")):
            marked = sum((Path(target).parent / "done.u8").read_bytes())
            synced.append((Path(target).name, marked))
            assert sum(decoded.values()) - marked <= 256

    monkeypatch.setattr(os, "fsync", watched)
    build_cache(tmp_path / "data", names, Resize((6, 5), BICUBIC), tmp_path / "cache")
    ends = [128, 256, 384, 512, 640, 700]
    expected = [item for before, end in zip([0, *ends], ends) for item in (("pixels.u8", before), ("done.u8", end))]
    assert synced == expected


def test_two_processes_build_one_cache(tmp_path):
    data = tmp_path / "data", write_images(tmp_path / "data", 300)
    log = tmp_path / "decoded"
    first = start(data, tmp_path, pause=0.005)
    wait_for(lambda: log.exists() and log.read_bytes())
    second = start(data, tmp_path, pause=0.005)
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [output[0] for output in outputs] == ["300\n", "300\n"]
    (folder,) = (tmp_path / "cache").iterdir()
    assert f"pixel cache: {folder} is being built by process {first.pid}; waiting for it" in outputs[1][1]
    assert "waiting" not in outputs[0][1]
    assert sorted(log.read_text().split()) == data[1]  # each once


def test_what_another_built_meanwhile_is_opened(data, tmp_path, monkeypatch):
    locked = build_module._locked

    @contextlib.contextmanager
    def waited(folder):
        monkeypatch.setattr(build_module, "_locked", locked)
        others = built(data, tmp_path).folder / "cache.json"
        before = others.stat().st_ino
        with locked(folder):
            yield
        assert others.stat().st_ino == before

    monkeypatch.setattr(build_module, "_locked", waited)
    assert len(built(data, tmp_path).file_names) == 7


def test_the_second_takes_over_when_the_first_is_killed(tmp_path):
    data = tmp_path / "data", write_images(tmp_path / "data", 600)
    log = tmp_path / "decoded"
    first = start(data, tmp_path, pause=0.001)
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 300)
    second = start(data, tmp_path, decoded="decoded_by_second")
    try:
        os.kill(first.pid, signal.SIGSTOP)
        wait_for(lambda: "waiting" in second.stderr.readline())
    finally:
        first.kill()
    assert second.communicate(timeout=30)[0] == "600\n"
    first.communicate()
    assert 600 - 300 <= len((tmp_path / "decoded_by_second").read_text().split()) <= 600 - 300 + 256
