"""Decode the form of NIH's files, a plain grey PNG, faster than Pillow does, to the same pixels.

The compressed stream goes to Pillow's decoder in one piece, not in blocks of 8 kB between which threads wait for each
other; and where the package `isal` is installed, that inflates it, three times as fast as zlib, and Pillow is left with
the filters of the rows. Where this does not give the whole image, the caller lets Pillow decode the file alone: what is
refused, and why, is always decided by Pillow.

Pillow has read the file up to its pixels: checksums, size, and what `is_plain` looks at."""

from __future__ import annotations

import functools
import struct
from types import ModuleType
from typing import IO, Any, List, Optional, Union

from PIL import Image

MOST_PIXELS = 1 << 25  # of a plain image: decoding holds it three times over
WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where a PNG may hold it
STORED_BYTES = 65_535  # of a block of deflate that is not compressed, at most


def is_plain(image: Any) -> bool:
    """Return whether an open, not yet loaded image is a PNG of 8-bit grey: one whole frame, opaque and upright."""
    return (
        [(tile[0], tile[3]) for tile in image.tile or ()] == [("zip", "L")]  # 2 and 4 bits are "L;2" and "L;4"
        and not {"bbox", "interlace", "transparency", *WITH_ORIENTATION} & set(image.info)
        and image.width * image.height <= MOST_PIXELS
    )


def decode_at_once(image: Any) -> Optional[Image.Image]:
    """Decode a plain PNG in one call; None if that does not give the whole image."""
    stream = _compressed_pixels(image)
    if stream is None:
        return None
    zlib_module = fast_zlib()
    if zlib_module is not None:
        stream = _inflated(stream, image.height * (image.width + 1), zlib_module)  # a row has a byte for its filter
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
def fast_zlib() -> Optional[ModuleType]:
    """Return isal's likeness of `zlib`, or None if isal is not installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


def _inflated(stream: bytes, num_bytes: int, zlib_module: Any) -> bytes:
    """Return a zlib stream that holds the same bytes uncompressed; the stream itself if it is not whole and right.

    Args:
        stream: that ends in its checksum; isal compares it, which detects damage that its tables let pass.
        num_bytes: that it should hold; no more are inflated, whatever it holds.
        zlib_module: of `fast_zlib`.
    """
    inflating = zlib_module.decompressobj()
    try:
        content = inflating.decompress(stream, num_bytes + 1)
    except zlib_module.error:
        return stream
    if not inflating.eof or len(content) != num_bytes:
        return stream
    return _stored(content, zlib_module.adler32(content))


def _stored(content: bytes, checksum: int) -> bytes:
    """Wrap bytes as a zlib stream of stored blocks (RFC 1950; RFC 1951, section 3.2.4)."""
    parts: List[Union[bytes, memoryview]] = [b"\x78\x01"]
    rest = memoryview(content)
    while rest:
        block, rest = rest[:STORED_BYTES], rest[STORED_BYTES:]
        parts += [struct.pack("<BHH", not rest, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", checksum)])
