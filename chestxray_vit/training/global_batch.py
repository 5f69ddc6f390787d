"""The global batch: the images of one update, and how an engine divides them.

It is the contract between engines: the same number of images makes an update on IPUs, CUDA and CPU, however it is
divided, so the updates and their learning rates are the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Dict, Optional

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import PipelineConfig

TUTORIAL = 128  # images per update in the Graphcore tutorial


@dataclass(frozen=True)
class GlobalBatch:
    """How the images of one update are divided.

    Attributes:
        micro_batch_size: images of one forward and backward pass.
        gradient_accumulation_steps: micro-batches before the weights are updated.
        num_replicas: copies of the model at work: replicas of a pipeline, processes elsewhere.
    """

    micro_batch_size: int
    gradient_accumulation_steps: int
    num_replicas: int

    @property
    def global_batch_size(self) -> int:
        """Images per update."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.num_replicas

    def fields(self) -> Dict[str, int]:
        """Return the values of TrainingArguments' fields."""
        return {
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }

    def to_dict(self) -> Dict[str, int]:
        """Return what train_config.json says of it."""
        return {**asdict(self), "global_batch_size": self.global_batch_size}


def of_pipeline(config: PipelineConfig, micro_batch_size: Optional[int]) -> GlobalBatch:
    """Return the division of an IPU configuration; a micro-batch is one image unless its size is named."""
    mode = config.training
    return GlobalBatch(micro_batch_size or 1, mode.gradient_accumulation_steps, mode.replication_factor)


def of_processes(
    micro_batch_size: Optional[int],
    gradient_accumulation_steps: Optional[int],
    global_batch_size: Optional[int],
    num_processes: int,
    largest_micro_batch: int,
) -> GlobalBatch:
    """Return the division among processes, from what the user named of it.

    Args:
        micro_batch_size, gradient_accumulation_steps: arguments of TrainingArguments, None where not named.
        global_batch_size: images per update; by default what the two make, else the tutorial's.
        num_processes: that train together.
        largest_micro_batch: images of one pass at most, where neither of the first two is named.

    Raises:
        InputError: the numbers contradict each other or do not divide.
    """
    size, steps, images = micro_batch_size, gradient_accumulation_steps, global_batch_size
    if images is None:
        images = size * steps * num_processes if size and steps else TUTORIAL
    share, rest = divmod(images, num_processes * (steps or 1))
    if size is None and not rest and share:
        largest = share if steps else largest_micro_batch
        size = max(count for count in range(1, min(share, largest) + 1) if share % count == 0)
    if steps is None and size:
        steps = images // (num_processes * size)
    if not size or not steps or size * steps * num_processes != images:
        raise InputError(
            f"global batch {images} is not per_device_train_batch_size {size or '?'} x "
            f"gradient_accumulation_steps {steps or '?'} x {num_processes} processes. "
            "Leave out one of the first two, or set --global_batch_size to their product."
        )
    return GlobalBatch(size, steps, num_processes)
