"""Make the bytes of metadata.jsonl column by column: what repeats over rows is formatted once.

N images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow

Coded = Tuple[Sequence[Any], np.ndarray]  # the distinct values of a column, and for each row the index of its value


def distinct(array: Any) -> Tuple[List[Any], np.ndarray]:
    """Return the distinct values of an Arrow array, null being one, and for each row the index of its value (N)."""
    encoded = array if hasattr(array, "dictionary") else array.dictionary_encode("encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def metadata_lines(table: pyarrow.Table, folders: Coded, labels: Coded) -> memoryview:
    """Return the bytes of metadata.jsonl.

    Args:
        table: a row an image, with `file_name` (without its folder), `split`, `patient_id`, `age`, `sex`, `view` and
            `follow_up`; null where unknown.
        folders: of each image, as seen from the metadata, with a slash at the end, as the inside of a JSON string.
        labels: N-hot rows.
    """
    import pyarrow.compute as compute

    starts = ['{"file_name": "' + folder for folder in folders[0]]
    parts = [
        starts[0] if len(starts) == 1 else _spread(starts, folders[1]),
        table["file_name"].combine_chunks(),
        _spread(['", "labels": ' + json.dumps(row) for row in labels[0]], labels[1]),
        *(_as_json(name, table[name].combine_chunks()) for name in ("split", "patient_id", "age", "sex", "view")),
        _as_json("follow_up", table["follow_up"].combine_chunks(), "}\n"),
    ]
    lines = compute.binary_join_element_wise(*parts, "")
    return memoryview(lines.buffers()[2])[: int(np.frombuffer(lines.buffers()[1], dtype=np.int32)[len(lines)])]


def _as_json(name: str, array: Any, end: str = "") -> Any:
    """Return an Arrow array of `, "name": value` for each value."""
    import pyarrow.compute as compute

    encoded = array if hasattr(array, "dictionary") else array.dictionary_encode("encode")
    values, start = encoded.dictionary, f', "{name}": '
    if _is_plain(values):
        texts = compute.binary_join_element_wise(f'{start}"', values, f'"{end}', "")
    else:
        texts = [f"{start}{json.dumps(value)}{end}" for value in values.to_pylist()]
    return _spread(texts, encoded.indices)


def _is_plain(values: Any) -> bool:
    """Return whether an Arrow array holds texts that stand in JSON as they are, between quotes."""
    import pyarrow
    import pyarrow.compute as compute

    if values.type != pyarrow.string() or values.null_count:
        return False
    is_plain = compute.and_(compute.string_is_ascii(values), compute.utf8_is_printable(values))
    escaped = (compute.match_substring(values, character) for character in '"\\')
    return compute.all(is_plain).as_py() and not any(compute.any(found).as_py() for found in escaped)


def _spread(texts: Any, codes_N: Any) -> Any:
    """Return an Arrow array of the texts that the codes (N) refer to."""
    import pyarrow

    texts = texts if isinstance(texts, pyarrow.Array) else pyarrow.array(texts, "string")
    return texts.take(codes_N if isinstance(codes_N, pyarrow.Array) else pyarrow.array(codes_N))
