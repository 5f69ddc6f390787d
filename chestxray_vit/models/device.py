"""Choose the device that torch computes on. IPUs are chosen by the training engines, which alone import PopTorch."""

from __future__ import annotations

import torch

from chestxray_vit.errors import InputError

DEVICES = ("auto", "cuda", "cpu")


def pick_device(device: str = "auto") -> str:
    """Return `cuda` or `cpu`, for `auto` whichever is there.

    Raises:
        InputError: no CUDA device is visible.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch. Use --device cpu, or check nvidia-smi.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
