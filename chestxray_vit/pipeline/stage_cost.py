"""What one stage of a pipeline holds, computes and keeps in memory, for a size of ViT.

Parameters and FLOPs are exact, memory is an estimate by published formulas; p stages of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig, PipelineMode

IPU_BYTES = 900 * 10**6  # Graphcore's "900 MB" of a GC200, read as 10^6 bytes: the careful reading


@dataclass(frozen=True)
class Stage:
    """One IPU of a replica: what it holds, computes and keeps; memory is in bytes and an estimate.

    Attributes:
        index: in the pipeline, from 0.
        has_embedding, has_head: the first stage has the embedding, the last the final norm and the classifier.
        first_layer, num_layers: encoder layers `first_layer` to `first_layer + num_layers - 1`.
        parameters: whole count.
        flops: forward, an image.
        in_flight: micro-batches whose activations it holds at once.
        weights, gradients, activations: bytes on the chip.
        optimizer_on_chip, optimizer_off_chip: bytes of AdamW's two moments, on the chip or in the machine's DRAM.
        reserve: bytes that matmul_proportion lets a matrix product take for a while.
    """

    index: int
    has_embedding: bool
    first_layer: int
    num_layers: int
    has_head: bool
    parameters: int
    flops: int
    in_flight: int
    weights: int
    gradients: int
    optimizer_on_chip: int
    optimizer_off_chip: int
    activations: int
    reserve: int

    @property
    def total(self) -> int:
        """Bytes on the chip, without the reserve."""
        return self.weights + self.gradients + self.optimizer_on_chip + self.activations

    @property
    def holds(self) -> str:
        """What it holds, in words: `embedding, 0-2`."""
        if self.has_embedding and self.has_head:
            return "everything"
        last = self.first_layer + self.num_layers - 1
        layers = {0: "", 1: str(last)}.get(self.num_layers, f"{self.first_layer}-{last}")
        parts = ("embedding" * self.has_embedding, layers, "norm, head" * self.has_head)
        return ", ".join(part for part in parts if part) or "nothing"


@dataclass(frozen=True)
class Workload:
    """What is to be planned: a model and one mode of a configuration, training or inference.

    Attributes:
        config: the pipeline configuration.
        size: of the ViT.
        micro_batch_size: images that a stage processes together.
        fp32: float32 in place of float16.
        inference: no gradients, no optimizer, one micro-batch in flight.
    """

    config: PipelineConfig
    size: ViTSize
    micro_batch_size: int
    fp32: bool
    inference: bool

    @property
    def mode(self) -> PipelineMode:
        """The mode of the configuration."""
        return self.config.inference if self.inference else self.config.training

    @property
    def num_micro_batches(self) -> int:
        """The m of one update."""
        return self.mode.gradient_accumulation_steps

    def stage(self, index: int, layers: Sequence[int]) -> Stage:
        """Return the stage of this index, where the stages hold so many encoder layers each.

        Bytes a parameter in float16 (float32): weight 2 (4), accumulated gradient 2 (4), AdamW's first moment 2 (4)
        and second moment 4 (4), as optimum-graphcore 0.7.1's IPUTrainer sets the types of `poptorch.optim.AdamW`. Its
        IPUConfig moves the moments off chip, and shares them among replicas if there are several.
        """
        width, last, num_layers = 4 if self.fp32 else 2, len(layers) - 1, layers[index]
        parameters = self.size.stage_parameters(layers)[index]
        replicas = self.mode.replication_factor if self.config.replicated_tensor_sharding else 1
        moments = 0 if self.inference else -(-parameters * (width + 4) // replicas)
        off_chip = moments if self.config.optimizer_state_offchip else 0
        in_flight = 1 if self.inference else min(self.num_micro_batches, 2 * (last - index) + 1)
        return Stage(
            index=index,
            has_embedding=index == 0,
            first_layer=sum(layers[:index]),
            num_layers=num_layers,
            has_head=index == last,
            parameters=parameters,
            flops=self.size.stage_flops(layers)[index],
            in_flight=in_flight,
            weights=width * parameters,
            gradients=0 if self.inference else width * parameters,
            optimizer_on_chip=moments - off_chip,
            optimizer_off_chip=off_chip,
            activations=width * self.micro_batch_size * self._kept(index, num_layers, in_flight),
            reserve=round(self.mode.matmul_proportion[index] * IPU_BYTES),
        )

    def _kept(self, index: int, num_layers: int, in_flight: int) -> int:
        """Return the numbers of one image that a stage holds at once, by what it stashes and what is live.

        Stage s of p stashes 2 (p - 1 - s) + 1 micro-batches, or all m: PopART's pipeline.cpp stashes (stage of the
        backward pass - stage of the forward pass + 1) micro-batches, and the backward pass of s is stage 2 (p - 1) - s
        of a pipeline that goes there and back. PopTorch turns recomputation on wherever a pipeline has two IPUs
        (Compiler.cpp, RecomputationType::Pipeline): stashed are a stage's inputs alone and the whole stage is live
        once, or, with recompute_checkpoint_every_layer, each layer's output too and one layer is live. One IPU alone
        recomputes nothing. In inference one layer is live. What the ends keep for themselves is too little to count.
        """
        hidden = self.size.num_tokens * self.size.hidden_size
        stashed = hidden if index else self.size.num_channels * self.size.image_size**2
        live = num_layers
        if self.inference:
            live = min(1, num_layers)
        elif self.config.recompute_checkpoint_every_layer and self.mode.ipus_per_replica > 1:
            stashed, live = stashed + num_layers * hidden, min(1, num_layers)
        return in_flight * stashed + live * self.size.layer_saved


def balance(size: ViTSize, num_stages: int) -> Tuple[int, ...]:
    """Return the layers_per_ipu whose slowest stage has the fewest FLOPs, embedding and head counted.

    Each layer goes to the stage whose load is then least, which is best since all layers are alike; among equals to
    the later stage, which has fewer micro-batches in flight. The first or the last stage may stay without a layer.

    Raises:
        InputError: no stage at all, or so many that one in the middle would stand empty.
    """
    if not 1 <= num_stages <= size.num_hidden_layers + 2:
        raise InputError(
            f"{num_stages} stages for {size.num_hidden_layers} layers: expected 1 to {size.num_hidden_layers + 2}, "
            "so that no stage between embedding and head stands empty."
        )
    layers, loads = [0] * num_stages, [0] * num_stages
    loads[0] += size.embedding_flops
    loads[-1] += size.head_flops
    for _ in range(size.num_hidden_layers):
        best = min(range(num_stages), key=lambda stage: (loads[stage], -stage))
        layers[best] += 1
        loads[best] += size.layer_flops
    return tuple(layers)


def imbalance_of(flops: Sequence[int]) -> float:
    """Return the largest over the mean; 1 is even."""
    return max(flops) * len(flops) / sum(flops)
