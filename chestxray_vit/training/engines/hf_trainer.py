"""The engine of CUDA and CPU: transformers' Trainer for several labels at once, in one process or several.

B batch, L labels."""

from __future__ import annotations

import inspect
import logging
from typing import Any, Dict, Mapping, Optional, Type

import torch
import transformers
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainingArguments

from chestxray_vit.data.dataset import collate
from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.training import global_batch, precision
from chestxray_vit.training.engines.base import BaseTrainer, Engine, TrainerInputs
from chestxray_vit.training.engines.loading import EpochSampler
from chestxray_vit.training.engines.progress import LogBeforeSave
from chestxray_vit.training.global_batch import GlobalBatch
from chestxray_vit.training.recipe import installed_name

logger = logging.getLogger(__name__)

LARGEST_MICRO_BATCH = {"cpu": 32, "cuda": 64}  # images of one training pass, where the user names none
EVALUATION_BATCH = {"cpu": 32, "cuda": 64}  # on the CPU 1.05 to 1.15 times as fast as by 64
# From version 5 on, accelerate gives each process its share of the images, and seeds each epoch's order.
ACCELERATE_SHARES = int(transformers.__version__.split(".")[0]) >= 5


class HFEngine(Engine):
    """CUDA or CPU, each process with the whole model."""

    def global_batch(
        self, values: Mapping[str, Any], global_batch_size: Optional[int], config: Optional[PipelineConfig]
    ) -> GlobalBatch:
        """Return how the global batch is divided among the processes."""
        micro_batch_size, steps = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
        if config is not None:
            steps, global_batch_size = None, global_batch.of_pipeline(config, micro_batch_size).global_batch_size
        return global_batch.of_processes(
            micro_batch_size, steps, global_batch_size, self.ranks.world_size, LARGEST_MICRO_BATCH[self.device]
        )

    def arguments(self, values: Mapping[str, Any], config: Optional[PipelineConfig] = None) -> TrainingArguments:
        """Return TrainingArguments; several processes share the work by data parallelism."""
        values = self._resolved(values)
        if self.ranks.world_size > 1:
            if self.device == "cpu" and not values.get("ddp_backend"):
                values["ddp_backend"] = "gloo"
            if values.get("ddp_find_unused_parameters") is None:
                values["ddp_find_unused_parameters"] = False
        return build_arguments(TrainingArguments, values)

    def _resolved(self, values: Mapping[str, Any], pipelined: bool = False) -> Dict[str, Any]:
        """Return the values with what was left open chosen for the device."""
        values = precision.resolved(values, self.device, pipelined)
        values["per_device_eval_batch_size"] = values["per_device_eval_batch_size"] or EVALUATION_BATCH[self.device]
        values[installed_name("use_cpu")] = self.device == "cpu"
        return values

    def trainer(
        self, model: Any, processor: Any, args: Any, inputs: TrainerInputs, config: Optional[PipelineConfig] = None
    ) -> Any:
        """Return a Trainer of the whole model."""
        needed = args.per_device_train_batch_size * args.gradient_accumulation_steps * self.ranks.world_size
        if inputs.train is not None and len(inputs.train) < needed:
            raise InputError(
                f"{len(inputs.train):,} training images are fewer than one global batch of {needed}. "
                "Lower --global_batch_size."
            )
        if self.ranks.world_size > 1 and not transformers.__version__.startswith(("4.29.", "5.")):
            raise InputError(
                "several processes need transformers 4.29 or 5, where their shares of the images are tested; "
                f"found {transformers.__version__}."
            )
        choices = precision.fit(model, args)
        if self.ranks.is_main:
            logger.info("%s", choices)
        return RestoringTrainer(model, processor, args, inputs)


def build_arguments(kind: Type[TrainingArguments], values: Mapping[str, Any]) -> Any:
    """Build TrainingArguments, and raise their errors as ours."""
    try:
        return kind(**values)
    except (ValueError, ImportError) as error:
        raise InputError(f"TrainingArguments: {error}") from error


class RestoringTrainer(BaseTrainer, Trainer):
    """A Trainer for several labels at once, on CUDA and CPU, that restores every tensor of a checkpoint, or fails."""

    def __init__(self, model: Any, processor: Any, args: TrainingArguments, inputs: TrainerInputs):
        """Args: as of `Engine.trainer`."""
        processing = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
        super().__init__(
            inputs,
            show_progress=not args.disable_tqdm,
            model=model,
            args=args,
            data_collator=collate,
            callbacks=[LogBeforeSave()],
            **{processing: processor},
        )
        # our loss is a mean, to be averaged over the accumulated batches; else newer Trainers take their sum
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean binary cross-entropy over images and labels, in float32."""
        outputs = model(pixel_values=inputs["pixel_values"])
        logits_BL = outputs.logits.float()
        weight_L = None if self.pos_weight_L is None else self.pos_weight_L.to(logits_BL.device)
        loss = binary_cross_entropy_with_logits(logits_BL, inputs["labels"], pos_weight=weight_L)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Sampler:
        """Draw whole global batches, as an IPU does."""
        args, rows = self.args, self.train_dataset
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        if not ACCELERATE_SHARES:
            return EpochSampler(rows, batch, seed, args.world_size, args.process_index)
        whole = len(rows) // batch * batch
        return RandomSampler(rows, num_samples=whole, generator=torch.Generator().manual_seed(seed))
