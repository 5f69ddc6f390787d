"""What `ingest` does to a release between reading its tables and writing its metadata.

Find its lists, assign every image to a set, keep what is wanted and on disk, prove that no patient leaks.

N images, U units: patients, or images if the split is by image."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit.artifacts.ingest_report import REPORT
from chestxray_vit.artifacts.metadata import METADATA
from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data import split
from chestxray_vit.data.readers import nih
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.data.readers.nih_fields import NAME_PATTERN
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.images.files import check_header, check_images, check_pixels

logger = logging.getLogger(__name__)

Images = Mapping[Path, List[str]]  # the image files of each folder, as `nih_archives.find_images` returns them


def find_table(path: Optional[Path], folder: Path, names: Sequence[str], flag: str) -> Path:
    """Return the file that a flag names, or else the first of `names` in a folder, plain or gzipped.

    Raises:
        InputError: there is no such file.
    """
    found = path if path is not None else nih.find_file(folder, names)
    if found is None or not found.is_file():
        looked = path if path is not None else f"{' or '.join(names)} in {folder}, plain or .gz"
        raise InputError(f"no such file: {looked}. Fetch it from NIH, or name it with {flag}.")
    return found


def find_lists(
    dataset_dir: Path, method: str, train_val_list: Optional[Path], test_list: Optional[Path]
) -> Tuple[Path, ...]:
    """Return the paths of NIH's two split lists, or nothing where the split does not use them.

    Args:
        dataset_dir: holds the lists that are not named.
        method: `auto`, `official`, `patient` or `image`.
        train_val_list, test_list: as the user named them.

    Raises:
        InputError: a list is missing, or was named for a split that reads none.
    """
    lists = {"--train_val_list": train_val_list, "--test_list": test_list}
    named = [flag for flag, path in lists.items() if path is not None]
    if method in ("patient", "image"):
        if named:
            raise InputError(f"--split {method} does not read lists; leave out {' and '.join(named)}.")
        return ()
    there = [nih.find_file(dataset_dir, [name]) is not None for name in (nih.TRAIN_VAL_LIST, nih.TEST_LIST)]
    if method == "auto" and not named and not any(there):
        logger.info("no %s and %s: splitting by a hash of the patient id", nih.TRAIN_VAL_LIST, nih.TEST_LIST)
        return ()
    return (
        find_table(train_val_list, dataset_dir, [nih.TRAIN_VAL_LIST], "--train_val_list"),
        find_table(test_list, dataset_dir, [nih.TEST_LIST], "--test_list"),
    )


def assign_splits(
    entries: Entries, list_paths: Sequence[Path], by_image: bool, val_fraction: float, seed: int
) -> Entries:
    """Add the column `split` to the entries: the set of every image.

    Args:
        entries: the images.
        list_paths: of NIH's train_val and test list; empty to choose the test set by hash.
        by_image: assign images in place of patients, which leaks patients.
        val_fraction: expected share of the units outside test that go to validation.
        seed: of the hash.

    Raises:
        InputError: `val_fraction` is out of range, or a patient is in both lists.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val_fraction is {val_fraction}, expected 0 <= fraction < 1.")
    units, unit_N = distinct(entries.arrow("number").cast("string") if by_image else entries.arrow("patient_id"))
    in_test_U = None
    if list_paths:
        num_images = np.bincount(unit_N, minlength=len(units))
        num_test = np.bincount(
            unit_N, weights=nih.read_test_list(list_paths[0], list_paths[1], entries), minlength=len(units)
        )
        in_test_U = num_test > 0
        problems = Problems(f"{list_paths[0].name} and {list_paths[1].name}")
        for code in np.flatnonzero(in_test_U & (num_test < num_images)).tolist():
            problems.add("patient in both lists", units[code], "Use NIH's own lists, or --split patient.")
        problems.raise_if_any()
    codes_U = split.assign_codes(units, in_test_U, val_fraction, seed)
    return entries.with_splits(split.SPLITS, codes_U[unit_N])


def keep_views(entries: Entries, views: Optional[str]) -> Entries:
    """Keep the images of some views, such as `PA,AP`; None keeps all.

    Raises:
        InputError: no image has one of the views.
    """
    if views is None:
        return entries
    wanted = set(views.split(","))
    found_N = entries.column("view")
    unknown = wanted.difference(found_N)
    if unknown:
        known = ", ".join(sorted(view for view in set(found_N) if view))
        raise InputError(f"--views: no image has view {', '.join(sorted(unknown))}. Found in the CSV: {known}.")
    return entries.keep(np.array([view in wanted for view in found_N]), reason=f"view other than {views}")


def keep_images(entries: Entries, images: Images, where: str, verify: str, allow_missing: bool) -> Entries:
    """Leave out, or refuse, what has no readable image on disk.

    Args:
        entries: the images.
        images: what lies on disk.
        where: the folder to name in a message.
        verify: `none`, `header` or `full`: how each file is checked.
        allow_missing: leave out what is missing or unreadable, and count it.

    Raises:
        InputError: images are missing or unreadable, unless that is allowed.
    """
    problems = Problems(where)
    folder_N = folder_codes(entries, images)
    there_N = folder_N >= 0
    num_missing = int((~there_N).sum())
    if num_missing and not allow_missing:
        first = entries.column("file_name")[int(np.argmin(there_N))]
        example = f"{num_missing:,} of {len(entries):,} (first: {first})"
        problems.add("images missing", example, "Unpack all archives, or pass --allow_missing.")
    kept = entries.keep(there_N, reason="image missing" if num_missing and allow_missing else None)
    if verify != "none":
        check = check_header if verify == "header" else check_pixels
        folders = list(images)
        paths = [folders[code] / name for code, name in zip(folder_N[there_N].tolist(), kept.column("file_name"))]
        wrong = check_images(paths, check)
        if wrong and allow_missing:
            kept = kept.keep(np.array([path not in wrong for path in paths]), reason="image unreadable")
        elif wrong:
            for path, what in wrong.items():
                problems.add("unreadable image", f"{path.name}: {what}", "Fetch it again, or pass --allow_missing.")
    problems.raise_if_any()
    return kept


def folder_codes(entries: Entries, images: Images) -> np.ndarray:
    """Return for each image the index (N) of its folder in `images`, -1 where it is in none."""
    import pyarrow
    import pyarrow.compute as compute

    folder_N = np.full(len(entries), -1)
    for code, names in enumerate(images.values()):
        there_N = compute.is_in(entries.arrow("file_name"), value_set=pyarrow.array(names, "string"))
        folder_N[there_N.to_numpy(zero_copy_only=False)] = code
    return folder_N


def count_leaked_patients(entries: Entries, is_allowed: bool) -> int:
    """Return how many patients are in more than one set.

    Args:
        entries: the images with their splits.
        is_allowed: warn of a leak, as a split by image has; else it is an error.
    """
    patients, patient_N = distinct(entries.arrow("patient_id"))
    leaked = split.leaked_patients(patient_N, distinct(entries.arrow("split"))[1])
    if leaked and not is_allowed:
        first = patients[leaked[0]]
        raise InputError(f"{len(leaked):,} patients are in more than one set (first: {first}): a defect of ours.")
    if leaked:
        logger.warning(
            "warning: %s patients are in more than one set. AUCs on this split are too high; never compare them.",
            f"{len(leaked):,}",
        )
    return len(leaked)


def check_output(output: Path, sources: Sequence[Path]) -> None:
    """Refuse to write over the release, or the metadata over its own report."""
    taken = os.path.abspath(output) in map(os.path.abspath, sources) or NAME_PATTERN.fullmatch(output.name)
    if taken or output.name == REPORT or output.is_dir():
        what = "a file of the release" if taken else "a folder" if output.is_dir() else "the report's name"
        raise InputError(f"--output: {output} is {what}. Name a file such as {output.parent / METADATA}.")


def default_folder(dataset_dir: Path, images_dir: Optional[Path], images: Images) -> Path:
    """Return the folder of all images where `find_metadata` looks too; the release's where there is none."""
    folder = images_dir or dataset_dir / "images"
    # a link leads to images of someone else, who may have metadata of their own
    return folder if list(images) == [folder] and not folder.is_symlink() else dataset_dir


def relative_folders(images: Images, output: Path) -> List[str]:
    """Return each image folder as seen from the metadata file, with a slash, ready for a JSON string.

    Raises:
        InputError: a folder is not below that of the metadata, or JSON cannot hold its name.
    """
    return [_relative(folder, output) for folder in images]


def _relative(folder: Path, output: Path) -> str:
    try:
        below = Path(os.path.abspath(folder)).relative_to(os.path.abspath(output.parent))
    except ValueError as error:
        raise InputError(
            f"{output}: the images in {folder} are not below its folder, and ImageFolder reads no others. "
            f"Write the metadata above the images (--output), or link them: ln -s {folder} {output.parent}/images"
        ) from error
    prefix = "" if below == Path() else below.as_posix() + "/"
    if any("\udc80" <= char <= "\udcff" for char in prefix):  # how Python holds a byte that is not UTF-8
        raise InputError(f"{folder}: the folder's name is not UTF-8, and JSON has no other. Rename the folder.")
    return json.dumps(prefix)[1:-1]


def count_splits(entries: Entries) -> Dict[str, Dict[str, object]]:
    """Return images, patients and positives by label, for each set."""
    rows, codes_N = entries.labels()
    split_N = np.array(entries.column("split"))
    patient_N = distinct(entries.arrow("patient_id"))[1]
    counts: Dict[str, Dict[str, object]] = {}
    for name in split.SPLITS:
        in_split_N = split_N == name
        images_of_row = np.bincount(codes_N[in_split_N], minlength=len(rows))
        positives = (images_of_row @ np.array(rows)).astype(int).tolist()
        counts[name] = {
            "images": int(in_split_N.sum()),
            "patients": len(np.unique(patient_N[in_split_N])),
            "positives": dict(zip(entries.label_set.names, positives)),
        }
    return counts
