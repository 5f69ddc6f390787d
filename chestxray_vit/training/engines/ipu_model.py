"""A ViT and its configuration as optimum-graphcore takes them: pipelined, with this package's loss.

The loss is computed inside the model, since on IPUs it belongs to the compiled program. What is saved is a plain ViT
in float32, for any engine to go on with.

B images of a micro-batch, L labels."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any, Optional, Tuple

import poptorch
import torch
from optimum.graphcore import IPUConfig, ipu_configuration
from optimum.graphcore.models.vit import PipelinedViTForImageClassification
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTForImageClassification

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import PipelineConfig


class PodConfig(IPUConfig):
    """An IPUConfig that also runs under poprun, where each instance drives its own replicas."""

    def _to_options(self, for_inference: bool = False, compile_only: bool = False) -> poptorch.Options:
        try:
            import popdist
            import popdist.poptorch
        except ImportError:
            return super()._to_options(for_inference, compile_only)
        if not popdist.isPopdistEnvSet():
            return super()._to_options(for_inference, compile_only)
        stages = self.inference_ipus_per_replica if for_inference else self.ipus_per_replica
        plain_options = ipu_configuration.Options
        ipu_configuration.Options = functools.partial(popdist.poptorch.Options, ipus_per_replica=stages)
        try:
            return super()._to_options(for_inference, compile_only)
        finally:
            ipu_configuration.Options = plain_options


def pod_config(config: PipelineConfig, num_instances: int) -> PodConfig:
    """Return the configuration of one of poprun's instances, with the executable cache of the environment.

    A loss is returned for each micro-batch: by default it is the last one's, of as little as one image.

    Raises:
        InputError: the replicas are not a multiple of the instances.
    """
    values = {"output_mode": "all", **config.to_dict()}
    for name in ("replication_factor", "inference_replication_factor"):
        replicas = values.get(name, 1)
        values[name], rest = divmod(replicas, num_instances)
        if rest:
            raise InputError(f"{name} {replicas} cannot be shared by poprun's {num_instances} instances.")
    cache = os.environ.get("POPLAR_EXECUTABLE_CACHE_DIR")
    if cache:
        values["executable_cache_dir"] = cache
    return PodConfig(**values)


class PipelinedViT(PipelinedViTForImageClassification):
    """A pipelined ViT with this package's loss, which saves itself as a plain ViT."""

    pos_weight_L: Optional[torch.Tensor] = None  # no buffer: it is no weight, and stays float32 in a half model

    @classmethod
    def of(cls, model: ViTForImageClassification, config: PodConfig, pos_weight_L: Optional[torch.Tensor]) -> Any:
        """Return a pipelined ViT with the weights of a plain one.

        Args:
            model: the plain one.
            config: of this instance.
            pos_weight_L: weights of the positives in the loss.
        """
        pipelined = cls.from_transformers(model, config)
        pipelined.pos_weight_L = pos_weight_L
        return pipelined

    def forward(self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, ...]:
        """Return the mean binary cross-entropy in float32, if labels are passed, and the logits (B, L)."""
        rgb = pixel_values.expand(-1, self.config.num_channels, -1, -1)  # one channel, where all are alike
        logits_BL = super().forward(pixel_values=rgb, return_dict=False)[0]
        if labels is None:
            return (logits_BL,)
        loss = binary_cross_entropy_with_logits(logits_BL.float(), labels.float(), pos_weight=self.pos_weight_L)
        return loss, logits_BL

    def plain(self) -> ViTForImageClassification:
        """Return a plain ViT with these weights, in float32."""
        config = copy.deepcopy(self.config)
        config.torch_dtype = torch.float32
        with torch.random.fork_rng(devices=[]):
            vit = ViTForImageClassification(config)
        vit.load_state_dict({name: tensor.float() for name, tensor in self.state_dict().items()})
        return vit

    def save_pretrained(self, save_directory: Any, state_dict: Any = None) -> None:
        """Save as safetensors, for any engine."""
        self.plain().save_pretrained(save_directory, safe_serialization=True)
