"""Write an overlay for each X-ray and finding, never over an X-ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple
from urllib.parse import quote

from tqdm import tqdm

from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.models.inference import TrainedRun, read_xray
from chestxray_vit.saliency.attention_maps import maps_of_image
from chestxray_vit.saliency.overlay import overlay
from chestxray_vit.storage.atomic import write_bytes


@dataclass(frozen=True)
class OverlayRequest:
    """What to draw.

    Attributes:
        paths: of the X-rays.
        output_dir: folder of the overlays.
        method: `gradient` or `rollout`.
        findings: names; None for the one of each image's highest score.
    """

    paths: Tuple[Path, ...]
    output_dir: Path
    method: str = "gradient"
    findings: Optional[Tuple[str, ...]] = None


def check_folders(arguments: Sequence[Path], output_dir: Path) -> None:
    """Refuse to write into a folder of X-rays, where overlays would be taken for X-rays.

    Args:
        arguments: files and folders of X-rays, as the user named them.
        output_dir: folder of the overlays.

    Raises:
        InputError: it is one of these folders, or in one.
    """
    target = output_dir.resolve()
    within = [folder for folder in arguments if folder.is_dir() and folder.resolve() in (target, *target.parents)]
    if within:
        _refuse(output_dir, f"lies in {within[0]}")


def check_names(request: OverlayRequest, label_set: LabelSet) -> None:
    """Refuse to overwrite an X-ray with the overlay of a finding.

    Raises:
        InputError: an overlay has an X-ray's name.
    """
    target, inputs = request.output_dir.resolve(), {path.resolve() for path in request.paths}
    stems = overlay_stems(request.paths)
    outputs = {target / overlay_name(stem, finding) for stem in stems for finding in label_set.findings}
    if inputs & outputs:
        _refuse(request.output_dir, f"would overwrite {min(inputs & outputs).name}")


def _refuse(output_dir: Path, reason: str) -> None:
    raise InputError(f"--output_dir {output_dir}: {reason}, which holds X-rays. Name another folder.")


def write_overlays(run: TrainedRun, request: OverlayRequest, unreadable: Dict[Path, str]) -> None:
    """Write the overlays, and print a line for each.

    Args:
        run: of `open_run`.
        request: checked by `check_names`.
        unreadable: takes the reason for each image that has no overlay.
    """
    names = run.label_set.findings
    indices = None if request.findings is None else [names.index(name) for name in request.findings]
    progress = tqdm(request.paths, desc="explain", unit="image", delay=2, leave=False)
    for path, stem in zip(progress, overlay_stems(request.paths)):
        image = read_xray(path, unreadable)
        if image is None:
            continue
        pixels_3HW = run.preprocess.pixels(image).to(run.device)
        for index, score, map_hw in maps_of_image(run.vit, pixels_3HW, indices, request.method):
            output = request.output_dir / overlay_name(stem, names[index])
            write_bytes(output, overlay(image, map_hw, names[index], score, request.method))
            tqdm.write(f"{output}: {path}, {names[index]}, score {score:.3f}")


def overlay_name(stem: str, finding: str) -> str:
    """Return the file name of an overlay; signs that a file name cannot hold everywhere are percent-encoded."""
    return f"{stem}.{quote(finding, safe=' ')}.png"


def overlay_stems(paths: Sequence[Path]) -> List[str]:
    """Return how the overlays' names begin: by the image's stem, with a number from the second of a stem on."""
    taken: Dict[str, str] = {}  # by lower case: some file systems do not distinguish case
    for path in paths:
        stem, number = path.stem, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken[stem.lower()] = stem
    return list(taken.values())
