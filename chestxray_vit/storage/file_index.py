"""Many file names as one sorted array of bytes, and the folders that hold the files.

A name takes 75 bytes as a Python string, 16 here.

N images, M names to look up."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Iterable, Iterator, List, Set, Tuple

import numpy as np

from chestxray_vit.errors import InputError

CHUNK = 1024  # names that are Python strings at once
LONGEST_NAME = 8192  # bytes; more than any system opens, and an array of names is as wide as the longest


def pack_names(names: Iterable[str]) -> np.ndarray:
    """Return names (N) as UTF-8, in an array of bytes of the longest one's width; it sorts as the strings do.

    Raises:
        InputError: no file can have such a name.
    """
    remaining, parts = iter(names), [np.empty(0, "S1")]
    while True:
        part = list(itertools.islice(remaining, CHUNK))
        if not part:
            return np.concatenate(parts)
        encoded = "\0".join(part).encode("utf-8", "surrogatepass").split(b"\0")  # much faster than one by one
        if len(encoded) > len(part) or max(map(len, encoded)) > LONGEST_NAME:
            wrong = next((name for name in part if "\0" in name), max(part, key=len))
            raise InputError(f"no file can have the name {wrong[:80]!r}. Ingest the release again.")
        parts.append(np.array(encoded))


def unpack_names(names_N: np.ndarray) -> List[str]:
    """Return names as strings."""
    return [name.decode("utf-8", "surrogatepass") for name in names_N.tolist()]


def indices_of(names_N: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    """Return the index (M, int64) of each name among sorted ones (N > 0); -1 where it is not among them."""
    # cut to the same width, or numpy would widen all N; the comparison is with the whole name
    indices_M = np.searchsorted(names_N, wanted_M.astype(names_N.dtype))
    indices_M[indices_M == len(names_N)] = 0
    indices_M[names_N[indices_M] != wanted_M] = -1
    return indices_M


def folders_of(names_N: np.ndarray) -> Set[str]:
    """Return the folders of names, with a slash at the end; "" where there is none."""
    found: Set[str] = set()
    for start in range(0, len(names_N), CHUNK):
        part = names_N[start : start + CHUNK]
        if b"/" in part.tobytes():
            found.update(name[: name.rfind("/") + 1] for name in unpack_names(part))
        else:
            found.add("")
    return found


def scan_folder(root: Path, folder: str, names_N: np.ndarray) -> Iterator[Tuple[np.ndarray, List[os.DirEntry[str]]]]:
    """Scan a folder under `root`; yield its entries in chunks, with their indices among sorted names, or -1."""
    with os.scandir(root / folder) as files:
        while True:
            part = list(itertools.islice(files, CHUNK))
            if not part:
                return
            yield indices_of(names_N, pack_names(folder + file.name for file in part)), part


def is_outside(folder: str) -> bool:
    """Return whether a folder is not under the one that it is relative to."""
    return os.path.isabs(folder) or ".." in Path(folder).parts
