"""Read a ViT checkpoint without trusting it, and refuse what does not fit.

`from_pretrained` loads checkpoints of other architectures, without a body, or full of NaN, without an error. Each of
these is looked for here, because all of them train to a plausible but wrong AUC. Checkpoints also come from strangers:
of a config.json only the fields that describe a ViT are used, so it can name no code to run, no kernel to fetch and no
file elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification
from transformers.activations import ACT2FN
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from chestxray_vit.errors import InputError, Problems, shortened
from chestxray_vit.labels import LabelSet
from chestxray_vit.models.label_config import label_fields
from chestxray_vit.models.vit_size import ViTSize

SIZES = tuple(field.name for field in fields(ViTSize) if field.name not in ("num_labels", "qkv_bias"))
NUMBERS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
LAYER = re.compile(r"\.layers?\.\d+\.")  # in the name of a tensor of the encoder
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RESAMPLING_FILTERS = range(6)  # Pillow's numbers
# What transformers raises on a file with unexpected content.
READ_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings inside the block; what matters of them is checked here."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


# config.json


def read_config(name_or_path: str) -> Dict[str, Any]:
    """Return the checked content of a checkpoint's config.json.

    Raises:
        InputError: it cannot be read, or describes no ViT.
    """
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
    try:
        ViTSize(**{name: content[name] for name in (*SIZES, "qkv_bias") if name in content})
    except InputError as error:
        raise InputError(f"{where}: config.json: {error}") from error


def vit_config(content: Dict[str, Any], label_set: LabelSet) -> ViTConfig:
    """Return the configuration of a ViT with these outputs; of the content, only its size and arithmetic."""
    used = {name: content[name] for name in (*SIZES, *NUMBERS, "qkv_bias", "hidden_act") if name in content}
    return ViTConfig(**used, **label_fields(label_set))


# Weights and image processor


def load_checkpoint(name_or_path: str, config: ViTConfig, allow_new_head: bool) -> Tuple[Any, Any]:
    """Load weights in float32 and the image processor, and check both.

    Args:
        name_or_path: a folder, or a name on the Hub.
        config: of `vit_config`.
        allow_new_head: draw the head at random where the checkpoint's does not fit.

    Raises:
        InputError: no safetensors, missing or unexpected tensors, weights that are not finite, another image processor.
    """
    if Path(name_or_path).is_dir():
        _check_size(Path(name_or_path), config)
    with quiet_transformers():
        model, info = _load_weights(name_or_path, config, allow_new_head)
        processor = _load_processor(name_or_path, ViTSize.of(config).image_size)
    lacking = _check_names(info, name_or_path, allow_new_head)
    if lacking:  # the head alone: drawn here, since transformers 4 draws it wider than 5
        torch.nn.init.trunc_normal_(model.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    wrong = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{name_or_path}: {len(wrong)} tensors hold NaN or infinity (first: {wrong[0]}).")
    return model, processor


def _check_size(folder: Path, config: ViTConfig) -> None:
    """Refuse weights that are no safetensors, lie elsewhere, or are too few: a ViT of any size would be built first."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        files = _shards(folder)
    if not all(file.is_file() for file in files):
        raise InputError(f"{folder}: no {WEIGHTS}. Weights must be safetensors: a pickle can run code.")
    size = ViTSize.of(config)
    needed = size.embedding_parameters + size.num_hidden_layers * size.layer_parameters
    found = sum(file.stat().st_size for file in files)
    if needed > found:
        raise InputError(
            f"{folder}: cannot be loaded: config.json says {needed:,} parameters, the weights have {found:,} bytes. "
            "Is the checkpoint whole?"
        )


def _shards(folder: Path) -> List[Path]:
    try:
        file_names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        names = {name for name in file_names if Path(name).name == name}
    except READ_ERRORS as error:
        raise InputError(f"{folder}: {INDEX} is no index: {_reason(error)}. Fetch it again.") from error
    if not names or len(names) < len(set(file_names)):
        raise InputError(f"{folder}: {INDEX} names files outside its folder. Fetch it again.")
    return [folder / name for name in names]


def _load_weights(name_or_path: str, config: ViTConfig, allow_new_head: bool) -> Tuple[Any, Dict[str, List[Any]]]:
    loader: Any = ViTForImageClassification  # its annotations know no `output_loading_info`
    try:
        return loader.from_pretrained(
            name_or_path,
            config=config,
            torch_dtype=torch.float32,
            ignore_mismatched_sizes=allow_new_head,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (*READ_ERRORS, SafetensorError) as error:
        raise InputError(f"{name_or_path}: cannot be loaded: {_reason(error)}. Is the checkpoint whole?") from error


def _check_names(info: Dict[str, List[Any]], name_or_path: str, allow_new_head: bool) -> List[str]:
    """Refuse missing and unexpected tensors, and return the names of the head's that must be drawn."""
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
    return lacking


def _name_of(key: Any) -> str:
    """Return a tensor's name; mismatched ones come with their two sizes."""
    return key if isinstance(key, str) else key[0]


def _load_processor(name_or_path: str, image_size: int) -> Any:
    """Load an image processor, and check that it gives what the ViT reads."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    where = f"{name_or_path}: preprocessor_config.json"
    try:
        processor: Any = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        size, is_cropping = dict(processor.size), getattr(processor, "do_center_crop", None)
        is_known = processor.resample in RESAMPLING_FILTERS
        if size != {"height": image_size, "width": image_size} or is_cropping or not is_known:
            raise InputError(
                f"{where}: size {shortened(str(size))}, do_center_crop {is_cropping}, resample "
                f"{shortened(str(processor.resample))}; expected height and width {image_size} as in config.json, "
                "no crop, and one of Pillow's filters, 0 to 5."
            )
        with np.errstate(all="ignore"):  # looked at below
            answer = np.asarray(processor(ramp, do_resize=False, return_tensors="np")["pixel_values"])
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{where} cannot be loaded: {_reason(error)}. Is the checkpoint whole?") from error
    if answer.shape != (1, 3, 16, 16) or not np.isfinite(answer).all() or np.ptp(answer) == 0:
        raise InputError(f"{where}: black and white give no pixel values of their own. Is it the checkpoint's own?")
    return processor


def _reason(error: Exception) -> str:
    """Return the first line of an error: those of transformers have paragraphs."""
    return shortened(str(error).partition("\n")[0].rstrip("."))
