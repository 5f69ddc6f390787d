"""Benchmarks of the data path: ingest, open, preprocess. Before the times count, both ways must give the same."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Tuple

import numpy as np

from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.benchmarks import releases
from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.reading import inflate

NO_FINDING = NIH_CHESTXRAY14.negative

IMAGEFOLDER_ROWS = 4_000  # of all it would take minutes; it asks for every file alone, so its time grows with them


def ingest_in_process(scratch: Path, num_rows: int) -> List[Result]:
    """CSV to N-hot metadata.jsonl, against the tutorial's pandas route, which writes labels alone and no split."""
    from chestxray_vit.artifacts.metadata_writer import metadata_lines
    from chestxray_vit.data import ingestion
    from chestxray_vit.data.readers import nih
    from chestxray_vit.storage.atomic import write_bytes

    source = releases.write_tables(scratch / "release", num_rows)
    dataset_dir = scratch / "release"
    table_path, theirs, ours = dataset_dir / releases.CSV, scratch / "theirs.jsonl", scratch / "ours.jsonl"
    names: List[str] = []

    def tutorial() -> None:
        names[:] = _write_by_pandas(table_path, theirs)

    def package() -> None:
        entries = nih.read_entries(table_path)
        lists = ingestion.find_lists(dataset_dir, "auto", None, None)
        entries = ingestion.assign_splits(entries, lists, by_image=False, val_fraction=0.1, seed=1337)
        folders = ingestion.relative_folders({scratch / "images": []}, ours), np.zeros(len(entries), int)
        write_bytes(ours, metadata_lines(entries.table, folders, entries.labels()))

    package()
    content = ours.read_bytes()

    def read_and_write() -> None:
        table_path.read_bytes()
        (scratch / "copy.jsonl").write_bytes(content)

    ways = {"tutorial": tutorial, "package": package, "limit": read_and_write}
    seconds = interleave(ways, 5, time.process_time)
    _check_labels(names, theirs, ours)
    work = f"CSV to metadata.jsonl in process ({source})"
    values = seconds["package"], seconds["tutorial"], "tutorial's pandas", 5, None, seconds["limit"]
    return [Result("ingest", work, "CPU s", *values, "read and write of the bytes")]


def _write_by_pandas(table_path: Path, target: Path) -> List[str]:
    """Write N-hot labels as the tutorial does, and return their names."""
    import pandas

    table = pandas.read_csv(table_path)
    names = np.unique(table["Finding Labels"].str.split("|").aggregate(np.concatenate)).tolist()
    column_of = {name: index for index, name in enumerate(names)}

    def to_n_hot(cell: str) -> np.ndarray:
        labels = np.zeros(len(names))
        labels[[column_of[name] for name in cell.split("|")]] = 1
        return labels

    table["labels"] = table["Finding Labels"].apply(to_n_hot)
    table = table[["Image Index", "labels"]].rename(columns={"Image Index": "file_name"})
    table.to_json(target, orient="records", lines=True)
    return names


def _check_labels(names: List[str], theirs: Path, ours: Path) -> None:
    with open(theirs) as their_lines, open(ours) as our_lines:
        for their, our in itertools.zip_longest(map(json.loads, their_lines), map(json.loads, our_lines)):
            assert our["file_name"] == f"images/{their['file_name']}"
            found = set(itertools.compress(names, their["labels"])) - {NO_FINDING}
            assert found == set(NIH_CHESTXRAY14.decode(our["labels"])), our["file_name"]


def ingest_end_to_end(scratch: Path, num_rows: int) -> List[Result]:
    """The command, from start to exit, on a folder with a file for every row."""
    source = releases.write_tables(scratch / "release", num_rows)
    releases.touch_images(scratch / "release")
    command = [sys.executable, "-m", "chestxray_vit.ingest", str(scratch / "release"), "--verify", "none"]

    def run() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])

    seconds = interleave({"package": run}, 5)["package"]
    with open(scratch / "release" / "images" / "metadata.jsonl") as lines:
        assert sum(1 for _ in lines) == len(releases.file_names(scratch / "release"))
    return [Result("ingest_end_to_end", f"the command, --verify none ({source})", "s", seconds, below=2)]


def open_dataset(scratch: Path, num_rows: int) -> List[Result]:
    """`load_xrays` of all rows, against ImageFolder by `data_dir` with a new cache each time."""
    import datasets

    from chestxray_vit import ingest
    from chestxray_vit.data.dataset import load_xrays

    few = min(IMAGEFOLDER_ROWS, num_rows)
    source = releases.write_tables(scratch / "all", num_rows)
    releases.touch_images(scratch / "all")
    releases.write_tables(scratch / "few", few)
    releases.link_images(scratch / "few")
    for name in ("all", "few"):
        with contextlib.redirect_stdout(io.StringIO()):
            assert ingest.main([str(scratch / name), "--verify", "none"]) == 0
    opened = {}

    def image_folder() -> None:
        cache = scratch / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        opened["theirs"] = datasets.load_dataset(
            "imagefolder", data_dir=str(scratch / "few" / "images"), split="train", cache_dir=str(cache)
        )

    def package() -> None:
        opened["ours"] = load_xrays(scratch / "all")

    def scan() -> None:
        with os.scandir(scratch / "all" / "images") as files:
            opened["names"] = [file.name for file in files]

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        seconds = interleave({"ImageFolder": image_folder, "package": package, "limit": scan}, 3)
    finally:
        if not bars:
            datasets.enable_progress_bars()
    theirs, ours = opened["theirs"], load_xrays(scratch / "few")
    assert _rows(theirs) == _rows(ours)
    scaled = seconds["ImageFolder"] * num_rows / few
    baseline_is = "ImageFolder" if few == num_rows else f"ImageFolder, measured at {few:,} rows and scaled linearly"
    work = f"open, files' presence checked ({source})"
    limit, limit_is = seconds["limit"], "one scan of the folder"
    return [Result("open", work, "s", seconds["package"], scaled, baseline_is, None, 2, limit, limit_is)]


def _rows(dataset) -> List[Tuple]:
    """Return the rows of a data set in one order: older versions of ImageFolder follow the files, not the metadata."""
    columns = dataset.remove_columns("image").to_dict()
    names = ("patient_id", "follow_up", "split", "age", "sex", "view")
    return sorted(zip(*(columns[name] for name in names), map(tuple, columns["labels"])), key=repr)


def preprocess(scratch: Path, num_rows: int) -> List[Result]:
    """A PNG of 1024 pixels to pixel_values of 224, one process, against the checkpoint's own image processor."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor

    from chestxray_vit.images.decode import read_grey
    from chestxray_vit.images.preprocess import Preprocess
    from chestxray_vit.models.vit import build_from_scratch
    from chestxray_vit.models.vit_size import ViTSize

    small = ViTSize(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    build_from_scratch(small)[1].save_pretrained(scratch / "vit")
    processor = AutoImageProcessor.from_pretrained(scratch / "vit")
    ours = Preprocess(processor)
    paths, source = releases.xrays_1024(scratch / "xrays", max(2, min(32, num_rows // 1000)))

    def image_processor() -> List[torch.Tensor]:
        return [processor(_open_rgb(path), return_tensors="pt")["pixel_values"][0] for path in paths]

    def _open_rgb(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def package() -> List[torch.Tensor]:
        return [ours.pixels(read_grey(path)) for path in paths]

    assert all(torch.equal(*pair) for pair in zip(image_processor(), package()))
    ways = {"theirs": image_processor, "ours": package, "limit": lambda: [inflate(path) for path in paths]}
    rates = {name: len(paths) / value for name, value in interleave(ways, 5).items()}
    work = f"{source} to pixel_values, one process, bit-identical"
    baseline_is, limit_is = "AutoImageProcessor on RGB", "reading and zlib's inflate alone"
    values = rates["ours"], rates["theirs"], baseline_is, None, None, rates["limit"], limit_is
    return [Result("preprocess", work, "images/s", *values)]
