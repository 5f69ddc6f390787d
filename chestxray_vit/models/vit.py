"""Build a ViT for a label set from any ViT checkpoint or at random, or load a trained run."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Tuple

from transformers import ViTForImageClassification

from chestxray_vit.errors import InputError, shortened
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.models.checkpoint import load_checkpoint, quiet_transformers, read_config, vit_config
from chestxray_vit.models.label_config import MULTI_LABEL_PROBLEM, check_outputs, outputs_of, read_label_set
from chestxray_vit.models.vit_size import ViTSize

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = "google/vit-base-patch16-224-in21k"


def build_model(name_or_path: str = DEFAULT_CHECKPOINT, label_set: LabelSet = NIH_CHESTXRAY14) -> Tuple[Any, Any]:
    """Load a ViT checkpoint with a head for a label set, in float32.

    A checkpoint for the same labels keeps its head; another task's gets a new one, which is announced.

    Args:
        name_or_path: a folder, or a name on the Hub.
        label_set: what the outputs stand for.

    Returns:
        The model, and the checkpoint's own image processor.

    Raises:
        InputError: another architecture, a multi-label checkpoint for other labels, a missing body, weights that are
            not finite, no safetensors.
    """
    content = read_config(name_or_path)
    problem_type = content.get("problem_type")
    keeps_head = problem_type == label_set.problem_type and outputs_of(content) == list(label_set.names)
    if problem_type == MULTI_LABEL_PROBLEM:  # most likely a run of this package, which it would be wrong to rename
        check_outputs(content, name_or_path, label_set)
    if not keeps_head:
        logger.info("new head: %s outputs, drawn at random (the checkpoint's own head is left)", len(label_set))
    return load_checkpoint(name_or_path, vit_config(content, label_set), allow_new_head=not keeps_head)


def build_from_scratch(size: ViTSize, label_set: LabelSet = NIH_CHESTXRAY14) -> Tuple[Any, Any]:
    """Draw a ViT of the given size at random, from torch's global seed; pixels are normalised to [-1, 1].

    Weights have ViT-B's standard deviation of 0.02 at its width of 768, and more in narrower ones, so that sums over
    the width vary as much: at width 96, 0.08 in place of 0.02 raised the test AUC on synthetic X-rays from .86 to .95.

    Args:
        size: its `num_labels` is not used.
        label_set: what the outputs stand for.
    """
    with quiet_transformers():
        from transformers import ViTImageProcessor  # here: its import warns, where torchvision is not installed

    sizes = {name: value for name, value in asdict(size).items() if name != "num_labels"}
    config = vit_config({**sizes, "initializer_range": 0.02 * (768 / size.hidden_size) ** 0.5}, label_set)
    half = [0.5, 0.5, 0.5]
    processor = ViTImageProcessor(
        size={"height": size.image_size, "width": size.image_size}, image_mean=half, image_std=half, resample=2
    )
    return ViTForImageClassification(config), processor


def load_model(run_dir: str | Path) -> Tuple[Any, Any]:
    """Load a trained run, every tensor, in float32, with its image processor; `label_set_of` gives its labels.

    Raises:
        InputError: not a run of this package, or damaged.
    """
    content, label_set = _read_run(run_dir)
    return load_checkpoint(str(run_dir), vit_config(content, label_set), allow_new_head=False)


def load_label_set(run_dir: str | Path) -> LabelSet:
    """Return the label set of a trained run, without loading its weights.

    Raises:
        InputError: not a run of this package.
    """
    return _read_run(run_dir)[1]


def _read_run(run_dir: str | Path) -> Tuple[Dict[str, Any], LabelSet]:
    content = read_config(str(run_dir))
    problem_type = content.get("problem_type")
    if problem_type != MULTI_LABEL_PROBLEM:
        raise InputError(
            f"{run_dir}: not a trained run of this package (problem_type is {shortened(repr(problem_type))}). "
            "Name the folder that chestxray_vit.train wrote."
        )
    return content, read_label_set(content, str(run_dir))
