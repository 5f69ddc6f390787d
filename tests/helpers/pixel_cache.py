"""Images to cache, and builds of caches in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.cache import PixelCache
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey

BILINEAR, BICUBIC = 2, 3
REMEDY = "name another folder (--cache_dir D), or decode the images at every epoch (--cache_dir none)"
# A build in a process of its own. Each image is noted by one system call before it is decoded: no kill hides it.
BUILD = """
import logging, os, sys, time
from chestxray_vit.data.pixel_cache import build
from chestxray_vit.data.pixel_cache.key import Resize

data, cache_dir, decoded, pause = sys.argv[1:]
names, read = sorted(os.listdir(data)), build._read
log = os.open(decoded, os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def logged(path):
    os.write(log, os.path.basename(path).encode() + b"\\n")
    time.sleep(float(pause))
    return read(path)


build._read = logged
logging.basicConfig(level=logging.INFO, format="%(message)s")
built = build.build_cache(data, names, Resize((6, 5), 3), cache_dir, num_threads=3)
print(len(built.file_names))
"""


def write_images(folder, num_images, size=(12, 10), seed=0):
    """Write grey images; at most 500 are made, the rest are links to them. Return their names."""
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


def built(data, tmp_path, size=(6, 5), resample=BICUBIC, **options) -> PixelCache:
    folder, names = data
    return build_cache(folder, names, Resize(size, resample), tmp_path / "cache", **options)


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


def touch(folder):
    os.utime(folder / "00000003_000.png", ns=(1, 1))


def cut(data, *indices):
    for index in indices:
        path = data[0] / data[1][index]
        path.write_bytes(path.read_bytes()[:60])
