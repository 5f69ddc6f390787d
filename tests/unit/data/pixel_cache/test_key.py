"""A cache is of one set of images and one resize: any change gives another key, and none is stale."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib

import numpy as np
import pytest

from chestxray_vit.data.pixel_cache import key as key_module
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.errors import InputError
from chestxray_vit.storage.file_index import pack_names
from tests.helpers.pixel_cache import BICUBIC, built, expected_HW, refusal, touch, write_images


def test_rows_and_key_of_version_2(tmp_path):
    """As they are by definition: caches that were built before must open."""
    names = write_images(tmp_path / "data", 3)
    for index, name in enumerate(["ä b.png", '"\ud83e\udd14.png', "\udcff.png"]):
        name = name.encode("utf-16", "surrogatepass").decode("utf-16") if index == 1 else name
        os.rename(tmp_path / "data" / names[index], tmp_path / "data" / name)
        names[index] = name
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
    parts = list(key_module.rows_json(pack_names(names), np.arange(4097), np.arange(4097) + 10**18))
    rows = json.loads(b"".join(parts))
    assert (len(parts), len(rows), rows[4096]) == (6, 4097, ["4096.png", 4096, 10**18 + 4096])


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
    monkeypatch.setattr(key_module, "CACHE_VERSION", 3)
    folders.append(built(data, tmp_path).folder)
    assert len(set(folders)) == 6
    assert sorted(os.listdir(tmp_path / "cache")) == sorted(path.name for path in folders)


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


# A cache that version 0.5.0 of this package built.

FILES_OF_0_5_0 = {
    "pixels.u8": b"\x01\x01\x02\x03\x04\xfa\x00\x01\x02\x03\x04\xfa",
    "done.u8": b"\1\1",
    "rows.json": b'[\n["b.png", 76, 1000000000000000001],\n["images/a.png", 76, 1000000000000000000]\n]\n',
    "rule.json": b'{\n  "version": 2,\n  "size": [\n    3,\n    2\n  ],\n  "resample": 3\n}\n',
    "unreadable.json": b"{}\n",
    "cache.json": b'{\n  "version": 2,\n  "size": [\n    3,\n    2\n  ],\n  "resample": 3,\n  "images": 2,\n'
    b'  "unreadable": 0,\n  "whole": true\n}\n',
    "lock": b"17163\n",
}
KEY_OF_0_5_0 = "90c24b0fe5efaf24"


def png_chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def stored_png(rows):
    """Return a PNG whose bytes depend on no version of zlib: it is not compressed."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    stream = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND")


@pytest.fixture
def images_of_0_5_0(tmp_path):
    """Return the folder and the names of the two images that the cache was built of."""
    names = ["images/a.png", "b.png"]
    for number, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored_png([[number, 1, 2], [3, 4, 250]]))
        os.utime(path, ns=(1, 10**18 + number))
    return tmp_path / "data", names


def test_a_cache_of_0_5_0_is_opened_and_not_built_again(images_of_0_5_0, tmp_path, decoded):
    folder = tmp_path / "cache" / KEY_OF_0_5_0
    folder.mkdir(parents=True)
    for name, content in FILES_OF_0_5_0.items():
        (folder / name).write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    cache = built(images_of_0_5_0, tmp_path, size=(3, 2))
    assert cache.folder == folder
    assert cache.file_names == ["b.png", "images/a.png"]
    assert cache.pixels_NHW.tolist() == [[[1, 1, 2], [3, 4, 250]], [[0, 1, 2], [3, 4, 250]]]
    assert not decoded
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_cache_is_built_byte_for_byte_as_by_0_5_0(images_of_0_5_0, tmp_path):
    folder = built(images_of_0_5_0, tmp_path, size=(3, 2)).folder
    assert folder.name == KEY_OF_0_5_0
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {**FILES_OF_0_5_0, "lock": f"{os.getpid()}\n".encode()}


def test_planes_of_0_5_0_are_taken_over(images_of_0_5_0, tmp_path, decoded):
    folder = tmp_path / "cache" / KEY_OF_0_5_0
    folder.mkdir(parents=True)
    for name, content in FILES_OF_0_5_0.items():
        (folder / name).write_bytes(content)
    cache = built((images_of_0_5_0[0], ["b.png"]), tmp_path, size=(3, 2))
    assert cache.folder != folder
    assert cache.pixels_NHW.tolist() == [[[1, 1, 2], [3, 4, 250]]]
    assert not decoded


def test_numpys_numbers_give_the_same_key(data, tmp_path):
    assert Resize((np.int64(6), np.int32(5)), np.int64(BICUBIC)) == Resize((6, 5), BICUBIC)
    size = (np.int64(6), np.int32(5))
    assert built(data, tmp_path, size, np.int64(BICUBIC)).folder == built(data, tmp_path).folder
