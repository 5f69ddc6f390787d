"""Images on disk: found among the junk, checked, and unpacked from archives that are whole and safe."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.readers.nih_archives import extract_archives, find_images
from chestxray_vit.errors import InputError

A, B, C, D = (f"00000001_{number:03d}.png" for number in range(4))


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


# find_images


def found(*folders):
    return {folder: sorted(names) for folder, names in find_images(*folders).items()}


def test_images_in_one_folder(tmp_path):
    put(tmp_path / "images" / A), put(tmp_path / "images" / B)
    assert found(tmp_path) == {tmp_path / "images": [A, B]}


def test_images_in_the_kaggle_mirrors_folders(tmp_path):
    put(tmp_path / "images_001" / "images" / A), put(tmp_path / "images_012" / "images" / B)
    put(tmp_path / "images_old" / "images" / C), put(tmp_path / "images_002" / D)
    (tmp_path / "images_003" / "images").mkdir(parents=True)  # no image in it
    assert list(found(tmp_path).items()) == [
        (tmp_path / "images_001" / "images", [A]),
        (tmp_path / "images_012" / "images", [B]),
    ]


def test_an_image_in_two_folders_counts_once(tmp_path):
    put(tmp_path / "images_002" / "images" / A), put(tmp_path / "images_001" / "images" / A)
    assert found(tmp_path) == {tmp_path / "images_001" / "images": [A]}
    put(tmp_path / "images_002" / "images" / B)
    assert found(tmp_path) == {tmp_path / "images_001" / "images": [A], tmp_path / "images_002" / "images": [B]}
    put(tmp_path / "images" / A)
    assert found(tmp_path) == {tmp_path / "images": [A], tmp_path / "images_002" / "images": [B]}


def test_images_in_a_named_folder(tmp_path):
    put(tmp_path / "images" / A), put(tmp_path / "others [1]*" / B)
    folder = tmp_path / "others [1]*"
    assert found(tmp_path, folder) == {folder: [B]}


def test_junk_is_ignored(tmp_path):
    images = tmp_path / "images"
    put(images / A)
    put(images / ".DS_Store"), put(images / "Thumbs.db"), put(images / f"._{A}"), put(images / "00000001_001.PNG")
    put(images / "x.png"), put(images / "00000001_001.png.part"), put(images / "00000001_001-checkpoint.png")
    put(images / "__MACOSX" / f"._{B}"), put(images / ".ipynb_checkpoints" / "00000001_001-checkpoint.png")
    put(images / ".ipynb_checkpoints" / B), put(images / "deeper" / B), put(tmp_path / "__MACOSX" / "images" / B)
    (images / B).mkdir()  # a folder named like an image
    os.mkfifo(images / C)
    (images / D).symlink_to(images / "nowhere.png")
    (images / "00000001_004.png").symlink_to(images / "00000001_004.png")  # a link to itself
    assert found(tmp_path) == {images: [A]}
    (images / A).unlink()
    assert found(tmp_path) == {}


def test_links_to_images_count(tmp_path):
    real = put(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / A).symlink_to(real)
    (tmp_path / "images_001").mkdir()
    (tmp_path / "images_001" / "images").symlink_to(put(tmp_path / "far" / B).parent)
    assert found(tmp_path) == {tmp_path / "images": [A], tmp_path / "images_001" / "images": [B]}


def test_no_image_folder(tmp_path):
    put(tmp_path / "images_001.tar.gz", b"")
    (tmp_path / "images").write_text("a file")
    with pytest.raises(InputError) as error:
        find_images(tmp_path)
    assert str(error.value) == (
        f"no image folder: looked for {tmp_path}/images and {tmp_path}/images_0NN/images. "
        "Unpack NIH's archives (--extract), or name --images."
    )
    with pytest.raises(InputError, match=f"looked for {tmp_path}/none. Unpack"):
        find_images(tmp_path, tmp_path / "none")


# extract_archives

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def tar_bytes(*members):
    """Return an uncompressed tar of (name, bytes) or TarInfo members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


FOLDER = special("images", tarfile.DIRTYPE)
FOLDER.mode = 0o755
GOOD = (FOLDER, (f"images/{A}", png(1)), (f"images/{B}", png(2)))


@pytest.fixture
def release(tmp_path):
    """Return an empty release folder with a neighbour that nothing may touch."""
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour" / "file").write_text("untouched")
    (tmp_path / "release").mkdir()
    return tmp_path / "release"


def tree(folder):
    """Return the paths below a folder, with the bytes of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(release, data, match):
    """Refuse an archive, and keep nothing of it: not in the release, not beside it."""
    before = tree(release.parent)
    put(release / "images_001.tar.gz", data)
    with pytest.raises(InputError, match=f"^images_001.tar.gz: {match}"):
        extract_archives(release)
    assert tree(release.parent) == {**before, "release/images_001.tar.gz": data}


def test_extract(release):
    put(release / "images_001.tar.gz", gzip.compress(tar_bytes(*GOOD)))
    put(release / "images_002.tar.gz", gzip.compress(tar_bytes((f"./images/{C}", png(3)))))
    put(release / "other.tar.gz", b"not opened")
    assert extract_archives(release) == 3
    assert {path.name: path.read_bytes() for path in (release / "images").iterdir()} == {
        A: png(1),
        B: png(2),
        C: png(3),
    }
    assert sorted(path.name for path in release.iterdir()) == [
        "images",
        "images_001.tar.gz",
        "images_002.tar.gz",
        "other.tar.gz",
    ]


def test_extract_again_leaves_what_is_whole(release):
    put(release / "images_001.tar.gz", gzip.compress(tar_bytes(*GOOD)))
    assert extract_archives(release) == 2
    images = release / "images"
    os.utime(images / A, (1, 1))
    (images / B).write_bytes(png(2)[:50])  # as a stopped copy leaves it
    put(images / C, b"another")
    assert extract_archives(release) == 2
    assert (images / A).stat().st_mtime == 1
    assert (images / B).read_bytes() == png(2)
    assert (images / C).read_bytes() == b"another"


def test_no_archive(release):
    with pytest.raises(InputError) as error:
        extract_archives(release)
    assert str(error.value) == (f"--extract: no images_*.tar.gz in {release}. Fetch NIH's archives into that folder.")


@pytest.mark.parametrize(
    "member",
    [
        (f"../{C}", png()),
        (f"images/../../{C}", png()),
        ("../neighbour/file", b"changed"),
        (f"/tmp/{C}", png()),
        (f"images/deeper/{C}", png()),
        (f"images//{C}", png()),
        (C, png()),
        ("images/x.png", png()),
        ("images/.DS_Store", b"x"),
        (f"images/._{C}", png()),
        (f"images/{C}\n", png()),
        special(f"images/{C}", tarfile.SYMTYPE, "../../neighbour/file"),
        special(f"images/{C}", tarfile.SYMTYPE, A),
        special("images", tarfile.SYMTYPE, "../neighbour"),
        special(f"images/{C}", tarfile.LNKTYPE, f"images/{A}"),
        special(f"images/{C}", tarfile.LNKTYPE, "/etc/passwd"),
        special(f"images/{C}", tarfile.CHRTYPE),
        special(f"images/{C}", tarfile.BLKTYPE),
        special(f"images/{C}", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.type.decode() + member.name if isinstance(member, tarfile.TarInfo) else repr(member[0]),
)
def test_an_unsafe_member_refuses_the_archive(release, member):
    name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
    text = f"member {name!r} is not a file images/########_###.png. Nothing of the archive was kept."
    match = text.replace("\\", "\\\\").replace(".", "\\.")
    assert_refused(release, gzip.compress(tar_bytes(*GOOD, member)), match)


def test_folders_in_an_archive_are_not_made(release):
    outside = special("../evil", tarfile.DIRTYPE)
    put(release / "images_001.tar.gz", gzip.compress(tar_bytes(*GOOD, outside)))
    assert extract_archives(release) == 2
    assert sorted(os.listdir(release.parent)) == ["neighbour", "release"]


WHOLE = tar_bytes(*GOOD)
EDGE = len(WHOLE.rstrip(b"\0")) + -len(WHOLE.rstrip(b"\0")) % 512  # where the last member ends
LAST = WHOLE.index(f"images/{B}".encode())  # where its header starts


@pytest.mark.parametrize(
    "data, match",
    [
        (gzip.compress(WHOLE)[:-9], "cut or damaged: Compressed file ended before"),
        (gzip.compress(WHOLE)[:-4], "cut or damaged: Compressed file ended before"),
        (gzip.compress(WHOLE)[:400], "cut or damaged: "),
        (gzip.compress(WHOLE)[:-8] + b"\0\0\0\0" + gzip.compress(WHOLE)[-4:], "cut or damaged: CRC check failed"),
        (gzip.compress(WHOLE[:EDGE]), "cut or damaged: no end mark after the last member. Fetch the archive again"),
        (gzip.compress(WHOLE[:LAST]), "cut or damaged: no end mark after the last member"),
        (gzip.compress(WHOLE[: LAST + 100]), "cut or damaged: no end mark after the last member"),
        (gzip.compress(WHOLE[: LAST + 512]), "cut or damaged: unexpected end of data"),
        (gzip.compress(WHOLE[: LAST + 700]), "cut or damaged: unexpected end of data"),
        (gzip.compress(WHOLE[:LAST] + b"x" + WHOLE[LAST + 1 :]), "cut or damaged: no end mark after the last member"),
        (gzip.compress(b""), "cut or damaged: "),
        (b"", "cut or damaged: "),
        (HTML, "cut or damaged: not a gzip file"),
        (WHOLE, "cut or damaged: not a gzip file"),
    ],
    ids=[
        "cut-gzip",
        "cut-length",
        "cut-early",
        "checksum",
        "no-end-mark",
        "cut-before-a-member",
        "cut-in-a-header",
        "cut-after-a-header",
        "cut-in-a-file",
        "broken-header",
        "empty-tar",
        "empty",
        "html",
        "not-gzipped",
    ],
)
def test_a_cut_or_damaged_archive(release, data, match):
    assert_refused(release, data, match)


def test_a_refused_archive_leaves_the_images_that_were_there(release):
    put(release / "images" / A, b"older"), put(release / "images" / C, png(3))
    assert_refused(release, gzip.compress(WHOLE[:EDGE]), "cut or damaged")


def test_archives_before_the_refused_one_are_kept(release):
    put(release / "images_001.tar.gz", gzip.compress(tar_bytes(*GOOD)))
    put(release / "images_002.tar.gz", gzip.compress(tar_bytes((f"images/{C}", png(3)))[:1024]))
    with pytest.raises(InputError, match="^images_002.tar.gz: cut or damaged"):
        extract_archives(release)
    assert sorted(os.listdir(release / "images")) == [A, B]


def test_no_place_to_unpack_into(release):
    put(release / "images_001.tar.gz", gzip.compress(WHOLE))
    (release / "images").write_text("a file")
    match = f"^images_001.tar.gz: cannot unpack into {release}/images: .* exists.*. Make room for it.$"
    with pytest.raises(InputError, match=match):
        extract_archives(release)
    (release / "images").unlink()
    (release / "images" / A).mkdir(parents=True)
    with pytest.raises(InputError, match=f"^images_001.tar.gz: cannot unpack into {release}/images: .* directory"):
        extract_archives(release)


def test_a_python_without_the_data_filter(release, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")  # as in Python 3.11.3 and older
    put(release / "images_001.tar.gz", gzip.compress(WHOLE))
    with pytest.raises(InputError, match="^--extract: this Python cannot unpack safely .PEP 706.. Update it, or"):
        extract_archives(release)
    assert os.listdir(release) == ["images_001.tar.gz"]
