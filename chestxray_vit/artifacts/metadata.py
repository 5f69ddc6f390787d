"""Find metadata.jsonl; read it in blocks into a table that lies in a file; hold names as one array of bytes.

Memory then does not grow with the images: parsed at once a row takes 1.8 kB, kept as Arrow columns 0.2 kB, and its name
takes 75 bytes as a Python string, 16 here. The file has no name in its folder, so whatever ends the process, nothing is
left of it.

N images, M names to look up."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import numpy as np

from chestxray_vit.artifacts.ingest_report import read_label_set
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import LABEL_SETS_OF_0_5, LabelSet
from chestxray_vit.storage.atomic import PathLike

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "validation", "test")
METADATA = "metadata.jsonl"
BLOCK = 1 << 18  # bytes of metadata.jsonl that are parsed at a time
PART = 1024  # names that are Python strings at a time
LONGEST_NAME = 8192  # bytes; more than any system opens, and an array of names is as wide as the longest
REQUIRED = ("file_name", "labels", "split", "patient_id")
OTHERS = ("file_name", "split", "patient_id", "age", "sex", "view", "follow_up")  # columns that stay as they are


def find_metadata(dataset_dir: PathLike) -> Path:
    """Return the metadata.jsonl of an ingested release: in its folder, or beside the images in `images/`.

    Where `images/` is a link, the metadata beside the images may be another's: that in the folder is taken.

    Raises:
        InputError: there is none, or one in each.
    """
    places = [Path(dataset_dir, METADATA), Path(dataset_dir, "images", METADATA)]
    found = [path for path in places if path.is_file()]
    if not found:
        raise InputError(
            f"{places[0]} and {places[1]}: no such file. First: python -m chestxray_vit.ingest {dataset_dir}"
        )
    if len(found) > 1 and not places[1].parent.is_symlink():
        raise InputError(f"{found[0]} and {found[1]} are both there. Name the folder of one, or remove the older.")
    return found[0]


@dataclass(frozen=True, eq=False)  # a table has no single truth value, so == would raise
class Metadata:
    """A metadata.jsonl that was read and checked once.

    Attributes:
        path: of the file; the names in it are relative to its folder.
        table: all rows in the file's order, memory-mapped: `image` (bytes, null; path), `labels` (float32), and the
            other columns of the file.
        label_set: the names of the labels' columns.
        split_names: the splits that have rows, in the order of SPLITS.
        missing: the indices of rows whose image is not there, sorted.
        sha256: of the file's bytes.
    """

    path: Path
    table: pyarrow.Table
    label_set: LabelSet
    split_names: Tuple[str, ...]
    missing: np.ndarray
    sha256: str

    def rows(self, split: Optional[str] = None) -> pyarrow.Table:
        """Return the rows of a split, or all, as a memory-mapped table; the file is not read again.

        Raises:
            InputError: images of these rows are missing, the split is empty, or there is no room for its table.
        """
        table = self.table if split is None else _mapped(_of_split(self.table, split))
        if table is None:
            raise InputError(f"{self.path}: no image in the {split} split. Ingest with other lists or --val_fraction.")
        if len(self.missing):
            columns = self.table.select(["file_name", "split"]).take(self.missing).to_pydict()
            names = [name for name, of in zip(columns["file_name"], columns["split"]) if split in (None, of)]
            if names:
                raise InputError(
                    f"{self.path.parent}: {len(names):,} of {len(table):,} images are missing (first: {names[0]}). "
                    f"Put them back, or ingest again with --allow_missing."
                )
        return table


def open_metadata(path: Path) -> Metadata:
    """Read metadata.jsonl once, check every row, and look which images are there.

    Args:
        path: of the file; the label set is that of the ingest_report.json beside it.

    Raises:
        InputError: rows that `ingest` would not write, or a report that cannot be read; no room for the mapped file.
    """
    digest = hashlib.sha256()
    seen = _Seen(path)
    table = _mapped(_checked(path, seen, digest))
    assert table is not None and seen.label_set is not None  # else `_checked` refuses the file
    split_names = tuple(name for name in SPLITS if name in seen.splits)
    missing = _missing(path.parent, np.concatenate(seen.names))
    return Metadata(path, table, seen.label_set, split_names, missing, digest.hexdigest())


def read_metadata(path: Path, split: Optional[str] = None) -> pyarrow.Table:
    """Read metadata.jsonl as the columns of `load_xrays`, and look whether the images are there.

    Args:
        path: of the file; the names in it are relative to its folder.
        split: `train`, `validation` or `test`; None for all rows.

    Returns:
        A memory-mapped table, as `Metadata.table`.

    Raises:
        InputError: rows that `ingest` would not write, missing images, an empty split; no room for the mapped file.
    """
    return open_metadata(path).rows(split)


# Names.


def packed(names: Iterable[str]) -> np.ndarray:
    """Return names (N) as UTF-8, in an array of bytes of the longest one's width; it sorts as the strings do.

    Raises:
        InputError: no file can have such a name.
    """
    names, parts = iter(names), [np.empty(0, "S1")]
    while True:
        part = list(itertools.islice(names, PART))
        if not part:
            return np.concatenate(parts)
        encoded = "\0".join(part).encode("utf-8", "surrogatepass").split(b"\0")  # much faster than one by one
        if len(encoded) > len(part) or max(map(len, encoded)) > LONGEST_NAME:
            wrong = next((name for name in part if "\0" in name), max(part, key=len))
            raise InputError(f"no file can have the name {wrong[:80]!r}. Ingest the release again.")
        parts.append(np.array(encoded))


def unpacked(names_N: np.ndarray) -> List[str]:
    """Return names as strings."""
    return [name.decode("utf-8", "surrogatepass") for name in names_N.tolist()]


def places(names_N: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    """Return where names (M, int64) stand among sorted ones (N > 0); -1 where they do not."""
    # cut to the same width, or numpy would widen all N; the comparison is with the whole name
    places_M = np.searchsorted(names_N, wanted_M.astype(names_N.dtype))
    places_M[places_M == len(names_N)] = 0
    places_M[names_N[places_M] != wanted_M] = -1
    return places_M


def folders(names_N: np.ndarray) -> Set[str]:
    """Return the folders of names, with a slash at the end; "" where there is none."""
    found = set()
    for start in range(0, len(names_N), PART):
        part = names_N[start : start + PART]
        if b"/" in part.tobytes():
            found.update(name[: name.rfind("/") + 1] for name in unpacked(part))
        else:
            found.add("")
    return found


def listed(root: Path, folder: str, names_N: np.ndarray) -> Iterator[Tuple[np.ndarray, List[os.DirEntry]]]:
    """Scan a folder under `root`; give, in parts, its entries, and their places among sorted names, or -1."""
    with os.scandir(root / folder) as files:
        while True:
            part = list(itertools.islice(files, PART))
            if not part:
                return
            yield places(names_N, packed(folder + file.name for file in part)), part


def outside(folder: str) -> bool:
    """Return whether a folder is not under the one that it is relative to."""
    return os.path.isabs(folder) or ".." in Path(folder).parts


def _missing(dataset_dir: Path, names_N: np.ndarray) -> np.ndarray:
    """Return the indices of names that no file has, sorted; one scan a folder."""
    order_N = np.argsort(names_N)
    names_N = names_N[order_N]
    missing_N = np.ones(len(names_N), bool)
    for folder in folders(names_N):
        if (dataset_dir / folder).is_dir():
            for places_M, _ in listed(dataset_dir, folder, names_N):
                missing_N[places_M[places_M >= 0]] = False
    return np.sort(order_N[missing_N])


# From JSON to columns in a file.


def _mapped(batches: Iterator[pyarrow.RecordBatch]) -> Optional[pyarrow.Table]:
    """Write rows to a file that has no name, and map it; None if there are none."""
    import pyarrow

    first = next(batches, None)
    if first is None:
        return None
    try:
        with tempfile.TemporaryFile() as file:
            with pyarrow.ipc.new_stream(file, first.schema) as writer:
                for batch in itertools.chain([first], batches):
                    writer.write_batch(batch)
            file.flush()
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(
            f"{tempfile.tempdir or 'temporary files'}: the table of the images cannot be laid there: {error}. "
            "Make room, or name another folder: TMPDIR=D."
        ) from error
    return pyarrow.ipc.open_stream(pyarrow.py_buffer(content)).read_all()


def _of_split(table: pyarrow.Table, split: str) -> Iterator[pyarrow.RecordBatch]:
    """Give the rows of a split, batch by batch, so that few of them are in memory."""
    import pyarrow
    import pyarrow.compute as compute

    pool = pyarrow.system_memory_pool()
    for batch in table.to_batches():
        chosen = compute.filter(batch, compute.equal(batch["split"], split), memory_pool=pool)
        if chosen.num_rows:
            yield chosen


def _checked(path: Path, seen: _Seen, digest: Any) -> Iterator[pyarrow.RecordBatch]:
    """Give the rows in their last form until some are refused; at the end, raise all problems of the file at once.

    Args:
        path: of the file.
        seen: notes what every row holds.
        digest: of hashlib; is given the bytes of the file.
    """
    for line, rows in _blocks(path, digest):
        seen.look(line, rows)
        if seen.even and rows.num_rows:
            yield _columns(rows, path.parent)
    seen.refuse()


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
    """Parse whole lines, a block at a time; give the number of the first one, from 1, and the rows."""
    line = 1
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(BLOCK) + file.readline(), b""):
                digest.update(block)
                for rows in _parsed(path, line, block).to_batches():  # one; none of blank lines
                    yield line, rows
                line += block.count(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Mend that, and run again.") from error


def _parsed(path: Path, line: int, block: bytes) -> pyarrow.Table:
    """Parse lines; on an error halve them until the line that is wrong stands alone."""
    import pyarrow
    from pyarrow import json as arrow_json

    fields = [("file_name", "string"), ("labels", pyarrow.list_(pyarrow.float64())), ("split", "string")]
    fields += [("patient_id", "int64"), ("age", "int64"), ("sex", "string"), ("view", "string"), ("follow_up", "int64")]
    try:
        if block.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b""):  # at a first `null` Arrow ends the process
            raise pyarrow.ArrowInvalid("no JSON object")
        table = arrow_json.read_json(
            pyarrow.BufferReader(block),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pyarrow.schema(fields), unexpected_field_behavior="ignore"
            ),
            memory_pool=pyarrow.system_memory_pool(),
        )
        table.validate(full=True)  # UTF-8
    except pyarrow.ArrowInvalid as error:
        lines = block.splitlines(keepends=True)
        if len(lines) == 1:
            reason = str(error).partition(" in row ")[0].rstrip(".")
            raise InputError(f"{path}: line {line}: {reason}. {_remedy(path)}") from error
        half = len(lines) // 2
        parts = [(line, lines[:half]), (line + half, lines[half:])]
        return pyarrow.concat_tables([_parsed(path, first, b"".join(part)) for first, part in parts]).combine_chunks()
    return table


def _remedy(path: Path) -> str:
    release = path.parent.parent if path.parent.name == "images" else path.parent
    return f"Ingest again: python -m chestxray_vit.ingest {release}"


class _Seen:
    """What was seen of the rows so far, to refuse those that `ingest` would not write, all at once."""

    def __init__(self, path: Path):
        self.path = path
        label_set = read_label_set(path)
        self.label_sets = LABEL_SETS_OF_0_5 if label_set is None else (label_set,)  # one of these is the file's
        self.lacking: Dict[str, int] = {}  # the first line without a field
        self.lengths: Set[int] = set()  # of labels
        self.wrong_label: Optional[int] = None  # the first line with one
        self.splits: Set[str] = set()
        self.folders: Set[str] = set()
        self.names: List[np.ndarray] = []

    @property
    def even(self) -> bool:
        """Whether all rows have what they must, and the same number of labels."""
        return not self.lacking and self.label_set is not None

    @property
    def label_set(self) -> Optional[LabelSet]:
        """The label set of all rows seen; None if they have no such number of labels."""
        return next((label_set for label_set in self.label_sets if self.lengths == {len(label_set)}), None)

    def look(self, line: int, rows: pyarrow.RecordBatch) -> None:
        """Look at rows, of which the first stands on `line`."""
        import pyarrow.compute as compute

        for name in REQUIRED:
            if rows[name].null_count and name not in self.lacking:
                self.lacking[name] = line + compute.index(rows[name].is_null(), True).as_py()
        if self.lacking:
            return
        self.lengths.update(compute.unique(compute.list_value_length(rows["labels"])).to_pylist())
        if self.even and self.wrong_label is None:
            labels_NL = _labels(rows)
            wrong_N = ~((labels_NL == 0) | (labels_NL == 1)).all(axis=1)
            self.wrong_label = line + int(wrong_N.argmax()) if wrong_N.any() else None
        self.splits.update(compute.unique(rows["split"]).to_pylist())
        self.names.append(packed(rows["file_name"].to_pylist()))
        self.folders.update(folders(self.names[-1]))

    def refuse(self) -> None:
        """Raise one InputError that tells all that is wrong."""
        problems, remedy = Problems(str(self.path)), _remedy(self.path)
        for name in REQUIRED:
            if name in self.lacking:
                problems.add("missing value", f"line {self.lacking[name]}: no {name}", remedy)
        problems.raise_if_any()
        if not self.lengths:
            raise InputError(f"{self.path}: no rows. {remedy}")
        if not self.even:
            found, expected = sorted(self.lengths), " or ".join(str(len(label_set)) for label_set in self.label_sets)
            problems.add("labels of another length", f"found {found}, expected {expected} in every row", remedy)
        elif self.wrong_label is not None:
            problems.add("label neither 0 nor 1", f"line {self.wrong_label}", remedy)
        for split in sorted(self.splits.difference(SPLITS)):
            problems.add("unknown split", repr(split), f"Known: {', '.join(SPLITS)}. {remedy}")
        for name, count in self._doubled():
            problems.add("doubled image", f"{name} on {count} lines", remedy)
        for folder in sorted(filter(outside, self.folders)):
            problems.add("image outside the folder", repr(folder[:-1] or "/"), remedy)
        problems.raise_if_any()

    def _doubled(self) -> Iterator[Tuple[str, int]]:
        names_N = np.concatenate(self.names)
        names_N.sort()
        doubled = set(names_N[1:][names_N[1:] == names_N[:-1]].tolist())
        if doubled:
            counts = Counter(name for part in self.names for name in part.tolist() if name in doubled)
            yield from zip(unpacked(np.array(list(counts))), counts.values())
