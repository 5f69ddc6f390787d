"""A ViT cut into pipeline stages, one process each, run by `torch.distributed.pipelining`.

Each process builds the model, keeps its own stage's modules and drops the others', under their names in the whole
model: so weights and optimizer states of all stages, put together, are those of an ordinary checkpoint.

B images of a micro-batch, T tokens, D width, L labels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import PipelineConfig, PipelineMode


@dataclass(frozen=True)
class StageRank:
    """Which stage of which replica this process is.

    Attributes:
        stage, num_stages: which stage this is, and how many a replica has.
        replica, num_replicas: likewise.
        device: this process computes on.
        pipeline: process group of this replica's stages.
        siblings: process group of this stage in all replicas.
    """

    stage: int
    num_stages: int
    replica: int
    num_replicas: int
    device: torch.device
    pipeline: Any
    siblings: Any

    @property
    def is_first(self) -> bool:
        """The stage that takes pixels."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """The stage that takes labels, and knows the loss."""
        return self.stage == self.num_stages - 1

    @property
    def is_main(self) -> bool:
        """The one process that prints and writes."""
        return self.stage == 0 and self.replica == 0

    def global_rank(self, stage: int, replica: Optional[int] = None) -> int:
        """Return the rank of a stage, of this replica or another."""
        return (self.replica if replica is None else replica) * self.num_stages + stage


def init_stage_rank(config: PipelineConfig, device: str, local_rank: int) -> StageRank:
    """Join the processes that torchrun started, and return which stage of which replica this one is.

    Args:
        config: whose number of stages divides the number of processes.
        device: `cpu` or `cuda`.
        local_rank: of this process on its machine, which is the number of its CUDA device.
    """
    local = torch.device("cpu")
    if device == "cuda":
        local = torch.device("cuda", local_rank)
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30))
    return stage_rank_of(config.training.ipus_per_replica, local)


def stage_rank_of(num_stages: int, device: torch.device) -> StageRank:
    """Return which stage of which replica this process is in the running process group."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mesh = torch.distributed.device_mesh.init_device_mesh(
        device.type, (processes // num_stages, num_stages), mesh_dim_names=("replica", "stage")
    )
    groups = mesh.get_group("stage"), mesh.get_group("replica")
    return StageRank(rank % num_stages, num_stages, rank // num_stages, processes // num_stages, device, *groups)


def parts_of(vit: Any) -> Tuple[nn.Module, nn.ModuleList, nn.Module, nn.Module]:
    """Return embeddings, encoder layers, final norm and head, whatever the version of transformers calls them."""
    body: Any = vit.base_model
    layers = next(module for module in body.modules() if isinstance(module, nn.ModuleList))
    return body.embeddings, layers, body.layernorm, vit.classifier


class Stage(nn.Module):
    """The part of a ViT that one process holds."""

    def __init__(self, vit: Any, rank: StageRank, layers_by_ipu: Tuple[int, ...], recompute: bool) -> None:
        """Cut the model itself: what other stages hold becomes an identity under the same name.

        Args:
            vit: a whole ViTForImageClassification.
            rank: of this process.
            layers_by_ipu: encoder layers of each stage.
            recompute: keep only each layer's output, and compute the rest again in the backward pass.
        """
        super().__init__()
        _, layers, _, _ = parts_of(vit)
        first = sum(layers_by_ipu[: rank.stage])
        layer_indices = range(first, first + layers_by_ipu[rank.stage])
        for index in set(range(len(layers))) - set(layer_indices):
            layers[index] = nn.Identity()
        body = vit.base_model
        if not rank.is_first:
            body.embeddings = nn.Identity()
        if not rank.is_last:
            body.layernorm, vit.classifier = nn.Identity(), nn.Identity()
        self.vit = vit
        self.rank, self.layer_indices, self.recompute = rank, layer_indices, recompute

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return hidden states (B, T, D), or the logits (B, L), from pixels (B, 3, H, W) or hidden states."""
        embeddings, layers, norm, head = parts_of(self.vit)
        hidden_BTD = embeddings(inputs) if self.rank.is_first else inputs
        for index in self.layer_indices:
            hidden_BTD = self._layer(layers[index], hidden_BTD)
        return head(norm(hidden_BTD)[:, 0]) if self.rank.is_last else hidden_BTD

    def _layer(self, layer: nn.Module, hidden_BTD: torch.Tensor) -> torch.Tensor:
        if self.recompute and torch.is_grad_enabled():
            output = torch.utils.checkpoint.checkpoint(layer, hidden_BTD, use_reentrant=False)
        else:
            output = layer(hidden_BTD)
        return output[0] if isinstance(output, tuple) else output  # transformers 4 returns a tuple


@dataclass(frozen=True)
class PipelineSettings:
    """How a pipeline runs.

    Attributes:
        mode: of training, from the pipeline configuration.
        micro_batch_size: images of a micro-batch.
        recompute: see `Stage`.
        schedule: one of `schedule.SCHEDULES`.
    """

    mode: PipelineMode
    micro_batch_size: int
    recompute: bool = False
    schedule: str = "1f1b"


class Pipeline:
    """The stages of a model, of which this process runs one.

    Attributes:
        rank: which stage this process runs.
        stage: its part of the model; `stage.vit` has the whole model's names.
    """

    def __init__(
        self, vit: Any, rank: StageRank, settings: PipelineSettings, pos_weight_L: Optional[torch.Tensor] = None
    ) -> None:
        """Cut the model and set up the schedule.

        Args:
            vit: a whole model, the same in every process; it is cut itself.
            rank: of `init_stage_rank`.
            settings: of the pipeline.
            pos_weight_L: weights of the positives in the loss.

        Raises:
            InputError: too few micro-batches for 1F1B.
        """
        from torch.distributed import pipelining

        config, mode = vit.config, settings.mode
        self.rank, self.micro_batch_size = rank, settings.micro_batch_size
        self.num_micro_batches = mode.gradient_accumulation_steps
        if settings.schedule == "1f1b" and self.num_micro_batches < rank.num_stages:
            raise InputError(
                f"{self.num_micro_batches} micro-batches do not fill {rank.num_stages} stages by 1F1B. Set "
                f"--gradient_accumulation_steps to {rank.num_stages} or more, or --pipeline_schedule gpipe."
            )
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.hidden_shape = (self.micro_batch_size, tokens, config.hidden_size)
        layers = mode.layers_by_ipu(config.num_hidden_layers)
        self.stage = Stage(vit, rank, layers, settings.recompute).to(rank.device)
        self.pos_weight_L = None if pos_weight_L is None else pos_weight_L.to(rank.device)
        self.runner = pipelining.PipelineStage(
            self.stage, rank.stage, rank.num_stages, rank.device, group=rank.pipeline
        )
        kind = pipelining.Schedule1F1B if settings.schedule == "1f1b" else pipelining.ScheduleGPipe
        self.schedule = kind(self.runner, self.num_micro_batches, loss_fn=self._loss)

    def _loss(self, logits_BL: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(logits_BL.float(), labels_BL, pos_weight=self.pos_weight_L)

    def step(self, pixels: Optional[torch.Tensor], labels_NL: torch.Tensor) -> torch.Tensor:
        """Run forward and backward of one update, and leave its mean gradients in the parameters.

        Args:
            pixels: of this replica's images, on the first stage.
            labels_NL: of the same images.

        Returns:
            The mean loss over all replicas, on every process.
        """
        losses: List[torch.Tensor] = []
        inputs = (pixels,) if self.rank.is_first else ()
        targets: Dict[str, Any] = {"target": labels_NL, "losses": losses} if self.rank.is_last else {}
        self.schedule.step(*inputs, **targets, return_outputs=False)
        loss = torch.stack(losses).mean().detach() if losses else torch.zeros((), device=self.rank.device)
        torch.distributed.broadcast(loss, self.rank.global_rank(self.rank.num_stages - 1), group=self.rank.pipeline)
        if self.rank.num_replicas > 1:
            self._mean_over_replicas([loss, *self._gradients()])
        return loss

    def _gradients(self) -> List[torch.Tensor]:
        return [parameter.grad for parameter in self.stage.parameters() if parameter.grad is not None]

    def _mean_over_replicas(self, tensors: List[torch.Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, group=self.rank.siblings)
            tensor /= self.rank.num_replicas

    @torch.no_grad()
    def score(self, pixels: Optional[torch.Tensor], num_images: int) -> Optional[torch.Tensor]:
        """Run the forward pass alone.

        Args:
            pixels: of whole micro-batches, on the first stage.
            num_images: how many they are.

        Returns:
            The logits (N, L) on the last stage, else None.
        """
        rank, sent = self.rank, []
        logits: List[torch.Tensor] = []
        for start in range(0, num_images, self.micro_batch_size):
            if rank.is_first:
                assert pixels is not None
                inputs = pixels[start : start + self.micro_batch_size]
            else:
                inputs = torch.empty(self.hidden_shape, device=rank.device)
                torch.distributed.recv(inputs, rank.global_rank(rank.stage - 1), group=rank.pipeline)
            output = self.stage(inputs)
            if rank.is_last:
                logits.append(output.float())
            else:
                output = output.contiguous()
                send = torch.distributed.isend(output, rank.global_rank(rank.stage + 1), group=rank.pipeline)
                sent.append((send, output))  # the tensor must live until it is sent
        for send, _ in sent:
            if send is not None:  # None where this process is in no group with the next
                send.wait()
        return torch.cat(logits) if logits else None

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole model's gradients, on every process."""
        squares = [gradient.float().square().sum() for gradient in self._gradients()]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self.rank.device)
        torch.distributed.all_reduce(total, group=self.rank.pipeline)
        return total.sqrt()

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients as `torch.nn.utils.clip_grad_norm_` does for a whole model, and return their norm."""
        norm = self.gradient_norm()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in self._gradients():
            gradient.mul_(scale)
        return norm

    def gather(self, by_name: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Return what all stages of the first replica hold by the whole model's names, on the main process."""
        if self.rank.replica:
            return None
        gathered: Optional[List[Any]] = [None] * self.rank.num_stages if self.rank.is_main else None
        torch.distributed.gather_object(by_name, gathered, dst=0, group=self.rank.pipeline)
        return None if gathered is None else {name: value for part in gathered for name, value in part.items()}

    def weights(self) -> Optional[Dict[str, torch.Tensor]]:
        """Return the whole model's weights on the main process, else None."""
        return self.gather({name: tensor.cpu() for name, tensor in self.stage.vit.state_dict().items()})
