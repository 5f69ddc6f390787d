"""Open an ingested data set, and turn its X-rays into what a ViT reads.

`datasets`' ImageFolder walks 112,120 files for minutes each time it opens them; here the metadata is read
at once and the files' presence is checked by one directory scan. Pixels come out bit-identical to the
checkpoint's own image processor: it is asked once for its answer to each of the 256 grey levels.

B batch, H height, W width, L labels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

import datasets
import numpy as np
import torch
from PIL import Image

from chestxray_vit.findings import FINDINGS
from chestxray_vit.grey import read_grey
from chestxray_vit.problems import InputError, Problems
from chestxray_vit.split import SPLITS

METADATA = "metadata.jsonl"


def load_xrays(dataset_dir: str | Path, split: Optional[str] = None) -> datasets.Dataset:
    """Open an ingested folder, row for row what ImageFolder gives.

    Args:
        dataset_dir: the ingested release, or the folder of its metadata.jsonl.
        split: `train`, `validation` or `test`; None for all rows.

    Returns:
        One row an image: `image`, `labels` (14 or 15 float32), `file_name`, `split`, `patient_id`, `age`,
        `sex`, `view`, `follow_up`.

    Raises:
        InputError: no metadata, rows that `ingest` would not write, missing images, or an empty split.
    """
    import pyarrow
    import pyarrow.compute as compute

    path = find_metadata(dataset_dir)
    table = _read_metadata(path)
    num_labels = _check_metadata(path, table)
    if split is not None:
        table = table.filter(compute.equal(table["split"], split))
        if not table.num_rows:
            raise InputError(f"{path}: no image in the {split} split. Ingest with other lists or --val_fraction.")
    _check_presence(path.parent, table["file_name"].to_pylist())
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.Sequence(datasets.Value("float32"), length=num_labels),
            "file_name": datasets.Value("string"),
            "split": datasets.Value("string"),
            "patient_id": datasets.Value("int64"),
            "age": datasets.Value("int64"),
            "sex": datasets.Value("string"),
            "view": datasets.Value("string"),
            "follow_up": datasets.Value("int64"),
        }
    )
    # Arrow arrays, not lists: `datasets` then converts columns, not 112,120 rows one by one (1 s against 4 s)
    columns = {name: table[name].combine_chunks() for name in list(features)[2:]}
    columns["image"] = compute.binary_join_element_wise(str(path.parent), columns["file_name"], os.sep)
    labels = pyarrow.array(_labels(table).astype(np.float32).ravel())
    columns["labels"] = pyarrow.FixedSizeListArray.from_arrays(labels, num_labels)
    return datasets.Dataset.from_dict({name: columns[name] for name in features}, features=features)


def find_metadata(dataset_dir: str | Path) -> Path:
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


def _read_metadata(path: Path):
    """Read metadata.jsonl as an Arrow table."""
    import pyarrow
    from pyarrow import json as arrow_json

    fields = [("file_name", "string"), ("labels", pyarrow.list_(pyarrow.float64())), ("split", "string")]
    fields += [("patient_id", "int64"), ("age", "int64"), ("sex", "string"), ("view", "string"), ("follow_up", "int64")]
    try:
        table = arrow_json.read_json(
            path,
            read_options=arrow_json.ReadOptions(block_size=1 << 26),  # above any line; the default splits lines
            parse_options=arrow_json.ParseOptions(explicit_schema=pyarrow.schema(fields)),
        )
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: {error}. {_remedy(path)}") from error
    return table


def _remedy(path: Path) -> str:
    release = path.parent.parent if path.parent.name == "images" else path.parent
    return f"Ingest again: python -m chestxray_vit.ingest {release}"


def _labels(table) -> np.ndarray:
    return table["labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)


def _check_metadata(path: Path, table) -> int:
    """Refuse rows that `ingest` would not write; return the number of labels of a row."""
    import pyarrow.compute as compute

    problems = Problems(str(path))
    remedy = _remedy(path)
    for name in ("file_name", "labels", "split", "patient_id"):
        if table[name].null_count:
            row = compute.index(table[name].is_null(), True).as_py()
            problems.add("missing value", f"line {row + 1}: no {name}", remedy)
    problems.raise_if_any()
    lengths = sorted(compute.unique(compute.list_value_length(table["labels"])).to_pylist())
    if lengths not in ([len(FINDINGS)], [len(FINDINGS) + 1]):
        problems.add("labels of another length", f"found {lengths}, expected 14 (or 15) in every row", remedy)
    elif not np.isin(_labels(table), (0.0, 1.0)).all():
        row = int(np.flatnonzero(~np.isin(_labels(table), (0.0, 1.0)).all(axis=1))[0])
        problems.add("label neither 0 nor 1", f"line {row + 1}", remedy)
    unknown = set(compute.unique(table["split"]).to_pylist()) - set(SPLITS)
    for split in sorted(unknown):
        problems.add("unknown split", repr(split), f"Known: {', '.join(SPLITS)}. {remedy}")
    names = table["file_name"].to_pylist()
    if len(set(names)) < len(names):
        for name, count in Counter(names).items():
            if count > 1:
                problems.add("doubled image", f"{name} on {count} lines", remedy)
    for folder in _folders(names):
        if os.path.isabs(folder) or ".." in Path(folder).parts:
            problems.add("image outside the folder", repr(folder), remedy)
    problems.raise_if_any()
    return lengths[0] if lengths else len(FINDINGS)


def _folders(file_names: Sequence[str]) -> Set[str]:
    return {name.rpartition("/")[0] for name in file_names}


def _check_presence(dataset_dir: Path, file_names: Sequence[str]) -> None:
    """Refuse rows without an image; one scan a folder."""
    there = set()
    for folder in _folders(file_names):
        if (dataset_dir / folder).is_dir():
            prefix = folder + "/" if folder else ""
            there.update(prefix + name for name in os.listdir(dataset_dir / folder))
    missing = [name for name in file_names if name not in there]
    if missing:
        raise InputError(
            f"{dataset_dir}: {len(missing):,} of {len(file_names):,} images are missing (first: {missing[0]}). "
            f"Put them back, or ingest again with --allow_missing."
        )


class Preprocess:
    """Grey to RGB, resize to the checkpoint's size, normalise with its mean and std: its image processor's output.

    A class, not a closure: PopTorch's asynchronous loader pickles it.

    Attributes:
        size: (width, height) in pixels.
        levels_3x256: the processor's answer to each grey level, by channel.
    """

    def __init__(self, processor, dtype: np.dtype = np.float32):
        """Args: processor: an image processor of `transformers`; dtype: float16 for an IPU in half precision."""
        if not {"height", "width"} <= set(dict(processor.size)):
            raise InputError(f"preprocessor_config.json: size is {processor.size}, expected height and width.")
        self.size = (processor.size["width"], processor.size["height"])
        self.resample = processor.resample
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        levels = processor(ramp, do_resize=False, return_tensors="np")["pixel_values"][0]
        self.levels_3x256 = np.asarray(levels, dtype=np.float32).reshape(3, 256).astype(dtype)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the (3, H, W) pixel values of a grey image."""
        if image.size != self.size:
            image = image.resize(self.size, self.resample)
        return torch.from_numpy(self.levels_3x256[:, np.asarray(image)])

    def __call__(self, rows: Dict[str, List]) -> Dict[str, List]:
        """Turn a batch of a dataset's columns `image` (undecoded) and, where there, `labels` into tensors."""
        result: Dict[str, List] = {
            "pixel_values": [self.pixels(read_grey(image["bytes"] or image["path"])) for image in rows["image"]]
        }
        if "labels" in rows:
            result["labels"] = [torch.tensor(labels, dtype=torch.float32) for labels in rows["labels"]]
        return result


def preprocessed(xrays: datasets.Dataset, preprocess: Preprocess) -> datasets.Dataset:
    """Return a view of `load_xrays`' data set whose rows are `pixel_values` (3, H, W) and `labels` (L)."""
    return (
        xrays.select_columns(["image", "labels"])
        .cast_column("image", datasets.Image(decode=False))
        .with_transform(preprocess)
    )


def targets_of(xrays: datasets.Dataset) -> np.ndarray:
    """Return the labels (N, L) of `load_xrays`' data set, float32."""
    return np.asarray(xrays.select_columns(["labels"]).with_format("numpy")[:]["labels"], dtype=np.float32)


def collate(rows: Any) -> Dict[str, torch.Tensor]:
    """Stack rows into exactly `pixel_values` and `labels` (B, L): other fields would reach `forward`.

    Args:
        rows: a list of a data set's rows, or a batch that the data set made whole, which is returned as it is.
    """
    if isinstance(rows, dict):
        return rows
    return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}
