"""Planes of earlier caches are taken over where the image and the rule are the same."""

from __future__ import annotations

import numpy as np
import pytest

from chestxray_vit.data.pixel_cache import key as key_module
from chestxray_vit.data.pixel_cache import reuse
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.key import Resize
from tests.helpers.pixel_cache import BICUBIC, built, cut, expected_HW, refusal, touch, write_images


def test_fetching_an_image_again_decodes_that_image_alone(data, tmp_path, decoded):
    whole = data[0] / data[1][2]
    content = whole.read_bytes()
    cut(data, 2)
    assert "1 of 7 images cannot be read" in refusal(data, tmp_path)  # the others are done
    whole.write_bytes(content)
    decoded.clear()
    cache = built(data, tmp_path)
    assert dict(decoded) == {data[1][2]: 1}
    for row, name in enumerate(data[1]):
        assert np.array_equal(cache.pixels_NHW[row], expected_HW(data[0] / name, (6, 5)))


def test_more_and_fewer_images_take_over_what_is_there(data, tmp_path, decoded):
    folder, names = data
    build_cache(folder, names[:4], Resize((6, 5), BICUBIC), tmp_path / "cache")
    decoded.clear()
    cache = built(data, tmp_path)
    assert set(decoded) == set(names[4:])
    assert np.array_equal(cache.pixels_NHW[1], expected_HW(folder / names[1], (6, 5)))
    decoded.clear()
    fewer = build_cache(folder, names[2:5], Resize((6, 5), BICUBIC), tmp_path / "cache")
    assert not decoded
    assert np.array_equal(fewer.pixels_NHW, cache.pixels_NHW[2:5])


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_planes_of_several_caches_in_parts(tmp_path, decoded, monkeypatch, part):
    """Of the first four images, and of the third to the sixth, whose fourth is another meanwhile."""
    names = write_images(tmp_path / "data", 7)
    monkeypatch.setattr(reuse, "CHUNK", part)
    built((tmp_path / "data", names[:4]), tmp_path)
    touch(tmp_path / "data")
    second = built((tmp_path / "data", names[2:6]), tmp_path)
    (second.folder / "done.u8").write_bytes(b"\1\1\0\1")  # as if it had been killed before the fifth
    decoded.clear()
    cache = built((tmp_path / "data", names), tmp_path)
    assert set(decoded) == {names[4], names[6]}
    for row, name in enumerate(names):
        assert np.array_equal(cache.pixels_NHW[row], expected_HW(tmp_path / "data" / name, (6, 5)))


def test_planes_of_another_rule_are_not_taken_over(data, tmp_path, decoded, monkeypatch):
    built(data, tmp_path)
    decoded.clear()
    other = built(data, tmp_path, resample=2)
    assert len(decoded) == 7
    assert np.array_equal(other.pixels_NHW[0], expected_HW(data[0] / data[1][0], (6, 5), 2))
    decoded.clear()
    built(data, tmp_path, size=(5, 6))  # as many bytes, another picture
    assert len(decoded) == 7
    monkeypatch.setattr(key_module, "CACHE_VERSION", 3)
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
