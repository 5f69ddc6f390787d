"""Turn an NIH ChestX-ray14 release into N-hot metadata.jsonl for Hugging Face ImageFolder.

    python -m chestxray_vit.ingest chest-xray-nihcc

Nothing is written before everything was checked: a wrong label or a leaked patient is dearer than a stop."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit import __version__
from chestxray_vit.artifacts.metadata import METADATA
from chestxray_vit.data import split
from chestxray_vit.data.readers import nih
from chestxray_vit.data.readers import nih_archives as archives
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.images.files import check_header, check_images, check_pixels
from chestxray_vit.labels import label_names
from chestxray_vit.storage.atomic import atomic_write_many, sha256, write_bytes
from chestxray_vit.storage.json_files import write_json
from chestxray_vit.storage.lock import folder_lock

logger = logging.getLogger(__name__)

REPORT = "ingest_report.json"
BILINEAR = 2  # Pillow's number, and the rule of Google's ViT; a checkpoint with another builds its own cache


def parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.ingest",
        description="Turn an NIH ChestX-ray14 release into metadata.jsonl (N-hot labels, split by patient) "
        "for Hugging Face ImageFolder.",
        epilog="example: python -m chestxray_vit.ingest /data/chest-xray-nihcc --extract",
        allow_abbrev=False,
    )
    default_dir = Path(os.environ.get("DATASETS_DIR", ".")) / "chest-xray-nihcc"
    add = result.add_argument
    add(
        "dataset_dir",
        type=Path,
        nargs="?",
        default=default_dir,
        help="folder of the release (default: $DATASETS_DIR/chest-xray-nihcc, else ./chest-xray-nihcc)",
    )
    add("--csv", type=Path, help="Data_Entry CSV, plain or .gz (default: the one in DATASET_DIR)")
    add("--images", type=Path, help="image folder (default: images/ and images_0NN/images/ in DATASET_DIR)")
    add("--train_val_list", type=Path, help="NIH's train_val_list.txt (default: the one in DATASET_DIR)")
    add("--test_list", type=Path, help="NIH's test_list.txt (default: the one in DATASET_DIR)")
    add(
        "--split",
        choices=("auto", "official", "patient", "image"),
        default="auto",
        help="official: NIH's test list; patient: 20 %% of patients by hash; auto: official where the lists are there, "
        "else patient; image: leaks patients, only to repeat older work (default: auto)",
    )
    add("--val_fraction", type=float, default=0.1, help="share of the other patients for validation (default: 0.1)")
    add("--seed", type=int, default=1337, help="seed of the hash that draws patients (default: 1337)")
    add("--include_no_finding", action="store_true", help="add a 15th label, No Finding")
    add("--views", help="keep these views only, e.g. PA or PA,AP (default: all)")
    add("--allow_missing", action="store_true", help="leave out images that are missing or unreadable, and count them")
    add(
        "--verify",
        choices=("none", "header", "full"),
        default="header",
        help="look at each file's first bytes, or decode every image (default: header)",
    )
    add(
        "--cache_size",
        type=int,
        metavar="N",
        help="also decode every image to N x N pixels, bilinear, into the pixel cache that training would build",
    )
    add("--extract", action="store_true", help="first unpack NIH's images_*.tar.gz in DATASET_DIR")
    add(
        "--output",
        type=Path,
        help="metadata file, beside or above the images (default: metadata.jsonl beside the images where all lie in "
        "images/ or --images and that is no link, else in DATASET_DIR)",
    )
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage."""
    args = parser().parse_args(argv)
    if not args.dataset_dir.is_dir():
        raise InputError(
            f"{args.dataset_dir}: no such folder. Name the folder of the NIH release as the first argument."
        )
    if args.cache_size is not None and args.cache_size < 1:
        raise InputError(f"--cache_size is {args.cache_size}, expected 1 or more.")
    if args.extract:
        count = archives.extract_archives(args.dataset_dir)
        logger.info("unpacked %s images", f"{count:,}")

    csv_path = _given_or_found(args.csv, args.dataset_dir, nih.CSV_NAMES, "--csv")
    entries = nih.read_entries(csv_path)
    list_paths = _find_lists(args)
    entries = _assign(args, entries, list_paths)
    found = archives.find_images(args.dataset_dir, args.images)
    output = args.output or _default_folder(args, found) / METADATA
    _check_output(output, (csv_path, *list_paths))
    with folder_lock(output.parent, (output.name, REPORT), "--output"):
        _ingest(args, (csv_path, *list_paths), entries, found, output)
    return 0


def _ingest(
    args: argparse.Namespace, sources: Sequence[Path], entries: nih.Entries, found: Dict[Path, List[str]], output: Path
) -> None:
    """Keep what is wanted and there, and write the metadata, its report, and the pixel cache if it is asked for."""
    num_rows = len(entries)
    left_out: Dict[str, int] = {}
    entries = _keep_views(entries, args.views, left_out)
    entries = _keep_images(entries, found, args, left_out)
    if not len(entries):
        raise InputError(
            f"{sources[0].name}: no image is left ({_in_words(left_out)}). Loosen --views, or unpack images."
        )
    leaked = _check_leak(entries, args.split)
    content = _metadata(entries, found, output, args.include_no_finding)
    report = {
        "package_version": __version__,
        "findings": list(label_names(args.include_no_finding)),
        "sources": {path.name: sha256(path) for path in sources},
        "metadata": {output.name: hashlib.sha256(content).hexdigest()},
        "split": {
            "method": "image" if args.split == "image" else ("official" if len(sources) > 1 else "patient"),
            "val_fraction": args.val_fraction,
            "seed": args.seed,
            "leaked_patients": leaked,
        },
        "num_rows": num_rows,
        "num_images": len(entries),
        "left_out": left_out,
        "notices": list(entries.notices),
        "splits": _count(entries, args.include_no_finding),
    }
    _write(output, content, report)
    print(_table(report))
    if nih.find_file(output.parent, [nih.TRAIN_VAL_LIST, nih.TEST_LIST]):
        print(
            "notice: ImageFolder takes NIH's split lists for its own splits and finds no image in them. Tell it its "
            f'files: load_dataset("imagefolder", data_dir=..., data_files=["{output.name}", "**/*.png"])'
        )
    print(f"wrote {output} and {output.parent / REPORT}")
    if args.cache_size is not None:
        print(f"pixel cache: {_cache(output, args.cache_size)}")


def _given_or_found(given: Optional[Path], folder: Path, names: Sequence[str], flag: str) -> Path:
    found = given if given is not None else nih.find_file(folder, names)
    if found is None or not found.is_file():
        looked = given if given is not None else f"{' or '.join(names)} in {folder}, plain or .gz"
        raise InputError(f"no such file: {looked}. Fetch it from NIH, or name it with {flag}.")
    return found


def _find_lists(args: argparse.Namespace) -> Tuple[Path, ...]:
    """Return the paths of NIH's two split lists, or nothing where the split does not use them."""
    lists = {"--train_val_list": args.train_val_list, "--test_list": args.test_list}
    given = [flag for flag, path in lists.items() if path is not None]
    if args.split in ("patient", "image"):
        if given:
            raise InputError(f"--split {args.split} does not read lists; leave out {' and '.join(given)}.")
        return ()
    there = [nih.find_file(args.dataset_dir, [name]) is not None for name in (nih.TRAIN_VAL_LIST, nih.TEST_LIST)]
    if args.split == "auto" and not given and not any(there):
        logger.info("no %s and %s: splitting by a hash of the patient id", nih.TRAIN_VAL_LIST, nih.TEST_LIST)
        return ()
    return (
        _given_or_found(args.train_val_list, args.dataset_dir, [nih.TRAIN_VAL_LIST], "--train_val_list"),
        _given_or_found(args.test_list, args.dataset_dir, [nih.TEST_LIST], "--test_list"),
    )


def _assign(args: argparse.Namespace, entries: nih.Entries, list_paths: Sequence[Path]) -> nih.Entries:
    """Add the column `split` to the entries: the set of every image."""
    import pyarrow

    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction is {args.val_fraction}, expected 0 <= fraction < 1.")
    units, unit_N = np.unique(entries.numbers("number" if args.split == "image" else "patient_id"), return_inverse=True)
    test_units = None
    if list_paths:
        num_test = np.bincount(unit_N, weights=nih.read_test_list(*list_paths, entries))
        test_units = units[num_test > 0]
        problems = Problems(f"{list_paths[0].name} and {list_paths[1].name}")
        for patient in units[(num_test > 0) & (num_test < np.bincount(unit_N))].tolist():
            problems.add("patient in both lists", str(patient), "Use NIH's own lists, or --split patient.")
        problems.raise_if_any()
    split_of = split.assign(units, test_units, args.val_fraction, args.seed)
    code_of = {name: code for code, name in enumerate(split.SPLITS)}
    codes = np.array([code_of[split_of[unit]] for unit in units.tolist()], dtype=np.int32)
    column = pyarrow.DictionaryArray.from_arrays(codes[unit_N], list(split.SPLITS))
    return dataclasses.replace(entries, table=entries.table.append_column("split", column))


def _keep_views(entries: nih.Entries, views: Optional[str], left_out: Dict[str, int]) -> nih.Entries:
    if views is None:
        return entries
    wanted = set(views.split(","))
    found_N = entries.column("view")
    unknown = wanted.difference(found_N)
    if unknown:
        known = ", ".join(sorted(view for view in set(found_N) if view))
        raise InputError(f"--views: no image has view {', '.join(sorted(unknown))}. Found in the CSV: {known}.")
    kept = entries.keep(np.array([view in wanted for view in found_N]))
    left_out[f"view other than {views}"] = len(entries) - len(kept)
    return kept


def _keep_images(
    entries: nih.Entries, found: Dict[Path, List[str]], args: argparse.Namespace, left_out: Dict[str, int]
) -> nih.Entries:
    """Leave out, or refuse, what has no image on disk."""
    problems = Problems(str(args.images or args.dataset_dir / "images"))
    folder_N = _folder_of(entries, found)
    there_N = folder_N >= 0
    num_missing = int((~there_N).sum())
    if num_missing and not args.allow_missing:
        first = entries.column("file_name")[int(np.argmin(there_N))]
        example = f"{num_missing:,} of {len(entries):,} (first: {first})"
        problems.add("images missing", example, "Unpack all archives, or pass --allow_missing.")
    elif num_missing:
        left_out["image missing"] = num_missing
    kept = entries.keep(there_N)
    if args.verify != "none":
        check = check_header if args.verify == "header" else check_pixels
        folders = list(found)
        paths = [folders[code] / name for code, name in zip(folder_N[there_N].tolist(), kept.column("file_name"))]
        wrong = check_images(paths, check)
        if wrong and args.allow_missing:
            left_out["image unreadable"] = len(wrong)
            kept = kept.keep(np.array([path not in wrong for path in paths]))
        elif wrong:
            for path, what in wrong.items():
                problems.add("unreadable image", f"{path.name}: {what}", "Fetch it again, or pass --allow_missing.")
    problems.raise_if_any()
    return kept


def _folder_of(entries: nih.Entries, found: Dict[Path, List[str]]) -> np.ndarray:
    """Return for each image the place of its folder in `found`, -1 where it is in none."""
    import pyarrow
    import pyarrow.compute as compute

    folder_N = np.full(len(entries), -1)
    for code, names in enumerate(found.values()):
        there_N = compute.is_in(entries.arrow("file_name"), value_set=pyarrow.array(names, "string"))
        folder_N[there_N.to_numpy(zero_copy_only=False)] = code
    return folder_N


def _check_leak(entries: nih.Entries, method: str) -> int:
    """Return how many patients are in more than one set: an error, but for a split by image."""
    leaked = split.leaked_patients(entries.numbers("patient_id"), nih.distinct(entries.arrow("split"))[1])
    if leaked and method != "image":
        raise InputError(f"{len(leaked):,} patients are in more than one set (first: {leaked[0]}): a defect of ours.")
    if leaked:
        logger.warning(
            "warning: %s patients are in more than one set. AUCs on this split are too high; never compare them.",
            f"{len(leaked):,}",
        )
    return len(leaked)


def _check_output(output: Path, sources: Sequence[Path]) -> None:
    """Refuse to write over the release, or the metadata over its own report."""
    taken = os.path.abspath(output) in map(os.path.abspath, sources) or nih.NAME_PATTERN.fullmatch(output.name)
    if taken or output.name == REPORT or output.is_dir():
        what = "a file of the release" if taken else "a folder" if output.is_dir() else "the report's name"
        raise InputError(f"--output: {output} is {what}. Name a file such as {output.parent / METADATA}.")


def _default_folder(args: argparse.Namespace, found: Dict[Path, List[str]]) -> Path:
    """Return the folder of all images where `metadata.find_metadata` looks too; the release's where there is none."""
    images = args.images or args.dataset_dir / "images"
    # a link leads to images of someone else, who may have metadata of their own
    return images if list(found) == [images] and not images.is_symlink() else args.dataset_dir


def _write(output: Path, content: memoryview, report: Dict[str, Any]) -> None:
    """Write the metadata and its report: killed at any moment, it leaves no report of other metadata."""
    try:
        with atomic_write_many((output, output.parent / REPORT)) as (metadata_aside, report_aside):
            write_bytes(metadata_aside, content)
            write_json(report_aside, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = "Make it writable, or name --output."
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}. {remedy}") from error


def _cache(output: Path, size: int) -> Path:
    """Build the pixel cache of what was ingested, in its usual place, and return its folder."""
    from chestxray_vit.data.pixel_cache.cache import build_cache, default_cache_dir

    names = [json.loads(line)["file_name"] for line in output.read_text(encoding="utf-8").splitlines()]
    return build_cache(output.parent, names, (size, size), BILINEAR, default_cache_dir(output.parent)).folder


def _metadata(entries: nih.Entries, found: Dict[Path, List[str]], output: Path, include_no_finding: bool) -> memoryview:
    """Return the bytes of metadata.jsonl, made column by column: what repeats over rows is written once."""
    import pyarrow.compute as compute

    heads = ['{"file_name": "' + _relative(folder, output) for folder in found]
    rows, codes_N = entries.labels(include_no_finding)
    parts = [
        heads[0] if len(heads) == 1 else _spread(heads, _folder_of(entries, found)),
        entries.arrow("file_name"),
        _spread(['", "labels": ' + json.dumps(row) for row in rows], codes_N),
        _json(', "split": ', entries.arrow("split"), ', "patient_id": "'),
        entries.arrow("patient_id").cast("string"),
        _json('", "age": ', entries.arrow("age")),
        *(_json(f', "{name}": ', entries.arrow(name)) for name in ("sex", "view")),
        _json(', "follow_up": ', entries.arrow("follow_up"), "}\n"),
    ]
    lines = compute.binary_join_element_wise(*parts, "")
    return memoryview(lines.buffers()[2])[: int(np.frombuffer(lines.buffers()[1], dtype=np.int32)[len(lines)])]


def _json(before: str, array, after: str = ""):
    """Return an Arrow array's values as JSON texts between two others."""
    values, codes_N = nih.distinct(array)
    return _spread([before + json.dumps(value) + after for value in values], codes_N)


def _spread(texts: Sequence[str], codes_N: np.ndarray):
    """Return an Arrow array of the texts that the codes point at."""
    import pyarrow

    return pyarrow.array(texts, "string").take(pyarrow.array(codes_N))


def _relative(folder: Path, output: Path) -> str:
    """Return an image folder as seen from the metadata file, with a slash, ready for a JSON string."""
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


def _count(entries: nih.Entries, include_no_finding: bool) -> Dict[str, Dict]:
    """Return images, patients and positives by finding, for each set."""
    rows, codes_N = entries.labels(include_no_finding)
    split_N = np.array(entries.column("split"))
    patients_N = entries.numbers("patient_id")
    counts = {}
    for name in split.SPLITS:
        in_split_N = split_N == name
        images_of_row = np.bincount(codes_N[in_split_N], minlength=len(rows))
        positives = (images_of_row @ np.array(rows)).astype(int).tolist()
        counts[name] = {
            "images": int(in_split_N.sum()),
            "patients": len(np.unique(patients_N[in_split_N])),
            "positives": dict(zip(label_names(include_no_finding), positives)),
        }
    return counts


def _in_words(left_out: Dict[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "nothing was left out"


def _table(report: Dict) -> str:
    """Return the counts of `ingest_report.json` as a table for a terminal."""
    splits = report["splits"]
    lines = [f"{'':<20}" + "".join(f"{name:>12}" for name in splits)]
    for what in ("images", "patients"):
        lines.append(f"{what:<20}" + "".join(f"{counts[what]:>12,}" for counts in splits.values()))
    for finding in report["findings"]:
        lines.append(f"{finding:<20}" + "".join(f"{counts['positives'][finding]:>12,}" for counts in splits.values()))
    lines.append("")
    lines.append(f"{report['num_rows']:,} rows, {report['num_images']:,} images kept; {_in_words(report['left_out'])}")
    lines.extend(f"notice: {notice}" for notice in report["notices"])
    lines.extend(f"notice: the {name} set is empty" for name, counts in splits.items() if not counts["images"])
    leaked = report["split"]["leaked_patients"]
    lines.append(f"split: {report['split']['method']}; patients in more than one set: {leaked:,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
