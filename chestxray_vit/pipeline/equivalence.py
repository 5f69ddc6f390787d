"""One update through the pipeline and through the whole model, compared tensor by tensor.

The update is plain gradient descent: AdamW divides each gradient by its own size, and so makes whole steps of mere
rounding where a gradient is zero, as that of a key's bias is."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTConfig, ViTForImageClassification

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stages import Pipeline, PipelineSettings, stage_rank_of

SEED = 1337
LEARNING_RATE = 0.1
TOLERANCE = 1e-5  # of the largest value compared: float32 has 24 bits, and sums of many terms lose some


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        config: the pipeline configuration.
        size: of the model, whose weights are drawn at random.
        micro_batch_size: images of a micro-batch.
        device: `cpu` or `cuda`.
        schedule: one of `schedule.SCHEDULES`.
        tolerance: share of the largest value that a difference may have.
    """

    config: PipelineConfig
    size: ViTSize
    micro_batch_size: int = 1
    device: str = "cpu"
    schedule: str = "1f1b"
    tolerance: float = TOLERANCE

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline, and processes of the comparison."""
        return self.config.training.ipus_per_replica


@dataclass(frozen=True)
class Update:
    """What one update computes: the loss, the gradients, the weights after it, and its seconds."""

    loss: float
    gradients: Dict[str, torch.Tensor]
    weights: Dict[str, torch.Tensor]
    seconds: float


class Stopwatch:
    """Seconds that a stage computes, by wrapping its forward and backward of a micro-batch."""

    def __init__(self, runner: Any) -> None:
        """Args: runner: a `torch.distributed.pipelining.PipelineStage`."""
        self.forward, self.backward = 0.0, 0.0
        for name in ("forward", "backward"):
            setattr(runner, f"{name}_one_chunk", self._timed(getattr(runner, f"{name}_one_chunk"), name))

    def reset(self) -> None:
        """Start again from zero."""
        self.forward, self.backward = 0.0, 0.0

    def _timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **options)
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
            return result

        return timed


def compare_with_whole_model(comparison: Comparison) -> int:
    """Run the comparison with one process for each stage, print it, and return the exit code.

    Raises:
        InputError: the layers are not the model's, or there are fewer CUDA devices than stages.
    """
    comparison.config.check_layers(comparison.size.num_hidden_layers)
    stages = comparison.num_stages
    if comparison.device == "cuda" and torch.cuda.device_count() < stages:
        raise InputError(f"--device cuda: {stages} stages need as many devices, found {torch.cuda.device_count()}.")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run_stage, (comparison, folder), nprocs=stages)
        return int(Path(folder, "mismatch").exists())


def _run_stage(rank: int, comparison: Comparison, folder: str) -> None:
    """Be one stage; the first also runs the whole model, and prints."""
    stages, on_cuda = comparison.num_stages, comparison.device == "cuda"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // stages))
    device = torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    torch.distributed.init_process_group(
        "nccl" if on_cuda else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=stages
    )
    micro, mode = comparison.micro_batch_size, comparison.config.training
    whole, pixels, labels_NL = draw(comparison.size, micro * mode.gradient_accumulation_steps)
    vit, recompute = copy.deepcopy(whole), comparison.config.recompute_checkpoint_every_layer
    settings = PipelineSettings(mode, micro, recompute, comparison.schedule)
    pipeline = Pipeline(vit, stage_rank_of(stages, device), settings)
    update, times = _piped_update(pipeline, vit, pixels.to(device), labels_NL.to(device))
    if update is not None and times is not None:
        expected = _whole_update(whole, pixels, labels_NL, micro)
        if not _report(update, expected, times, comparison.tolerance):
            Path(folder, "mismatch").touch()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _piped_update(
    pipeline: Pipeline, vit: ViTForImageClassification, pixels: torch.Tensor, labels_NL: torch.Tensor
) -> Tuple[Optional[Update], Optional[Dict[str, Tuple[float, float]]]]:
    """Make an update through the pipeline; return it and the stages' forward and backward seconds, on the first."""
    pipeline.step(pixels, labels_NL)  # once unmeasured: the stages exchange the shapes of their tensors
    vit.zero_grad()
    watch = Stopwatch(pipeline.runner)
    torch.distributed.barrier()
    start = time.perf_counter()
    loss = pipeline.step(pixels, labels_NL)
    seconds = time.perf_counter() - start
    gradients = pipeline.gather(_gradients(vit))
    torch.optim.SGD(vit.parameters(), lr=LEARNING_RATE).step()
    weights = pipeline.weights()
    name = f"stage {pipeline.rank.stage}"
    measured = pipeline.gather({name: (watch.forward, watch.backward, seconds)})
    if gradients is None or weights is None or measured is None:
        return None, None
    slowest = max(wall for _, _, wall in measured.values())
    times = {name: (forward, backward) for name, (forward, backward, _) in measured.items()}
    return Update(loss.item(), gradients, weights, slowest), times


def _whole_update(
    vit: ViTForImageClassification, pixels: torch.Tensor, labels_NL: torch.Tensor, micro_batch_size: int
) -> Update:
    seconds, loss = train_whole(vit, pixels, labels_NL, micro_batch_size)
    gradients = _gradients(vit)
    torch.optim.SGD(vit.parameters(), lr=LEARNING_RATE).step()
    return Update(loss, gradients, dict(vit.state_dict()), seconds)


def _gradients(vit: ViTForImageClassification) -> Dict[str, torch.Tensor]:
    return {name: weight.grad.cpu() for name, weight in vit.named_parameters() if weight.grad is not None}


def draw(size: ViTSize, num_images: int) -> Tuple[ViTForImageClassification, torch.Tensor, torch.Tensor]:
    """Return a model, pixels and labels at random, the same in every process."""
    torch.manual_seed(SEED)
    fields: Dict[str, Any] = asdict(size)
    vit = ViTForImageClassification(ViTConfig(**fields)).train()
    pixels = torch.rand(num_images, size.num_channels, size.image_size, size.image_size) * 2 - 1
    return vit, pixels, (torch.rand(num_images, size.num_labels) < 0.3).float()


def train_whole(vit: Any, pixels: torch.Tensor, labels_NL: torch.Tensor, micro_batch_size: int) -> Tuple[float, float]:
    """Compute an update's mean gradients without a pipeline, and return its seconds and its loss."""
    start, losses = time.perf_counter(), []
    batches = len(pixels) // micro_batch_size
    for pixels_B, labels_BL in zip(pixels.split(micro_batch_size), labels_NL.split(micro_batch_size)):
        loss = binary_cross_entropy_with_logits(vit(pixel_values=pixels_B).logits, labels_BL)
        (loss / batches).backward()
        losses.append(loss.item())
    return time.perf_counter() - start, sum(losses) / batches


def _report(update: Update, expected: Update, times: Dict[str, Tuple[float, float]], tolerance: float) -> bool:
    """Print the comparison and the times; return whether all is the same."""
    lines: List[str] = []
    loss, expected_loss = ({"": torch.tensor(one.loss)} for one in (update, expected))
    same = compare(lines, "loss", loss, expected_loss, tolerance)
    same &= compare(lines, "gradient", update.gradients, expected.gradients, tolerance)
    same &= compare(lines, "updated weight", update.weights, expected.weights, tolerance)
    print("\n".join(lines))
    print(f"\n{'':10}  forward  backward     idle")
    for name, (forward, backward) in times.items():
        idle = 1 - (forward + backward) / update.seconds
        print(f"{name:10} {forward:6.3f} s  {backward:6.3f} s   {idle:6.1%}")
    idle = 1 - sum(map(sum, times.values())) / (update.seconds * len(times))
    print(
        f"one update: pipeline {update.seconds:.3f} s, whole model {expected.seconds:.3f} s; idle {idle:.1%} "
        f"(on {os.cpu_count()} cores)"
    )
    print("the pipeline is the model" if same else "MISMATCH: the pipeline is not the model")
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
