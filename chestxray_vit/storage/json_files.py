"""JSON files: written whole or not at all, read with a limit, and without NaN, which JSON has not."""

from __future__ import annotations

import json
import math
import numbers
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from chestxray_vit.errors import InputError
from chestxray_vit.storage.atomic import PathLike, write_text
from chestxray_vit.storage.json_schema import shown


def to_json(content: Any) -> str:
    """Return the text of a JSON file of ours.

    Raises:
        ValueError: a number is NaN or infinite (`none_for_nan` replaces NaN).
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: PathLike, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, to_json(content))


def none_for_nan(value: Any) -> Any:
    """Return a value with None in place of each NaN; floats of numpy become Python's.

    >>> none_for_nan({"auc": float("nan"), "interval": [0.5, float("nan")]})
    {'auc': None, 'interval': [0.5, None]}

    Args:
        value: a number, a text, None, or dicts, lists and tuples of them; tuples become lists, as in JSON.
    """
    if isinstance(value, dict):
        return {name: none_for_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [none_for_nan(part) for part in value]
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):  # integers are rational
        return None if math.isnan(value) else float(value)
    return value


def read_json(
    path: PathLike, remedy: str = "", max_bytes: Optional[int] = None, allow_nan: bool = False
) -> Dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of a file in UTF-8, with or without a byte order mark.
        remedy: last sentence of each error: what the user can do.
        max_bytes: that the file may have; None for any number.
        allow_nan: read `NaN` and `Infinity` as numbers, for a schema to refuse with their path.

    Raises:
        InputError: the file is not there, is too large, is not JSON, holds one name twice in an object, or holds
            something other than an object.
    """
    remedy = remedy and f" {remedy}"
    try:
        with open(path, "rb") as file:
            text = file.read(-1 if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(text) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
        content = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_without_duplicates,
            parse_constant=float if allow_nan else _refuse_constant,
        )
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.{remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON in UTF-8: {error}.{remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {shown(content)}.{remedy}")
    return content


def _without_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # Python's parser keeps the last of equal names
        raise ValueError("a name stands twice in one object")
    return content


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
