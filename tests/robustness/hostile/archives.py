"""Archives as a broken line or malice leaves them: `ingest --extract` unpacks them, each whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Callable, List, Optional, Tuple, Union

from PIL import Image

from tests.robustness.hostile import ACCEPT, REFUSE, Case, put
from tests.robustness.hostile.csvs import same
from tests.robustness.hostile.images import encoded, png

EXTRACT = "ingest release --extract"
ARCHIVE = "release/images_001.tar.gz"
IMAGES = ("release/images/*.png",)
EVIL = "00000099_000.png"
REFUSED = "images_001.tar.gz: "
UNSAFE = "is not a file images/########_###.png. Nothing of the archive was kept"
DAMAGED = ("images_001.tar.gz: cut or damaged: ", "Fetch the archive again")

Member = Tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, target
    return info, content


def tar(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sparse(**entries: str) -> Callable[[Path], object]:
    """Put an image behind the others whose pax header says that it has holes."""
    info, content = member(f"images/{EVIL}", png())
    info.pax_headers = {f"GNU.sparse.{name}": value for name, value in entries.items()}
    return packed((info, content), form=tarfile.PAX_FORMAT)


def header(info: tarfile.TarInfo, size: int) -> bytes:
    """Return a header that says a size, whatever follows it; a size that octal digits cannot say is in base 256."""
    info.size = size
    if size >= 0:
        return info.tobuf(tarfile.GNU_FORMAT)
    info.size = 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" + (size + 256**11).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def of_the_images(root: Path) -> List[Member]:
    """Take the images out of the release, and return them as members."""
    paths = sorted((root / "release" / "images").glob("*.png"))
    members = [member(f"images/{path.name}", path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    return members


def packed(
    *more: Member, change: Callable[[bytes], bytes] = lambda content: content, form: int = tarfile.GNU_FORMAT
) -> Callable[[Path], object]:
    """Put the images into an archive, and more members behind them; change its bytes before they are compressed."""
    return lambda root: put(root / ARCHIVE, gzip.compress(change(tar(*of_the_images(root), *more, form=form)), 1))


def compressed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the bytes of the archive after they are compressed."""
    return lambda root: put(root / ARCHIVE, change(gzip.compress(tar(*of_the_images(root)), 1)))


def raw(*parts: Union[bytes, Tuple[bytes, int]]) -> Callable[[Path], object]:
    """Put parts behind the images, compressed on their own; (part, n) is repeated n times and made once."""

    def make(root: Path) -> None:
        content = tar(*of_the_images(root)).rstrip(b"\0")
        content += bytes(-len(content) % tarfile.BLOCKSIZE)
        pieces = [gzip.compress(content, 1)]
        for part in parts:
            block, times = part if isinstance(part, tuple) else (part, 1)
            pieces.append(gzip.compress(block, 9) * times)
        put(root / ARCHIVE, b"".join([*pieces, gzip.compress(bytes(10240))]))

    return make


def earlier(content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Pack the images, and leave one in the folder with other bytes."""

    def make(root: Path) -> None:
        path = root / "release" / "images" / "00000001_000.png"
        there = content(path.read_bytes())
        packed()(root)
        path.write_bytes(there)

    return make


def kept(expected: Optional[bytes] = None) -> Callable[[Path, str], None]:
    """The earlier image is there as it was (or as `expected`), and the metadata is as ever."""

    def check(root: Path, said: str) -> None:
        same(root, said)
        found = (root / "release" / "images" / "00000001_000.png").read_bytes()
        assert expected is None or found == expected

    return check


def linked(root: Path) -> None:
    packed()(root)
    (root / ARCHIVE).rename(root / "outside" / "archive")
    (root / ARCHIVE).symlink_to("../outside/archive")


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 16]) + content[half + 1 :]


ZEROS = bytes(2**20)
OTHER = encoded(Image.new("L", (32, 32), 9))
PAX_BOMB = header(member("x", kind=tarfile.XHDTYPE)[0], 2**33)
GNU_BOMB = header(member("x", kind=tarfile.GNUTYPE_LONGNAME)[0], 2**33)
SIZE_BOMB = header(member(f"images/{EVIL}")[0], 2**33)


def unsafe(name: str, one: Member) -> Case:
    return Case(name, packed(one), EXTRACT, REFUSE, (REFUSED, UNSAFE))


CASES = (
    Case("as NIH packs them", packed(), EXTRACT, ACCEPT, check=same, writes=IMAGES),
    Case("in pax form", packed(form=tarfile.PAX_FORMAT), EXTRACT, ACCEPT, check=same, writes=IMAGES),
    Case("through a link", linked, EXTRACT, ACCEPT, check=same, writes=IMAGES),
    Case(
        "folders besides", packed(member("../evil", kind=tarfile.DIRTYPE)), EXTRACT, ACCEPT, check=same, writes=IMAGES
    ),
    unsafe("a name that climbs", member(f"../{EVIL}", png())),
    unsafe("a name that climbs from images", member(f"images/../../outside/{EVIL}", png())),
    unsafe("a name from the root", member(f"/tmp/{EVIL}", png())),
    unsafe("a nested folder", member(f"images/images/{EVIL}", png())),
    unsafe("no folder", member(EVIL, png())),
    unsafe("another name", member("images/x.png", png())),
    unsafe("another suffix", member("images/00000099_000.png.sh", b"#!/bin/sh\n")),
    unsafe("a name with a line end", member(f"images/{EVIL}\n", png())),
    unsafe("a name with terminal codes", member("images/\x1b[2J", png())),
    unsafe("a name of 200 kB", member("x" * 200_000, png())),
    unsafe("a link that leads out", member(f"images/{EVIL}", kind=tarfile.SYMTYPE, target="../../outside/xray.png")),
    unsafe("a link for the folder", member("images", kind=tarfile.SYMTYPE, target="../outside")),
    unsafe("a hard link", member(f"images/{EVIL}", kind=tarfile.LNKTYPE, target="/etc/passwd")),
    unsafe("a device", member(f"images/{EVIL}", kind=tarfile.CHRTYPE)),
    unsafe("a pipe as a member", member(f"images/{EVIL}", kind=tarfile.FIFOTYPE)),
    Case("cut inside the gzip", compressed(lambda content: content[: len(content) // 2]), EXTRACT, REFUSE, DAMAGED),
    Case("cut inside a valid gzip", packed(change=lambda content: content[:30_000]), EXTRACT, REFUSE, DAMAGED),
    Case("cut after the last member", packed(change=lambda c: c.rstrip(b"\0")), EXTRACT, REFUSE, DAMAGED),
    Case("a wrong checksum", compressed(lambda content: content[:-8] + b"\0" * 8), EXTRACT, REFUSE, (*DAMAGED, "CRC")),
    Case("a flipped bit", compressed(flipped), EXTRACT, REFUSE, DAMAGED),
    Case("empty", compressed(lambda content: b""), EXTRACT, REFUSE, DAMAGED),
    Case("an HTML page", compressed(lambda content: b"<!DOCTYPE html>"), EXTRACT, REFUSE, (*DAMAGED, "not a gzip")),
    Case("a tar that is not compressed", compressed(gzip.decompress), EXTRACT, REFUSE, (*DAMAGED, "not a gzip file")),
    Case("gzip of no tar", packed(change=lambda content: b"Hello\n" * 999), EXTRACT, REFUSE, DAMAGED),
    Case("rubbish behind the end", compressed(lambda content: content + b"rubbish"), EXTRACT, REFUSE, DAMAGED),
    Case("no archive", lambda root: None, EXTRACT, REFUSE, ("no images_*.tar.gz in release", "Fetch NIH's archives")),
    Case("a folder", lambda root: (root / ARCHIVE).mkdir(), EXTRACT, REFUSE, (REFUSED,)),
    Case("a pipe", lambda root: os.mkfifo(root / ARCHIVE), EXTRACT, REFUSE, (REFUSED,), contained=True),
    Case("a link to nowhere", lambda root: (root / ARCHIVE).symlink_to("no"), EXTRACT, REFUSE, (REFUSED,)),
    Case(
        "an image of 8 GB",
        raw(SIZE_BOMB, (ZEROS, 9000)),
        EXTRACT,
        REFUSE,
        (REFUSED, "8,589,934,592 bytes"),
        contained=True,
    ),
    Case(
        "many large images",
        raw(*[part for k in range(30) for part in (header(member(f"images/{k:08d}_000.png")[0], 2**25), (ZEROS, 32))]),
        EXTRACT,
        REFUSE,
        (REFUSED,),
        contained=True,
    ),
    Case("a pax header of 8 GB", raw(PAX_BOMB, (ZEROS, 9000)), EXTRACT, REFUSE, (REFUSED,), contained=True),
    Case("a long name of 8 GB", raw(GNU_BOMB, (ZEROS, 9000)), EXTRACT, REFUSE, (REFUSED,), contained=True),
    Case(
        "a pax header of a negative size",
        raw(header(member("x", kind=tarfile.XHDTYPE)[0], -512)),
        EXTRACT,
        REFUSE,
        (REFUSED,),
        contained=True,
    ),
    Case(
        "an image of a negative size",
        raw(header(member(f"images/{EVIL}")[0], -512)),
        EXTRACT,
        REFUSE,
        (REFUSED,),
        contained=True,
    ),
    Case(
        "a folder of a negative size",
        raw(header(member("images", kind=b"Z")[0], -1024)),
        EXTRACT,
        REFUSE,
        (REFUSED,),
        contained=True,
    ),
    Case(
        "200,000 members",
        raw((header(member("images", kind=tarfile.DIRTYPE)[0], 0) * 2000, 100)),
        EXTRACT,
        REFUSE,
        (REFUSED, "112,120"),
        contained=True,
    ),
    Case("a sparse image whose map is none", sparse(major="1", minor="0"), EXTRACT, REFUSE, DAMAGED),
    Case("a sparse image whose map is words", sparse(map="here,there"), EXTRACT, REFUSE, DAMAGED),
    Case("an image twice", packed(member("images/00000001_000.png", png())), EXTRACT, REFUSE, (REFUSED, "twice")),
    Case(
        "an earlier image that was cut",
        earlier(lambda content: content[:99]),
        EXTRACT,
        ACCEPT,
        check=same,
        writes=IMAGES,
    ),
    Case(
        "an earlier image of another content",
        earlier(lambda content: OTHER),
        EXTRACT,
        REFUSE,
        (REFUSED, "00000001_000.png"),
    ),
    Case(
        "an earlier image of another content but the same size",
        earlier(lambda content: OTHER + bytes(len(content) - len(OTHER))),
        EXTRACT,
        ACCEPT,
        check=same,
        writes=IMAGES,
    ),
)
