"""Make the heat maps of a data set's boxed images, and score each on its boxes.

B maps of a batch, K boxes of a map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from tqdm import tqdm

from chestxray_vit.data.dataset import open_dataset
from chestxray_vit.data.readers.nih_boxes import Box, by_case, count_used, read_boxes
from chestxray_vit.errors import SHOWN, InputError
from chestxray_vit.models.inference import TrainedRun, read_xray
from chestxray_vit.saliency.attention_maps import BATCH, heat_maps
from chestxray_vit.saliency.localisation import Case, localisation_report, score_map
from chestxray_vit.storage.atomic import sha256


@dataclass(frozen=True)
class DatasetImage:
    """Where an image of the data set is, and whose it is."""

    path: Path
    patient_id: str
    split: str


@dataclass(frozen=True)
class BoxedImages:
    """A file of boxes, and the data set with its images.

    Attributes:
        path: of the file of boxes.
        boxes: in the file's order.
        dataset_dir: the ingested folder.
        images: of the data set, by file name without a folder.
        is_synthetic: whether the images are synthetic.
    """

    path: Path
    boxes: Tuple[Box, ...]
    dataset_dir: Path
    images: Dict[str, DatasetImage]
    is_synthetic: bool


def read_boxed_images(path: Path, dataset_dir: Path) -> BoxedImages:
    """Read boxes, and find their images in a data set.

    Raises:
        InputError: one of the two cannot be read, or none of the boxes is on an image of the data set.
    """
    boxes = read_boxes(path)
    dataset = open_dataset(dataset_dir)
    columns = dataset.split().select_columns(["file_name", "patient_id", "split"])[:]
    rows = zip(columns["file_name"], columns["patient_id"], columns["split"])
    images = {Path(name).name: DatasetImage(dataset.root / name, str(patient), split) for name, patient, split in rows}
    if not by_case(boxes, images):
        raise InputError(
            f"{path}: none of its {len({box.file_name for box in boxes}):,} images is in {dataset_dir} "
            f"(first: {boxes[0].file_name}). Ingest a release that holds them."
        )
    return BoxedImages(path, tuple(boxes), dataset_dir, images, dataset.is_synthetic)


def score_boxes(run: TrainedRun, boxed: BoxedImages, method: str, unreadable: Dict[Path, str]) -> Dict[str, Any]:
    """Score the map of each image and finding on its boxes.

    Args:
        run: of `open_run`; boxes of findings that it does not score are left out.
        boxed: of `read_boxed_images`.
        method: `gradient` or `rollout`.
        unreadable: takes the reason for each image that cannot be read.

    Returns:
        The content of localisation.json, without the run and the package's version.

    Raises:
        InputError: no box is of a finding that the run scores, or no boxed image can be read.
    """
    findings = [finding for finding in run.label_set.findings if any(box.finding == finding for box in boxed.boxes)]
    boxes = [box for box in boxed.boxes if box.finding in findings]
    jobs = by_case(boxes, boxed.images)
    if not jobs:
        raise InputError(
            f"{boxed.path}: no box on an image of {boxed.dataset_dir} is of a finding that the run scores: "
            f"{', '.join(run.label_set.findings)}. Name another run."
        )
    cases = _score_cases(run, jobs, boxed.images, method, unreadable)
    if not cases:
        reason = next(iter(unreadable.values()))
        raise InputError(f"{boxed.dataset_dir}: no boxed image can be read (first: {reason})")
    used = {case.file_name for case in cases}
    about = {"file_name": boxed.path.name, "sha256": sha256(boxed.path), **count_used(boxes, used, boxed.images)}
    others = sorted({box.finding for box in boxed.boxes}.difference(findings))
    return {
        "dataset": boxed.dataset_dir.resolve().name,
        "boxes": {**about, "findings_not_scored": others},
        "num_images_by_split": dict(sorted(Counter(boxed.images[name].split for name in used).items())),
        **localisation_report(cases, findings, method, boxed.is_synthetic),
    }


def _score_cases(
    run: TrainedRun,
    jobs: Dict[Tuple[str, str], List[Box]],
    images: Dict[str, DatasetImage],
    method: str,
    unreadable: Dict[Path, str],
) -> List[Case]:
    """Make and score the map of each image and finding; images that cannot be read are noted."""
    cases: List[Case] = []
    progress = tqdm(total=len(jobs), desc="score", unit="map", delay=2, leave=False)
    names = list(jobs)
    for start in range(0, len(names), BATCH):
        readable, pixels = [], []
        for name, finding in names[start : start + BATCH]:
            image = read_xray(images[name].path, unreadable)
            if image is not None:
                pixels.append(run.preprocess.pixels(image))
                readable.append((name, finding))
        if readable:
            indices = [run.label_set.findings.index(finding) for _, finding in readable]
            maps_Bhw = heat_maps(run.vit, torch.stack(pixels).to(run.device), indices, method).cpu().numpy()
            for (name, finding), map_hw in zip(readable, maps_Bhw):
                boxes_K4 = np.array([[box.x, box.y, box.width, box.height] for box in jobs[name, finding]])
                score = score_map(map_hw, boxes_K4)
                cases.append(Case(finding, name, images[name].patient_id, len(boxes_K4), score))
        progress.update(len(names[start : start + BATCH]))
    progress.close()
    return cases


def left_out(results: Dict[str, Any]) -> str:
    """Return lines on which boxes were used, which were left out, and which images the run may have learned."""
    about, splits = results["boxes"], results["num_images_by_split"]
    lines = [f"{about['num_used']:,} of {about['num_boxes']:,} boxes are on images of {results['dataset']}."]
    missing = about["images_not_in_dataset"]
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        lines.append(f"left out: {len(missing):,} images that it has not: {', '.join(missing[:SHOWN])}{more}")
    if about["findings_not_scored"]:
        findings = ", ".join(about["findings_not_scored"])
        lines.append(f"left out: boxes of findings that the run does not score: {findings}")
    learned = sum(count for split, count in splits.items() if split != "test")
    if learned:
        total = sum(splits.values())
        lines.append(f"{learned:,} of {total:,} images are not in the test split: the run may have learned them.")
    return "\n".join(lines)
