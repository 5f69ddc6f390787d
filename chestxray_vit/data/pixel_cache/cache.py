"""Keep every X-ray of a data set decoded, grey, at the model's size: input is then never what one waits for.

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

N images, H height, W width. Linux and macOS: the lock is flock's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
from tqdm import tqdm

from chestxray_vit.data.pixel_cache.reuse import MARKS, PIXELS, ROWS, RULE, EarlierPlanes
from chestxray_vit.data.pixel_cache.row_store import Row, RowFile
from chestxray_vit.errors import SHOWN, InputError
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.files import check_pixels
from chestxray_vit.storage.atomic import PathLike, atomic_write
from chestxray_vit.storage.file_index import (
    CHUNK,
    folders_of,
    indices_of,
    is_outside,
    pack_names,
    scan_folder,
    unpack_names,
)
from chestxray_vit.storage.json_files import write_json
from chestxray_vit.storage.lock import file_lock

logger = logging.getLogger(__name__)

CACHE_VERSION = 2  # raise it when the same image, size and filter give other pixels
UNREADABLE, WHOLE, LOCK = "unreadable.json", "cache.json", "lock"
ROW_BYTES = 64  # of rows.json, with NIH's names
ELSEWHERE = "name another folder (--cache_dir D), or decode the images at every epoch (--cache_dir none)"


class PixelCache:
    """A whole cache, memory-mapped for reading. It pickles as its place, not as its pixels.

    Attributes:
        pixels_NHW: uint8, 0 black to 255 white; read-only. Rows of unreadable images are black.
        names_N: the image of each row, sorted, as `pack_names` gives it; unreadable ones among them.
        unreadable: the reason by name, of images that are left out.
        folder: where the cache lies.
    """

    def __init__(self, folder: Path, names_N: np.ndarray, size: Tuple[int, int], unreadable: Dict[str, str]):
        self.folder, self.names_N, self.unreadable = folder, names_N, unreadable
        self.pixels_NHW = np.memmap(folder / PIXELS, np.uint8, "r", shape=(len(names_N), size[1], size[0]))

    def __reduce__(self):
        _, height, width = self.pixels_NHW.shape
        return PixelCache, (self.folder, self.names_N, (width, height), self.unreadable)

    @property
    def file_names(self) -> List[str]:
        """The image of each row (N), as strings."""
        return unpack_names(self.names_N)

    def places_of(self, file_names: Iterable[str]) -> np.ndarray:
        """Return the rows (int64) of images, in the order given.

        Raises:
            InputError: an image is not in the cache, or could not be decoded.
        """
        wanted_M = pack_names(file_names)
        rows_M = indices_of(self.names_N, wanted_M)
        absent = np.flatnonzero((rows_M < 0) | np.isin(rows_M, indices_of(self.names_N, pack_names(self.unreadable))))
        if len(absent):
            (first,) = unpack_names(wanted_M[absent[:1]])
            reason = self.unreadable.get(first, "it was not among the images that the cache was built of")
            raise InputError(
                f"{self.folder}: {len(absent):,} of {len(wanted_M):,} images are not in the pixel cache "
                f"(first: {first}: {reason}). Leave them out, or build the cache of all images."
            )
        return rows_M


@dataclass(frozen=True)
class _Order:
    """What a cache is built of. The facts are those of one scan; the key is their hash."""

    dataset_dir: Path
    names_N: np.ndarray  # packed, sorted
    bytes_N: np.ndarray
    mtimes_N: np.ndarray  # nanoseconds
    size: Tuple[int, int]
    resample: int
    folder: Path

    @property
    def rule(self) -> Dict[str, Any]:
        """The content of rule.json."""
        return {"version": CACHE_VERSION, "size": list(self.size), "resample": self.resample}

    def whole(self, num_unreadable: int) -> Dict[str, Any]:
        """Return the content of cache.json."""
        return {**self.rule, "images": len(self.names_N), "unreadable": num_unreadable, "whole": True}

    def name(self, row: int) -> str:
        """Return the file name of an image."""
        return unpack_names(self.names_N[row : row + 1])[0]

    def decode(self, row: int) -> Row:
        """Return an image's pixels at the model's size, or why it cannot be read."""
        path = os.path.join(self.dataset_dir, self.name(row))  # a Path puts each name into Python's table of strings
        try:
            content, facts = _read(path)
        except FileNotFoundError:
            content, facts = b"", None
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if facts != (self.bytes_N[row], self.mtimes_N[row]):
            raise InputError(f"{path}: changed while the pixel cache was being built. Run again when all is in place.")
        try:
            image = read_grey(content)
        except InputError as error:
            return check_pixels(Path(path)) or str(error)  # which names no buffer at an address
        return (image if image.size == self.size else image.resize(self.size, self.resample)).tobytes()


def build_cache(
    dataset_dir: PathLike,
    file_names: Iterable[str],
    size: Tuple[int, int],
    resample: int,
    cache_dir: PathLike,
    num_threads: Optional[int] = None,
    allow_unreadable: bool = False,
) -> PixelCache:
    """Open the cache of these images, go on with a half-built one, or build it.

    A whole cache opens without reading an image. Killed at any moment, a build goes on where it was: at most 256
    images are decoded again, and those that could not be decoded are tried again. Of two processes one builds and the
    other waits. Caches of other keys under `cache_dir`, outdated ones too, are left alone: what they hold of unchanged
    images is copied, not decoded again. Remove them by hand.

    Args:
        dataset_dir: the folder that the names are relative to, that of metadata.jsonl.
        file_names: in any order; a name given twice has one row.
        size: (width, height) in pixels, as `Preprocess.size`.
        resample: Pillow's number of the filter: 2 bilinear, 3 bicubic.
        cache_dir: holds a folder for each key.
        num_threads: that decode; None for as many as cores.
        allow_unreadable: leave out images that cannot be decoded.

    Returns:
        The cache: grey planes bit-identical to `Preprocess`, before its levels.

    Raises:
        InputError: no images, missing ones, ones outside the folder, ones that change meanwhile; unreadable ones
            without `allow_unreadable`; no room on the disk, or a folder that cannot be written.
    """
    start = time.monotonic()
    order = _order(Path(dataset_dir), file_names, size, resample, Path(cache_dir))
    with _disk_errors(order):
        cache = _open(order, allow_unreadable)
        if cache is None:
            order.folder.mkdir(parents=True, exist_ok=True)
            with _locked(order.folder):
                # another process may have built it while this one waited
                cache = _open(order, allow_unreadable) or _build(order, num_threads, allow_unreadable)
    what = "{:,} images of {}x{}".format(len(cache.names_N), *order.size)
    what += f", {len(cache.unreadable):,} unreadable ones left out" if cache.unreadable else ""
    logger.info("pixel cache: %s, in %s, after %.1f s", what, cache.folder, time.monotonic() - start)
    return cache


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


# What is to be built, and whether it is there.


def _order(dataset_dir: Path, names: Iterable[str], size: Tuple[int, int], resample: int, cache_dir: Path) -> _Order:
    names_N = pack_names(names)
    if not len(names_N):
        raise InputError(f"{dataset_dir}: no images to cache. Ingest a release that has some.")
    names_N.sort()
    names_N = names_N[np.append(True, names_N[1:] != names_N[:-1])]  # np.unique takes five times as long
    width, height, resample = int(size[0]), int(size[1]), int(resample)  # of other integer types JSON has none
    bytes_N, mtimes_N = _scan(dataset_dir, names_N)
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, width, height, resample]).encode())
    for part in _rows_json(names_N, bytes_N, mtimes_N):
        digest.update(part)
    folder = cache_dir / digest.hexdigest()[:16]
    return _Order(dataset_dir, names_N, bytes_N, mtimes_N, (width, height), resample, folder)


def _scan(dataset_dir: Path, names_N: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return size in bytes and mtime in ns of each image (N), by one scan of each folder."""
    bytes_N, mtimes_N = np.full(len(names_N), -1, np.int64), np.zeros(len(names_N), np.int64)
    for folder in sorted(folders_of(names_N)):
        if is_outside(folder):
            raise InputError(f"{dataset_dir}: image outside the folder: {folder!r}. Ingest the release again.")
        try:
            for rows_M, files in scan_folder(dataset_dir, folder, names_N):
                for place in np.flatnonzero(rows_M >= 0).tolist():
                    with contextlib.suppress(OSError):  # a link to nowhere, or to itself
                        bytes_N[rows_M[place]], mtimes_N[rows_M[place]] = _facts(files[place].stat())
        except (FileNotFoundError, NotADirectoryError):
            continue  # its images are missing
        except OSError as error:
            raise InputError(f"{dataset_dir / folder}: cannot be listed: {error.strerror}. Mend its mode.") from error
    missing = np.flatnonzero(bytes_N < 0)
    if len(missing):
        (first,) = unpack_names(names_N[missing[:1]])
        raise InputError(
            f"{dataset_dir}: {len(missing):,} of {len(names_N):,} images are missing (first: {first}). "
            "Put them back, or ingest again with --allow_missing."
        )
    return bytes_N, mtimes_N


def _facts(status: os.stat_result) -> Tuple[int, int]:
    """Return size and mtime of a file, -1 of what is none: to open a pipe would wait for ever."""
    return (status.st_size if stat.S_ISREG(status.st_mode) else -1), status.st_mtime_ns


def _read(path: str) -> Tuple[bytes, Tuple[int, int]]:
    """Return a file's bytes and its facts after they were read."""
    with open(path, "rb") as file:
        return file.read(), _facts(os.fstat(file.fileno()))


def _rows_json(names_N: np.ndarray, bytes_N: np.ndarray, mtimes_N: np.ndarray) -> Iterator[bytes]:
    """Give rows.json in parts: at 112,120 rows the whole would be the largest thing in memory."""
    for start in range(0, len(names_N), CHUNK):
        part = slice(start, start + CHUNK)
        rows = zip(unpack_names(names_N[part]), bytes_N[part].tolist(), mtimes_N[part].tolist())
        yield (",\n" if start else "[\n").encode() + ",\n".join(map(json.dumps, rows)).encode()
    yield b"\n]\n"


def _open(order: _Order, allow_unreadable: bool) -> Optional[PixelCache]:
    """Open a whole cache; None if there is none, or if its unreadable images must be tried again."""
    try:
        found = json.loads((order.folder / WHOLE).read_text(encoding="utf-8"))
        unreadable = json.loads((order.folder / UNREADABLE).read_text(encoding="utf-8"))
        num_bytes = (order.folder / PIXELS).stat().st_size
    except (FileNotFoundError, ValueError):  # ValueError: not JSON, so not ours; it is built anew
        return None
    num_pixels = len(order.names_N) * order.size[0] * order.size[1]
    agrees = found == order.whole(len(unreadable)) and num_bytes == num_pixels
    if not agrees or (unreadable and not allow_unreadable):
        return None
    return PixelCache(order.folder, order.names_N, order.size, unreadable)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache's folder; wait, and say for whom, while another process has it."""

    def wait(holder: str) -> None:
        logger.info("pixel cache: %s is being built by process %s; waiting for it", folder, holder)

    with file_lock(folder / LOCK, wait, keep=True) as is_held:
        if not is_held:  # two processes would write the same rows
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(folder / LOCK))
        yield


# Building, under the lock.


def _build(order: _Order, num_threads: Optional[int], allow_unreadable: bool) -> PixelCache:
    with contextlib.suppress(FileNotFoundError):
        (order.folder / WHOLE).unlink()  # until the end it is not whole
    needed, free = _needed_bytes(order), shutil.disk_usage(order.folder).free
    if needed > free:
        raise InputError(_no_room(order, needed, free))
    pixels = RowFile(order.folder / PIXELS, order.folder / MARKS, len(order.names_N), order.size[0] * order.size[1])
    pixels.reserve()
    with atomic_write(order.folder / ROWS) as aside, open(aside, "wb") as file:
        file.writelines(_rows_json(order.names_N, order.bytes_N, order.mtimes_N))
    write_json(order.folder / RULE, order.rule)
    unreadable = _decode_all(order, pixels, num_threads)
    write_json(order.folder / UNREADABLE, unreadable)
    if unreadable and not allow_unreadable:
        first = "; ".join(f"{name}: {unreadable[name]}" for name in list(unreadable)[:SHOWN])
        raise InputError(
            f"{order.dataset_dir}: {len(unreadable):,} of {len(order.names_N):,} images cannot be read (first: "
            f"{first}; all: {order.folder / UNREADABLE}). Fetch them again, or leave them out with --allow_unreadable."
        )
    write_json(order.folder / WHOLE, order.whole(len(unreadable)))
    return PixelCache(order.folder, order.names_N, order.size, unreadable)


def _decode_all(order: _Order, pixels: RowFile, num_threads: Optional[int]) -> Dict[str, str]:
    """Decode the images that are not done; return the reasons of the unreadable by name."""
    total, todo = len(order.names_N), len(pixels.todo)
    facts = order.names_N, order.bytes_N, order.mtimes_N
    earlier = EarlierPlanes(order.folder, order.rule, pixels.row_bytes, facts) if todo else None

    def row_of(row: int) -> Row:
        return earlier.plane(row) or order.decode(row)

    with tqdm(total=total, initial=total - todo, desc="pixel cache", unit="image", delay=2, leave=False) as bar:
        reasons = pixels.fill(row_of, num_threads, bar.update)
    return {order.name(row): reason for row, reason in reasons.items()}


def _needed_bytes(order: _Order) -> int:
    taken = 0
    for name in (PIXELS, MARKS, ROWS):
        with contextlib.suppress(FileNotFoundError):
            taken += (order.folder / name).stat().st_blocks * 512  # not st_size: a file may have holes
    return max(0, cache_bytes(len(order.names_N), order.size) - taken)


def _no_room(order: _Order, needed: int, free: int) -> str:
    total = cache_bytes(len(order.names_N), order.size)
    return (
        f"{order.folder}: no room for the pixel cache of {len(order.names_N):,} images: it takes {total:,} bytes, "
        f"{needed:,} of them are still needed, {free:,} are free. What is done stays. "
        f"Make room and run again, {ELSEWHERE}."
    )


@contextlib.contextmanager
def _disk_errors(order: _Order) -> Iterator[None]:
    """Tell an error of the disk that holds the cache as what the user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            there = next(folder for folder in (order.folder, *order.folder.parents) if folder.is_dir())
            text = f"{_no_room(order, _needed_bytes(order), shutil.disk_usage(there).free)} ({error.strerror})"
        else:
            text = f"{order.folder}: the pixel cache cannot be used: {error}. Mend that, {ELSEWHERE}."
        raise InputError(text) from error
