"""The stage plan of an ipu_config.json: which layers each IPU holds, their bytes and FLOPs, and the bubble.

Computed without an IPU, so that a configuration is judged before minutes of compiling: parameters and FLOPs are
exact, memory is an estimate by published formulas.

p stages of the pipeline, m micro-batches of one update; MB are 10^6 bytes, GFLOPs 10^9 operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stage_cost import IPU_BYTES, Stage, Workload, balance, imbalance_of
from chestxray_vit.reporting.render.tables import aligned

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
class StagePlan(Workload):
    """The stages of a workload.

    Attributes:
        stages: of one replica, in order.
    """

    stages: Tuple[Stage, ...]

    @classmethod
    def from_config(
        cls,
        config: PipelineConfig,
        model: Any,
        micro_batch_size: int = 1,
        fp32: bool = False,
        inference: bool = False,
    ) -> StagePlan:
        """Plan a configuration.

        Args:
            config: the pipeline configuration.
            model: a ViTSize, or a ViTConfig.
            micro_batch_size: images that a stage processes together.
            fp32: float32 in place of float16.
            inference: plan the inference mode in place of training.

        Raises:
            InputError: the layers are not the model's, or a size makes no sense.
        """
        size = model if isinstance(model, ViTSize) else ViTSize.of(model)
        if micro_batch_size < 1:
            raise InputError(f"micro_batch_size is {micro_batch_size}, expected 1 or more.")
        config.check_layers(size.num_hidden_layers)
        return cls._of(Workload(config, size, micro_batch_size, fp32, inference))

    @classmethod
    def _of(cls, workload: Workload) -> StagePlan:
        layers = workload.mode.layers_by_ipu(workload.size.num_hidden_layers)
        stages = tuple(workload.stage(index, layers) for index in range(len(layers)))
        values = {field.name: getattr(workload, field.name) for field in fields(Workload)}
        return cls(**values, stages=stages)

    def summary(self) -> str:
        """Return in one line the encoder layers by stage: `embedding, 0-2 | 3-5 | 6-8 | 9-11, norm, head`."""
        replicas = f", {self.mode.replication_factor} times" if self.mode.replication_factor > 1 else ""
        return " | ".join(stage.holds for stage in self.stages) + replicas

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
            (name, self._of(Workload(config, self.size, micro, self.fp32, self.inference)))
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
        if 2 * stages <= self.size.num_hidden_layers:
            layers = list(balance(self.size, 2 * stages))
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
            "shape": asdict(self.size),
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
        digits = 1 if max(sums[2:]) < 1e9 else 0  # of MB: a large model's would not fit into the width
        rows = [["all", "", *_numbers(sums[:2]), "", *_megabytes(sums[2:], digits), ""]]
        for stage in reversed(self.stages):
            numbers = [*_numbers((stage.parameters, stage.flops)), str(stage.in_flight)]
            numbers += _megabytes([getattr(stage, name) for name in MEMORY], digits)
            rows.append([str(stage.index), stage.holds, *numbers, self.verdict(stage)])
        return aligned([*HEADER, *reversed(rows)], left=(1, len(HEADER[0]) - 1))


def _need(stage: Stage) -> int:
    return stage.total + stage.reserve


def _numbers(parameters_and_flops: Sequence[int]) -> List[str]:
    return [f"{parameters_and_flops[0] / 1e6:,.1f}", f"{parameters_and_flops[1] / 1e9:,.2f}"]


def _megabytes(counts: Sequence[int], digits: int) -> List[str]:
    return [f"{count / 1e6:,.{digits}f}" for count in counts]
