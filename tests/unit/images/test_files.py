"""Image files are checked by their first bytes, or by decoding them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.images.files import check_header, check_images, check_pixels

A, B, C = (f"00000001_{number:03d}.png" for number in range(3))
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 369053\n"
)


def png(level=7, size=16, kind="PNG"):
    """Return the bytes of an image with some noise."""
    noise_HW = np.random.default_rng(level).integers(0, 256, (size, size), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise_HW).save(file, kind)
    return file.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)
    return path


# check_header and check_pixels

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
WRONG_HEADERS = [
    (b"", "an empty file"),
    (LFS_POINTER, "a Git LFS pointer (run `git lfs pull`)"),
    (HTML, "not a PNG or JPEG: starts with b'<!DOCTYP'"),
    (bytes(100), "not a PNG or JPEG: starts with b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'"),
    (b"\x89PNG\r\n\x1a\n", "not a PNG or JPEG: starts with b'\\x89PNG\\r\\n\\x1a\\n'"),
    (b"\x89PNG\r\r\n\x1a\n\0\0\0\rIHDR", "not a PNG or JPEG: starts with b'\\x89PNG\\r\\r\\n\\x1a'"),  # text mode
    (b"\xff\xd8", "not a PNG or JPEG: starts with b'\\xff\\xd8'"),
]


@pytest.mark.parametrize("data, expected", WRONG_HEADERS)
def test_wrong_first_bytes(tmp_path, data, expected):
    path = put(tmp_path / A, data)
    assert check_header(path) == expected
    assert check_pixels(path) == expected


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS", "PPM"])
def test_other_formats_named_png(tmp_path, kind):
    path = put(tmp_path / A, png(kind=kind))
    assert check_header(path).startswith("not a PNG or JPEG: starts with ")
    assert check_pixels(path).startswith("not a PNG or JPEG: starts with ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_good_images(tmp_path, kind):
    path = put(tmp_path / A, png(kind=kind))
    assert check_header(path) is None
    assert check_pixels(path) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_has_a_good_header_only(tmp_path, kind):
    data = png(size=100, kind=kind)
    path = put(tmp_path / A, data[: len(data) // 2])
    assert check_header(path) is None
    assert check_pixels(path).startswith("cannot be decoded: ")


def test_a_flipped_bit_is_found_by_decoding(tmp_path):
    data = bytearray(png(size=100))
    data[len(data) // 2] ^= 1
    assert check_pixels(put(tmp_path / A, bytes(data))).startswith("cannot be decoded: ")


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / A).mkdir()
    (tmp_path / B).symlink_to(tmp_path / B)
    assert check_header(tmp_path / A) == "cannot be read: Is a directory"
    assert check_pixels(tmp_path / B).startswith("cannot be read: Too many levels of symbolic links")
    assert check_header(tmp_path / C) == "cannot be read: No such file or directory"


def test_check_images_tells_which(tmp_path):
    good = [put(tmp_path / f"00000002_{number:03d}.png") for number in range(150)]
    cut, empty = put(tmp_path / A, png(size=100)[:900]), put(tmp_path / B, b"")
    paths = [*good[:70], cut, *good[70:], empty]
    assert check_images(paths, check_header) == {empty: "an empty file"}
    wrong = check_images(paths, check_pixels)
    assert list(wrong) == [cut, empty]
    assert wrong[cut].startswith("cannot be decoded: ")
    assert check_images([], check_pixels) == {}
