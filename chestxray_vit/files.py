"""Files that are whole or not there: written aside, then renamed; and their sha256.

A stage that is killed leaves its earlier output, or none; never half of a new one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Iterator, Union

PathLike = Union[str, Path]


@contextlib.contextmanager
def written_aside(path: PathLike) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` at the end, remove it on an error.

    The name keeps the suffix, since libraries choose a format by it. The file is synced before the rename.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def write_bytes(path: PathLike, content: Union[bytes, memoryview]) -> None:
    """Write a file, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_bytes(content)


def write_text(path: PathLike, text: str) -> None:
    """Write a text file in UTF-8 with line feeds, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, content: Any) -> None:
    """Write a JSON file, whole or not at all. NaN and infinity are refused: JSON has none."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fits(content: Any, shape: Any) -> bool:
    """Tell whether what was read from a JSON file holds what a shape names; it may hold more.

    Args:
        content: of the file.
        shape: a type, or a tuple of them; or a dict of names and shapes; or a list of the one shape of all items.
    """
    if isinstance(shape, dict):
        return isinstance(content, dict) and all(fits(content.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(content, list) and all(fits(item, shape[0]) for item in content)
    return isinstance(content, shape) and not (isinstance(content, bool) and shape is not bool)


def sha256(path: PathLike) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
