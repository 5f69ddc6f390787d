"""How CUDA and the CPU compute: number format, attention and optimizer, where the user leaves them open.

Each is chosen by what the device does faster, as measured. Two things hold whatever is chosen: weights, their updates
and checkpoints are float32, and so are the logits: rounded to bfloat16 they would tie, and a tie is no order.

B batch, L labels, D width."""

from __future__ import annotations

import logging
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Dict, Mapping, Set, Union

import torch
from accelerate.utils import dataclasses as accelerate_settings
from torch.nn.functional import linear
from transformers import trainer_pt_utils

from chestxray_vit.errors import InputError

logger = logging.getLogger(__name__)

BF16_HELP = (
    "train in bfloat16 autocast: true, false, or auto: where the processor has it (not given: on CUDA that has it)"
)
BF16_OF_CPUS = {"amx_bf16", "avx512_bf16"}  # their names, in /proc/cpuinfo and in torch


def bf16_flag(text: str) -> Union[bool, str]:
    """Return the value of `--bf16`: True, False or `auto`."""
    values: Dict[str, Union[bool, str]] = {"true": True, "yes": True, "1": True, "auto": "auto"}
    values.update({"false": False, "no": False, "0": False})
    if text.lower() not in values:
        raise ArgumentTypeError(f"expected true, false or auto, found {text}")
    return values[text.lower()]


def resolved(values: Mapping[str, Any], device: str, pipelined: bool = False) -> Dict[str, Any]:
    """Return the values of TrainingArguments' fields with those that were left open chosen for the device.

    Args:
        values: where `bf16` may be `auto`, and it and `optim` None.
        device: `cpu`, `cuda` or `ipu`.
        pipelined: a process trains one stage, which computes in float32.

    Raises:
        InputError: `auto` beside `--fp16`.
    """
    on_cuda = device == "cuda"
    # one kernel updates all weights; a pipeline gathers the optimizer's state, and was tested with the other
    optim = "adamw_torch_fused" if on_cuda and not pipelined else "adamw_torch"
    result = {**values, "bf16": _wants_bf16(values, device, pipelined), "optim": values.get("optim") or optim}
    if device == "cpu":
        result["dataloader_pin_memory"] = False
    if on_cuda and result.get("dataloader_pin_memory", True) and _copies_aside():
        result["accelerator_config"] = values.get("accelerator_config") or {"non_blocking": True}
    return result


def _wants_bf16(values: Mapping[str, Any], device: str, pipelined: bool) -> bool:
    asked = values.get("bf16")
    if asked == "auto" and values.get("fp16"):
        raise InputError("--bf16 auto and --fp16: only one of them can be. Leave one out.")
    if asked in (True, False):
        return bool(asked)
    if pipelined or device == "ipu" or values.get("fp16"):
        return False
    return (asked == "auto" or device == "cuda") and has_bf16(device)


def has_bf16(device: str) -> bool:
    """Tell whether `cuda` or `cpu` multiplies in bfloat16 by itself: emulated, it takes three times float32's time."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8  # Ampere
    return bool(BF16_OF_CPUS & _cpu_features())


def _cpu_features() -> Set[str]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _copies_aside() -> bool:
    """Tell whether the installed libraries can copy batches while the device computes."""
    kinds = [getattr(trainer_pt_utils, "AcceleratorConfig", None)]
    kinds.append(getattr(accelerate_settings, "DataLoaderConfiguration", None))
    return all("non_blocking" in getattr(kind, "__dataclass_fields__", ()) for kind in kinds)


class Float32Head(torch.nn.Linear):
    """A classifier that computes in float32 under autocast too. It is 1 / 10,000 of a ViT-B's work."""

    def __init__(self, head: torch.nn.Linear):
        """Args: head: whose weights it shares, under the same names."""
        super().__init__(head.in_features, head.out_features, head.bias is not None, device="meta")
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, L)."""
        bias_L = None if self.bias is None else self.bias.float()
        with torch.autocast(hidden_BD.device.type, enabled=False):
            return linear(hidden_BD.float(), self.weight.float(), bias_L)


def fit(model: Any, args: Any) -> str:
    """Give a model the faster attention, and under autocast logits in float32; return a line on the choices.

    Attention is as the checkpoint's config.json or the caller asked, if they did; the choice is not saved.

    Args:
        model: of `chestxray_vit.models.vit`, changed in place.
        args: TrainingArguments.
    """
    device = args.device.type
    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    if half:
        model.classifier = Float32Head(model.classifier)
    if args.bf16 and device == "cpu":
        _fit_to_cpu(model)
    attention = getattr(model.config, "_attn_implementation", "eager")  # transformers 4 has no other, at first
    compiled = ", compiled" if args.torch_compile else ""
    return f"{device}: {f'{half} autocast' if half else 'float32'}, {attention} attention{compiled}"


def _fit_to_cpu(model: Any) -> None:
    if not has_bf16("cpu"):
        logger.warning(
            "--bf16 true: this processor has no bfloat16 and emulates it, slower than float32. Use --bf16 auto."
        )
    elif getattr(model.config, "_attn_implementation", None) == "sdpa":
        # on two cores, a ViT-B/16's update in bfloat16 takes 1 / 2.0 of float32's time with it, 1 / 1.7 with sdpa
        model.set_attn_implementation("eager")
