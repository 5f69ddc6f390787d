"""The stage plan of an ipu_config.json: which layer stands on which IPU, its bytes, its FLOPs, and the bubble.

All on paper, so that a configuration is judged before minutes of compiling: parameters and FLOPs are exact, memory
is an estimate by published formulas.

p stages of the pipeline, m micro-batches of one update; MB are 10^6 bytes, GFLOPs 10^9 operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig, PipelineMode
from chestxray_vit.reporting.render.tables import aligned

IPU_BYTES = 900 * 10**6  # Graphcore's "900 MB" of a GC200, read as 10^6 bytes: the careful reading
ESTIMATE = "an estimate: what Poplar adds (code, exchange buffers, temporaries) cannot be known here"
FITS, TIGHT, TOO_MUCH = "fits", "tight", "does not fit"
SWITCHES = ("recompute_checkpoint_every_layer", "optimizer_state_offchip", "replicated_tensor_sharding")
MEMORY = ("weights", "gradients", "optimizer_on_chip", "activations", "total", "optimizer_off_chip")
FIGURES = ("num_micro_batches", "global_batch_size", "bubble", "imbalance", "efficiency")
HEADER = (  # two lines
    ["", "", "params", "GFLOPs", "in", "weights", "grads", "AdamW", "activ.", "on chip", "in DRAM", ""],
    ["IPU", "layers", "M", "/image", "flight", "MB", "MB", "MB", "MB", "MB", "MB", "verdict"],
)


@dataclass(frozen=True)
class Stage:
    """One IPU of a replica: what it holds, computes and keeps; memory is in bytes and an estimate.

    Attributes:
        index: place in the pipeline, from 0.
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
        """What stands on it, in words: `embedding, 0-2`."""
        if self.has_embedding and self.has_head:
            return "everything"
        last = self.first_layer + self.num_layers - 1
        layers = {0: "", 1: str(last)}.get(self.num_layers, f"{self.first_layer}-{last}")
        parts = ("embedding" * self.has_embedding, layers, "norm, head" * self.has_head)
        return ", ".join(part for part in parts if part) or "nothing"


@dataclass(frozen=True)
class StagePlan:
    """The stages of one mode of a configuration, training or inference, for one shape of ViT.

    Attributes:
        config: of `ipu_config.read_ipu_config`.
        mode: its training or its inference mode.
        micro_batch_size: images that go through a stage at a time.
        fp32: float32 in place of float16.
        inference: no gradients, no optimizer, one micro-batch at a time.
        stages: of one replica, in order.
    """

    config: PipelineConfig
    shape: ViTSize
    mode: PipelineMode
    micro_batch_size: int
    fp32: bool
    inference: bool
    stages: Tuple[Stage, ...]

    @classmethod
    def from_config(
        cls, config: PipelineConfig, model: Any, micro_batch_size: int = 1, fp32: bool = False, inference: bool = False
    ) -> StagePlan:
        """Plan a configuration.

        Args:
            config: of `ipu_config.read_ipu_config`.
            model: a ViTSize, or a ViTConfig.
            micro_batch_size: images that go through a stage at a time.
            fp32: float32 in place of float16.
            inference: plan the inference mode in place of training.

        Raises:
            InputError: the layers are not the model's, or a size makes no sense.
        """
        shape = model if isinstance(model, ViTSize) else ViTSize.of(model)
        if micro_batch_size < 1:
            raise InputError(f"micro_batch_size is {micro_batch_size}, expected 1 or more.")
        config.check_layers(shape.num_hidden_layers)
        return cls._of(config, shape, micro_batch_size, fp32, inference)

    @classmethod
    def _of(cls, config: PipelineConfig, shape: ViTSize, micro_batch: int, fp32: bool, inference: bool) -> StagePlan:
        mode = config.inference if inference else config.training
        bare = cls(config, shape, mode, micro_batch, fp32, inference, ())
        layers = mode.layers_by_ipu(shape.num_hidden_layers)
        return replace(bare, stages=tuple(bare._stage(index, layers) for index in range(len(layers))))

    def _stage(self, index: int, layers: Sequence[int]) -> Stage:
        """Return a stage.

        Bytes a parameter in float16 (float32): weight 2 (4), accumulated gradient 2 (4), AdamW's first moment 2 (4)
        and second moment 4 (4), as optimum-graphcore 0.7.1's IPUTrainer sets the types of `poptorch.optim.AdamW`. Its
        IPUConfig moves the moments off chip, and shares them among replicas if there are several.
        """
        width, last, num_layers = 4 if self.fp32 else 2, len(layers) - 1, layers[index]
        parameters = self.shape.stage_parameters(layers)[index]
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
            flops=self.shape.stage_flops(layers)[index],
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
        backward pass - stage of the forward pass + 1) places, and the backward pass of s is stage 2 (p - 1) - s of a
        pipeline that goes there and back. PopTorch turns recomputation on wherever a pipeline has two IPUs
        (Compiler.cpp, RecomputationType::Pipeline): stashed are a stage's inputs alone and the whole stage is live
        once, or, with recompute_checkpoint_every_layer, each layer's output too and one layer is live. One IPU alone
        recomputes nothing. In inference one layer is live. What the ends keep for themselves is too little to count.
        """
        hidden = self.shape.num_tokens * self.shape.hidden_size
        stashed = hidden if index else self.shape.num_channels * self.shape.image_size**2
        live = num_layers
        if self.inference:
            live = min(1, num_layers)
        elif self.config.recompute_checkpoint_every_layer and self.mode.ipus_per_replica > 1:
            stashed, live = stashed + num_layers * hidden, min(1, num_layers)
        return in_flight * stashed + live * self.shape.layer_saved

    def summary(self) -> str:
        """Return in one line the encoder layers by stage: `embedding, 0-2 | 3-5 | 6-8 | 9-11, norm, head`."""
        copies = f", {self.mode.replication_factor} times" if self.mode.replication_factor > 1 else ""
        return " | ".join(stage.holds for stage in self.stages) + copies

    @property
    def num_micro_batches(self) -> int:
        """The m of one update."""
        return self.mode.gradient_accumulation_steps

    @property
    def global_batch_size(self) -> int:
        """Images of one update."""
        return self.micro_batch_size * self.num_micro_batches * self.mode.replication_factor

    @property
    def bubble(self) -> float:
        """Share of the time that a stage waits, if all are equally fast: (p - 1) / (m + p - 1).

        Huang et al. 2019, "GPipe"; the same for 1F1B (Narayanan et al. 2021, PipeDream-Flush), and for PopART's
        grouped schedule: p - 1 forwards before and p - 1 backwards after m times both.
        """
        stages = self.mode.ipus_per_replica
        return (stages - 1) / (self.num_micro_batches + stages - 1)

    @property
    def imbalance(self) -> float:
        """FLOPs of the slowest stage over their mean; 1 is even."""
        return imbalance_of([stage.flops for stage in self.stages])

    @property
    def efficiency(self) -> float:
        """What bubble and imbalance leave of all IPUs' time."""
        return (1 - self.bubble) / self.imbalance

    @property
    def fullest(self) -> Stage:
        """The stage that needs most, with its reserve."""
        return max(self.stages, key=lambda stage: stage.total + stage.reserve)

    def verdict(self, stage: Stage) -> str:
        """Say whether a stage fits: with its reserve for temporaries, without it (tight), or not."""
        if stage.total + stage.reserve <= IPU_BYTES:
            return FITS
        return TIGHT if stage.total <= IPU_BYTES else TOO_MUCH

    def knobs(self) -> List[Tuple[str, StagePlan]]:
        """Return each single change that lowers what the fullest stage needs, and its plan; the best first."""
        plans = [
            (name, self._of(config, self.shape, micro, self.fp32, self.inference))
            for name, config, micro in self._changes()
        ]
        better = [(name, plan) for name, plan in plans if _need(plan.fullest) < _need(self.fullest)]
        return sorted(better, key=lambda knob: _need(knob[1].fullest))

    def _changes(self) -> Iterator[Tuple[str, PipelineConfig, int]]:
        """Yield every knob that could be turned one step: its words, the configuration, the micro-batch."""
        micro, stages, prefix = self.micro_batch_size, self.mode.ipus_per_replica, "inference_" * self.inference
        if micro > 1:
            yield f"micro_batch_size={micro // 2}", self.config, micro // 2
        for switch in () if self.inference else SWITCHES:
            value = not getattr(self.config, switch)
            yield f"{switch}={str(value).lower()}", self.config.with_values(**{switch: value}), micro
        proportion = max(self.mode.matmul_proportion)
        key = f"{prefix}matmul_proportion"
        yield f"{key}={proportion / 2:g}", self.config.with_values(**{key: proportion / 2}), micro
        if 2 * stages <= self.shape.num_hidden_layers:
            layers = list(balance(self.shape, 2 * stages))
            longer = {f"{prefix}layers_per_ipu": layers, f"{prefix}ipus_per_replica": 2 * stages, key: proportion}
            yield f"{prefix}layers_per_ipu={layers} on {2 * stages} IPUs", self.config.with_values(**longer), micro

    def advice(self) -> List[str]:
        """Return a line on the fullest stage and, where it does not fit well, one a knob: the three that help most."""
        stage = self.fullest
        text = (
            f"IPU {stage.index} is the fullest: {stage.total / 1e6:,.0f} of {IPU_BYTES / 1e6:.0f} MB, "
            f"{stage.reserve / 1e6:.0f} MB for temporaries (matmul_proportion): {self.verdict(stage)}"
        )
        knobs = [] if self.verdict(stage) == FITS else self.knobs()[:3]
        helps = [(name, _need(plan.fullest) / 1e6, plan.verdict(plan.fullest)) for name, plan in knobs]
        return [text, *(f"{name} helps: {need:,.0f} MB with temporaries, {how}" for name, need, how in helps)]

    def refusal(self) -> str:
        """Return why PopART would refuse to compile, or nothing.

        Its pipeline.cpp wants a micro-batch for each of the 2 p - 1 stages there and back.
        """
        stages, steps = self.mode.ipus_per_replica, self.num_micro_batches
        if self.inference or stages == 1 or steps >= 2 * stages - 1:
            return ""
        return f"gradient_accumulation_steps {steps} is below 2 x {stages} IPUs - 1: PopART refuses such a pipeline"

    def to_dict(self) -> Dict[str, Any]:
        """Return the plan as JSON's types: sizes in bytes, shares from 0 to 1; `pipeline` is None in inference."""
        return {
            "inference": self.inference,
            "float": 32 if self.fp32 else 16,
            "micro_batch_size": self.micro_batch_size,
            "ipus_per_replica": self.mode.ipus_per_replica,
            "replication_factor": self.mode.replication_factor,
            "layers_per_ipu": [stage.num_layers for stage in self.stages],
            "shape": asdict(self.shape),
            "parameters": sum(stage.parameters for stage in self.stages),
            "flops": sum(stage.flops for stage in self.stages),
            "stages": [
                {**asdict(stage), "total": stage.total, "verdict": self.verdict(stage)} for stage in self.stages
            ],
            "pipeline": None if self.inference else {name: getattr(self, name) for name in FIGURES},
            "advice": self.advice(),
            "refusal": self.refusal() or None,
            "note": ESTIMATE,
        }

    def table(self) -> str:
        """Return a row a stage and one of the sums, in aligned columns, at most 110 wide."""
        sums = [sum(getattr(stage, name) for stage in self.stages) for name in ("parameters", "flops", *MEMORY)]
        places = 1 if max(sums[2:]) < 1e9 else 0  # of MB: a large model's would not fit into the width
        rows = [["all", "", *_numbers(sums[:2]), "", *_megabytes(sums[2:], places), ""]]
        for stage in reversed(self.stages):
            numbers = [*_numbers((stage.parameters, stage.flops)), str(stage.in_flight)]
            numbers += _megabytes([getattr(stage, name) for name in MEMORY], places)
            rows.append([str(stage.index), stage.holds, *numbers, self.verdict(stage)])
        return aligned([*HEADER, *reversed(rows)], left=(1, len(HEADER[0]) - 1))


def balance(shape: ViTSize, num_stages: int) -> Tuple[int, ...]:
    """Return the layers_per_ipu whose slowest stage has the fewest FLOPs, embedding and head counted.

    A layer at a time goes where the load is then least, which is best since all layers are alike; of equals to the
    later stage, which has fewer micro-batches in flight. The first or the last stage may stay without a layer.

    Raises:
        InputError: no stage at all, or so many that one in the middle would stand empty.
    """
    if not 1 <= num_stages <= shape.num_hidden_layers + 2:
        raise InputError(
            f"{num_stages} stages for {shape.num_hidden_layers} layers: expected 1 to {shape.num_hidden_layers + 2}, "
            "so that no stage between embedding and head stands empty."
        )
    layers, loads = [0] * num_stages, [0] * num_stages
    loads[0] += shape.embedding_flops
    loads[-1] += shape.head_flops
    for _ in range(shape.num_hidden_layers):
        best = min(range(num_stages), key=lambda stage: (loads[stage], -stage))
        layers[best] += 1
        loads[best] += shape.layer_flops
    return tuple(layers)


def imbalance_of(flops: Sequence[int]) -> float:
    """Return the largest over the mean; 1 is even."""
    return max(flops) * len(flops) / sum(flops)


def _need(stage: Stage) -> int:
    return stage.total + stage.reserve


def _numbers(parameters_and_flops: Sequence[int]) -> List[str]:
    return [f"{parameters_and_flops[0] / 1e6:,.1f}", f"{parameters_and_flops[1] / 1e9:,.2f}"]


def _megabytes(counts: Sequence[int], places: int) -> List[str]:
    return [f"{count / 1e6:,.{places}f}" for count in counts]
