"""Parse metadata.jsonl block by block, and refuse rows that `ingest` would not write.

N images, L labels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np

from chestxray_vit.artifacts.ingest_report import read_label_set
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import LABEL_SETS_OF_0_5, LabelSet
from chestxray_vit.storage.file_index import folders_of, is_outside, pack_names, unpack_names

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "validation", "test")
BLOCK = 1 << 18  # bytes of metadata.jsonl that are parsed at once
LONGEST_ID = 200  # characters of a patient id, as in predictions.csv
REQUIRED = ("file_name", "labels", "split", "patient_id")
OTHERS = ("file_name", "split", "patient_id", "age", "sex", "view", "follow_up")  # columns that stay as they are
NUMBER_FOR_TEXT = "JSON parse error: Column(/patient_id) changed from string to number"  # Arrow's words


def checked_rows(path: Path, check: RowCheck, digest: Any) -> Iterator[pyarrow.RecordBatch]:
    """Yield the rows in their final form until some are refused; at the end, raise all problems of the file together.

    Args:
        path: of the file.
        check: sees every row.
        digest: of hashlib; is given the bytes of the file.
    """
    for line, rows in _blocks(path, digest):
        check.add(line, rows)
        if check.is_even and rows.num_rows:
            yield _columns(rows, path.parent)
    check.raise_if_wrong()


def _columns(rows: pyarrow.RecordBatch, folder: Path) -> pyarrow.RecordBatch:
    import pyarrow
    import pyarrow.compute as compute

    pool = pyarrow.system_memory_pool()  # Arrow's own keeps what is freed
    paths = compute.binary_join_element_wise(str(folder), rows["file_name"], os.sep, memory_pool=pool)
    nothing = pyarrow.nulls(rows.num_rows, pyarrow.binary(), memory_pool=pool)
    image = pyarrow.StructArray.from_arrays([nothing, paths], ["bytes", "path"])
    labels_NL = _labels(rows).astype(np.float32)
    labels = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(labels_NL.ravel()), labels_NL.shape[1])
    columns = [image, labels, *(rows[name] for name in OTHERS)]
    return pyarrow.RecordBatch.from_arrays(columns, ["image", "labels", *OTHERS])


def _labels(rows: pyarrow.RecordBatch) -> np.ndarray:
    return rows["labels"].flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, -1)


def _blocks(path: Path, digest: Any) -> Iterator[Tuple[int, pyarrow.RecordBatch]]:
    """Parse whole lines in blocks; yield the number of the first line, from 1, and the rows."""
    line = 1
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(BLOCK) + file.readline(), b""):
                digest.update(block)
                for rows in _parse(path, line, block).to_batches():  # one; none of blank lines
                    yield line, rows
                line += block.count(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Correct that, and run again.") from error


def _parse(path: Path, line: int, block: bytes) -> pyarrow.Table:
    """Parse lines; on an error halve them until the wrong line stands alone."""
    import pyarrow

    try:
        if block.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b""):  # at a first `null` Arrow ends the process
            raise pyarrow.ArrowInvalid("no JSON object")
        return _read_json(block)
    except pyarrow.ArrowInvalid as error:
        lines = block.splitlines(keepends=True)
        if len(lines) == 1:
            reason = str(error).partition(" in row ")[0].rstrip(".")
            raise InputError(f"{path}: line {line}: {reason}. {_remedy(path)}") from error
        half = len(lines) // 2
        parts = [(line, lines[:half]), (line + half, lines[half:])]
        return pyarrow.concat_tables([_parse(path, first, b"".join(part)) for first, part in parts]).combine_chunks()


def _read_json(block: bytes) -> pyarrow.Table:
    """Parse lines whose patient ids are all texts, or all whole numbers, as releases up to 0.5.0 wrote them.

    Returns:
        A table in which patient ids are texts: the number 1 is the patient "1".

    Raises:
        ArrowInvalid: a line is wrong.
    """
    import pyarrow
    import pyarrow.compute as compute

    try:
        table = _read_json_as(block, "string")
    except pyarrow.ArrowInvalid as error:
        if not str(error).startswith(NUMBER_FOR_TEXT):
            raise
        table = _read_json_as(block, "int64")
        texts = compute.cast(table["patient_id"], "string", memory_pool=pyarrow.system_memory_pool())
        table = table.set_column(table.schema.get_field_index("patient_id"), "patient_id", texts)
    table.validate(full=True)  # UTF-8
    return table


def _read_json_as(block: bytes, type_of_patient: str) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    fields = [("file_name", "string"), ("labels", pyarrow.list_(pyarrow.float64())), ("split", "string")]
    fields += [("patient_id", type_of_patient), ("age", "int64"), ("sex", "string"), ("view", "string")]
    schema = pyarrow.schema([*fields, ("follow_up", "int64")])
    return arrow_json.read_json(
        pyarrow.BufferReader(block),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        memory_pool=pyarrow.system_memory_pool(),
    )


def _remedy(path: Path) -> str:
    release = path.parent.parent if path.parent.name == "images" else path.parent
    return f"Ingest again: python -m chestxray_vit.ingest {release}"


class RowCheck:
    """Gathers what the rows of a file hold, to refuse together all that `ingest` would not write."""

    def __init__(self, path: Path):
        self.path = path
        label_set = read_label_set(path)
        self.label_sets = LABEL_SETS_OF_0_5 if label_set is None else (label_set,)  # one of these is the file's
        self.lacking: Dict[str, int] = {}  # field: the first line without it
        self.lengths: Set[int] = set()  # of the rows' labels
        self.wrong_label: Optional[int] = None  # the first line with one
        self.wrong_patient: Optional[int] = None
        self.splits: Set[str] = set()
        self.folders: Set[str] = set()
        self.names: List[np.ndarray] = []

    @property
    def label_set(self) -> Optional[LabelSet]:
        """The label set of all rows seen; None if they have no such number of labels."""
        return next((label_set for label_set in self.label_sets if self.lengths == {len(label_set)}), None)

    @property
    def is_even(self) -> bool:
        """Whether all rows have what they must, and the same number of labels."""
        return not self.lacking and self.label_set is not None

    def add(self, line: int, rows: pyarrow.RecordBatch) -> None:
        """Look at rows, of which the first stands on `line`."""
        import pyarrow.compute as compute

        for name in REQUIRED:
            is_lacking = rows[name].is_null()
            if name == "patient_id":  # a blank one is none
                is_lacking = compute.or_kleene(is_lacking, compute.equal(compute.utf8_trim_whitespace(rows[name]), ""))
            if name not in self.lacking and compute.any(is_lacking).as_py():
                self.lacking[name] = line + compute.index(is_lacking, True).as_py()
        if self.lacking:
            return
        self.lengths.update(compute.unique(compute.list_value_length(rows["labels"])).to_pylist())
        if self.is_even and self.wrong_label is None:
            labels_NL = _labels(rows)
            wrong_N = ~((labels_NL == 0) | (labels_NL == 1)).all(axis=1)
            self.wrong_label = line + int(wrong_N.argmax()) if wrong_N.any() else None
        if self.wrong_patient is None:
            is_long = compute.greater(compute.utf8_length(rows["patient_id"]), LONGEST_ID)
            has_nul = compute.match_substring(rows["patient_id"], "\0")
            wrong = compute.index(compute.or_(is_long, has_nul), True).as_py()
            self.wrong_patient = line + wrong if wrong >= 0 else None
        self.splits.update(compute.unique(rows["split"]).to_pylist())
        self.names.append(pack_names(rows["file_name"].to_pylist()))
        self.folders.update(folders_of(self.names[-1]))

    def raise_if_wrong(self) -> None:
        """Raise one InputError with all that is wrong."""
        problems, remedy = Problems(str(self.path)), _remedy(self.path)
        for name in REQUIRED:
            if name in self.lacking:
                problems.add("missing value", f"line {self.lacking[name]}: no {name}", remedy)
        problems.raise_if_any()
        if not self.lengths:
            raise InputError(f"{self.path}: no rows. {remedy}")
        if not self.is_even:
            found, expected = sorted(self.lengths), " or ".join(str(len(label_set)) for label_set in self.label_sets)
            problems.add("labels of another length", f"found {found}, expected {expected} in every row", remedy)
        elif self.wrong_label is not None:
            problems.add("label neither 0 nor 1", f"line {self.wrong_label}", remedy)
        if self.wrong_patient is not None:
            wrong = f"line {self.wrong_patient}"
            problems.add("patient_id is no id", wrong, f"Expected up to {LONGEST_ID} characters. {remedy}")
        for split in sorted(self.splits.difference(SPLITS)):
            problems.add("unknown split", repr(split), f"Known: {', '.join(SPLITS)}. {remedy}")
        for name, count in self._doubled():
            problems.add("doubled image", f"{name} on {count} lines", remedy)
        for folder in sorted(filter(is_outside, self.folders)):
            problems.add("image outside the folder", repr(folder[:-1] or "/"), remedy)
        problems.raise_if_any()

    def _doubled(self) -> Iterator[Tuple[str, int]]:
        names_N = np.concatenate(self.names)
        names_N.sort()
        doubled = set(names_N[1:][names_N[1:] == names_N[:-1]].tolist())
        if doubled:
            counts = Counter(name for part in self.names for name in part.tolist() if name in doubled)
            yield from zip(unpack_names(np.array(list(counts))), counts.values())
