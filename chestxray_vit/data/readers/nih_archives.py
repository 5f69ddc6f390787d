"""Find the release's images on disk in one scan, and unpack NIH's archives.

Folders in the wild hold more than images: `.DS_Store`, `__MACOSX`, notebook checkpoints, Git LFS pointers
named `*.png`, error pages. Only files whose name is NIH's count, and their first bytes are looked at."""

from __future__ import annotations

import os
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Set

from chestxray_vit.data.readers.nih_fields import NAME_PATTERN
from chestxray_vit.errors import InputError, shortened
from chestxray_vit.images.files import check_pixels

MOST_MEMBERS = 112_120  # in an archive: the whole release; NIH's own have 10,000
MOST_BYTES = 1 << 26  # of an image; NIH's largest has 1 MB
MOST_TIMES = 20  # the bytes of the archive, and one largest image beside: PNGs hardly compress
LONGEST_READ = 1 << 20


def find_images(dataset_dir: Path, images_dir: Optional[Path] = None) -> Dict[Path, List[str]]:
    """Find the release's images in one scan of each folder.

    Args:
        dataset_dir: holds `images/`, or `images_001/images/` and so on as on Kaggle.
        images_dir: look here instead.

    Returns:
        For each folder the files with a name of NIH's, if it has any; a name that several folders have counts in the
        first of them. Other files are ignored.

    Raises:
        InputError: there is no such folder.
    """
    if images_dir is not None:
        folders = [images_dir]
    else:
        folders = [dataset_dir / "images", *sorted(dataset_dir.glob("images_[0-9]*/images"))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        looked = images_dir or f"{dataset_dir}/images and {dataset_dir}/images_0NN/images"
        raise InputError(f"no image folder: looked for {looked}. Unpack NIH's archives (--extract), or name --images.")
    found: Dict[Path, List[str]] = {}
    seen: Set[str] = set()
    for folder in folders:
        with os.scandir(folder) as files:
            names = [
                file.name
                for file in files
                # the first folder wins: mirrors that repeat an image repeat its bytes
                if NAME_PATTERN.fullmatch(file.name) and file.name not in seen and _is_file(file)
            ]
        if names:
            found[folder] = names
            seen.update(names)
    return found


def _is_file(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_file()
    except OSError:  # a link to itself
        return False


def extract_archives(dataset_dir: Path) -> int:
    """Unpack NIH's `images_*.tar.gz` into `images/`, one archive at a time, each whole or not at all.

    Members must be regular files `images/########_###.png`; anything else refuses the archive. Images that
    are there already with the right size are left alone, so that a stopped extraction goes on.

    Returns:
        The number of images in the archives.

    Raises:
        InputError: no archive, an archive that is cut or unsafe, or fewer files than members.
    """
    archives = sorted(dataset_dir.glob("images_*.tar.gz"))
    if not archives:
        raise InputError(f"--extract: no images_*.tar.gz in {dataset_dir}. Fetch NIH's archives into that folder.")
    if not hasattr(tarfile, "data_filter"):
        raise InputError("--extract: this Python cannot unpack safely (PEP 706). Update it, or unpack with `tar -xzf`.")
    return sum(_extract(archive, dataset_dir / "images") for archive in archives)


def _extract(archive: Path, images_dir: Path) -> int:
    from tqdm import tqdm

    if not archive.is_file():  # to open a pipe would wait for ever
        raise InputError(f"{archive.name}: not a file. Fetch the archive again.")
    contents = _Contents(archive)
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=images_dir.parent) as aside:
        try:
            with _Archive.open(archive, "r:gz") as tar:
                for member in tqdm(tar, desc=archive.name, unit="image", delay=2, leave=False):
                    name = contents.look(member)
                    if name is not None and not _is_there(archive, images_dir / name, member.size):
                        tar.extract(member, aside, filter="data")
                _check_end(tar)
        except InputError:
            raise
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, LookupError, struct.error) as error:
            raise InputError(f"{archive.name}: cut or damaged: {error}. Fetch the archive again.") from error
        try:
            images_dir.mkdir(exist_ok=True)
            for file in Path(aside, "images").glob("*.png"):
                os.replace(file, images_dir / file.name)
        except OSError as error:
            raise InputError(f"{archive.name}: cannot unpack into {images_dir}: {error}. Make room for it.") from error
    there = sum((images_dir / name).is_file() for name in contents.names)
    if there != len(contents.names):
        raise InputError(f"{archive.name}: {len(contents.names):,} members, {there:,} files. Is the disk full?")
    return len(contents.names)


class _Archive(tarfile.TarFile):
    """A tar file that does not trust its headers with how much memory they need."""

    @classmethod
    def taropen(cls, name: Any, mode: Any = "r", fileobj: Any = None, **options: Any) -> _Archive:  # `open` calls it
        guarded: Any = _Guarded(fileobj)
        return cls(name, mode, guarded, **options)


class _Guarded:
    """A file that limits each read: tarfile reads a pax header or a long name of any size at once."""

    def __init__(self, file: Any):
        self.seek, self.tell, self.close, self._read = file.seek, file.tell, file.close, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


class _Contents:
    """Gathers the members of an archive, to refuse what no archive of NIH's holds."""

    def __init__(self, archive: Path):
        self.archive = archive.name
        self.names: Set[str] = set()
        self.num_members, self.num_bytes = 0, 0
        self.most_bytes = MOST_TIMES * archive.stat().st_size + MOST_BYTES

    def look(self, member: tarfile.TarInfo) -> Optional[str]:
        """Return the name of a member's image, None if it is a folder.

        Raises:
            InputError: no archive of NIH's has such a member, so many, or such large ones.
        """
        self.num_members += 1
        if self.num_members > MOST_MEMBERS:
            self._refuse(f"more than {MOST_MEMBERS:,} members, which is the whole release")
        if member.isdir():
            return None
        folder, _, name = member.name.rpartition("/")
        shown = shortened(repr(member.name))
        if not member.isreg() or folder not in ("images", "./images") or not NAME_PATTERN.fullmatch(name):
            self._refuse(f"member {shown} is not a file images/########_###.png")
        if name in self.names:
            self._refuse(f"member {shown} is there twice")
        self.names.add(name)
        self.num_bytes += member.size
        if not 0 <= member.size <= MOST_BYTES:
            self._refuse(f"member {shown} has {member.size:,} bytes, which no X-ray of NIH's has")
        if self.num_bytes > self.most_bytes:
            self._refuse(f"it unpacks to more than {self.most_bytes:,} bytes, far more than images do")
        return name

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.archive}: {what}. Nothing of the archive was kept. Fetch it again from NIH.")


def _is_there(archive: Path, target: Path, num_bytes: int) -> bool:
    """Return whether an image is there already.

    The rest of a stopped copy does not count; a whole image of another size is refused.
    """
    if not target.is_file():
        return False
    found = target.stat().st_size
    if found != num_bytes and check_pixels(target) is None:  # resized by the user, say
        raise InputError(
            f"{archive.name}: {target} is there already, a whole image of {found:,} bytes where the archive has "
            f"{num_bytes:,}. Nothing of the archive was kept. Move the folder away, or leave out --extract."
        )
    return found == num_bytes


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse an archive that does not end in a block of zeros: tarfile takes a cut or a broken header for the end.

    The rest is read as well, because gzip compares its checksum only at the end.
    """
    whole = tar.fileobj.tell() == tar.offset + tarfile.BLOCKSIZE
    for rest in iter(lambda: tar.fileobj.read(1 << 20), b""):
        whole = whole and not rest.strip(b"\0")
    if not whole:
        raise tarfile.ReadError("no end mark after the last member")
