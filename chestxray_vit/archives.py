"""The release's images on disk: found in one scan, checked, and unpacked from NIH's archives.

Folders in the wild hold more than images: `.DS_Store`, `__MACOSX`, notebook checkpoints, Git LFS pointers
named `*.png`, error pages. Only files whose name is NIH's count, and their first bytes are looked at."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Set

from chestxray_vit.nih import NAME_PATTERN
from chestxray_vit.problems import InputError


def find_images(dataset_dir: Path, images_dir: Optional[Path] = None) -> Dict[Path, List[str]]:
    """Find the release's images in one scan of each folder.

    Args:
        dataset_dir: holds `images/`, or `images_001/images/` and so on as on Kaggle.
        images_dir: look here instead.

    Returns:
        For each folder that has some the files whose name is NIH's, a name in the first folder that has it. What else
        lies there is ignored.

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


def _is_file(file: os.DirEntry) -> bool:
    try:
        return file.is_file()
    except OSError:  # a link to itself
        return False


def check_header(path: Path) -> Optional[str]:
    """Say what is wrong with the first bytes of an image file, or None: they are PNG's or JPEG's."""
    try:
        with open(path, "rb") as file:
            start = file.read(24)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    if (start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR") or start.startswith(b"\xff\xd8\xff"):
        return None
    return f"not a PNG or JPEG: starts with {start[:8]!r}"


def check_pixels(path: Path) -> Optional[str]:
    """Decode an image and say what is wrong with it, or None."""
    from PIL import Image, UnidentifiedImageError

    wrong = check_header(path)
    if wrong:
        return wrong
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return f"cannot be decoded: {error}"
    return None


def check_images(paths: Collection[Path], check: Callable[[Path], Optional[str]]) -> Dict[Path, str]:
    """Run `check_header` or `check_pixels` on many files, in as many threads as cores; return what is wrong."""
    from tqdm import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(check, paths, chunksize=64)
        progress = tqdm(answers, total=len(paths), desc="check images", unit="image", delay=2, leave=False)
        return {path: wrong for path, wrong in zip(paths, progress) if wrong}


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

    members: Dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=images_dir.parent) as aside:
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tqdm(tar, desc=archive.name, unit="image", delay=2, leave=False):
                    if member.isdir():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    if not member.isreg() or folder not in ("images", "./images") or not NAME_PATTERN.fullmatch(name):
                        raise InputError(
                            f"{archive.name}: member {member.name!r} is not a file images/########_###.png. "
                            "Nothing of the archive was kept. Fetch it again from NIH."
                        )
                    members[name] = member.size
                    target = images_dir / name
                    if not (target.is_file() and target.stat().st_size == member.size):
                        tar.extract(member, aside, filter="data")
                _check_end(tar)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{archive.name}: cut or damaged: {error}. Fetch the archive again.") from error
        try:
            images_dir.mkdir(exist_ok=True)
            for file in Path(aside, "images").glob("*.png"):
                os.replace(file, images_dir / file.name)
        except OSError as error:
            raise InputError(f"{archive.name}: cannot unpack into {images_dir}: {error}. Make room for it.") from error
    there = sum((images_dir / name).is_file() for name in members)
    if there != len(members):
        raise InputError(f"{archive.name}: {len(members):,} members, {there:,} files. Is the disk full?")
    return len(members)


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse an archive that does not end in a block of zeros: tarfile takes a cut or a broken header for the end.

    The rest is read as well: only at its end does gzip compare its checksum.
    """
    whole = tar.fileobj.tell() == tar.offset + tarfile.BLOCKSIZE
    for rest in iter(lambda: tar.fileobj.read(1 << 20), b""):
        whole = whole and not rest.strip(b"\0")
    if not whole:
        raise tarfile.ReadError("no end mark after the last member")
