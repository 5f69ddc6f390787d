"""Planes that earlier pixel caches hold: when one image was fetched again, the others need not be decoded again.

An earlier cache is another key's folder beside this one's, whole or not, that was made by the same rule. A plane is
taken over if the image had the same name, size and mtime, and its mark says that its bytes are on the disk.

N images of the cache that is to be built, M rows of an earlier one."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from chestxray_vit.data.pixel_cache.row_store import DONE
from chestxray_vit.storage.file_index import CHUNK, indices_of, pack_names

logger = logging.getLogger(__name__)

PIXELS, MARKS, ROWS, RULE = "pixels.u8", "done.u8", "rows.json", "rule.json"
Facts = Tuple[np.ndarray, np.ndarray, np.ndarray]  # sorted names, bytes, mtimes in ns


class EarlierPlanes:
    """What the caches beside one hold of its images."""

    def __init__(self, own: Path, rule: Dict[str, Any], row_bytes: int, facts: Facts):
        """Look at the folders beside one.

        Args:
            own: the folder of the cache that is to be built.
            rule: what decides a plane besides the image: version, size, filter.
            row_bytes: of a plane.
            facts: of the images (N) of the cache that is to be built.
        """
        self.row_bytes, self._facts = row_bytes, facts
        self._found: List[Tuple[np.ndarray, np.ndarray]] = []  # planes of a cache, and which (N) are ours; -1 none
        for folder in sorted(own.parent.iterdir()):
            if folder != own and _rule(folder) == rule:
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
            own_M = np.concatenate(list(self._own_rows(folder / ROWS)))
            marks_M = np.fromfile(folder / MARKS, np.uint8)
            planes = np.memmap(folder / PIXELS, np.uint8, "r")
        except (OSError, ValueError):  # ValueError: an empty file, or one that is cut
            return
        if len(own_M) != len(marks_M) or len(planes) != len(own_M) * self.row_bytes:
            return  # it was just being begun
        rows = np.flatnonzero((own_M >= 0) & (marks_M == DONE))
        rows_N = np.full(len(self._facts[0]), -1)
        rows_N[own_M[rows]] = rows
        self._found.append((planes, rows_N))

    def _own_rows(self, path: Path) -> Iterator[np.ndarray]:
        """Give, in parts, which of our rows is that of an earlier cache: the same facts; -1 where none is."""
        names_N, bytes_N, mtimes_N = self._facts
        with open(path, encoding="utf-8") as file:
            file.readline()  # a row a line, between lines of one bracket
            while True:
                lines = [line.rstrip(",\n") for line in itertools.islice(file, CHUNK) if line != "]\n"]
                if not lines:
                    return
                names, bytes_M, mtimes_M = zip(*json.loads(f"[{','.join(lines)}]"))
                own_M = indices_of(names_N, pack_names(names))
                own_M[(bytes_N[own_M] != bytes_M) | (mtimes_N[own_M] != mtimes_M)] = -1
                yield own_M


def _rule(folder: Path) -> Any:
    """Return what the planes of a cache were made by; None if it is not there, or not whole."""
    try:
        return json.loads((folder / RULE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
