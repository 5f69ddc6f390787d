"""Keep every X-ray of a data set decoded, grey, at the model's size: then training does not wait for decoding.

A 1024x1024 PNG takes 15 ms to decode at every epoch; its 224x224 grey plane in a memory-mapped file takes a copy. A
cache is built once, a folder a key, where the key is a hash of what decides its pixels: each image's name, size and
mtime, the size and filter of the resize, and CACHE_VERSION. Change any, and another cache is built; the older stays.

    pixels.u8        N x H x W bytes, reserved on disk before the first image
    done.u8          a byte an image: to do, done, unreadable; written once the pixels are on the disk
    rows.json        name, bytes and mtime_ns of each row's image, sorted by name
    rule.json        version, size and filter, for later caches to compare with
    unreadable.json  name and reason of the images that could not be decoded
    cache.json       written last: with it the cache is whole
    lock             held by the one process that builds, whose id is in it

N images, M of them to look up, H height, W width."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np

from chestxray_vit.data.pixel_cache.key import PIXELS, UNREADABLE, WHOLE, CacheKey
from chestxray_vit.errors import InputError
from chestxray_vit.storage.atomic import PathLike
from chestxray_vit.storage.file_index import indices_of, pack_names, unpack_names

ROW_BYTES = 64  # of rows.json, with NIH's names


class PixelCache:
    """A whole cache, memory-mapped for reading. It pickles as the path of its folder, without its pixels.

    Attributes:
        pixels_NHW: uint8, 0 black to 255 white; read-only. Rows of unreadable images are black.
        names_N: the image of each row, sorted, as `pack_names` gives it; unreadable ones among them.
        unreadable: the reason by name, of images that are left out.
        folder: where the cache lies.
    """

    def __init__(self, folder: Path, names_N: np.ndarray, size: Tuple[int, int], unreadable: Dict[str, str]):
        self.folder, self.names_N, self.unreadable = folder, names_N, unreadable
        self.pixels_NHW = np.memmap(folder / PIXELS, np.uint8, "r", shape=(len(names_N), size[1], size[0]))

    def __reduce__(self) -> Tuple[Any, ...]:
        _, height, width = self.pixels_NHW.shape
        return PixelCache, (self.folder, self.names_N, (width, height), self.unreadable)

    @property
    def file_names(self) -> List[str]:
        """The image of each row (N), as strings."""
        return unpack_names(self.names_N)

    def rows_of(self, file_names: Iterable[str]) -> np.ndarray:
        """Return the rows (M, int64) of images, in the order given.

        Raises:
            InputError: an image is not in the cache, or could not be decoded.
        """
        wanted_M = pack_names(file_names)
        rows_M = indices_of(self.names_N, wanted_M)
        unreadable_rows = indices_of(self.names_N, pack_names(self.unreadable))
        absent = np.flatnonzero((rows_M < 0) | np.isin(rows_M, unreadable_rows))
        if len(absent):
            (first,) = unpack_names(wanted_M[absent[:1]])
            reason = self.unreadable.get(first, "it was not among the images that the cache was built of")
            raise InputError(
                f"{self.folder}: {len(absent):,} of {len(wanted_M):,} images are not in the pixel cache "
                f"(first: {first}: {reason}). Leave them out, or build the cache of all images."
            )
        return rows_M


def open_whole(key: CacheKey, allow_unreadable: bool) -> Optional[PixelCache]:
    """Open a whole cache; None if there is none, or if its unreadable images must be tried again."""
    try:
        found = json.loads((key.folder / WHOLE).read_text(encoding="utf-8"))
        unreadable = json.loads((key.folder / UNREADABLE).read_text(encoding="utf-8"))
        num_bytes = (key.folder / PIXELS).stat().st_size
    except (FileNotFoundError, ValueError):  # ValueError: not JSON, so not ours; the cache is built again
        return None
    agrees = found == key.whole(len(unreadable)) and num_bytes == len(key.names_N) * key.resize.num_pixels
    if not agrees or (unreadable and not allow_unreadable):
        return None
    return PixelCache(key.folder, key.names_N, key.resize.size, unreadable)


def default_cache_dir(dataset_dir: PathLike) -> Path:
    """Return where the caches of a data set go: beside it, or where it cannot be written, under Hugging Face's cache.

    As in huggingface_hub that is $HF_HOME, else `huggingface` in $XDG_CACHE_HOME or ~/.cache.
    """
    beside = Path(dataset_dir, "pixel_cache")
    if beside.is_dir() or os.access(dataset_dir, os.W_OK | os.X_OK):
        return beside
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(home).expanduser() / "chestxray_vit"


def cache_bytes(num_images: int, size: Tuple[int, int]) -> int:
    """Return the bytes that a cache takes on the disk; size is (width, height) in pixels."""
    return num_images * (size[0] * size[1] + 1 + ROW_BYTES)
