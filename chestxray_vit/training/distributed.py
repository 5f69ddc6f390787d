"""The processes of a run, started by torchrun or poprun: which one this is, and what happens when another is lost."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Iterator, Mapping, Tuple

import torch

from chestxray_vit.errors import InputError, is_foreign


@dataclass(frozen=True)
class Ranks:
    """Which process of a run this is; without a launcher, the only one.

    Attributes:
        rank, world_size: of torchrun's processes.
        local_rank: among those of this machine.
        has_rendezvous: torchrun named an address at which the processes meet.
        instance, num_instances: of poprun.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    has_rendezvous: bool = False
    instance: int = 0
    num_instances: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Read the variables of torchrun and of poprun; a command does so once."""
        instance, num_instances = _poprun_instance()
        return cls(
            rank=int(environ.get("RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            has_rendezvous="MASTER_ADDR" in environ,
            instance=instance,
            num_instances=num_instances,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0 and self.instance == 0


def _poprun_instance() -> Tuple[int, int]:
    """Return which of poprun's instances this process is, and how many there are; (0, 1) without poprun."""
    if find_spec("popdist") is None:
        return 0, 1
    import popdist

    return (popdist.getInstanceIndex(), popdist.getNumInstances()) if popdist.isPopdistEnvSet() else (0, 1)


@contextlib.contextmanager
def explain_lost_process(ranks: Ranks) -> Iterator[None]:
    """Say in plain words that another process of this run has ended.

    Raises:
        InputError: in place of the error of gloo or NCCL.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.world_size == 1 or not is_foreign(error, "process lost"):
            raise
        raise InputError(
            "another process of this run has ended; its own message says why, if it could leave one. "
            "Go on from the last checkpoint: the same command with --resume_from_checkpoint last."
        ) from error


def leave() -> None:
    """End the process group, if there is one, after all processes are done.

    Without the wait, gloo's thread may still hold a tensor of the last gathering when the group is destroyed;
    it then waits for Python's lock, and Python for the thread, for ever (seen with torch 2.13).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
