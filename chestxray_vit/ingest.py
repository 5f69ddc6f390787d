"""Turn an NIH ChestX-ray14 release into N-hot metadata.jsonl for Hugging Face ImageFolder.

    python -m chestxray_vit.ingest chest-xray-nihcc

Everything is checked before anything is written, because a wrong label or a leaked patient costs more than an error."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from chestxray_vit.artifacts.ingest_report import REPORT, build_report, left_out_text, table_text, write_with_metadata
from chestxray_vit.artifacts.metadata import METADATA
from chestxray_vit.artifacts.metadata_writer import metadata_lines
from chestxray_vit.data import ingestion
from chestxray_vit.data.readers import nih, nih_archives
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.storage.lock import folder_lock

logger = logging.getLogger(__name__)

BILINEAR = 2  # Pillow's number, and the rule of Google's ViT; a checkpoint with another builds its own cache


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
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
        help="official: NIH's test list; patient: 20 %% of patients by hash; auto: official if the lists are found, "
        "else patient; image: leaks patients, only for repeating older work (default: auto)",
    )
    add(
        "--val_fraction",
        type=float,
        default=0.1,
        help="share of the patients outside the test set that go to validation (default: 0.1)",
    )
    add("--seed", type=int, default=1337, help="seed of the hash that assigns patients (default: 1337)")
    add("--include_no_finding", action="store_true", help="add No Finding as a last label")
    add("--views", help="keep these views only, e.g. PA or PA,AP (default: all)")
    add("--allow_missing", action="store_true", help="leave out and count images that are missing or unreadable")
    add(
        "--verify",
        choices=("none", "header", "full"),
        default="header",
        help="check each file's first bytes, or decode every image (default: header)",
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
        help="metadata file, beside or above the images (default: metadata.jsonl beside the images if all lie in "
        "images/ or --images and that is not a link, else in DATASET_DIR)",
    )
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    if not args.dataset_dir.is_dir():
        raise InputError(
            f"{args.dataset_dir}: no such folder. Name the folder of the NIH release as the first argument."
        )
    if args.cache_size is not None and args.cache_size < 1:
        raise InputError(f"--cache_size is {args.cache_size}, expected 1 or more.")
    if args.extract:
        count = nih_archives.extract_archives(args.dataset_dir)
        logger.info("unpacked %s images", f"{count:,}")

    csv_path = ingestion.find_table(args.csv, args.dataset_dir, nih.CSV_NAMES, "--csv")
    entries = nih.read_entries(csv_path, nih.label_set(args.include_no_finding))
    list_paths = ingestion.find_lists(args.dataset_dir, args.split, args.train_val_list, args.test_list)
    entries = ingestion.assign_splits(entries, list_paths, args.split == "image", args.val_fraction, args.seed)
    images = nih_archives.find_images(args.dataset_dir, args.images)
    output = args.output or ingestion.default_folder(args.dataset_dir, args.images, images) / METADATA
    ingestion.check_output(output, (csv_path, *list_paths))
    with folder_lock(output.parent, (output.name, REPORT), "--output"):
        _ingest(args, (csv_path, *list_paths), entries, images, output)
    return 0


def _ingest(
    args: argparse.Namespace, sources: Sequence[Path], entries: Entries, images: ingestion.Images, output: Path
) -> None:
    """Keep what is wanted and on disk; write the metadata, its report, and the pixel cache if it is asked for."""
    num_rows = len(entries)
    entries = ingestion.keep_views(entries, args.views)
    where = str(args.images or args.dataset_dir / "images")
    entries = ingestion.keep_images(entries, images, where, args.verify, args.allow_missing)
    left_out = dict(entries.left_out)
    if not len(entries):
        raise InputError(
            f"{sources[0].name}: no image is left ({left_out_text(left_out)}). Loosen --views, or unpack images."
        )
    method = "image" if args.split == "image" else ("official" if len(sources) > 1 else "patient")
    leaked = ingestion.count_leaked_patients(entries, is_allowed=method == "image")
    folders = ingestion.relative_folders(images, output), ingestion.folder_codes(entries, images)
    content = metadata_lines(entries.table, folders, entries.labels())
    facts = {
        "split": {
            "method": method,
            "val_fraction": args.val_fraction,
            "seed": args.seed,
            "leaked_patients": leaked,
        },
        "num_rows": num_rows,
        "num_images": len(entries),
        "left_out": left_out,
        "notices": list(entries.notices),
        "splits": ingestion.count_splits(entries),
    }
    report = build_report(entries.label_set, sources, {output.name: content}, facts)
    write_with_metadata(output, content, report)
    _print_summary(report, output)
    if args.cache_size is not None:
        print(f"pixel cache: {_build_cache(output, args.cache_size)}")


def _print_summary(report: Mapping[str, Any], output: Path) -> None:
    print(table_text(report))
    if nih.find_file(output.parent, [nih.TRAIN_VAL_LIST, nih.TEST_LIST]):
        print(
            "notice: ImageFolder takes NIH's split lists for its own splits and finds no image in them. Name its "
            f'files: load_dataset("imagefolder", data_dir=..., data_files=["{output.name}", "**/*.png"])'
        )
    print(f"wrote {output} and {output.parent / REPORT}")


def _build_cache(output: Path, size: int) -> Path:
    """Build the pixel cache of what was ingested, in its usual place, and return its folder."""
    from chestxray_vit.data.pixel_cache.build import build_cache
    from chestxray_vit.data.pixel_cache.cache import default_cache_dir
    from chestxray_vit.data.pixel_cache.key import Resize

    names = [json.loads(line)["file_name"] for line in output.read_text(encoding="utf-8").splitlines()]
    return build_cache(output.parent, names, Resize((size, size), BILINEAR), default_cache_dir(output.parent)).folder


if __name__ == "__main__":
    sys.exit(main())
