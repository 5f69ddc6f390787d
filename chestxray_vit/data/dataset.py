"""Open an ingested data set once, and give its rows in the form that a ViT takes.

`datasets`' ImageFolder walks 112,120 files for minutes each time it opens them; here the metadata is read once, and one
scan of each folder shows which images are there.

N images, B batch, H height, W width, L labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import datasets
import numpy as np
import torch

from chestxray_vit.artifacts.metadata import Metadata, find_metadata, open_metadata
from chestxray_vit.data.synthetic.release import is_synthetic
from chestxray_vit.images.preprocess import Preprocess
from chestxray_vit.labels import LabelSet
from chestxray_vit.storage.file_index import CHUNK

FEATURES = {  # columns beside `image` and `labels`
    "file_name": datasets.Value("string"),
    "split": datasets.Value("string"),
    "patient_id": datasets.Value("string"),
    "age": datasets.Value("int64"),
    "sex": datasets.Value("string"),
    "view": datasets.Value("string"),
    "follow_up": datasets.Value("int64"),
}


@dataclass(frozen=True, eq=False)
class XrayDataset:
    """An ingested folder, opened once: its metadata.jsonl was parsed and checked, and its images looked for.

    Attributes:
        dataset_dir: the folder as it was named.
        metadata: the rows in the file's order, in a mapped table.
    """

    dataset_dir: Path
    metadata: Metadata

    @property
    def metadata_path(self) -> Path:
        """The metadata.jsonl."""
        return self.metadata.path

    @property
    def root(self) -> Path:
        """The folder that file names are relative to."""
        return self.metadata.path.parent

    @property
    def label_set(self) -> LabelSet:
        """The names of the labels' columns."""
        return self.metadata.label_set

    @property
    def split_names(self) -> Tuple[str, ...]:
        """The splits that have images, in the order train, validation, test."""
        return self.metadata.split_names

    @property
    def file_names(self) -> Iterator[str]:
        """The file names of all rows, in the file's order; never all in memory."""
        for chunk in self.metadata.table["file_name"].chunks:
            yield from chunk.to_pylist()

    @property
    def fingerprint(self) -> str:
        """The sha256 of metadata.jsonl."""
        return self.metadata.sha256

    @property
    def is_synthetic(self) -> bool:
        """Whether the folder is a release that `draw_release` drew."""
        return is_synthetic(self.dataset_dir)

    def __len__(self) -> int:
        return self.metadata.table.num_rows

    def split(self, name: Optional[str] = None) -> datasets.Dataset:
        """Return the rows of a split, or all, row for row what ImageFolder gives; no file is read again.

        Args:
            name: `train`, `validation` or `test`; None for all rows.

        Returns:
            One row an image: `image`, `labels` (L float32), `file_name`, `split`, `patient_id`, `age`, `sex`, `view`,
            `follow_up`.

        Raises:
            InputError: images of these rows are missing, or the split is empty.
        """
        labels = datasets.Sequence(datasets.Value("float32"), length=len(self.label_set))
        features = datasets.Features({"image": datasets.Image(), "labels": labels, **FEATURES})
        # `datasets` would take the table into memory to make a fingerprint of its own
        identity = [self.fingerprint, str(self.root), name or ""]
        fingerprint = datasets.fingerprint.Hasher.hash_bytes([part.encode() for part in identity])
        return datasets.Dataset(
            self.metadata.rows(name), datasets.DatasetInfo(features=features), fingerprint=fingerprint
        )


def open_dataset(dataset_dir: str | Path) -> XrayDataset:
    """Open an ingested folder; a command does so once.

    Args:
        dataset_dir: the ingested release, or the folder of its metadata.jsonl.

    Raises:
        InputError: no metadata, or rows that `ingest` would not write.
    """
    return XrayDataset(Path(dataset_dir), open_metadata(find_metadata(dataset_dir)))


def load_xrays(dataset_dir: str | Path, split: Optional[str] = None) -> datasets.Dataset:
    """Open an ingested folder and return the rows of a split, or all: `open_dataset(dataset_dir).split(split)`.

    Raises:
        InputError: no metadata, rows that `ingest` would not write, missing images, or an empty split.
    """
    return open_dataset(dataset_dir).split(split)


def preprocessed(xrays: datasets.Dataset, preprocess: Preprocess) -> datasets.Dataset:
    """Return a view of rows of a data set that holds `pixel_values` (3, H, W) and `labels` (L)."""
    return (
        xrays.select_columns(["image", "labels"])
        .cast_column("image", datasets.Image(decode=False))
        .with_transform(preprocess)
    )


def names_of(xrays: datasets.Dataset) -> Iterator[str]:
    """Yield the file names (N) of rows of a data set, without holding them all."""
    for part in _parts(xrays, "file_name"):
        yield from part.to_pylist()


def targets_of(xrays: datasets.Dataset) -> np.ndarray:
    """Return the labels (N, L) of rows of a data set, float32."""
    targets_NL = np.empty((len(xrays), xrays.features["labels"].length), np.float32)
    start = 0
    for part in _parts(xrays, "labels"):
        stop = start + len(part)
        targets_NL[start:stop] = part.combine_chunks().flatten().to_numpy().reshape(len(part), -1)
        start = stop
    return targets_NL


def _parts(xrays: datasets.Dataset, name: str) -> Iterator[Any]:
    """Yield a column in parts, as Arrow arrays."""
    rows = xrays.select_columns([name]).with_format("arrow")
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK][name]


def collate(rows: Any) -> Dict[str, torch.Tensor]:
    """Stack rows into exactly `pixel_values` and `labels` (B, L): other fields would reach `forward`.

    Args:
        rows: a list of a data set's rows, or a batch that the data set made whole, which is returned as it is.
    """
    if isinstance(rows, dict):
        return rows
    return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}
