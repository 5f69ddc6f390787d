"""Decode an X-ray as 8-bit grey, whatever form its file has.

Apart from the data set, so that what only decodes (the pixel cache) loads neither torch nor `datasets`.

NIH's own form, a plain grey PNG, takes a shorter road to the same pixels. Its compressed stream goes to Pillow's
decoder in one piece, not in blocks of 8 kB between which threads wait for each other; and where the package `isal` is
installed, that inflates it, three times as fast as zlib, and Pillow is left with the filters of the rows. Where that
road does not end with the whole image, Pillow decodes the file alone: what is refused, and why, is always its word."""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path
from types import ModuleType
from typing import IO, Any, List, Optional, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from chestxray_vit.errors import InputError

DAMAGED = (OSError, SyntaxError, ValueError, IndexError, EOFError, UnidentifiedImageError)  # what Pillow raises
FORMATS = ("PNG", "JPEG")  # no other decoder of Pillow sees a file from outside
MOST_PIXELS = 1 << 25  # that take the shorter road: it holds the image three times over
ORIENTATION = 0x0112  # EXIF's tag
WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where a PNG may hold it
STORED_BYTES = 65_535  # of a block of deflate that is not compressed, at most


def read_grey(source: str | Path | bytes) -> Image.Image:
    """Decode an X-ray as 8-bit grey.

    Colour with equal channels (NIH's RGBA files) gives the same grey exactly; 16-bit grey is scaled, not clipped;
    transparency is laid over black. It is turned as its EXIF says, as viewers, `datasets` and transformers do.

    Raises:
        InputError: not a PNG or JPEG, or damaged.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            grey = _at_once(image) if _is_plain(image) else None
            if grey is None:
                image.load()
                grey = _to_grey(_upright(image))
            return grey
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}. Fetch it again, or leave it out.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except (*DAMAGED, struct.error):
        return image  # EXIF that cannot be read says nothing


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L")


# The shorter road. Pillow has read the file up to its pixels: checksums, size, and what is set apart here.


def _is_plain(image: Any) -> bool:
    """Tell whether an image, open and not loaded, is a PNG of 8-bit grey, its first frame whole, opaque and upright."""
    return (
        [(tile[0], tile[3]) for tile in image.tile or ()] == [("zip", "L")]  # 2 and 4 bits are "L;2" and "L;4"
        and not {"bbox", "interlace", "transparency", *WITH_ORIENTATION} & set(image.info)
        and image.width * image.height <= MOST_PIXELS
    )


def _at_once(image: Any) -> Optional[Image.Image]:
    """Decode a plain PNG in one call; None if that does not give the whole image."""
    stream = _compressed_pixels(image)
    if stream is None:
        return None
    fast_zlib = _fast_zlib()
    if fast_zlib is not None:
        stream = _inflated(stream, image.height * (image.width + 1), fast_zlib)  # a row has a byte for its filter
    try:
        return Image.frombytes("L", image.size, stream, "zip", "L")
    except ValueError:
        return None


def _compressed_pixels(image: Any) -> Optional[bytes]:
    """Return what a PNG's IDAT chunks hold; None unless its end follows them, and nothing that counts is between."""
    file: IO[bytes] = image.fp
    file.seek(image.tile[0][2] - 8)
    rest = memoryview(file.read(2 * image.width * image.height + 65_536))  # no plain PNG is longer
    parts, start = [], 0
    while rest[start + 4 : start + 8] == b"IDAT":
        end = start + 8 + int.from_bytes(rest[start : start + 4], "big")
        parts.append(rest[start + 8 : end])
        start = end + 4  # behind the checksum, which Pillow does not look at either
    return b"".join(parts) if rest[start + 4 : start + 8] == b"IEND" else None


@functools.lru_cache(maxsize=None)
def _fast_zlib() -> Optional[ModuleType]:
    """Return isal's likeness of `zlib`, or None if isal is not installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


def _inflated(stream: bytes, num_bytes: int, fast_zlib: Any) -> bytes:
    """Return a zlib stream that holds the same bytes uncompressed; the stream itself if it is not whole and right.

    Args:
        stream: that ends in its checksum; isal compares it, which tells damage that its looser tables let pass.
        num_bytes: that it should hold; no more are inflated, whatever it holds.
        fast_zlib: of `_fast_zlib`.
    """
    inflating = fast_zlib.decompressobj()
    try:
        content = inflating.decompress(stream, num_bytes + 1)
    except fast_zlib.error:
        return stream
    if not inflating.eof or len(content) != num_bytes:
        return stream
    return _stored(content, fast_zlib.adler32(content))


def _stored(content: bytes, checksum: int) -> bytes:
    """Wrap bytes as a zlib stream of stored blocks (RFC 1950; RFC 1951, section 3.2.4)."""
    parts: List[Union[bytes, memoryview]] = [b"\x78\x01"]
    rest = memoryview(content)
    while rest:
        block, rest = rest[:STORED_BYTES], rest[STORED_BYTES:]
        parts += [struct.pack("<BHH", not rest, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", checksum)])
