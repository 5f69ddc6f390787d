"""Turn an NIH ChestX-ray14 release into N-hot metadata.jsonl for Hugging Face ImageFolder.

    python -m chestxray_vit.ingest chest-xray-nihcc

Nothing is written before everything was checked: a wrong label or a leaked patient is dearer than a stop."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from chestxray_vit import __version__, archives, nih, split
from chestxray_vit.files import sha256, write_json, write_text
from chestxray_vit.findings import label_names
from chestxray_vit.problems import InputError, Problems, reported

logger = logging.getLogger(__name__)

METADATA, REPORT = "metadata.jsonl", "ingest_report.json"


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
    add("--extract", action="store_true", help="first unpack NIH's images_*.tar.gz in DATASET_DIR")
    add("--output", type=Path, help="metadata file, in a folder above the images (default: DATASET_DIR/metadata.jsonl)")
    return result


@reported
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage."""
    args = parser().parse_args(argv)
    if not args.dataset_dir.is_dir():
        raise InputError(
            f"{args.dataset_dir}: no such folder. Name the folder of the NIH release as the first argument."
        )
    if args.extract:
        count = archives.extract_archives(args.dataset_dir)
        logger.info("unpacked %s images", f"{count:,}")

    csv_path = _given_or_found(args.csv, args.dataset_dir, nih.CSV_NAMES, "--csv")
    entries = nih.read_entries(csv_path)
    num_rows = len(entries)
    list_paths = _find_lists(args)
    splits_by_name = _split(args, entries, list_paths)

    left_out: Dict[str, int] = {}
    entries = _keep_views(entries, args.views, left_out)
    entries, folders = _keep_images(entries, args, left_out)
    if not len(entries):
        raise InputError(
            f"{csv_path.name}: no image is left ({_in_words(left_out)}). Loosen --views, or unpack images."
        )
    output = args.output or args.dataset_dir / METADATA
    splits_N = [splits_by_name[name] for name in entries.file_names]
    leaked = _check_leak(entries, splits_N, args.split)

    _check_output(output, (csv_path, *list_paths))
    lines = _metadata_lines(entries, splits_N, folders, output, args.include_no_finding)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, "".join(lines))
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written: {error.strerror}. Make it writable, or name --output."
        ) from error
    report = {
        "package_version": __version__,
        "findings": list(label_names(args.include_no_finding)),
        "sources": {path.name: sha256(path) for path in (csv_path, *list_paths)},
        "metadata": {output.name: sha256(output)},
        "split": {
            "method": "image" if args.split == "image" else ("official" if list_paths else "patient"),
            "val_fraction": args.val_fraction,
            "seed": args.seed,
            "leaked_patients": leaked,
        },
        "num_rows": num_rows,
        "num_images": len(entries),
        "left_out": left_out,
        "notices": list(entries.notices),
        "splits": _count(entries, splits_N, args.include_no_finding),
    }
    write_json(output.parent / REPORT, report)
    print(_table(report))
    print(f"wrote {output} and {output.parent / REPORT}")
    return 0


def _given_or_found(given: Optional[Path], folder: Path, names: Sequence[str], flag: str) -> Path:
    found = given if given is not None else nih.find_file(folder, names)
    if found is None or not found.is_file():
        looked = given if given is not None else f"{' or '.join(names)} in {folder}, plain or .gz"
        raise InputError(f"no such file: {looked}. Fetch it from NIH, or name it with {flag}.")
    return found


def _find_lists(args: argparse.Namespace) -> Tuple[Path, ...]:
    """Return the paths of NIH's two split lists, or nothing where the split does not use them."""
    if args.split in ("patient", "image"):
        return ()
    given = args.train_val_list is not None or args.test_list is not None
    there = [nih.find_file(args.dataset_dir, [name]) is not None for name in (nih.TRAIN_VAL_LIST, nih.TEST_LIST)]
    if args.split == "auto" and not given and not any(there):
        logger.info("no %s and %s: splitting by a hash of the patient id", nih.TRAIN_VAL_LIST, nih.TEST_LIST)
        return ()
    return (
        _given_or_found(args.train_val_list, args.dataset_dir, [nih.TRAIN_VAL_LIST], "--train_val_list"),
        _given_or_found(args.test_list, args.dataset_dir, [nih.TEST_LIST], "--test_list"),
    )


def _split(args: argparse.Namespace, entries: nih.Entries, list_paths: Sequence[Path]) -> Dict[str, str]:
    """Return the set of every image of the CSV, by file name."""
    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction is {args.val_fraction}, expected 0 <= fraction < 1.")
    names = entries.file_names
    if args.split == "image":
        numbers = [int(name[:8] + name[9:12]) for name in names]
        split_of_number = split.assign(numbers, None, args.val_fraction, args.seed)
        return {name: split_of_number[number] for name, number in zip(names, numbers)}
    test_patients = None
    if list_paths:
        test_names = nih.read_test_names(*list_paths, names)
        test_patients = {int(name[:8]) for name in test_names}
        problems = Problems(f"{list_paths[0].name} and {list_paths[1].name}")
        torn = test_patients.intersection(int(name[:8]) for name in names if name not in test_names)
        for patient in sorted(torn):
            problems.add("patient in both lists", str(patient), "Use NIH's own lists, or --split patient.")
        problems.raise_if_any()
    split_of_patient = split.assign(entries.patient_ids, test_patients, args.val_fraction, args.seed)
    return {name: split_of_patient[patient] for name, patient in zip(names, entries.patient_ids)}


def _keep_views(entries: nih.Entries, views: Optional[str], left_out: Dict[str, int]) -> nih.Entries:
    if views is None:
        return entries
    wanted = set(views.split(","))
    unknown = wanted.difference(entries.views)
    if unknown:
        known = ", ".join(sorted(view for view in set(entries.views) if view))
        raise InputError(f"--views: no image has view {', '.join(sorted(unknown))}. Found in the CSV: {known}.")
    rows = [row for row, view in enumerate(entries.views) if view in wanted]
    left_out[f"view other than {views}"] = len(entries) - len(rows)
    return entries.take(rows)


def _keep_images(
    entries: nih.Entries, args: argparse.Namespace, left_out: Dict[str, int]
) -> Tuple[nih.Entries, Dict[str, Path]]:
    """Leave out, or refuse, what has no image on disk; return the entries and the folder of each name."""
    folders = archives.find_images(args.dataset_dir, args.images)
    where = args.images or args.dataset_dir / "images"
    problems = Problems(str(where))
    present = [row for row, name in enumerate(entries.file_names) if name in folders]
    num_missing = len(entries) - len(present)
    if num_missing and args.allow_missing:
        left_out["image missing"] = num_missing
        entries = entries.take(present)
    elif num_missing:
        first = next(name for name in entries.file_names if name not in folders)
        example = f"{num_missing:,} of {len(entries):,} (first: {first})"
        problems.add("images missing", example, "Unpack all archives, or pass --allow_missing.")
    if args.verify != "none":
        check = archives.check_header if args.verify == "header" else archives.check_pixels
        paths = [folders[name] / name for name in entries.file_names if name in folders]
        wrong = archives.check_images(paths, check)
        if wrong and args.allow_missing:
            left_out["image unreadable"] = len(wrong)
            unreadable = {path.name for path in wrong}
            rows = [row for row, name in enumerate(entries.file_names) if name not in unreadable]
            entries = entries.take(rows)
        elif wrong:
            for path, what in wrong.items():
                problems.add("unreadable image", f"{path.name}: {what}", "Fetch it again, or pass --allow_missing.")
    problems.raise_if_any()
    return entries, folders


def _check_leak(entries: nih.Entries, splits_N: Sequence[str], method: str) -> int:
    """Return how many patients are in more than one set: an error, but for a split by image."""
    leaked = split.leaked_patients(entries.patient_ids, splits_N)
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
    taken = [path for path in sources if os.path.abspath(path) == os.path.abspath(output)]
    if taken or output.name == REPORT or output.is_dir():
        what = "a file of the release" if taken else "a folder" if output.is_dir() else "the report's name"
        raise InputError(f"--output: {output} is {what}. Name a file such as {output.parent / METADATA}.")


def _metadata_lines(
    entries: nih.Entries,
    splits_N: Sequence[str],
    folders: Dict[str, Path],
    output: Path,
    include_no_finding: bool,
) -> List[str]:
    """Return the lines of metadata.jsonl; what repeats over rows is made once."""
    labels = [json.dumps(row) for row in nih.labels_of(entries, include_no_finding)]
    below = {folder: _relative(folder, output) for folder in set(folders.values())}
    text = {
        value: json.dumps(value) for column in (entries.ages, entries.sexes, entries.views) for value in set(column)
    }
    columns = zip(
        entries.file_names,
        entries.finding_codes,
        splits_N,
        entries.patient_ids,
        entries.ages,
        entries.sexes,
        entries.views,
        ("null" if number is None else number for number in entries.follow_ups),
    )
    return [
        f'{{"file_name": "{below[folders[name]]}{name}", "labels": {labels[code]}, "split": "{split_}", '
        f'"patient_id": {patient}, "age": {text[age]}, "sex": {text[sex]}, "view": {text[view]}, '
        f'"follow_up": {follow_up}}}\n'
        for name, code, split_, patient, age, sex, view, follow_up in columns
    ]


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
    return json.dumps(prefix)[1:-1]


def _count(entries: nih.Entries, splits_N: Sequence[str], include_no_finding: bool) -> Dict[str, Dict]:
    """Return images, patients and positives by finding, for each set."""
    rows = nih.labels_of(entries, include_no_finding)
    pairs = Counter(zip(splits_N, entries.finding_codes))
    counts = {}
    for name in split.SPLITS:
        positives = dict.fromkeys(label_names(include_no_finding), 0)
        for (split_, code), number in pairs.items():
            if split_ == name:
                for finding, present in zip(positives, rows[code]):
                    positives[finding] += int(present) * number
        patients = {patient for patient, split_ in zip(entries.patient_ids, splits_N) if split_ == name}
        counts[name] = {"images": splits_N.count(name), "patients": len(patients), "positives": positives}
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
