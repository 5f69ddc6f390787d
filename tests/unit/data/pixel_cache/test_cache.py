"""A cache holds the image processor's pixels, survives a kill, a rival and a full disk, and is never stale."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.pixel_cache import cache as cache_module
from chestxray_vit.data.pixel_cache import reuse as earlier
from chestxray_vit.data.pixel_cache import row_store as row_file
from chestxray_vit.data.pixel_cache.cache import PixelCache, build_cache, cache_bytes, default_cache_dir
from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey
from chestxray_vit.storage.file_index import pack_names

BILINEAR, BICUBIC = 2, 3
REMEDY = "name another folder (--cache_dir D), or decode the images at every epoch (--cache_dir none)"
# A build in a process of its own. Each image is noted by one system call before it is decoded: no kill hides it.
BUILD = """
import logging, os, sys, time
from chestxray_vit.data.pixel_cache import cache

data, cache_dir, decoded, pause = sys.argv[1:]
names, read = sorted(os.listdir(data)), cache._read
log = os.open(decoded, os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def logged(path):
    os.write(log, os.path.basename(path).encode() + b"\\n")
    time.sleep(float(pause))
    return read(path)


cache._read = logged
logging.basicConfig(level=logging.INFO, format="%(message)s")
built = cache.build_cache(data, names, (6, 5), 3, cache_dir, num_threads=3)
print(len(built.file_names))
"""


def write_images(folder, num_images, size=(12, 10), seed=0):
    """Write grey images; at most 500 are drawn, the rest are links to them. Return their names."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    names = [f"{number:08d}_000.png" for number in range(num_images)]
    for number, name in enumerate(names):
        if number < 500:
            pixels = generator.integers(0, 256, (size[1], size[0])).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name)
        else:
            os.link(folder / names[number % 500], folder / name)
    return names


def expected_HW(path, size, resample=BICUBIC):
    grey = read_grey(path)
    return np.asarray(grey if grey.size == size else grey.resize(size, resample))


@pytest.fixture
def data(tmp_path):
    """Return a folder of seven images of 12x10 pixels, and their names."""
    return tmp_path / "data", write_images(tmp_path / "data", 7)


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are read, by name."""
    names, lock, read = Counter(), threading.Lock(), cache_module._read

    def counted(path):
        with lock:
            names[os.path.basename(path)] += 1
        return read(path)

    monkeypatch.setattr(cache_module, "_read", counted)
    return names


def built(data, tmp_path, size=(6, 5), resample=BICUBIC, **options) -> PixelCache:
    folder, names = data
    return build_cache(folder, names, size, resample, tmp_path / "cache", **options)


def refusal(data, tmp_path, **options):
    with pytest.raises(InputError) as error:
        built(data, tmp_path, **options)
    return str(error.value).replace(f"{tmp_path}/", "")


def start(data, tmp_path, pause=0.0, decoded="decoded"):
    arguments = [str(data[0]), str(tmp_path / "cache"), str(tmp_path / decoded), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# The pixels.


@pytest.mark.parametrize("size", [(6, 5), (12, 10), (30, 7)])
@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
def test_pixels_are_those_of_pillow(data, tmp_path, size, resample):
    cache = built(data, tmp_path, size, resample)
    assert (cache.pixels_NHW.shape, cache.pixels_NHW.dtype) == ((7, size[1], size[0]), np.uint8)
    assert cache.file_names == data[1]
    for pixels_HW, name in zip(cache.pixels_NHW, data[1]):
        assert np.array_equal(pixels_HW, expected_HW(data[0] / name, size, resample))
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels_NHW[0] = 1


def test_colour_16_bits_and_jpeg(tmp_path):
    folder = tmp_path / "data"
    write_images(folder, 0)
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30)).astype(np.uint8))
    grey.convert("RGBA").save(folder / "rgba.png")
    grey.save(folder / "grey.jpg")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(folder / "wide.png")
    cache = built((folder, ["wide.png", "rgba.png", "grey.jpg"]), tmp_path)
    plain_HW = np.asarray(grey.resize((6, 5), BICUBIC))
    by_name = dict(zip(cache.file_names, cache.pixels_NHW))
    assert np.array_equal(by_name["rgba.png"], plain_HW)
    assert np.array_equal(by_name["wide.png"], plain_HW)
    assert np.array_equal(by_name["grey.jpg"], expected_HW(folder / "grey.jpg", (6, 5)))


@pytest.mark.parametrize("resample", [0, BILINEAR, BICUBIC])
def test_pixels_are_those_of_preprocess(synthetic_dataset, tmp_path, resample):
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    from chestxray_vit.images.preprocess import Preprocess

    processor = transformers.ViTImageProcessor(
        size={"height": 28, "width": 36},
        image_mean=[0.485, 0.5, 0.406],
        image_std=[0.229, 0.5, 0.225],
        resample=resample,
    )
    preprocess = Preprocess(processor)
    names = sorted(os.listdir(synthetic_dataset / "images"))[:40]
    cache = build_cache(synthetic_dataset / "images", names, preprocess.size, preprocess.resample, tmp_path)
    for pixels_HW, name in zip(cache.pixels_NHW, names):
        expected = preprocess.pixels(read_grey(synthetic_dataset / "images" / name)).numpy()
        assert preprocess.levels_3x256[:, pixels_HW].tobytes() == expected.tobytes()


def test_pixels_are_the_real_processors(real_release, deit_tiny, tmp_path):
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    from chestxray_vit.images.preprocess import Preprocess

    processor = transformers.AutoImageProcessor.from_pretrained(deit_tiny)
    preprocess = Preprocess(processor)
    names = sorted(os.listdir(real_release / "images"))
    colours = [name for name in names if Image.open(real_release / "images" / name).mode != "L"]
    assert len(colours) == 2
    names = sorted({*names[::30], *colours})
    cache = build_cache(real_release / "images", names, preprocess.size, preprocess.resample, tmp_path)
    for pixels_HW, name in zip(cache.pixels_NHW, names):
        with Image.open(real_release / "images" / name) as image:
            expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert preprocess.levels_3x256[:, pixels_HW].tobytes() == np.asarray(expected, np.float32).tobytes()


# Rows by name.


def test_rows_by_name_in_any_order_and_folder(tmp_path):
    names = write_images(tmp_path / "data", 4)
    for folder, name in (("images_001/images", names[0]), ("images_002/images", names[1])):
        (tmp_path / "data" / folder).mkdir(parents=True)
        os.rename(tmp_path / "data" / name, tmp_path / "data" / folder / name)
    given = [names[3], f"images_002/images/{names[1]}", f"images_001/images/{names[0]}", names[2], names[3]]
    cache = built((tmp_path / "data", given), tmp_path)
    assert cache.file_names == sorted(set(given))
    rows = cache.places_of(given)
    assert (rows.dtype, rows.tolist()) == (np.int64, [1, 3, 2, 0, 1])
    for row, name in zip(rows, given):
        assert np.array_equal(cache.pixels_NHW[row], expected_HW(tmp_path / "data" / name, (6, 5)))
    assert cache.places_of(iter(given)).tolist() == rows.tolist()
    assert cache.places_of([]).shape == (0,)
    with pytest.raises(InputError, match=r"2 of 3 images are not in the pixel cache \(first: b.png: it was not among"):
        cache.places_of([names[2], "b.png", "a.png"])


def test_a_cache_pickles_without_its_pixels(data, tmp_path):
    cache = built(data, tmp_path, size=(300, 200))
    pickled = pickle.dumps(cache)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert isinstance(again.pixels_NHW, np.memmap)
    assert np.array_equal(again.pixels_NHW, cache.pixels_NHW)
    assert again.places_of(data[1][2:3]) == [2]


# Opened again, or another key.


def test_a_whole_cache_opens_without_reading_an_image(data, tmp_path, decoded, caplog):
    caplog.set_level(logging.INFO)
    first = built(data, tmp_path)
    assert decoded == Counter(data[1])
    folder, names = data
    second = build_cache(str(folder), names[::-1], (6, 5), BICUBIC, str(tmp_path / "cache"))
    assert sum(decoded.values()) == 7
    assert second.folder == first.folder
    assert np.array_equal(second.pixels_NHW, first.pixels_NHW)
    said = [re.sub(r"after \d+\.\d s", "after T", record.message) for record in caplog.records]
    assert said == [f"pixel cache: 7 images of 6x5, in {first.folder}, after T"] * 2


def test_files_of_a_cache(data, tmp_path):
    cache = built(data, tmp_path)
    assert sorted(os.listdir(cache.folder)) == [
        "cache.json",
        "done.u8",
        "lock",
        "pixels.u8",
        "rows.json",
        "rule.json",
        "unreadable.json",
    ]
    assert (cache.folder / "done.u8").read_bytes() == b"\1" * 7
    assert (cache.folder / "pixels.u8").read_bytes() == cache.pixels_NHW.tobytes()
    stats = [(data[0] / name).stat() for name in data[1]]
    rows = [[name, status.st_size, status.st_mtime_ns] for name, status in zip(data[1], stats)]
    assert json.loads((cache.folder / "rows.json").read_text()) == rows
    rule = {"version": 2, "size": [6, 5], "resample": 3}
    assert json.loads((cache.folder / "rule.json").read_text()) == rule
    whole = {**rule, "images": 7, "unreadable": 0, "whole": True}
    assert json.loads((cache.folder / "cache.json").read_text()) == whole


def test_rows_and_key_of_version_2(tmp_path):
    """As they are by definition: caches that were built before must open."""
    names = write_images(tmp_path / "data", 3)
    for place, name in enumerate(["ä b.png", '"\ud83e\udd14.png', "\udcff.png"]):
        name = name.encode("utf-16", "surrogatepass").decode("utf-16") if place == 1 else name
        os.rename(tmp_path / "data" / names[place], tmp_path / "data" / name)
        names[place] = name
    cache = built((tmp_path / "data", names), tmp_path)
    stats = [(name, (tmp_path / "data" / name).stat()) for name in sorted(names)]
    lines = [json.dumps([name, status.st_size, status.st_mtime_ns]) for name, status in stats]
    content = ("[\n" + ",\n".join(lines) + "\n]\n").encode()
    assert (cache.folder / "rows.json").read_bytes() == content
    assert cache.folder.name == hashlib.sha256(b"[2, 6, 5, 3]" + content).hexdigest()[:16]
    assert cache.file_names == sorted(names)
    for pixels_HW, name in zip(cache.pixels_NHW, sorted(names)):
        assert np.array_equal(pixels_HW, expected_HW(tmp_path / "data" / name, (6, 5)))


def test_rows_json_in_several_parts():
    names = [f"{number}.png" for number in range(4097)]
    parts = list(cache_module._rows_json(pack_names(names), np.arange(4097), np.arange(4097) + 10**18))
    rows = json.loads(b"".join(parts))
    assert (len(parts), len(rows), rows[4096]) == (6, 4097, ["4096.png", 4096, 10**18 + 4096])


def touch(folder):
    os.utime(folder / "00000003_000.png", ns=(1, 1))


def stopped(path):
    raise KeyboardInterrupt


def append(folder):
    path = folder / "00000003_000.png"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, append])
def test_a_changed_image_gives_another_key(data, tmp_path, change):
    old = built(data, tmp_path)
    kept = old.pixels_NHW.tobytes()
    change(data[0])
    new = built(data, tmp_path)
    assert new.folder != old.folder
    assert (old.folder / "pixels.u8").read_bytes() == kept  # the older key is left alone


def test_size_filter_images_and_version_give_other_keys(data, tmp_path, monkeypatch):
    folder, names = data
    folders = [built(data, tmp_path, size, resample).folder for size in ((6, 5), (5, 6)) for resample in (2, 3)]
    folders.append(built((folder, names[1:]), tmp_path).folder)
    monkeypatch.setattr(cache_module, "CACHE_VERSION", 3)
    folders.append(built(data, tmp_path).folder)
    assert len(set(folders)) == 6
    assert sorted(os.listdir(tmp_path / "cache")) == sorted(path.name for path in folders)


@pytest.mark.parametrize("how", ["rewritten", "replaced", "removed"])
def test_an_image_that_changes_during_the_build_stops_it(data, tmp_path, monkeypatch, how):
    path, read = data[0] / data[1][4], cache_module._read

    def changing(source):
        if source == str(path) and how == "rewritten":
            Image.new("L", (9, 9)).save(path)
        elif source == str(path):
            path.unlink()
            if how == "replaced":
                os.link(data[0] / data[1][5], path)
        return read(source)

    monkeypatch.setattr(cache_module, "_read", changing)
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
    monkeypatch.setattr(cache_module, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        built(data, tmp_path)
    monkeypatch.undo()
    assert built(data, tmp_path).pixels_NHW.tobytes() == whole


# Unreadable images.


def cut(data, *places):
    for place in places:
        path = data[0] / data[1][place]
        path.write_bytes(path.read_bytes()[:60])


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
    assert set(decoded) == {data[1][place] for place in (0, 2, 5, 6)}  # the good ones stay done


def test_unreadable_images_are_left_out_if_allowed(data, tmp_path, decoded, caplog):
    caplog.set_level(logging.INFO)
    cut(data, 2)
    folder, names = data
    cache = built(data, tmp_path, allow_unreadable=True)
    assert list(cache.unreadable) == [names[2]]
    assert "7 images of 6x5, 1 unreadable ones left out, in" in caplog.text
    assert not cache.pixels_NHW[2].any()
    assert cache.places_of([names[3], names[1]]).tolist() == [3, 1]
    assert np.array_equal(cache.pixels_NHW[3], expected_HW(folder / names[3], (6, 5)))
    with pytest.raises(InputError, match=re.escape(f"1 of 7 images are not in the pixel cache (first: {names[2]}: ")):
        cache.places_of(names)
    decoded.clear()
    again = built(data, tmp_path, allow_unreadable=True)
    assert (again.unreadable, decoded) == (cache.unreadable, {})
    assert "1 of 7 images cannot be read" in refusal(data, tmp_path)  # not allowed: tried again
    assert set(decoded) == {names[2]}
    assert built(data, tmp_path, allow_unreadable=True).unreadable == cache.unreadable


def test_an_image_that_can_be_read_again_is_taken_in(data, tmp_path, monkeypatch):
    read = cache_module._read

    def forbidden(path):
        if os.path.basename(path) == data[1][2]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(cache_module, "_read", forbidden)
    reasons = built(data, tmp_path, allow_unreadable=True).unreadable
    assert reasons == {data[1][2]: "cannot be read: Permission denied"}
    monkeypatch.undo()
    cache = built(data, tmp_path)  # a mode is no part of the key
    assert cache.unreadable == {}
    assert np.array_equal(cache.pixels_NHW[2], expected_HW(data[0] / data[1][2], (6, 5)))


# What is refused.


def test_missing_images(data, tmp_path):
    folder, names = data
    (folder / names[1]).unlink()
    (folder / names[1]).mkdir()
    (folder / names[4]).unlink()
    (folder / names[4]).symlink_to("nowhere")
    (folder / names[5]).unlink()
    os.mkfifo(folder / names[5])
    remedy = "Put them back, or ingest again with --allow_missing."
    assert refusal(data, tmp_path) == f"data: 3 of 7 images are missing (first: {names[1]}). {remedy}"
    assert (
        refusal((folder, ["images/a.png"]), tmp_path)
        == f"data: 1 of 1 images are missing (first: images/a.png). {remedy}"
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["../data/{}", "/{}", "{data}/{}", "a/../{}", "a/../../{}"])
def test_names_outside_the_folder(data, tmp_path, name):
    name = name.format(data[1][0], data=data[0])
    with pytest.raises(InputError, match="image outside the folder: '.*'. Ingest the release again."):
        built((data[0], [data[1][1], name]), tmp_path)


def test_no_images(data, tmp_path):
    assert refusal((data[0], []), tmp_path) == "data: no images to cache. Ingest a release that has some."


def test_a_cache_folder_that_is_a_file(data, tmp_path):
    (tmp_path / "cache").write_text("")
    text = refusal(data, tmp_path)
    assert re.match(r"cache/\w{16}: the pixel cache cannot be used: .*Not a directory", text)
    assert text.endswith(f"Mend that, {REMEDY}.")


# Killed.


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
    undisturbed = build_cache(data[0], names, (6, 5), BICUBIC, tmp_path / "undisturbed")
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
    build_cache(tmp_path / "data", names, (6, 5), BICUBIC, tmp_path / "cache")
    ends = [128, 256, 384, 512, 640, 700]
    expected = [item for before, end in zip([0, *ends], ends) for item in (("pixels.u8", before), ("done.u8", end))]
    assert synced == expected


# Two at once.


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
    locked = cache_module._locked

    @contextlib.contextmanager
    def waited(folder):
        monkeypatch.setattr(cache_module, "_locked", locked)
        others = built(data, tmp_path).folder / "cache.json"
        before = others.stat().st_ino
        with locked(folder):
            yield
        assert others.stat().st_ino == before

    monkeypatch.setattr(cache_module, "_locked", waited)
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


# The disk.


def test_cache_bytes_bound_what_a_cache_takes(tmp_path):
    data = tmp_path / "data", write_images(tmp_path / "data", 500)
    folder = built(data, tmp_path, size=(32, 24)).folder
    taken = sum((folder / name).stat().st_size for name in ("pixels.u8", "done.u8", "rows.json"))
    assert 0.95 * cache_bytes(500, (32, 24)) < taken <= cache_bytes(500, (32, 24))


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
        monkeypatch.setattr(cache_module, "_needed_bytes", lambda order: 0)
        assert re.search(r"no room .*\(No space left on device\)$", refusal(data, tmp_path, size=(500, 400)))
        assert usage.f_bavail - os.statvfs(tmp_path / "cache").f_bavail < 8


def test_a_file_system_with_a_limit_on_files(data, tmp_path):
    code = """
        import os, resource, sys
        from chestxray_vit.data.pixel_cache.cache import build_cache
        from chestxray_vit.errors import InputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            build_cache(sys.argv[1], sorted(os.listdir(sys.argv[1])), (500, 400), 3, sys.argv[2])
        except InputError as error:
            print(error)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(data[0]), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert re.search(
        r"no room for the pixel cache of 7 images: it takes 1,400,455 bytes, .*\(File too large\)$", done.stdout
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("place", [2, 3])  # of the syncs: the pixels of the second half window, or its marks
def test_a_disk_that_fails_later_keeps_what_was_whole(tmp_path, monkeypatch, decoded, code, place):
    data = tmp_path / "data", write_images(tmp_path / "data", 400)
    fsync, calls = os.fsync, []

    def failing(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith(("pixels.u8", "done.u8")):
            calls.append(file)
            if len(calls) == place + 1:
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
    cache = build_cache(*data, (6, 5), BICUBIC, tmp_path / "other")
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


def test_short_writes_are_ended(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    with open(tmp_path / "a", "wb") as file:
        row_file._write_at(file.fileno(), b"12345678", 2)
    assert (tmp_path / "a").read_bytes() == b"\0\00012345678"


# Where it goes, and what it costs.


def test_modes_follow_the_umask_and_the_data_set_is_left_alone(data, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (data[0], *data[0].iterdir())}
    old = os.umask(0o027)
    try:
        folder = built(data, tmp_path).folder
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o750}
    assert {path: path.stat().st_mtime_ns for path in (data[0], *data[0].iterdir())} == before


def test_default_cache_dir(tmp_path, monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir(tmp_path) == tmp_path / "pixel_cache"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_cache_dir(tmp_path) == tmp_path / "home/.cache/huggingface/chestxray_vit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_dir(tmp_path) == Path("/caches/huggingface/chestxray_vit")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert default_cache_dir(str(tmp_path)) == tmp_path / "home/hf/chestxray_vit"
    (tmp_path / "pixel_cache").mkdir()
    assert default_cache_dir(tmp_path) == tmp_path / "pixel_cache"


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    """At most 150 bytes an image, beside the caller's names; the pixels alone would be 2,304."""
    names = write_images(tmp_path / "data", 20_000)
    # decoding is not what is measured, and slow while memory is traced
    monkeypatch.setattr(cache_module._Order, "decode", lambda order, row: bytes(48 * 48))
    tracemalloc.start()
    try:
        cache = build_cache(tmp_path / "data", names, (48, 48), BICUBIC, tmp_path / "cache", num_threads=1)
        cache.places_of(names)
        del cache
        os.utime(tmp_path / "data" / names[3], ns=(1, 1))  # the others are taken over
        build_cache(tmp_path / "data", names, (48, 48), BICUBIC, tmp_path / "cache", num_threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 20_000 < 150


def test_neither_torch_nor_datasets_is_loaded():
    code = "import sys, chestxray_vit.data.pixel_cache.cache\n"
    code += "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Planes of earlier caches


def test_fetching_an_image_again_decodes_that_image_alone(data, tmp_path, decoded):
    whole = data[0] / data[1][2]
    content = whole.read_bytes()
    cut(data, 2)
    assert "1 of 7 images cannot be read" in refusal(data, tmp_path)  # the others are done
    whole.write_bytes(content)
    decoded.clear()
    cache = built(data, tmp_path)
    assert dict(decoded) == {data[1][2]: 1}
    for place, name in enumerate(data[1]):
        assert np.array_equal(cache.pixels_NHW[place], expected_HW(data[0] / name, (6, 5)))


def test_more_and_fewer_images_take_over_what_is_there(data, tmp_path, decoded):
    folder, names = data
    build_cache(folder, names[:4], (6, 5), BICUBIC, tmp_path / "cache")
    decoded.clear()
    cache = built(data, tmp_path)
    assert set(decoded) == set(names[4:])
    assert np.array_equal(cache.pixels_NHW[1], expected_HW(folder / names[1], (6, 5)))
    decoded.clear()
    fewer = build_cache(folder, names[2:5], (6, 5), BICUBIC, tmp_path / "cache")
    assert not decoded
    assert np.array_equal(fewer.pixels_NHW, cache.pixels_NHW[2:5])


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_planes_of_several_caches_in_parts(tmp_path, decoded, monkeypatch, part):
    """Of the first four images, and of the third to the sixth, whose fourth is another meanwhile."""
    names = write_images(tmp_path / "data", 7)
    monkeypatch.setattr(earlier, "CHUNK", part)
    built((tmp_path / "data", names[:4]), tmp_path)
    touch(tmp_path / "data")
    second = built((tmp_path / "data", names[2:6]), tmp_path)
    (second.folder / "done.u8").write_bytes(b"\1\1\0\1")  # as if it had been killed before the fifth
    decoded.clear()
    cache = built((tmp_path / "data", names), tmp_path)
    assert set(decoded) == {names[4], names[6]}
    for place, name in enumerate(names):
        assert np.array_equal(cache.pixels_NHW[place], expected_HW(tmp_path / "data" / name, (6, 5)))


def test_planes_of_another_rule_are_not_taken_over(data, tmp_path, decoded, monkeypatch):
    built(data, tmp_path)
    decoded.clear()
    other = built(data, tmp_path, resample=2)
    assert len(decoded) == 7
    assert np.array_equal(other.pixels_NHW[0], expected_HW(data[0] / data[1][0], (6, 5), 2))
    decoded.clear()
    built(data, tmp_path, size=(5, 6))  # as many bytes, another picture
    assert len(decoded) == 7
    monkeypatch.setattr(cache_module, "CACHE_VERSION", 3)
    decoded.clear()
    built(data, tmp_path)
    assert len(decoded) == 7


@pytest.mark.parametrize("name", ["rows.json", "rule.json", "done.u8", "pixels.u8"])
@pytest.mark.parametrize("content", [None, b"", b"[1, 2"])
def test_a_damaged_earlier_cache_is_passed_over(data, tmp_path, decoded, name, content):
    old = built(data, tmp_path)
    path = old.folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    touch(data[0])
    decoded.clear()
    cache = built(data, tmp_path)
    assert len(decoded) == 7
    assert np.array_equal(cache.pixels_NHW[3], expected_HW(data[0] / data[1][3], (6, 5)))
