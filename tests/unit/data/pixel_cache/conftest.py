"""Seven images, and a count of those that a build reads."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest

from chestxray_vit.data.pixel_cache import build as build_module
from tests.helpers.pixel_cache import write_images


@pytest.fixture
def data(tmp_path):
    """Return a folder of seven images of 12x10 pixels, and their names."""
    return tmp_path / "data", write_images(tmp_path / "data", 7)


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are read, by name."""
    names, lock, read = Counter(), threading.Lock(), build_module._read

    def counted(path):
        with lock:
            names[os.path.basename(path)] += 1
        return read(path)

    monkeypatch.setattr(build_module, "_read", counted)
    return names
