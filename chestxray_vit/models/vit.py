"""Build a ViT for the findings from any ViT checkpoint, or reload one of ours; refuse what does not fit.

`from_pretrained` loads checkpoints of other architectures, without a body, or full of NaN without an error:
each of these is looked for here, since all of them train to a plausible but wrong AUC. And checkpoints come from
strangers: of a config.json only what describes a ViT is taken, so that it can name no code to run, no kernel to fetch
and no file elsewhere."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification
from transformers.activations import ACT2FN
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from chestxray_vit.errors import InputError, Problems, shortened
from chestxray_vit.labels import FINDINGS, label_names
from chestxray_vit.models.vit_size import ViTSize

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()  # loading a ViT takes no time worth a bar
transformers_logging.set_verbosity_error()  # it warns of torchvision and new heads; what matters is checked below

DEFAULT_CHECKPOINT = "google/vit-base-patch16-224-in21k"
PROBLEM = "multi_label_classification"
SIZES = tuple(field.name for field in fields(ViTSize) if field.name not in ("num_labels", "qkv_bias"))
NUMBERS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
LAYER = re.compile(r"\.layers?\.\d+\.")  # in the name of a tensor of the encoder
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILTERS = range(6)  # Pillow's numbers of the resize
# What transformers raises on a file that says what it does not expect.
CONFUSED = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError)


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
    content = _read_config(name_or_path)
    is_ours = content.get("problem_type") == PROBLEM
    if is_ours:
        _check_findings(content, name_or_path, labels)
    else:
        logger.info("new head: %s outputs, drawn at random (the checkpoint's own head is left)", len(labels))
    return _load(name_or_path, _config(content, labels), allow_new_head=not is_ours)


def build_from_scratch(shape: ViTSize, labels: Sequence[str] = FINDINGS) -> Tuple[Any, Any]:
    """Draw a ViT of the given shape at random, from torch's global seed; pixels are normalised to [-1, 1].

    Weights have ViT-B's standard deviation of 0.02 at its width of 768, and more in narrower ones, so that sums over
    the width vary as much: at width 96, 0.08 in place of 0.02 took a phantom's test AUC from .86 to .95.
    """
    from transformers import ViTImageProcessor  # here: its import warns, where torchvision is not installed

    sizes = {name: value for name, value in asdict(shape).items() if name != "num_labels"}
    config = _config({**sizes, "initializer_range": 0.02 * (768 / shape.hidden_size) ** 0.5}, labels)
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
    content = _read_config(str(run_dir))
    task = content.get("problem_type")
    if task != PROBLEM:
        raise InputError(
            f"{run_dir}: not a trained run of this package (problem_type is {shortened(repr(task))}). "
            "Name the folder that chestxray_vit.train wrote."
        )
    labels = label_names(include_no_finding=len(_outputs(content)) == len(FINDINGS) + 1)
    _check_findings(content, str(run_dir), labels)
    return _load(str(run_dir), _config(content, labels), allow_new_head=False)


def labels_of(config) -> List[str]:
    """Return what a model's outputs stand for, in order."""
    return [config.id2label[place] for place in range(config.num_labels)]


def _read_config(name_or_path: str) -> Dict[str, Any]:
    """Return a checkpoint's config.json, in which a ViT is described."""
    try:
        path = cached_file(name_or_path, "config.json")
        if path is None:  # transformers 5, of this one file in a folder
            raise FileNotFoundError("there is none")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name_or_path}: no ViT checkpoint could be read: config.json: {_reason(error)}. "
            "Give a folder with config.json and model.safetensors, or a name on the Hub and a network."
        ) from error
    kind = content.get("model_type") if isinstance(content, dict) else type(content).__name__
    if kind != "vit":
        raise InputError(f"{name_or_path}: the architecture is {shortened(repr(kind))}, expected a ViT ('vit').")
    _check_config(content, name_or_path)
    return content


def _check_config(content: Dict[str, Any], where: str) -> None:
    problems = Problems(f"{where}: config.json")
    remedy = "Is it a ViT's as transformers writes it?"
    for name in SIZES:
        if name in content and not (type(content[name]) is int and content[name] > 0):
            problems.add("not a whole number above 0", f"{name} is {content[name]!r}", remedy)
    for name in NUMBERS:
        if name in content and not (type(content[name]) in (int, float) and 0 <= content[name] <= 1):
            problems.add("not a number from 0 to 1", f"{name} is {content[name]!r}", remedy)
    if not isinstance(content.get("qkv_bias", True), bool):
        problems.add("neither true nor false", f"qkv_bias is {content['qkv_bias']!r}", remedy)
    activation = content.get("hidden_act", "gelu")
    if not (isinstance(activation, str) and activation in ACT2FN):
        problems.add("unknown activation", f"hidden_act is {activation!r}", remedy)
    problems.raise_if_any()
    _shape(content, where)


def _shape(content: Dict[str, Any], where: str) -> ViTSize:
    try:
        return ViTSize(**{name: content[name] for name in (*SIZES, "qkv_bias") if name in content})
    except InputError as error:
        raise InputError(f"{where}: config.json: {error}") from error


def _config(content: Dict[str, Any], labels: Sequence[str]) -> ViTConfig:
    """Return the configuration of a ViT with these outputs; of the content, what says its shape and arithmetic."""
    taken = [name for name in (*SIZES, *NUMBERS, "qkv_bias", "hidden_act") if name in content]
    return ViTConfig(
        **{name: content[name] for name in taken},
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        problem_type=PROBLEM,
    )


def _outputs(content: Dict[str, Any]) -> List[str]:
    """Return what a checkpoint's outputs stand for, in order, as far as its config.json says it."""
    names = content.get("id2label")
    return [str(names.get(str(place))) for place in range(len(names))] if isinstance(names, dict) else []


def _check_findings(content: Dict[str, Any], where: str, labels: Sequence[str]) -> None:
    found = _outputs(content)
    if found != list(labels):
        named = shortened(", ".join(found)) or "not named"
        raise InputError(
            f"{where}: its outputs are {named}; expected {', '.join(labels)}, in this order. "
            "Scores would be read under wrong names. Train on the same findings, or start from another checkpoint."
        )


def _check_weights(folder: Path, config: ViTConfig) -> None:
    """Refuse weights that are no safetensors, lie elsewhere, or are too few: a ViT of any size would be built first."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        files = _shards(folder)
    if not all(file.is_file() for file in files):
        raise InputError(f"{folder}: no {WEIGHTS}. Weights must be safetensors: a pickle can run code.")
    shape = ViTSize.of(config)
    needed = shape.embedding_parameters + shape.num_hidden_layers * shape.layer_parameters
    found = sum(file.stat().st_size for file in files)
    if needed > found:
        raise InputError(
            f"{folder}: cannot be loaded: config.json says {needed:,} parameters, the weights have {found:,} bytes. "
            "Is the checkpoint whole?"
        )


def _shards(folder: Path) -> List[Path]:
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        names = {name for name in places if Path(name).name == name}
    except CONFUSED as error:
        raise InputError(f"{folder}: {INDEX} is no index: {_reason(error)}. Fetch it again.") from error
    if not names or len(names) < len(set(places)):
        raise InputError(f"{folder}: {INDEX} names files outside its folder. Fetch it again.")
    return [folder / name for name in names]


def _load(name_or_path: str, config, allow_new_head: bool) -> Tuple[Any, Any]:
    if Path(name_or_path).is_dir():
        _check_weights(Path(name_or_path), config)
    try:
        model, info = ViTForImageClassification.from_pretrained(
            name_or_path,
            config=config,
            torch_dtype=torch.float32,
            ignore_mismatched_sizes=allow_new_head,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (*CONFUSED, SafetensorError) as error:
        raise InputError(f"{name_or_path}: cannot be loaded: {_reason(error)}. Is the checkpoint whole?") from error
    processor = _load_processor(name_or_path, config.image_size)
    lacking = [_name_of(key) for key in (*info["missing_keys"], *info["mismatched_keys"])]
    body = [key for key in lacking if not (allow_new_head and key.startswith("classifier."))]
    if body:
        raise InputError(
            f"{name_or_path}: {len(body)} tensors are missing or of another size (first: {sorted(body)[0]}). "
            "Is it a whole ViT checkpoint of the size that its config.json says?"
        )
    left = [key for key in info["unexpected_keys"] if not allow_new_head or LAYER.search(key)]
    if left:
        raise InputError(
            f"{name_or_path}: the weights hold {len(left)} tensors that a ViT of its config.json has not (first: "
            f"{shortened(sorted(left)[0])}). Is config.json that of the weights?"
        )
    if lacking:  # the head alone: drawn here, since transformers 4 draws it wider than 5
        torch.nn.init.trunc_normal_(model.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    wrong = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{name_or_path}: {len(wrong)} tensors hold NaN or infinity (first: {wrong[0]}).")
    return model, processor


def _load_processor(name_or_path: str, image_size: int) -> Any:
    """Load an image processor, and see that it gives what the ViT reads."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    where = f"{name_or_path}: preprocessor_config.json"
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        size, is_cropping = dict(processor.size), getattr(processor, "do_center_crop", None)
        if size != {"height": image_size, "width": image_size} or is_cropping or processor.resample not in FILTERS:
            raise InputError(
                f"{where}: size {shortened(str(size))}, do_center_crop {is_cropping}, resample "
                f"{shortened(str(processor.resample))}; expected height and width {image_size} as in config.json, "
                "no crop, and one of Pillow's filters, 0 to 5."
            )
        with np.errstate(all="ignore"):  # looked at below
            answer = np.asarray(processor(ramp, do_resize=False, return_tensors="np")["pixel_values"])
    except InputError:
        raise
    except CONFUSED as error:
        raise InputError(f"{where} cannot be loaded: {_reason(error)}. Is the checkpoint whole?") from error
    if answer.shape != (1, 3, 16, 16) or not np.isfinite(answer).all() or np.ptp(answer) == 0:
        raise InputError(f"{where}: black and white give no pixel values of their own. Is it the checkpoint's own?")
    return processor


def _reason(error: Exception) -> str:
    """Return the first line of an error: those of transformers have paragraphs."""
    return shortened(str(error).partition("\n")[0].rstrip("."))


def _name_of(key) -> str:
    """Return a tensor's name; mismatched ones come with their two sizes."""
    return key if isinstance(key, str) else key[0]
