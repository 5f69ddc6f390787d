"""Image files as folders in the wild hold them, met by `ingest --verify full` and `predict`, which both decode.

What `predict` makes of a form of file is told by its score: that of plain.png, whose grey levels the case works out by
hand, to the last bit."""

from __future__ import annotations

import csv
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

from tests.robustness.hostile import ACCEPT, PARTLY, REFUSE, Case, put
from tests.robustness.hostile.csvs import same

INGEST, FULL = "ingest release", "ingest release --verify full"
PREDICT = "predict run xrays --output scores.csv"
NAME, XRAY = "release/images/00000001_000.png", "xrays/hostile.png"
SIDE = 64

# Files.


def grey() -> np.ndarray:
    """Return grey levels that are multiples of 5, with all of them near both ends."""
    return (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 52 * 5).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(levels_HW: Optional[np.ndarray] = None) -> bytes:
    return encoded(Image.fromarray(grey() if levels_HW is None else levels_HW))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(*parts: bytes) -> bytes:
    """Put chunks after the header of a good PNG."""
    good = png()
    return b"".join([good[:33], *parts, good[33:]])


def cut_profile() -> bytes:
    """Return a good PNG whose colour profile, behind the pixels, ends where its name should."""
    good = png()
    return good[:-12] + chunk(b"iCCP", b"x\0") + good[-12:]


def bare_png(width: int, height: int, content: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of the given header, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sixteen_bit() -> bytes:
    """Return grey() with each level g as 257 g, of 65,535."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in grey())
    return bare_png(SIDE, SIDE, rows, depth=16)


def translucent(mode: str) -> bytes:
    """Return white below an alpha of grey(): over black that is grey(). Over white all would be white."""
    white = Image.new("L", (SIDE, SIDE), 255)
    bands = [white] * (len(mode) - 1)
    return encoded(Image.merge(mode, [*bands, Image.fromarray(grey())]))


def palette() -> bytes:
    image = Image.fromarray(255 - grey()).convert("P")
    image.putpalette([level for level in range(255, -1, -1) for _ in range(3)])  # place p shows level 255 - p
    return encoded(image)


def animated() -> bytes:
    frames = [Image.fromarray(grey()), Image.new("L", (SIDE, SIDE), 255)]
    return encoded(frames[0], save_all=True, append_images=frames[1:], duration=100)


def cmyk_jpeg() -> bytes:
    return encoded(Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 155)), "JPEG", quality=100)  # black ink: grey 100


def turned_jpeg(orientation: int = 6) -> bytes:
    """Return a JPEG that stores its picture on its side, and says so in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(half()), "JPEG", quality=100, exif=exif)


def half() -> np.ndarray:
    return np.repeat(np.array([[0, 200]], np.uint8), SIDE // 2, axis=1).repeat(SIDE, axis=0)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(%pipe%touch owned) (w) file\nshowpage\n%%EOF\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 369053\n"
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>\n"
TIFF = encoded(Image.fromarray(grey()), "TIFF")

# What is wrong with a file: `ingest --verify full` and `predict` both say it.
DAMAGED: Dict[str, Tuple[Callable[[], bytes], str, str]] = {
    "of no bytes": (lambda: b"", "an empty file", "cannot identify"),
    "cut": (lambda: png()[:-60], "cannot be decoded", "cannot be decoded"),
    "cut in the header": (lambda: png()[:20], "cannot be decoded", "cannot be decoded"),
    "a Git LFS pointer": (lambda: LFS, "a Git LFS pointer (run `git lfs pull`)", "cannot identify"),
    "an HTML page": (lambda: HTML, "not a PNG or JPEG: starts with b'<!DOCTYP'", "cannot identify"),
    "of NULs": (lambda: b"\0" * 5000, "not a PNG or JPEG", "cannot identify"),
    "a TIFF": (lambda: TIFF, "not a PNG or JPEG", "cannot identify"),
    "a GIF": (lambda: encoded(Image.fromarray(grey()), "GIF"), "not a PNG or JPEG", "cannot identify"),
    "with a wrong checksum in its header": (lambda: png()[:29] + b"\0\0\0\0" + png()[33:], "cannot be", "cannot be"),
    "with a broken stream": (lambda: png().replace(b"IDATx", b"IDATy", 1), "cannot be decoded", "cannot be decoded"),
    "of no width": (lambda: bare_png(0, SIDE), "cannot be decoded", "cannot be decoded"),
    "without pixels": (lambda: bare_png(SIDE, SIDE), "cannot be decoded", "cannot be decoded"),
    "with fewer rows than it says": (lambda: bare_png(SIDE, SIDE, bytes(SIDE * 9)), "cannot be", "cannot be"),
    "a bomb of 3,600,000,000 pixels": (lambda: bare_png(60_000, 60_000, bytes(2**20)), "bomb", "bomb"),
    "a bomb in compressed text": (
        lambda: with_chunk(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 9))),
        "too large",
        "too large",
    ),
    "a bomb in international text": (
        lambda: with_chunk(chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2**26), 9))),
        "too large",
        "too large",
    ),
    "with a chunk longer than the file": (
        lambda: with_chunk(struct.pack(">I", 2**31 - 1) + b"tEXt"),
        "cannot be decoded",
        "cannot be decoded",
    ),
    "with text of many small bombs": (
        lambda: with_chunk(*[chunk(b"zTXt", b"C%d\0\0" % k + zlib.compress(bytes(2**20 - 9), 9)) for k in range(80)]),
        "Too much memory",
        "Too much memory",
    ),
    "a JPEG that ends in its header": (lambda: encoded(Image.new("L", (9, 9)), "JPEG")[:50], "cannot be", "cannot be"),
}

# Whose grey levels `predict` must see.
FORMS: Dict[str, Tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "16-bit grey": (sixteen_bit, grey),
    "RGBA with real alpha": (lambda: translucent("RGBA"), grey),
    "grey with alpha": (lambda: translucent("LA"), grey),
    "RGB with equal channels": (lambda: encoded(Image.fromarray(grey()).convert("RGB")), grey),
    "a palette": (palette, grey),
    "one bit": (lambda: encoded(Image.fromarray(half() > 0)), lambda: (half() > 0) * np.uint8(255)),
    "animated": (animated, grey),
    "a CMYK JPEG named png": (cmyk_jpeg, lambda: np.full((SIDE, SIDE), 100, np.uint8)),
    "interlaced": (lambda: bare_interlaced(), lambda: np.full((SIDE, SIDE), 77, np.uint8)),
    "with bytes after its end": (lambda: png() + b"<?php system($_GET[0]); ?>" * 99, grey),
    "with an unknown chunk": (lambda: with_chunk(chunk(b"ruNt", b"x" * 9999)), grey),
}


def bare_interlaced() -> bytes:
    """Return an Adam7 PNG of 64x64 whose pixels are all 77."""
    sizes = ((8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32))  # width and height of the seven
    rows = b"".join((b"\0" + b"\x4d" * width) * height for width, height in sizes)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 1)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Where they are put.


def in_release(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda root: put(root / NAME, content())


def beside_plain(content: Callable[[], bytes], levels: Callable[[], np.ndarray] = grey) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        put(root / XRAY, content())
        put(root / "xrays" / "plain.png", png(levels()))

    return make


def instead(path: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Put something other than a file in the place of one."""

    def change(root: Path) -> None:
        (root / path).unlink(missing_ok=True) if (root / path).exists() else None
        make(root / path)

    return change


def not_utf8(root: Path) -> None:
    """Leave an image whose name's bytes are no UTF-8, as older systems and zip programs do."""
    (root / "xrays" / "plain.png").rename(root / "xrays" / "\udcff.png")


def images_not_utf8(root: Path) -> None:
    (root / "release" / "images").rename(root / "release" / "\udcff")


def scores(root: Path) -> Dict[str, List[str]]:
    with open(root / "scores.csv", newline="", encoding="utf-8") as file:
        return {row[0]: row[1:15] for row in csv.reader(file)}


def as_plain(root: Path, said: str) -> None:
    found = scores(root)
    assert found[XRAY] == found["xrays/plain.png"]
    assert found[XRAY] != found["xrays/good.png"]


def others_scored(root: Path, said: str) -> None:
    assert list(scores(root)) == ["file_name", "xrays/good.png", "xrays/plain.png"]
    assert "1 of 3 images have no score" in said


BOTH_WAYS = [
    case
    for name, (content, by_ingest, by_predict) in DAMAGED.items()
    for case in (
        Case(f"{name}, ingested", in_release(content), FULL, REFUSE, ("unreadable image: 00000001_000.png", by_ingest)),
        Case(f"{name}, scored", beside_plain(content), PREDICT, PARTLY, (XRAY, by_predict), others_scored),
    )
]
SHOWN = [
    case
    for name, (content, levels) in FORMS.items()
    for case in (
        Case(f"{name}, ingested", in_release(content), FULL, ACCEPT, check=same),
        Case(f"{name}, scored", beside_plain(content, levels), PREDICT, ACCEPT, check=as_plain),
    )
]
MISSING = ("images missing: 1 of ", "first: 00000001_000.png", "--allow_missing")
OUTWARD = "../../outside/xray.png"

CASES = (
    *BOTH_WAYS,
    *SHOWN,
    Case("with a cut colour profile, ingested", in_release(cut_profile), FULL, REFUSE, ("cannot be decoded",)),
    Case(
        "with a cut colour profile, scored",
        beside_plain(cut_profile),
        PREDICT,
        PARTLY,
        (XRAY,),
        others_scored,
    ),
    Case("one pixel, ingested", in_release(lambda: encoded(Image.new("L", (1, 1), 9))), FULL, ACCEPT, check=same),
    Case(
        "one pixel, scored",
        beside_plain(lambda: encoded(Image.new("L", (1, 1), 9)), lambda: np.full((SIDE, SIDE), 9, np.uint8)),
        PREDICT,
        ACCEPT,
        check=as_plain,
    ),
    Case(
        "a JPEG on its side, scored",
        beside_plain(turned_jpeg, lambda: np.rot90(half(), -1)),
        PREDICT,
        ACCEPT,
        check=as_plain,
    ),
    Case("a missing image", lambda root: (root / NAME).unlink(), INGEST, REFUSE, MISSING),
    Case("a folder for an image", instead(NAME, Path.mkdir), INGEST, REFUSE, MISSING),
    Case("a pipe for an image", instead(NAME, os.mkfifo), FULL, REFUSE, MISSING, contained=True),
    Case("a link to nowhere", instead(NAME, lambda path: path.symlink_to("nowhere.png")), INGEST, REFUSE, MISSING),
    Case("a link to itself", instead(NAME, lambda path: path.symlink_to(path.name)), INGEST, REFUSE, MISSING),
    # a user's own arrangement, as git-annex and the Hub's cache have it: the link is followed
    Case("a link that leads out", instead(NAME, lambda path: path.symlink_to(OUTWARD)), FULL, ACCEPT, check=same),
    Case(
        "a missing image, allowed",
        lambda root: (root / NAME).unlink(),
        f"{INGEST} --allow_missing",
        ACCEPT,
        ("1 image missing",),
    ),
    Case(
        "a cut image, allowed",
        in_release(lambda: png()[:-60]),
        f"{FULL} --allow_missing",
        ACCEPT,
        ("1 image unreadable",),
    ),
    Case("a cut image, header looked at", in_release(lambda: png()[:-60]), INGEST, ACCEPT, check=same),
    Case(
        "an EPS, ingested",
        in_release(lambda: EPS),
        FULL,
        REFUSE,
        ("not a PNG or JPEG: starts with b'%!PS-Ado'",),
        contained=True,
    ),
    Case("an EPS, scored", beside_plain(lambda: EPS), PREDICT, PARTLY, (XRAY,), others_scored),
    Case("a pipe in a folder, scored", instead(XRAY, os.mkfifo), PREDICT, ACCEPT),
    Case(
        "a pipe by name, scored",
        instead(XRAY, os.mkfifo),
        f"predict run {XRAY} --output scores.csv",
        REFUSE,
        (XRAY,),
    ),
    Case("a folder named png, scored", instead(XRAY, Path.mkdir), PREDICT, ACCEPT),
    Case("a link to nowhere, scored", instead(XRAY, lambda path: path.symlink_to("no.png")), PREDICT, ACCEPT),
    Case(
        "no image at all, scored",
        lambda root: None,
        "predict run outside/bin --output scores.csv",
        REFUSE,
        ("no PNG or JPEG",),
    ),
    Case(
        "no such image, scored", lambda root: None, "predict run no.png --output scores.csv", REFUSE, ("no such file",)
    ),
    Case(
        "images in a folder whose name is not UTF-8",
        images_not_utf8,
        "ingest release --images release/\udcff --output release/metadata.jsonl",
        REFUSE,
        ("not UTF-8", "Rename"),
    ),
    Case(
        "an image whose name is not UTF-8, scored",
        not_utf8,
        PREDICT,
        ACCEPT,
    ),
    Case(
        "scores over an image",
        lambda root: None,
        "predict run xrays --output xrays/plain.png",
        REFUSE,
        ("xrays/plain.png",),
    ),
    Case(
        "scores over a folder",
        lambda root: None,
        "predict run xrays --output xrays",
        REFUSE,
        ("xrays",),
    ),
    Case(
        "scores into a folder that is not there",
        lambda root: None,
        "predict run xrays --output nowhere/scores.csv",
        REFUSE,
        ("nowhere",),
    ),
)
