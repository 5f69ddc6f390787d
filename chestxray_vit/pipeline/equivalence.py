"""One update through the pipeline and through the whole model, compared tensor by tensor.

The update is plain gradient descent: AdamW divides each gradient by its own size, and so makes whole steps of mere
rounding where a gradient is zero, as a key's bias has it."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Dict, List, Tuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTConfig, ViTForImageClassification

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stages import Pipeline, place_of

SEED = 1337
LEARNING_RATE = 0.1
TOLERANCE = 1e-5  # of the largest value compared: float32 has 24 bits, and sums of many terms lose some


class Stopwatch:
    """Seconds that a stage computes, by wrapping its forward and backward of a micro-batch."""

    def __init__(self, runner):
        """Args: runner: a `torch.distributed.pipelining.PipelineStage`."""
        self.reset()
        for name in ("forward", "backward"):
            setattr(runner, f"{name}_one_chunk", self._timed(getattr(runner, f"{name}_one_chunk"), name))

    def reset(self) -> None:
        """Start again from zero."""
        self.forward, self.backward = 0.0, 0.0

    def _timed(self, call, name: str):
        def timed(*args, **options):
            start = time.perf_counter()
            result = call(*args, **options)
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
            return result

        return timed


def check(
    config: PipelineConfig,
    shape: ViTSize,
    micro_batch_size: int,
    device: str,
    schedule: str,
    tolerance: float = TOLERANCE,
) -> int:
    """Run the comparison in a process a stage, print it, and return the exit code.

    Args:
        config: of `ipu_config.read_ipu_config`.
        shape: of the model, whose weights are drawn at random.
        micro_batch_size: images of a micro-batch.
        device: `cpu` or `cuda`.
        schedule: one of `schedule.SCHEDULES`.
        tolerance: share of the largest value that a difference may have.
    """
    config.check_layers(shape.num_hidden_layers)
    stages = config.training.ipus_per_replica
    if device == "cuda" and torch.cuda.device_count() < stages:
        raise InputError(f"--device cuda: {stages} stages need as many devices, found {torch.cuda.device_count()}.")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (stages, config, shape, micro_batch_size, device, schedule, tolerance, folder)
        torch.multiprocessing.spawn(_run, arguments, nprocs=stages)
        return int(os.path.exists(os.path.join(folder, "mismatch")))


def _run(
    rank: int,
    stages: int,
    config: PipelineConfig,
    shape: ViTSize,
    micro: int,
    device: str,
    schedule: str,
    tolerance: float,
    folder: str,
) -> None:
    """Be one stage; the first also runs the whole model, and prints."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // stages))
    where = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=stages
    )
    whole, pixels, labels_NL = draw(shape, micro * config.training.gradient_accumulation_steps)
    vit = copy.deepcopy(whole)
    recompute = config.recompute_checkpoint_every_layer
    pipeline = Pipeline(vit, place_of(stages, where), config.training, micro, recompute, schedule)
    pixels, labels_NL = pixels.to(where), labels_NL.to(where)
    pipeline.step(pixels, labels_NL)  # once unmeasured: the stages get to know each other's shapes
    vit.zero_grad()
    watch = Stopwatch(pipeline.runner)
    torch.distributed.barrier()
    start = time.perf_counter()
    loss = pipeline.step(pixels, labels_NL)
    wall = time.perf_counter() - start
    gradients = {name: parameter.grad.cpu() for name, parameter in vit.named_parameters()}
    torch.optim.SGD(vit.parameters(), lr=LEARNING_RATE).step()
    gathered = pipeline.gather(gradients), pipeline.weights()
    times = pipeline.gather({f"stage {rank}": (watch.forward, watch.backward, wall)})
    if rank == 0:
        seconds, expected = train_whole(whole, pixels.cpu(), labels_NL.cpu(), micro)
        torch.optim.SGD(whole.parameters(), lr=LEARNING_RATE).step()
        same = _report(whole, seconds, (loss.item(), expected), *gathered, times, tolerance)
        if not same:
            open(os.path.join(folder, "mismatch"), "w").close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def draw(shape: ViTSize, num_images: int) -> Tuple[ViTForImageClassification, torch.Tensor, torch.Tensor]:
    """Return a model, pixels and labels, the same in every process."""
    torch.manual_seed(SEED)
    fields = {name: value for name, value in asdict(shape).items() if name != "num_labels"}
    vit = ViTForImageClassification(ViTConfig(**fields, num_labels=shape.num_labels)).train()
    pixels = torch.rand(num_images, shape.num_channels, shape.image_size, shape.image_size) * 2 - 1
    return vit, pixels, (torch.rand(num_images, shape.num_labels) < 0.3).float()


def train_whole(vit, pixels: torch.Tensor, labels_NL: torch.Tensor, micro: int) -> Tuple[float, float]:
    """Compute an update's mean gradients without a pipeline, and return its seconds and its loss."""
    start, losses = time.perf_counter(), []
    batches = len(pixels) // micro
    for pixels_B, labels_BL in zip(pixels.split(micro), labels_NL.split(micro)):
        loss = binary_cross_entropy_with_logits(vit(pixel_values=pixels_B).logits, labels_BL)
        (loss / batches).backward()
        losses.append(loss.item())
    return time.perf_counter() - start, sum(losses) / batches


def _report(vit, seconds: float, losses: Tuple[float, float], gradients, weights, times, tolerance: float) -> bool:
    """Print the comparison and the times; return whether all is the same."""
    expected = {name: parameter.grad for name, parameter in vit.named_parameters()}
    lines: List[str] = []
    found, whole = ({"": torch.tensor(loss)} for loss in losses)
    same = compare(lines, "loss", found, whole, tolerance)
    same &= compare(lines, "gradient", gradients, expected, tolerance)
    same &= compare(lines, "updated weight", weights, dict(vit.state_dict()), tolerance)
    print("\n".join(lines))
    wall = max(wall for _, _, wall in times.values())
    print(f"\n{'':10}  forward  backward     idle")
    for name, (forward, backward, _) in times.items():
        print(f"{name:10} {forward:6.3f} s  {backward:6.3f} s   {1 - (forward + backward) / wall:6.1%}")
    idle = 1 - sum(forward + backward for forward, backward, _ in times.values()) / (wall * len(times))
    cores = os.cpu_count()
    print(f"one update: pipeline {wall:.3f} s, whole model {seconds:.3f} s; idle {idle:.1%} (on {cores} cores)")
    print("the pipeline is the model" if same else "MISMATCH: the pipeline is not the model", file=sys.stdout)
    return same


def compare(
    lines: List[str],
    what: str,
    found: Dict[str, torch.Tensor],
    expected: Dict[str, torch.Tensor],
    tolerance: float = TOLERANCE,
) -> bool:
    """Note the greatest difference, and return whether it is rounding; every name must be on both sides."""
    if set(found) != set(expected):
        lines.append(f"{what}: other tensors: {sorted(set(found) ^ set(expected))[:3]}")
        return False
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    allowed = tolerance * largest
    worst = max(found, key=lambda name: (found[name] - expected[name]).abs().max().item())
    difference = (found[worst] - expected[worst]).abs().max().item()
    count = f"{len(found)} {what}s" if len(found) > 1 else what
    at = f" in {worst}" if worst and difference else ""
    verdict = "same" if difference <= allowed else f"MISMATCH, allowed {allowed:.1e}"
    lines.append(f"{count}: greatest difference {difference:.1e}{at}, of values up to {largest:.3g}: {verdict}")
    return difference <= allowed
