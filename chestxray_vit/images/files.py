"""Find the X-rays that a command line names, and check image files: by their first bytes, or by decoding them."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Sequence

from chestxray_vit.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")


def find_images(arguments: Sequence[Path]) -> List[Path]:
    """Return the images that arguments name, each once: files as they are, folders with all their PNG and JPEG, sorted.

    Raises:
        InputError: a path is not there, or is neither a file nor a folder, or a folder holds no image.
    """
    paths: Dict[Path, Path] = {}
    for argument in arguments:
        if not argument.exists():
            raise InputError(f"{argument}: no such file or folder.")
        if not argument.is_file() and not argument.is_dir():
            raise InputError(f"{argument}: neither a file nor a folder.")  # a pipe would be waited for
        found = [argument]
        if argument.is_dir():
            found = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise InputError(f"{argument}: no PNG or JPEG in this folder.")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def check_header(path: Path) -> Optional[str]:
    """Return what is wrong with the first bytes of an image file; None if they are those of a PNG or JPEG."""
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
    """Decode an image and return what is wrong with it, or None."""
    from PIL import Image

    wrong = check_header(path)
    if wrong:
        return wrong
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError) as error:
        return f"cannot be decoded: {error}"
    return None


def check_images(paths: Collection[Path], check: Callable[[Path], Optional[str]]) -> Dict[Path, str]:
    """Run `check_header` or `check_pixels` on many files, in as many threads as cores; return what is wrong."""
    from tqdm import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(check, paths, chunksize=64)
        progress = tqdm(answers, total=len(paths), desc="check images", unit="image", delay=2, leave=False)
        return {path: wrong for path, wrong in zip(paths, progress) if wrong}
