"""Build the pixel cache of some images, or go on with one that is half built; open it if it is whole.

Of two processes one builds and the other waits. Linux and macOS: the lock is flock's."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional, Tuple

from tqdm import tqdm

from chestxray_vit.data.pixel_cache.cache import PixelCache, cache_bytes, open_whole
from chestxray_vit.data.pixel_cache.key import (
    LOCK,
    MARKS,
    PIXELS,
    ROWS,
    RULE,
    UNREADABLE,
    WHOLE,
    CacheKey,
    Resize,
    file_facts,
    make_key,
    rows_json,
)
from chestxray_vit.data.pixel_cache.reuse import EarlierPlanes
from chestxray_vit.data.pixel_cache.row_store import Row, RowFile
from chestxray_vit.errors import SHOWN, InputError
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.files import check_pixels
from chestxray_vit.storage.atomic import PathLike, atomic_write
from chestxray_vit.storage.json_files import write_json
from chestxray_vit.storage.lock import file_lock

logger = logging.getLogger(__name__)

ELSEWHERE = "name another folder (--cache_dir D), or decode the images at every epoch (--cache_dir none)"


def build_cache(
    dataset_dir: PathLike,
    file_names: Iterable[str],
    resize: Resize,
    cache_dir: PathLike,
    num_threads: Optional[int] = None,
    allow_unreadable: bool = False,
) -> PixelCache:
    """Open the cache of these images, go on with a half-built one, or build it.

    A whole cache opens without reading an image. After a kill at most 256 images are decoded again. Caches of other
    keys are left alone: what they hold of unchanged images is copied, not decoded again.

    Args:
        dataset_dir: the folder that the names are relative to, that of metadata.jsonl.
        file_names: in any order; a name given twice has one row.
        resize: size and filter of the planes.
        cache_dir: holds a folder for each key.
        num_threads: that decode; None for as many as cores.
        allow_unreadable: leave out images that cannot be decoded.

    Returns:
        The cache: grey planes bit-identical to `Preprocess`, before its levels.

    Raises:
        InputError: images are missing, outside the folder, changed meanwhile, or unreadable; or the disk is full.
    """
    start = time.monotonic()
    key = make_key(Path(dataset_dir), file_names, resize, Path(cache_dir))
    with _explain_disk_errors(key):
        cache = open_whole(key, allow_unreadable)
        if cache is None:
            key.folder.mkdir(parents=True, exist_ok=True)
            with _locked(key.folder):
                # another process may have built it while this one waited
                cache = open_whole(key, allow_unreadable) or _build(key, num_threads, allow_unreadable)
    what = "{:,} images of {}x{}".format(len(cache.names_N), *resize.size)
    what += f", {len(cache.unreadable):,} unreadable ones left out" if cache.unreadable else ""
    logger.info("pixel cache: %s, in %s, after %.1f s", what, cache.folder, time.monotonic() - start)
    return cache


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache's folder; wait, and say for whom, while another process has it."""

    def wait(holder: str) -> None:
        logger.info("pixel cache: %s is being built by process %s; waiting for it", folder, holder)

    with file_lock(folder / LOCK, wait, keep=True) as is_held:
        if not is_held:  # two processes would write the same rows
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(folder / LOCK))
        yield


# Under the lock.


def _build(key: CacheKey, num_threads: Optional[int], allow_unreadable: bool) -> PixelCache:
    with contextlib.suppress(FileNotFoundError):
        (key.folder / WHOLE).unlink()  # until the end it is not whole
    needed, free = _needed_bytes(key), shutil.disk_usage(key.folder).free
    if needed > free:
        raise InputError(_no_room(key, needed, free))
    pixels = RowFile(key.folder / PIXELS, key.folder / MARKS, len(key.names_N), key.resize.num_pixels)
    pixels.reserve()
    with atomic_write(key.folder / ROWS) as aside, open(aside, "wb") as file:
        file.writelines(rows_json(key.names_N, key.bytes_N, key.mtimes_N))
    write_json(key.folder / RULE, key.rule)
    unreadable = _decode_all(key, pixels, num_threads)
    write_json(key.folder / UNREADABLE, unreadable)
    if unreadable and not allow_unreadable:
        first = "; ".join(f"{name}: {unreadable[name]}" for name in list(unreadable)[:SHOWN])
        raise InputError(
            f"{key.dataset_dir}: {len(unreadable):,} of {len(key.names_N):,} images cannot be read (first: "
            f"{first}; all: {key.folder / UNREADABLE}). Fetch them again, or leave them out with --allow_unreadable."
        )
    write_json(key.folder / WHOLE, key.whole(len(unreadable)))
    return PixelCache(key.folder, key.names_N, key.resize.size, unreadable)


def _decode_all(key: CacheKey, pixels: RowFile, num_threads: Optional[int]) -> Dict[str, str]:
    """Decode the images that are not done; return the reasons of the unreadable by name."""
    total, num_todo = len(key.names_N), len(pixels.todo)
    if not num_todo:
        return {}
    earlier = EarlierPlanes(key)

    def row_of(row: int) -> Row:
        return earlier.plane(row) or _decode(key, row)

    with tqdm(total=total, initial=total - num_todo, desc="pixel cache", unit="image", delay=2, leave=False) as bar:
        reasons = pixels.fill(row_of, num_threads, bar.update)
    return {key.name(row): reason for row, reason in reasons.items()}


def _decode(key: CacheKey, row: int) -> Row:
    """Return an image's pixels at the model's size, or why it cannot be read."""
    path = key.path(row)
    try:
        content, facts = _read(path)
    except FileNotFoundError:
        content, facts = b"", (-1, 0)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if facts != (key.bytes_N[row], key.mtimes_N[row]):
        raise InputError(f"{path}: changed while the pixel cache was being built. Run again when all is in place.")
    try:
        image = read_grey(content)
    except InputError as error:
        return check_pixels(Path(path)) or str(error)  # which names no buffer at an address
    size, resample = key.resize.size, key.resize.resample
    return (image if image.size == size else image.resize(size, resample)).tobytes()


def _read(path: str) -> Tuple[bytes, Tuple[int, int]]:
    """Return a file's bytes, and its size and mtime after they were read."""
    with open(path, "rb") as file:
        return file.read(), file_facts(os.fstat(file.fileno()))


# The disk.


def _needed_bytes(key: CacheKey) -> int:
    taken = 0
    for name in (PIXELS, MARKS, ROWS):
        with contextlib.suppress(FileNotFoundError):
            taken += (key.folder / name).stat().st_blocks * 512  # not st_size: a file may have holes
    return max(0, cache_bytes(len(key.names_N), key.resize.size) - taken)


def _no_room(key: CacheKey, needed: int, free: int) -> str:
    total = cache_bytes(len(key.names_N), key.resize.size)
    return (
        f"{key.folder}: no room for the pixel cache of {len(key.names_N):,} images: it takes {total:,} bytes, "
        f"{needed:,} of them are still needed, {free:,} are free. What is done stays. "
        f"Make room and run again, {ELSEWHERE}."
    )


@contextlib.contextmanager
def _explain_disk_errors(key: CacheKey) -> Iterator[None]:
    """Report an error of the disk that holds the cache as what the user can correct."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            there = next(folder for folder in (key.folder, *key.folder.parents) if folder.is_dir())
            text = f"{_no_room(key, _needed_bytes(key), shutil.disk_usage(there).free)} ({error.strerror})"
        else:
            text = f"{key.folder}: the pixel cache cannot be used: {error}. Correct that, {ELSEWHERE}."
        raise InputError(text) from error
