"""Show where a trained run looked, and score the maps on NIH's boxes.

    python -m chestxray_vit.explain run IMAGE_OR_FOLDER... [--finding Effusion Mass]
    python -m chestxray_vit.explain run --boxes BBox_List_2017.csv --dataset_dir chest-xray-nihcc

The first form lays a heat map over each X-ray, for the finding of its highest score or for the named findings. The
second scores the maps of all boxed images and writes localisation.json. Gradient maps belong to one finding; attention
rollout belongs to none, and --finding then sets the title only. A map shows where the model looked, not why; research
use only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, Optional, Sequence

from chestxray_vit import __version__
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError, explain_out_of_memory
from chestxray_vit.images.files import find_images
from chestxray_vit.saliency.localisation import FILE, METHODS, to_text
from chestxray_vit.storage.json_files import write_json
from chestxray_vit.storage.lock import folder_lock


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.explain",
        description="Lay heat maps of a trained run over chest X-rays, or score them on NIH's boxes. They show where "
        "the model looked, not why. Research use only.",
        epilog="examples: python -m chestxray_vit.explain run xray.png --finding Effusion Mass; "
        "python -m chestxray_vit.explain run --boxes BBox_List_2017.csv --dataset_dir chest-xray-nihcc",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("run", type=Path, help="folder of a trained run")
    add("images", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER", help="PNG or JPEG, or a folder of them")
    add("--finding", nargs="+", metavar="F", help="findings to show (default: the one of each image's highest score)")
    add(
        "--method",
        choices=tuple(METHODS),
        default="gradient",
        help="rollout is of no single finding (default: gradient)",
    )
    add("--boxes", type=Path, metavar="BBox_List_2017.csv", help="score the maps on these boxes; with --dataset_dir")
    add("--dataset_dir", type=Path, metavar="DIR", help="ingested folder with the images of the boxes")
    add("--output_dir", type=Path, metavar="DIR", help="where to write (default: RUN/explain)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="engine (default: auto)")
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = parser().parse_intermixed_args(argv)  # else images after a flag are not taken
    args.output_dir = args.output_dir or args.run / "explain"
    _check(args)
    unreadable: Dict[Path, str] = {}
    with explain_out_of_memory(1, "end other programs, or explain on another machine"):
        if args.boxes:
            with folder_lock(args.output_dir, (FILE,)):
                _score_boxes(args, unreadable)
        else:
            _show_images(args, unreadable)
    for problem in unreadable.values():
        print(f"error: {problem}", file=sys.stderr)
    if unreadable:
        print(f"error: {len(unreadable):,} images have no heat map", file=sys.stderr)
    return 1 if unreadable else 0


def _check(args: argparse.Namespace) -> None:
    if args.finding:
        _check_findings(args.run, args.finding)
    if args.boxes and args.images:
        raise InputError(
            f"--boxes and {args.images[0]}: boxes are scored on the images of --dataset_dir. Leave out one of the two."
        )
    if not args.boxes and not args.images:
        raise InputError("nothing to explain: name X-rays, or --boxes with --dataset_dir.")
    if args.boxes and not args.dataset_dir:
        raise InputError("--dataset_dir is missing: name the ingested folder with the images of the boxes.")
    if args.dataset_dir and not args.boxes:
        raise InputError("--dataset_dir goes with --boxes. To show images of it, name them.")
    if args.boxes and args.finding:
        raise InputError("--finding goes with images: each box has its own finding. Leave it out.")


def _check_findings(run_dir: Path, names: Sequence[str]) -> None:
    from chestxray_vit.models.vit import load_label_set  # only here: it loads torch

    findings = load_label_set(run_dir).findings
    unknown = [name for name in names if name not in findings]
    if unknown:
        remedy = f"Known: {', '.join(findings)}. Images come before --finding."
        raise InputError(f"--finding: unknown: {', '.join(map(repr, unknown))}. {remedy}")


def _show_images(args: argparse.Namespace, unreadable: Dict[Path, str]) -> None:
    """Write an overlay for each image and finding; add to `unreadable` the images that have none."""
    from chestxray_vit.models.inference import open_run  # only here: they load torch
    from chestxray_vit.saliency import write_overlays as overlays

    paths = find_images(args.images)
    overlays.check_folders(args.images, args.output_dir)
    run = open_run(args.run, args.device)
    request = overlays.OverlayRequest(tuple(paths), args.output_dir, args.method, args.finding and tuple(args.finding))
    overlays.check_names(request, run.label_set)
    with folder_lock(args.output_dir, ()):
        overlays.write_overlays(run, request, unreadable)


def _score_boxes(args: argparse.Namespace, unreadable: Dict[Path, str]) -> None:
    """Score the maps of all boxed images of a data set, print the tables and write localisation.json."""
    from chestxray_vit.models.inference import open_run  # only here: they load torch
    from chestxray_vit.saliency import box_scores

    boxed = box_scores.read_boxed_images(args.boxes, args.dataset_dir)
    run = open_run(args.run, args.device)
    results = box_scores.score_boxes(run, boxed, args.method, unreadable)
    results = {"package_version": __version__, "run": args.run.resolve().name, **results}
    print(box_scores.left_out(results))
    print(f"\n{to_text(results)}\n")
    write_json(args.output_dir / FILE, results)
    print(f"wrote {args.output_dir / FILE}")


if __name__ == "__main__":
    sys.exit(main())
