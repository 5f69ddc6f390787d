"""A cache holds the image processor's pixels, finds them by name, and opens without reading an image."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.pixel_cache import build as build_module
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.cache import cache_bytes, default_cache_dir
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey
from tests.helpers.pixel_cache import BICUBIC, BILINEAR, built, expected_HW, write_images


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
    cache = build_cache(synthetic_dataset / "images", names, Resize(preprocess.size, preprocess.resample), tmp_path)
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
    cache = build_cache(real_release / "images", names, Resize(preprocess.size, preprocess.resample), tmp_path)
    for pixels_HW, name in zip(cache.pixels_NHW, names):
        with Image.open(real_release / "images" / name) as image:
            expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert preprocess.levels_3x256[:, pixels_HW].tobytes() == np.asarray(expected, np.float32).tobytes()


def test_rows_by_name_in_any_order_and_folder(tmp_path):
    names = write_images(tmp_path / "data", 4)
    for folder, name in (("images_001/images", names[0]), ("images_002/images", names[1])):
        (tmp_path / "data" / folder).mkdir(parents=True)
        os.rename(tmp_path / "data" / name, tmp_path / "data" / folder / name)
    wanted = [names[3], f"images_002/images/{names[1]}", f"images_001/images/{names[0]}", names[2], names[3]]
    cache = built((tmp_path / "data", wanted), tmp_path)
    assert cache.file_names == sorted(set(wanted))
    rows = cache.rows_of(wanted)
    assert (rows.dtype, rows.tolist()) == (np.int64, [1, 3, 2, 0, 1])
    for row, name in zip(rows, wanted):
        assert np.array_equal(cache.pixels_NHW[row], expected_HW(tmp_path / "data" / name, (6, 5)))
    assert cache.rows_of(iter(wanted)).tolist() == rows.tolist()
    assert cache.rows_of([]).shape == (0,)
    with pytest.raises(InputError, match=r"2 of 3 images are not in the pixel cache \(first: b.png: it was not among"):
        cache.rows_of([names[2], "b.png", "a.png"])


def test_a_cache_pickles_without_its_pixels(data, tmp_path):
    cache = built(data, tmp_path, size=(300, 200))
    pickled = pickle.dumps(cache)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert isinstance(again.pixels_NHW, np.memmap)
    assert np.array_equal(again.pixels_NHW, cache.pixels_NHW)
    assert again.rows_of(data[1][2:3]) == [2]


def test_a_whole_cache_opens_without_reading_an_image(data, tmp_path, decoded, caplog):
    caplog.set_level(logging.INFO)
    first = built(data, tmp_path)
    assert decoded == Counter(data[1])
    folder, names = data
    second = build_cache(str(folder), names[::-1], Resize((6, 5), BICUBIC), str(tmp_path / "cache"))
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


def test_cache_bytes_bound_what_a_cache_takes(tmp_path):
    data = tmp_path / "data", write_images(tmp_path / "data", 500)
    folder = built(data, tmp_path, size=(32, 24)).folder
    taken = sum((folder / name).stat().st_size for name in ("pixels.u8", "done.u8", "rows.json"))
    assert 0.95 * cache_bytes(500, (32, 24)) < taken <= cache_bytes(500, (32, 24))


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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    """At most 150 bytes an image, beside the caller's names; the pixels alone would be 2,304."""
    names = write_images(tmp_path / "data", 20_000)
    # decoding is not what is measured, and slow while memory is traced
    monkeypatch.setattr(build_module, "_decode", lambda key, row: bytes(48 * 48))
    tracemalloc.start()
    try:
        cache = build_cache(tmp_path / "data", names, Resize((48, 48), BICUBIC), tmp_path / "cache", num_threads=1)
        cache.rows_of(names)
        del cache
        os.utime(tmp_path / "data" / names[3], ns=(1, 1))  # the others are taken over
        build_cache(tmp_path / "data", names, Resize((48, 48), BICUBIC), tmp_path / "cache", num_threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 20_000 < 150


def test_neither_torch_nor_datasets_is_loaded():
    code = "import sys, chestxray_vit.data.pixel_cache.build\n"
    code += "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
