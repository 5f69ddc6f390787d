"""Build a ViT for the findings from any ViT checkpoint, or reload one of ours; refuse what does not fit.

`from_pretrained` loads checkpoints of other architectures, without a body, or full of NaN without an error:
each of these is looked for here, since all of them train to a plausible but wrong AUC."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, ViTConfig, ViTForImageClassification
from transformers.utils import logging as transformers_logging

from chestxray_vit.findings import FINDINGS, label_names
from chestxray_vit.problems import InputError
from chestxray_vit.shape import Shape

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()  # loading a ViT takes no time worth a bar
transformers_logging.set_verbosity_error()  # it warns of torchvision and new heads; what matters is checked below

DEFAULT_CHECKPOINT = "google/vit-base-patch16-224-in21k"
PROBLEM = "multi_label_classification"


def build_model(name_or_path: str = DEFAULT_CHECKPOINT, labels: Sequence[str] = FINDINGS) -> Tuple[Any, Any]:
    """Load a ViT checkpoint with a head for the findings, in float32.

    A checkpoint of ours keeps its head; any other gets a new one, which is announced.

    Args:
        name_or_path: a folder, or a name on the Hub.
        labels: what the outputs stand for, in order.

    Returns:
        The model, and the checkpoint's own image processor.

    Raises:
        InputError: another architecture, other findings, a missing body, weights that are not finite, no safetensors.
    """
    config = _read_config(name_or_path)
    if config.problem_type == PROBLEM:
        return _load(name_or_path, _check_findings(config, name_or_path, labels), allow_new_head=False)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in enumerate(labels)}
    config.problem_type = PROBLEM
    logger.info("new head: %s outputs, drawn at random (the checkpoint's own head is left)", len(labels))
    return _load(name_or_path, config, allow_new_head=True)


def build_from_scratch(shape: Shape, labels: Sequence[str] = FINDINGS) -> Tuple[Any, Any]:
    """Draw a ViT of the given shape at random, from torch's global seed; pixels are normalised to [-1, 1].

    Weights have ViT-B's standard deviation of 0.02 at its width of 768, and more in narrower ones, so that sums over
    the width vary as much: at width 96, 0.08 in place of 0.02 took a phantom's test AUC from .86 to .95.
    """
    from transformers import ViTImageProcessor  # here: its import warns, where torchvision is not installed

    sizes = {name: value for name, value in asdict(shape).items() if name != "num_labels"}
    config = ViTConfig(
        **sizes,
        initializer_range=0.02 * (768 / shape.hidden_size) ** 0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        problem_type=PROBLEM,
    )
    half = [0.5, 0.5, 0.5]
    processor = ViTImageProcessor(
        size={"height": shape.image_size, "width": shape.image_size}, image_mean=half, image_std=half, resample=2
    )
    return ViTForImageClassification(config), processor


def load_model(run_dir: str | Path) -> Tuple[Any, Any]:
    """Reload a trained model of ours, every tensor, in float32, with its image processor.

    Raises:
        InputError: not a run of this package for the 14 findings, or damaged.
    """
    config = _read_config(str(run_dir))
    if config.problem_type != PROBLEM:
        raise InputError(f"{run_dir}: not a trained run of this package (problem_type is {config.problem_type}).")
    labels = label_names(include_no_finding=config.num_labels == len(FINDINGS) + 1)
    return _load(str(run_dir), _check_findings(config, str(run_dir), labels), allow_new_head=False)


def labels_of(config) -> List[str]:
    """Return what a model's outputs stand for, in order."""
    return [config.id2label[place] for place in range(config.num_labels)]


def _read_config(name_or_path: str):
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name_or_path}: no ViT checkpoint could be read: {reason} "
            "Give a folder with config.json and model.safetensors, or a name on the Hub and a network."
        ) from error
    if config.model_type != "vit":
        raise InputError(f"{name_or_path}: the architecture is {config.model_type!r}, expected a ViT ('vit').")
    return config


def _check_findings(config, where: str, labels: Sequence[str]):
    found = labels_of(config)
    if found != list(labels):
        raise InputError(
            f"{where}: its outputs are {', '.join(found)}; expected {', '.join(labels)}, in this order. "
            "Scores would be read under wrong names. Train on the same findings, or start from another checkpoint."
        )
    return config


def _load(name_or_path: str, config, allow_new_head: bool) -> Tuple[Any, Any]:
    if Path(name_or_path).is_dir() and not list(Path(name_or_path).glob("*.safetensors")):
        raise InputError(f"{name_or_path}: no *.safetensors. Weights must be safetensors: a pickle can run code.")
    try:
        model, info = ViTForImageClassification.from_pretrained(
            name_or_path,
            config=config,
            torch_dtype=torch.float32,
            ignore_mismatched_sizes=allow_new_head,
            use_safetensors=True,
            output_loading_info=True,
        )
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name_or_path}: cannot be loaded: {reason} Is the checkpoint whole?") from error
    lacking = [_name_of(key) for key in (*info["missing_keys"], *info["mismatched_keys"])]
    body = [key for key in lacking if not (allow_new_head and key.startswith("classifier."))]
    if body:
        raise InputError(
            f"{name_or_path}: {len(body)} tensors are missing or of another size (first: {sorted(body)[0]}). "
            "Is it a whole ViT checkpoint of the size that its config.json says?"
        )
    if lacking:  # the head alone: drawn here, since transformers 4 draws it wider than 5
        torch.nn.init.trunc_normal_(model.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    wrong = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{name_or_path}: {len(wrong)} tensors hold NaN or infinity (first: {wrong[0]}).")
    return model, processor


def _name_of(key) -> str:
    """Return a tensor's name; mismatched ones come with their two sizes."""
    return key if isinstance(key, str) else key[0]
