"""Stand-in for Graphcore's closed PopTorch: runs on the CPU, eagerly, and records what it was told.

It is what the real optimum-graphcore needs to import, train, evaluate, save and resume where there is no IPU. Our
own code, written from PopTorch's public documentation. It keeps PopTorch's meaning: combined batches, one optimizer
step for each accumulation, a copy of the weights on the device, blocks on IPUs. It says nothing about speed, memory,
or whether the real compiler accepts a model.

For tests beyond PopTorch's own names: `executors` (all executors made, in order), `hardware` (`present` and `free`
IPUs), and `reset()`."""

from __future__ import annotations

from poptorch import _poplar_executor, optim
from poptorch._impl import Error, hardware, isRunningOnIpu
from poptorch.dataloader import DataLoader
from poptorch.enums import AutoStage, DataLoaderMode, MatMulSerializationMode, OutputMode, ReductionType
from poptorch.executor import PoplarExecutor, executors, inferenceModel, trainingModel
from poptorch.ops import (
    Attribute,
    BeginBlock,
    cond,
    custom_op,
    dynamic_slice,
    dynamic_update,
    identity_loss,
    recomputationCheckpoint,
    removeBlocks,
    serializedMatMul,
)
from poptorch.options import Options, PipelinedExecution, ShardedExecution, TensorLocationSettings

__all__ = [
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "MatMulSerializationMode",
    "Options",
    "OutputMode",
    "PipelinedExecution",
    "PoplarExecutor",
    "ReductionType",
    "ShardedExecution",
    "TensorLocationSettings",
    "_poplar_executor",
    "cond",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "executors",
    "hardware",
    "identity_loss",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "isRunningOnIpu",
    "optim",
    "recomputationCheckpoint",
    "removeBlocks",
    "reset",
    "serializedMatMul",
    "setLogLevel",
    "trainingModel",
]

__version__ = "3.3.0+double"

log_level = "WARN"


def setLogLevel(level) -> None:
    """Keep the level; there is no compiler to log anything."""
    global log_level
    log_level = level


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Tell whether the machine has so many IPUs."""
    return hardware.present >= num_ipus > 0


def ipuHardwareVersion() -> int:
    """Return 2, for a Mk2 IPU, or 0 if there is none."""
    return 2 if hardware.present else 0


def reset() -> None:
    """Forget all executors, and have the first number of IPUs, all free."""
    for made in executors:
        made.release()
    executors.clear()
    hardware.reset()
    recomputationCheckpoint.calls = 0
