"""Find the X-rays that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence

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
