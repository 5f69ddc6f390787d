"""Open a trained run, and score images with it.

B images of a batch, L labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from PIL import Image
from tqdm import tqdm

from chestxray_vit.errors import InputError, explain_out_of_memory
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.preprocess import Preprocess
from chestxray_vit.labels import LabelSet
from chestxray_vit.metrics.probability import probabilities
from chestxray_vit.models.device import pick_device
from chestxray_vit.models.label_config import label_set_of
from chestxray_vit.models.vit import load_model

BATCH = 32


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, ready to score images.

    Attributes:
        vit: the model in evaluation mode, on its device.
        preprocess: turns a grey image into what the model reads.
        device: `cuda` or `cpu`.
        label_set: what the model's outputs stand for.
    """

    vit: Any
    preprocess: Preprocess
    device: str
    label_set: LabelSet


def open_run(run_dir: str | Path, device: str = "auto") -> TrainedRun:
    """Load a trained run for inference.

    Args:
        run_dir: that `train` wrote.
        device: one of `device.DEVICES`.

    Raises:
        InputError: not a run of this package, or damaged; or the device is not there.
    """
    device = pick_device(device)
    vit, processor = load_model(run_dir)
    return TrainedRun(vit.to(device).eval(), Preprocess(processor), device, label_set_of(vit.config))


def read_xray(path: Path, unreadable: Dict[Path, str]) -> Optional[Image.Image]:
    """Return a grey image; or None if it cannot be read, with the reason put into `unreadable`."""
    try:
        return read_grey(path)
    except InputError as error:
        unreadable[path] = str(error)
        return None


def score_images(
    run: TrainedRun, paths: Sequence[Path], unreadable: Dict[Path, str]
) -> Iterator[Tuple[Path, List[float]]]:
    """Yield the path and the probability of each finding for each image, in order.

    Args:
        run: of `open_run`.
        paths: of the images.
        unreadable: takes the reason for each image that has no scores.
    """
    num_findings = len(run.label_set.findings)
    progress = tqdm(total=len(paths), desc="score", unit="image", delay=2, leave=False)
    for start in range(0, len(paths), BATCH):
        readable, pixels = [], []
        for path in paths[start : start + BATCH]:
            image = read_xray(path, unreadable)
            if image is not None:
                pixels.append(run.preprocess.pixels(image))
                readable.append(path)
        if pixels:
            remedy = "end other programs, or score on another machine"
            with explain_out_of_memory(len(pixels), remedy), torch.inference_mode():
                logits_BL = run.vit(pixel_values=torch.stack(pixels).to(run.device)).logits.float().cpu().numpy()
            yield from zip(readable, probabilities(logits_BL[:, :num_findings]).tolist())
        progress.update(len(paths[start : start + BATCH]))
    progress.close()
