"""The global batch: the images of one update, and how an engine cuts them.

It is the contract between engines: the same number of images makes an update on IPUs, CUDA and CPU, whatever the cut,
so the updates and their learning rates are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import PipelineConfig

TUTORIAL = 128  # images of one update in the Graphcore tutorial
LARGEST_PASS = {"cpu": 32, "cuda": 64}  # images of one training pass, where the user names none


@dataclass(frozen=True)
class GlobalBatch:
    """How the images of one update are cut.

    Attributes:
        at_a_time: images of one pass, a micro-batch on IPUs.
        passes: accumulated before the weights are updated.
        copies: of the model at work: replicas on IPUs, processes elsewhere.
    """

    at_a_time: int
    passes: int
    copies: int

    @property
    def total(self) -> int:
        """Images of one update."""
        return self.at_a_time * self.passes * self.copies

    def fields(self) -> Dict[str, int]:
        """Return the values of TrainingArguments' fields."""
        return {"per_device_train_batch_size": self.at_a_time, "gradient_accumulation_steps": self.passes}


def on_ipus(config: PipelineConfig, at_a_time: Optional[int]) -> GlobalBatch:
    """Return the cut of an IPU configuration; a micro-batch is one image, unless `at_a_time` says more."""
    mode = config.training
    return GlobalBatch(at_a_time or 1, mode.gradient_accumulation_steps, mode.replication_factor)


def on_processes(
    at_a_time: Optional[int], passes: Optional[int], total: Optional[int], num_processes: int, device: str
) -> GlobalBatch:
    """Return the cut for CUDA or CPU from what the user gave of it.

    Args:
        at_a_time, passes: flags of TrainingArguments, None where not given.
        total: images of one update; by default what the flags make, else the tutorial's.
        num_processes: that train together.
        device: `cuda` or `cpu`, which says how many images are taken at a time where nothing was given.

    Raises:
        InputError: the numbers contradict each other or do not divide.
    """
    if total is None:
        total = at_a_time * passes * num_processes if at_a_time and passes else TUTORIAL
    share, rest = divmod(total, num_processes * (passes or 1))
    if at_a_time is None and not rest and share:
        largest = share if passes else LARGEST_PASS[device]
        at_a_time = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
    if passes is None and at_a_time:
        passes = total // (num_processes * at_a_time)
    if not at_a_time or not passes or at_a_time * passes * num_processes != total:
        raise InputError(
            f"global batch {total} is not per_device_train_batch_size {at_a_time or '?'} x "
            f"gradient_accumulation_steps {passes or '?'} x {num_processes} processes. "
            "Leave out one of the first two, or set --global_batch_size to their product."
        )
    return GlobalBatch(at_a_time, passes, num_processes)
