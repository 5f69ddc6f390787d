"""The processes of a run, whether torchrun or poprun started them: who speaks, who writes, and what if one is lost."""

from __future__ import annotations

import contextlib
import os
from importlib.util import find_spec
from typing import Iterator, Tuple

import torch

from chestxray_vit.errors import InputError, is_foreign


def world_size() -> int:
    """Return the number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine, 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes() -> int:
    """Return the number of processes of this run."""
    return torch.distributed.get_world_size() if _in_group() else world_size()


def instance() -> Tuple[int, int]:
    """Return which of poprun's instances this process is, and how many there are; (0, 1) without it."""
    if find_spec("popdist") is None:
        return 0, 1
    import popdist

    return (popdist.getInstanceIndex(), popdist.getNumInstances()) if popdist.isPopdistEnvSet() else (0, 1)


def is_main_process() -> bool:
    """Tell whether this process is the one that prints and writes."""
    if _in_group():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0 and instance()[0] == 0


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Say in plain words that another process of this run has ended.

    Raises:
        InputError: in place of what gloo or NCCL tell of it.
    """
    try:
        yield
    except RuntimeError as error:
        if num_processes() == 1 or not is_foreign(error, "process lost"):
            raise
        raise InputError(
            "another process of this run has ended; its own message tells why, if it could leave one. "
            "Go on from the last checkpoint: the same command with --resume_from_checkpoint last."
        ) from error


def leave() -> None:
    """End the process group, if torchrun started one, after all processes are done.

    Without the wait, gloo's thread may still hold a tensor of the last gathering when the group is taken down;
    it then waits for Python's lock, and Python for the thread, for ever (seen with torch 2.13).
    """
    if _in_group():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
