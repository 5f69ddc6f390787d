"""Show where a trained run looked, and score that on NIH's boxes.

    python -m chestxray_vit.explain run IMAGE_OR_FOLDER... [--finding Effusion Mass]
    python -m chestxray_vit.explain run --boxes BBox_List_2017.csv --dataset_dir chest-xray-nihcc

The first lays a heat map over each X-ray, for the finding of its highest score or for those named. The second scores
the maps of all boxed images and writes localisation.json. Gradient maps are of one finding. Attention rollout is of
none: there --finding sets the title only. A map shows where the model looked, not why; research use only."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from chestxray_vit import __version__
from chestxray_vit.artifacts.metadata import find_metadata
from chestxray_vit.data.readers.nih_boxes import Box, by_case, count_used, read_boxes
from chestxray_vit.data.synthetic import release as phantom
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import SHOWN, InputError, explain_out_of_memory
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.files import find_images
from chestxray_vit.labels import FINDINGS
from chestxray_vit.saliency import localisation
from chestxray_vit.saliency.overlay import overlay
from chestxray_vit.storage.atomic import sha256, write_bytes
from chestxray_vit.storage.json_files import write_json
from chestxray_vit.storage.lock import folder_lock

OUTPUT = "localisation.json"


def parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
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
        choices=tuple(localisation.METHODS),
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
    """Run the stage."""
    args = parser().parse_intermixed_args(argv)  # else images after a flag are not taken
    args.output_dir = args.output_dir or args.run / "explain"
    _check(args)
    unreadable: List[str] = []
    with explain_out_of_memory(1, "end other programs, or explain on another machine"):
        if args.boxes:
            with folder_lock(args.output_dir, (OUTPUT,)):
                score_boxes(args, unreadable)
        else:
            show_images(args, unreadable)
    for problem in unreadable:
        print(f"error: {problem}", file=sys.stderr)
    if unreadable:
        print(f"error: {len(unreadable):,} images have no heat map", file=sys.stderr)
    return 1 if unreadable else 0


def _check(args: argparse.Namespace) -> None:
    unknown = [name for name in args.finding or () if name not in FINDINGS]
    if unknown:
        remedy = f"Known: {', '.join(FINDINGS)}. Images come before --finding."
        raise InputError(f"--finding: unknown: {', '.join(map(repr, unknown))}. {remedy}")
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


def _open_run(args: argparse.Namespace) -> Tuple[Any, Any, str]:
    """Return the model in evaluation on its device, its preprocessing, and the device."""
    from chestxray_vit.images.preprocess import Preprocess  # only here: they load torch
    from chestxray_vit.models import vit as model
    from chestxray_vit.training.engines import choose as backend

    device = backend.pick_device(args.device, with_ipu=False)
    vit, processor = model.load_model(args.run)
    return vit.to(device).eval(), Preprocess(processor), device


def _read(path: Path, unreadable: List[str]) -> Optional[Image.Image]:
    """Return an X-ray, or None and its problem noted once."""
    try:
        return read_grey(path)
    except InputError as error:
        if str(error) not in unreadable:
            unreadable.append(str(error))
        return None


# Overlays of any X-rays


def show_images(args: argparse.Namespace, unreadable: List[str]) -> None:
    """Write an overlay for each image and finding; add to `unreadable` the images that have none.

    Raises:
        InputError: an image or the run is not there, or an overlay would take the place of an input.
    """
    from tqdm import tqdm

    paths = find_images(args.images)
    _check_outputs(args.images, paths, args.output_dir)
    vit, preprocess, device = _open_run(args)
    from chestxray_vit.saliency.attention_maps import maps_of_image

    wanted = None if args.finding is None else [FINDINGS.index(name) for name in args.finding]
    with folder_lock(args.output_dir, ()):
        for path, name in zip(tqdm(paths, desc="explain", unit="image", delay=2, leave=False), overlay_names(paths)):
            image = _read(path, unreadable)
            if image is None:
                continue
            for place, score, map_hw in maps_of_image(vit, preprocess.pixels(image).to(device), wanted, args.method):
                finding = FINDINGS[place]
                output = args.output_dir / f"{name}.{finding}.png"
                write_bytes(output, overlay(image, map_hw, finding, score, args.method))
                tqdm.write(f"{output}: {path}, {finding}, score {score:.3f}")


def overlay_names(paths: Sequence[Path]) -> List[str]:
    """Return what the overlays of each image are called: its stem; the second of a stem has a number, and so on."""
    taken: Dict[str, str] = {}  # by lower case: some file systems know no other
    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken[name.lower()] = name
    return list(taken.values())


def _check_outputs(arguments: Sequence[Path], paths: Sequence[Path], output_dir: Path) -> None:
    """Refuse to write into a folder of X-rays, where overlays would be taken for X-rays, or over one of them."""
    target = output_dir.resolve()
    folders = [argument for argument in arguments if argument.is_dir()]
    within = [folder for folder in folders if folder.resolve() in (target, *target.parents)]
    inputs = {path.resolve() for path in paths}
    outputs = {target / f"{name}.{finding}.png" for name in overlay_names(paths) for finding in FINDINGS}
    if within or inputs & outputs:
        reason = f"lies in {within[0]}" if within else f"would overwrite {min(inputs & outputs).name}"
        raise InputError(f"--output_dir {output_dir}: {reason}, which holds X-rays. Name another folder.")


# The score on boxes


def score_boxes(args: argparse.Namespace, unreadable: List[str]) -> None:
    """Score the maps of all boxed images of a data set, print the tables and write localisation.json.

    Raises:
        InputError: whatever of the input the user can mend.
    """
    boxes = read_boxes(args.boxes)
    rows = _rows_of(args.dataset_dir)
    jobs = by_case(boxes, rows)
    if not jobs:
        raise InputError(
            f"{args.boxes}: none of its {len({box.file_name for box in boxes}):,} images is in {args.dataset_dir} "
            f"(first: {boxes[0].file_name}). Ingest a release that holds them."
        )
    cases = _score_cases(args, jobs, rows, unreadable)
    if not cases:
        raise InputError(f"{args.dataset_dir}: no boxed image can be read (first: {unreadable[0]})")
    used = {case.file_name for case in cases}
    findings = [finding for finding in FINDINGS if any(box.finding == finding for box in boxes)]
    about = {"file_name": args.boxes.name, "sha256": sha256(args.boxes), **count_used(boxes, used, rows)}
    results = {
        "package_version": __version__,
        "run": args.run.resolve().name,
        "dataset": args.dataset_dir.resolve().name,
        "boxes": about,
        "num_images_by_split": dict(sorted(Counter(rows[name].split for name in used).items())),
        **localisation.localisation_report(cases, findings, args.method, phantom.is_synthetic(args.dataset_dir)),
    }
    _print_boxes(results)
    write_json(args.output_dir / OUTPUT, results)
    print(f"wrote {args.output_dir / OUTPUT}")


@dataclass(frozen=True)
class _Row:
    """Where an image of the data set is, and whose."""

    path: Path
    patient_id: str
    split: str


def _rows_of(dataset_dir: Path) -> Dict[str, _Row]:
    """Return the data set's images by their names without a folder."""
    from chestxray_vit.data import dataset as xrays

    root = find_metadata(dataset_dir).parent
    columns = xrays.load_xrays(dataset_dir).select_columns(["file_name", "patient_id", "split"])[:]
    rows = zip(columns["file_name"], columns["patient_id"], columns["split"])
    return {Path(name).name: _Row(root / name, str(patient), split) for name, patient, split in rows}


def _score_cases(
    args: argparse.Namespace,
    jobs: Dict[Tuple[str, str], List[Box]],
    rows: Dict[str, _Row],
    unreadable: List[str],
) -> List[localisation.Case]:
    """Make and score the map of each image and finding; images that cannot be read are noted, each once."""
    import torch
    from tqdm import tqdm

    vit, preprocess, device = _open_run(args)
    from chestxray_vit.saliency.attention_maps import BATCH, heat_maps

    cases: List[localisation.Case] = []
    progress = tqdm(total=len(jobs), desc="score", unit="map", delay=2, leave=False)
    names = list(jobs)
    for start in range(0, len(names), BATCH):
        readable, pixels = [], []
        for name, finding in names[start : start + BATCH]:
            image = _read(rows[name].path, unreadable)
            if image is not None:
                pixels.append(preprocess.pixels(image))
                readable.append((name, finding))
        if readable:
            places = [FINDINGS.index(finding) for _, finding in readable]
            maps_Bhw = heat_maps(vit, torch.stack(pixels).to(device), places, args.method).cpu().numpy()
            for (name, finding), map_hw in zip(readable, maps_Bhw):
                boxes_K4 = np.array([[box.x, box.y, box.width, box.height] for box in jobs[name, finding]])
                score = localisation.score_map(map_hw, boxes_K4)
                cases.append(localisation.Case(finding, name, rows[name].patient_id, len(boxes_K4), score))
        progress.update(len(names[start : start + BATCH]))
    progress.close()
    return cases


def _print_boxes(results: Dict[str, Any]) -> None:
    about, splits = results["boxes"], results["num_images_by_split"]
    print(f"{about['num_used']:,} of {about['num_boxes']:,} boxes are on images of {results['dataset']}.")
    missing = about["images_not_in_dataset"]
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        print(f"left out: {len(missing):,} images that it has not: {', '.join(missing[:SHOWN])}{more}")
    learned = sum(count for split, count in splits.items() if split != "test")
    if learned:
        print(
            f"{learned:,} of {sum(splits.values()):,} images are not in the test split: the run may have learned them."
        )
    print(f"\n{localisation.to_text(results)}\n")


if __name__ == "__main__":
    sys.exit(main())
