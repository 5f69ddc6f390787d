"""PopTorch's annotations and operations: those of the ViT work, the others only exist.

optimum-graphcore imports every model it has, so all names must be there; one that this double does not carry out
raises when it is called, not when it is imported."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch

from poptorch._impl import Error, current_execution
from poptorch.enums import MatMulSerializationMode


class BlockMark(NamedTuple):
    """What `BeginBlock` leaves on a module."""

    user_id: Optional[str]
    ipu_id: Optional[int]


def BeginBlock(module: torch.nn.Module, user_id: Optional[str] = None, ipu_id: Optional[int] = None):
    """Have all that runs from this module on run on an IPU, until the next block begins.

    Args:
        module: marked in place and returned; its weights keep their names.
        user_id: name of the block.
        ipu_id: the IPU, from 0; None for the one after that of the block before.
    """
    if not isinstance(module, torch.nn.Module):
        raise Error(f"BeginBlock: {type(module).__name__} is not a torch.nn.Module")
    module.__dict__["_ipu_block"] = BlockMark(user_id, ipu_id)
    return module


def removeBlocks(module: torch.nn.Module) -> None:
    """Take the marks off a module and all modules in it."""
    for part in module.modules():
        part.__dict__.pop("_ipu_block", None)


def block_of(module: torch.nn.Module) -> Optional[BlockMark]:
    """Return the mark that `BeginBlock` left, if any."""
    return module.__dict__.get("_ipu_block")


def recomputationCheckpoint(*tensors):
    """Keep these for the backward pass instead of computing them again; counted in `.calls`."""
    recomputationCheckpoint.calls += 1
    return tensors[0] if len(tensors) == 1 else tensors


recomputationCheckpoint.calls = 0


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce `x` and mark it as the loss to train on.

    Args:
        reduction: `mean`, `sum` or `none`.
    """
    if reduction not in ("mean", "sum", "none"):
        raise Error(f"identity_loss: reduction {reduction!r}, expected 'mean', 'sum' or 'none'")
    loss = x if reduction == "none" else getattr(x, reduction)()
    if current_execution() is not None:
        current_execution().marked_losses.append(loss)
    return loss


def serializedMatMul(
    lhs: torch.Tensor, rhs: torch.Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> torch.Tensor:
    """Multiply; the cut into pieces does not change the product."""
    return torch.matmul(lhs, rhs)


class Attribute:
    """A remark to the compiler for all that runs inside."""

    def __init__(self, **attributes):
        self.attributes = attributes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def _not_here(name: str):
    def missing(*_, **__):
        raise Error(f"poptorch.{name} is not in this double")

    missing.__name__ = name
    return missing


cond = _not_here("cond")
custom_op = _not_here("custom_op")
dynamic_slice = _not_here("dynamic_slice")
dynamic_update = _not_here("dynamic_update")
