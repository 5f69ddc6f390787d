"""The one place where an engine is chosen: by the device that is asked for or present, and by `--pipeline`."""

from __future__ import annotations

import logging
import platform
from importlib.util import find_spec
from typing import Optional

import torch

from chestxray_vit.errors import InputError
from chestxray_vit.models.device import pick_device
from chestxray_vit.training.arguments import IPUArguments, PipelineArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import Engine
from chestxray_vit.training.engines.hf_trainer import HFEngine

logger = logging.getLogger(__name__)


def choose(device: str, pipeline: IPUArguments, ranks: Ranks) -> Engine:
    """Return the engine of a run.

    Args:
        device: `auto`, `ipu`, `cuda` or `cpu`.
        pipeline: our IPU arguments; those of training may ask for a pipeline of processes.
        ranks: of this process.

    Raises:
        InputError: the device is not there, or does not run such a pipeline.
    """
    wants_pipeline = isinstance(pipeline, PipelineArguments) and pipeline.pipeline
    if wants_ipu(device):
        if wants_pipeline:
            raise InputError("--pipeline is for CUDA and CPU; on IPUs the model is always pipelined. Leave it out.")
        from chestxray_vit.training.engines.ipu_trainer import IPUEngine

        return IPUEngine("ipu", pipeline, ranks)
    device = pick_device(device)
    if isinstance(pipeline, PipelineArguments) and wants_pipeline:
        from chestxray_vit.training.engines.pipeline_trainer import PipelineEngine

        return PipelineEngine(device, pipeline, ranks)
    return HFEngine(device, pipeline, ranks)


def wants_ipu(device: str) -> bool:
    """Return whether IPUs are to be used: asked for, or there and not ruled out.

    Raises:
        InputError: they are asked for and cannot be used; says why.
    """
    if device != "ipu" and not (device == "auto" and find_spec("poptorch") is not None):
        return False
    problem = _why_no_ipu()
    if problem is None:
        return True
    if device == "ipu":
        raise InputError(f"--device ipu: {problem}")
    logger.warning("no IPU: %s", problem)
    return False


def _why_no_ipu() -> Optional[str]:
    """Return why IPUs cannot be used here, and the remedy; None if they can."""
    if find_spec("poptorch") is None:
        return (
            "PopTorch is not installed. Enable the Poplar SDK (source SDK/enable) and install its wheel "
            "(pip install SDK/poptorch-*.whl)."
        )
    try:
        import poptorch
    except (ImportError, OSError, AssertionError) as error:  # it asserts its own torch
        return (
            f"PopTorch cannot be loaded by Python {platform.python_version()} with torch {torch.__version__}: {error}. "
            f"Poplar SDK 3.3 and 3.4 go with Python 3.8 and torch 2.0.1; is the SDK enabled in this shell?"
        )
    if find_spec("optimum") is None or find_spec("optimum.graphcore") is None:
        return "optimum-graphcore is not installed: pip install -r requirements.txt, in the SDK's environment."
    if not poptorch.ipuHardwareIsAvailable():
        return "no IPU is there (gc-info --list-devices). On a pod, is a V-IPU partition made and enabled?"
    return None
