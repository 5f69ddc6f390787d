"""Find metadata.jsonl and read it once, into a table that lies in a mapped file.

Memory then does not grow with the images: parsed at once a row takes 1.8 kB, kept as Arrow columns 0.2 kB. The file has
no name in its folder, so that nothing is left of it, whatever ends the process.

N images, M entries of a folder."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional, Tuple

import numpy as np

from chestxray_vit.artifacts.metadata_rows import SPLITS, RowCheck, checked_rows
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.storage.atomic import PathLike
from chestxray_vit.storage.file_index import folders_of, scan_folder

if TYPE_CHECKING:
    import pyarrow

METADATA = "metadata.jsonl"


def find_metadata(dataset_dir: PathLike) -> Path:
    """Return the metadata.jsonl of an ingested release: in its folder, or beside the images in `images/`.

    Where `images/` is a link, the metadata beside the images may be another's: that in the folder is taken.

    Raises:
        InputError: there is none, or one in each.
    """
    paths = [Path(dataset_dir, METADATA), Path(dataset_dir, "images", METADATA)]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise InputError(
            f"{paths[0]} and {paths[1]}: no such file. First: python -m chestxray_vit.ingest {dataset_dir}"
        )
    if len(found) > 1 and not paths[1].parent.is_symlink():
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
    check = RowCheck(path)
    table = _mapped(checked_rows(path, check, digest))
    assert table is not None and check.label_set is not None  # else `checked_rows` refuses the file
    split_names = tuple(name for name in SPLITS if name in check.splits)
    missing = _missing(path.parent, np.concatenate(check.names))
    return Metadata(path, table, check.label_set, split_names, missing, digest.hexdigest())


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


def _missing(dataset_dir: Path, names_N: np.ndarray) -> np.ndarray:
    """Return the indices of names that no file has, sorted; each folder is scanned once."""
    order_N = np.argsort(names_N)
    names_N = names_N[order_N]
    missing_N = np.ones(len(names_N), bool)
    for folder in folders_of(names_N):
        if (dataset_dir / folder).is_dir():
            for indices_M, _ in scan_folder(dataset_dir, folder, names_N):
                missing_N[indices_M[indices_M >= 0]] = False
    return np.sort(order_N[missing_N])


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
