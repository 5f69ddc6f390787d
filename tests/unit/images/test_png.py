"""The fast path of `read_grey` gives Pillow's pixels, and of what is broken Pillow's verdict."""

from __future__ import annotations

import functools
import io
import itertools
import random
import re
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.errors import InputError
from chestxray_vit.images import png as png_module
from chestxray_vit.images.decode import read_grey

SHAPE = (33, 47)  # height, width


@pytest.fixture(params=["Pillow alone", "isal"])
def fast_path(request, monkeypatch):
    """Return a list to which each image adds whether it came by the fast path; with isal, whether isal helped."""
    if request.param == "isal":
        isal_zlib = pytest.importorskip("isal.isal_zlib", reason="isal is not installed: its path is not tested")
    else:
        isal_zlib = None
    monkeypatch.setattr(png_module, "fast_zlib", lambda: isal_zlib)
    taken, at_once, stored = [], png_module.decode_at_once, png_module._stored
    helped = []

    def spied(image):
        helped.clear()
        result = at_once(image)
        taken.append(result is not None and bool(helped) == (isal_zlib is not None))
        return result

    monkeypatch.setattr(png_module, "_stored", lambda *args: (helped.append(True), stored(*args))[1])
    monkeypatch.setattr(png_module, "decode_at_once", spied)
    return taken


def verdict(content, monkeypatch=None):
    """Return size and pixels, or what is said against the file; with `monkeypatch` Pillow's, the slow way."""
    with monkeypatch.context() if monkeypatch else io.BytesIO() as patch:
        if monkeypatch:
            patch.setattr(png_module, "is_plain", lambda image: False)
        try:
            image = read_grey(content)
        except InputError as error:
            return re.sub(r" at 0x[0-9a-f]+", "", str(error))
    return image.mode, image.size, image.tobytes()


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(stream, shape=SHAPE, idat=8192, before=b"", after=b"", depth=8, colour=0, interlace=0):
    """Return a PNG of this compressed stream, cut into IDAT chunks of `idat` bytes."""
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, interlace)
    pieces = [chunk(b"IDAT", stream[start : start + idat]) for start in range(0, len(stream), idat)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + b"".join(pieces) + after + chunk(b"IEND")


def filtered(pixels_HW, kinds):
    """Return the rows of an image with PNG's filters (PNG specification, section 9), by turns those of `kinds`."""
    rows, above = [], [0] * pixels_HW.shape[1]
    for kind, row in zip(itertools.cycle(kinds), pixels_HW.tolist()):
        left, corner = [0, *row[:-1]], [0, *above[:-1]]
        guess = [(0, a, b, (a + b) // 2, paeth(a, b, c))[kind] for a, b, c in zip(left, above, corner)]
        rows.append(bytes([kind, *((value - by) % 256 for value, by in zip(row, guess))]))
        above = row
    return b"".join(rows)


def paeth(left, above, corner):
    near = left + above - corner
    return min((left, above, corner), key=lambda value: abs(near - value))  # the first of equals


def pixels(shape=SHAPE):
    """Return a film with a gradient and noise, so that every filter has something to do."""
    steps_HW = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1]))
    return (steps_HW + np.random.default_rng(5).integers(0, 60, shape)).astype(np.uint8)


@functools.lru_cache(maxsize=None)
def plain():
    return png(zlib.compress(filtered(pixels(), range(5))), idat=200)


def test_every_real_image_comes_out_as_pillow_decodes_it(fast_path, real_release):
    paths = sorted((real_release / "images").glob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            expected = image.convert("RGB").getchannel("G")  # the files in colour have equal channels
        assert read_grey(path).tobytes() == expected.tobytes(), path.name
    assert (len(paths), len(fast_path), sum(fast_path)) == (271, 269, 269)  # two files are in colour


@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [4], range(5)])
@pytest.mark.parametrize("idat", [1, 100, 8192])
def test_every_filter_and_cut_gives_the_pixels(fast_path, kinds, idat):
    found = read_grey(png(zlib.compress(filtered(pixels(), kinds)), idat=idat))
    np.testing.assert_array_equal(np.asarray(found), pixels())
    assert fast_path == [True]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 65533), (1, 65534), (1, 65535), (2, 65535), (257, 255)])
def test_no_byte_is_lost_at_the_edges_of_a_stored_block(fast_path, shape):
    # a stored block holds 65,535 bytes; a row of w pixels has w + 1, and 257 rows of 256 are a block and 257 more
    assert verdict(png(zlib.compress(filtered(pixels(shape), [0])), shape)) == (
        "L",
        shape[::-1],
        pixels(shape).tobytes(),
    )
    assert fast_path == [True]


def test_a_path_and_its_bytes_give_the_same(fast_path, tmp_path):
    (tmp_path / "a.png").write_bytes(plain())
    for source in (plain(), tmp_path / "a.png", str(tmp_path / "a.png")):
        found = read_grey(source)
        assert (found.mode, found.size, found.tobytes()) == ("L", SHAPE[::-1], pixels().tobytes())
        found.putpixel((0, 0), 7)  # it is the caller's, and its file is closed
    assert fast_path == [True] * 3


def saved(image, **options):
    with io.BytesIO() as file:
        image.save(file, "PNG", **options)
        return file.getvalue()


def other_forms():
    """Yield PNGs that are not plain: only Pillow's own decoder knows them all."""
    image, stream = Image.fromarray(pixels()), zlib.compress(filtered(pixels(), [0]))
    yield from (saved(image.convert(mode)) for mode in ("1", "LA", "P", "RGB", "RGBA", "I;16"))
    yield saved(image, transparency=40)
    for depth in (1, 2, 4):
        width = -(-SHAPE[1] * depth // 8)
        yield png(zlib.compress(filtered(pixels((SHAPE[0], width)), [0])), depth=depth)
        yield png(stream, depth=depth)  # with pixels enough for 8 bits
    yield png(stream, before=chunk(b"tRNS", b"\0\x40"))
    yield png(stream, after=chunk(b"tRNS", b"\0\x40"))  # Pillow heeds it there too
    yield png(stream, after=chunk(b"tEXt", b"a\0b"))
    yield png(stream, interlace=1)
    frame = struct.pack(">IIIIIHHBB", 0, SHAPE[1] - 9, SHAPE[0] - 9, 5, 4, 1, 9, 0, 0)
    yield png(stream, before=chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", frame))  # of an animation
    with io.BytesIO() as file:
        image.save(file, "JPEG")
        yield file.getvalue()
    with io.BytesIO() as file:
        image.save(file, "PNG", save_all=True, append_images=[image.rotate(180)])
        yield file.getvalue()


def test_other_forms_are_left_to_pillow(fast_path, monkeypatch):
    for content in other_forms():
        assert verdict(content) == verdict(content, monkeypatch)
    assert not any(fast_path)


def test_transparency_is_seen_wherever_it_stands(fast_path):
    stream = zlib.compress(filtered(np.full(SHAPE, 64, np.uint8), [0]))
    for where in ("before", "after"):
        assert set(verdict(png(stream, **{where: chunk(b"tRNS", b"\0\x40")}))[2]) == {0}
    assert not any(fast_path)


def hostile():
    """Yield plain PNGs that are broken, or lie."""
    rows = filtered(pixels(), range(5))
    stream, width = zlib.compress(rows), SHAPE[1] + 1
    whole = png(stream, idat=200)
    yield from (whole[:end] for end in range(len(whole)))
    draw = random.Random(1337)
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            broken[draw.randrange(8, len(broken))] ^= 1 << draw.randrange(8)
        yield bytes(broken)
    for offset in range(0, len(stream), 3):  # the checksums of the chunks are right, what they hold is not
        yield png(stream[:offset] + bytes([stream[offset] ^ 1 << offset % 8]) + stream[offset + 1 :])
    yield from (png(stream[:end]) for end in range(0, len(stream), 7))
    yield from (png(stream[:-4] + bytes(4)), png(stream + b"more"), png(stream, idat=len(stream) + 1) + b"more")
    for lie in (
        rows[:-width],
        rows[:-1],
        rows[: 3 * width],
        b"",
        rows + b"\0",
        rows + rows,
        rows.replace(b"\4", b"\5"),
    ):
        yield png(zlib.compress(lie))
    for shape in ((0, 5), (5, 0), (1, 1), (34, 47), (33, 48), (20_000, 20_000)):
        yield png(stream, shape)
    yield from (png(stream, before=before) for before in (chunk(b"IDAT"), b"\0\0\0\1IDATx\0\0\0\0", chunk(b"tEXt")))
    yield png(stream, after=b"\0\0\0\0ID")
    yield png(stream)[:-12] + b"\xff\xff\xff\xffIEND"
    yield png(stream)[:-12] + b"\xff\xff\xff\xffIDAT"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_of_broken_files_pillow_has_the_last_word(fast_path, monkeypatch):
    verdicts = []
    for number, content in enumerate(hostile()):
        verdicts.append(verdict(content))
        assert verdicts[-1] == verdict(content, monkeypatch), number
    texts = {said for said in verdicts if isinstance(said, str)}
    for part in ("cannot identify image file", "image file is truncated", "broken data stream", "decompression bomb"):
        assert any(part in text for text in texts), part
    assert sum(isinstance(said, tuple) for said in verdicts) > 30  # Pillow takes much that is broken


def test_only_what_is_whole_and_right_is_taken_from_isal():
    isal_zlib = pytest.importorskip("isal.isal_zlib", reason="isal is not installed: its path is not tested")
    content = filtered(pixels(), range(5))
    stream = zlib.compress(content)
    wrapped = png_module._inflated(stream, len(content), isal_zlib)
    assert (zlib.decompress(wrapped), wrapped == stream) == (content, False)
    for broken in (stream[:-1], stream[:-4], stream[:-5], stream[:-4] + bytes(4), b"", stream[:1] + b"x" + stream[2:]):
        assert png_module._inflated(broken, len(content), isal_zlib) is broken
    for other in (len(content) - 1, len(content) + 1):
        assert png_module._inflated(stream, other, isal_zlib) is stream


def test_a_bomb_is_not_inflated(fast_path):
    # 64 MiB of zeros in 64 kB that say they are 33x47 pixels
    content = png(zlib.compress(bytes(1 << 26), 9))
    tracemalloc.start()
    try:
        assert set(verdict(content)[2]) == {0}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_image_of_too_many_pixels_takes_no_copies(fast_path, monkeypatch):
    monkeypatch.setattr(png_module, "MOST_PIXELS", SHAPE[0] * SHAPE[1] - 1)
    assert verdict(plain())[2] == pixels().tobytes()
    assert fast_path == []
    monkeypatch.setattr(png_module, "MOST_PIXELS", SHAPE[0] * SHAPE[1])
    assert verdict(plain())[2] == pixels().tobytes()
    assert fast_path == [True]


def test_isal_is_asked_for_once_and_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "isal", None)
    png_module.fast_zlib.cache_clear()
    try:
        assert png_module.fast_zlib() is None
        np.testing.assert_array_equal(np.asarray(read_grey(plain())), pixels())
    finally:
        png_module.fast_zlib.cache_clear()


def test_isal_is_used_where_it_is_installed():
    isal_zlib = pytest.importorskip("isal.isal_zlib", reason="isal is not installed: its path is not tested")
    png_module.fast_zlib.cache_clear()
    assert png_module.fast_zlib() is isal_zlib
