"""What a pixel cache is built of: the images as one scan finds them, and the resize. Its key is the hash of these.

    rows.json        name, bytes and mtime_ns of each row's image, sorted by name
    rule.json        version, size and filter, for later caches to compare with

N images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Tuple

import numpy as np

from chestxray_vit.errors import InputError
from chestxray_vit.storage.file_index import (
    CHUNK,
    folders_of,
    is_outside,
    pack_names,
    scan_folder,
    unpack_names,
)

CACHE_VERSION = 2  # raise it when the same image, size and filter give other pixels
PIXELS, MARKS, ROWS, RULE = "pixels.u8", "done.u8", "rows.json", "rule.json"  # files of a cache
UNREADABLE, WHOLE, LOCK = "unreadable.json", "cache.json", "lock"


@dataclass(frozen=True)
class Resize:
    """How an image becomes a plane.

    Attributes:
        size: (width, height) in pixels, as `Preprocess.size`.
        resample: Pillow's number of the filter: 2 bilinear, 3 bicubic.
    """

    size: Tuple[int, int]
    resample: int

    def __post_init__(self) -> None:
        # of numpy's integers JSON has none
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        object.__setattr__(self, "resample", int(self.resample))

    @property
    def num_pixels(self) -> int:
        """The pixels, and bytes, of a plane."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True, eq=False)
class CacheKey:
    """What a cache is built of.

    Attributes:
        dataset_dir: the folder that the names are relative to.
        names_N: sorted names, as `pack_names` gives them.
        bytes_N, mtimes_N: of each image's file; nanoseconds.
        resize: how an image becomes a plane.
        folder: of the cache; its name is the hash of the rest.
    """

    dataset_dir: Path
    names_N: np.ndarray
    bytes_N: np.ndarray
    mtimes_N: np.ndarray
    resize: Resize
    folder: Path

    @property
    def rule(self) -> Dict[str, Any]:
        """The content of rule.json."""
        return {"version": CACHE_VERSION, "size": list(self.resize.size), "resample": self.resize.resample}

    def whole(self, num_unreadable: int) -> Dict[str, Any]:
        """Return the content of cache.json."""
        return {**self.rule, "images": len(self.names_N), "unreadable": num_unreadable, "whole": True}

    def name(self, row: int) -> str:
        """Return the file name of an image."""
        return unpack_names(self.names_N[row : row + 1])[0]

    def path(self, row: int) -> str:
        """Return the path of an image, as a string: a Path puts each name into Python's table of strings."""
        return os.path.join(self.dataset_dir, self.name(row))


def make_key(dataset_dir: Path, file_names: Iterable[str], resize: Resize, cache_dir: Path) -> CacheKey:
    """Scan the folders of images for their sizes and times, and return the key of their cache.

    Raises:
        InputError: no images, missing ones, or ones outside the folder.
    """
    names_N = pack_names(file_names)
    if not len(names_N):
        raise InputError(f"{dataset_dir}: no images to cache. Ingest a release that has some.")
    names_N.sort()
    names_N = names_N[np.append(True, names_N[1:] != names_N[:-1])]  # np.unique takes five times as long
    bytes_N, mtimes_N = _scan(dataset_dir, names_N)
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, *resize.size, resize.resample]).encode())
    for chunk in rows_json(names_N, bytes_N, mtimes_N):
        digest.update(chunk)
    return CacheKey(dataset_dir, names_N, bytes_N, mtimes_N, resize, cache_dir / digest.hexdigest()[:16])


def rows_json(names_N: np.ndarray, bytes_N: np.ndarray, mtimes_N: np.ndarray) -> Iterator[bytes]:
    """Give rows.json in chunks: at 112,120 rows the whole would be the largest thing in memory."""
    for start in range(0, len(names_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        rows = zip(unpack_names(names_N[chunk]), bytes_N[chunk].tolist(), mtimes_N[chunk].tolist())
        yield (",\n" if start else "[\n").encode() + ",\n".join(map(json.dumps, rows)).encode()
    yield b"\n]\n"


def file_facts(status: os.stat_result) -> Tuple[int, int]:
    """Return size and mtime of a file; a size of -1 of what is no regular file: a pipe would be waited for."""
    return (status.st_size if stat.S_ISREG(status.st_mode) else -1), status.st_mtime_ns


def _scan(dataset_dir: Path, names_N: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return size in bytes and mtime in ns of each image (N), by one scan of each folder."""
    bytes_N, mtimes_N = np.full(len(names_N), -1, np.int64), np.zeros(len(names_N), np.int64)
    for folder in sorted(folders_of(names_N)):
        if is_outside(folder):
            raise InputError(f"{dataset_dir}: image outside the folder: {folder!r}. Ingest the release again.")
        try:
            for rows_M, files in scan_folder(dataset_dir, folder, names_N):
                for index in np.flatnonzero(rows_M >= 0).tolist():
                    with contextlib.suppress(OSError):  # a link to nowhere, or to itself
                        bytes_N[rows_M[index]], mtimes_N[rows_M[index]] = file_facts(files[index].stat())
        except (FileNotFoundError, NotADirectoryError):
            continue  # its images are missing
        except OSError as error:
            raise InputError(
                f"{dataset_dir / folder}: cannot be listed: {error.strerror}. Look at its owner and mode (ls -ld)."
            ) from error
    missing = np.flatnonzero(bytes_N < 0)
    if len(missing):
        (first,) = unpack_names(names_N[missing[:1]])
        raise InputError(
            f"{dataset_dir}: {len(missing):,} of {len(names_N):,} images are missing (first: {first}). "
            "Put them back, or ingest again with --allow_missing."
        )
    return bytes_N, mtimes_N
