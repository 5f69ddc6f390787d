"""Planes that earlier pixel caches hold: when one image was fetched again, the others need not be decoded again.

An earlier cache is the folder of another key beside this one's, whole or not, that was made by the same rule. A plane
is taken over if the image had the same name, size and mtime, and its mark says that its bytes are on the disk.

N images of the cache that is to be built, M rows of an earlier one."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

from chestxray_vit.data.pixel_cache.key import MARKS, PIXELS, ROWS, RULE, CacheKey
from chestxray_vit.data.pixel_cache.row_store import DONE
from chestxray_vit.storage.file_index import CHUNK, indices_of, pack_names

logger = logging.getLogger(__name__)


class EarlierPlanes:
    """What the caches beside one hold of its images."""

    def __init__(self, key: CacheKey):
        """Args: key: of the cache that is to be built; the folders beside its own are looked at."""
        self.row_bytes, self._key = key.resize.num_pixels, key
        self._found: List[
            Tuple[np.ndarray, np.ndarray]
        ] = []  # planes of a cache, and the row there of each image here (N); -1: none
        for folder in sorted(key.folder.parent.iterdir()):
            if folder != key.folder and _rule(folder) == key.rule:
                self._take(folder)
        if self._found:
            num_found = np.count_nonzero(np.any([rows_N >= 0 for _, rows_N in self._found], axis=0))
            logger.info("pixel cache: %s planes are at hand in earlier caches", f"{num_found:,}")

    def plane(self, row: int) -> Optional[bytes]:
        """Return the plane of an image, or None if no earlier cache has it."""
        for planes, rows_N in self._found:
            if rows_N[row] >= 0:
                start = int(rows_N[row]) * self.row_bytes
                return planes[start : start + self.row_bytes].tobytes()
        return None

    def _take(self, folder: Path) -> None:
        try:
            rows_M = np.concatenate(list(self._rows_of(folder / ROWS)))
            marks_M = np.fromfile(folder / MARKS, np.uint8)
            planes = np.memmap(folder / PIXELS, np.uint8, "r")
        except (OSError, ValueError):  # ValueError: an empty file, or one that is cut
            return
        if len(rows_M) != len(marks_M) or len(planes) != len(rows_M) * self.row_bytes:
            return  # it was just being begun
        done = np.flatnonzero((rows_M >= 0) & (marks_M == DONE))
        rows_N = np.full(len(self._key.names_N), -1)
        rows_N[rows_M[done]] = done
        self._found.append((planes, rows_N))

    def _rows_of(self, path: Path) -> Iterator[np.ndarray]:
        """Give, in chunks, the row here of each row of an earlier cache: the same facts; -1 where none is."""
        names_N, bytes_N, mtimes_N = self._key.names_N, self._key.bytes_N, self._key.mtimes_N
        with open(path, encoding="utf-8") as file:
            file.readline()  # a row a line, between lines of one bracket
            while True:
                lines = [line.rstrip(",\n") for line in itertools.islice(file, CHUNK) if line != "]\n"]
                if not lines:
                    return
                names, bytes_M, mtimes_M = zip(*json.loads(f"[{','.join(lines)}]"))
                rows_M = indices_of(names_N, pack_names(names))
                rows_M[(bytes_N[rows_M] != bytes_M) | (mtimes_N[rows_M] != mtimes_M)] = -1
                yield rows_M


def _rule(folder: Path) -> Any:
    """Return what the planes of a cache were made by; None if it is not there, or not whole."""
    try:
        return json.loads((folder / RULE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
