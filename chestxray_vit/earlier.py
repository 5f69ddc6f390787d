"""Planes that earlier pixel caches hold: when one image was fetched again, the others need not be decoded again.

An earlier cache is another key's folder beside this one's, whole or not, that was made by the same rule. A plane is
taken over if the image had the same name, size and mtime, and its mark says that its bytes are on the disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

from chestxray_vit.row_file import DONE

logger = logging.getLogger(__name__)

PIXELS, MARKS, ROWS, RULE = "pixels.u8", "done.u8", "rows.json", "rule.json"
Facts = Tuple[str, int, int]  # name, bytes, mtime in ns


class EarlierPlanes:
    """What the caches beside one hold, by the facts of the image."""

    def __init__(self, own: Path, rule: Dict[str, Any], row_bytes: int):
        """Look at the folders beside one.

        Args:
            own: the folder of the cache that is to be built.
            rule: what decides a plane besides the image: version, size, filter.
            row_bytes: of a plane.
        """
        self.row_bytes = row_bytes
        self._places: Dict[Facts, Tuple[np.ndarray, int]] = {}
        for folder in sorted(own.parent.iterdir()):
            if folder != own and _read(folder / RULE) == rule:
                self._take(folder)
        if self._places:
            logger.info("pixel cache: %s planes are at hand in earlier caches", f"{len(self._places):,}")

    def plane(self, facts: Facts) -> Optional[bytes]:
        """Return an image's plane, or None if no earlier cache has it."""
        found = self._places.get(facts)
        if found is None:
            return None
        planes, row = found
        return planes[row * self.row_bytes : (row + 1) * self.row_bytes].tobytes()

    def _take(self, folder: Path) -> None:
        rows = _read(folder / ROWS)
        try:
            marks_N = np.fromfile(folder / MARKS, np.uint8)
            planes = np.memmap(folder / PIXELS, np.uint8, "r")
        except (OSError, ValueError):  # ValueError: an empty file
            return
        if not isinstance(rows, list) or len(rows) != len(marks_N) or len(planes) != len(rows) * self.row_bytes:
            return  # it was just being begun
        for row in np.flatnonzero(marks_N == DONE).tolist():
            self._places[tuple(rows[row])] = planes, row


def _read(path: Path) -> Any:
    """Return the content of a JSON file of ours; None if it is not there, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
