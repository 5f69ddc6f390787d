"""The IPU engine: optimum-graphcore's IPUTrainer on a ViT cut into pipeline stages.

Only `backend` loads this module, and only for IPUs: it needs optimum-graphcore 0.7.1 and the Poplar SDK's PopTorch.
The loss is computed inside the model, since on IPUs it belongs to the compiled program. Evaluation fills the last
combined batch and cuts the filling off again: PopTorch takes whole batches only, and dropping rows or scoring them
twice would make another AUC. What is saved is a plain ViT in float32, for any engine to go on with.

B images of a micro-batch, N of a split, L labels."""

from __future__ import annotations

import copy
import functools
import logging
import os
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import poptorch
import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments, ipu_configuration
from optimum.graphcore.models.vit import PipelinedViTForImageClassification
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTForImageClassification
from transformers.trainer_utils import EvalLoopOutput

from chestxray_vit.data.cached_dataset import IPUCollate
from chestxray_vit.errors import InputError
from chestxray_vit.images.preprocess import GreyToPixelValues
from chestxray_vit.pipeline.pipeline_config import PipelineConfig, PipelineMode
from chestxray_vit.pipeline.stage_plan import StagePlan
from chestxray_vit.training.engines.base import (
    EpochSampler,
    LogBeforeSave,
    PaddedDataset,
    Restoring,
    replace_progress_bars,
    scored,
)

logger = logging.getLogger(__name__)


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


class PipelinedViT(PipelinedViTForImageClassification):
    """A pipelined ViT with this package's loss, which saves itself as a plain ViT."""

    pos_weight_L: Optional[torch.Tensor] = None  # no buffer: it is no weight, and stays float32 in a half model

    def forward(self, pixel_values, labels=None) -> Tuple[torch.Tensor, ...]:
        """Return the mean binary cross-entropy in float32, if labels are given, and the logits (B, L)."""
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

    def save_pretrained(self, save_directory, state_dict=None) -> None:
        """Save as safetensors, for any engine."""
        self.plain().save_pretrained(save_directory, safe_serialization=True)


class PipelinedTrainer(Restoring, IPUTrainer):
    """An IPUTrainer that scores every row once, restores every tensor or fails, and resumes in the same order."""

    instance: Tuple[int, int] = (0, 1)  # which of poprun's instances this is, and how many there are

    def get_train_dataloader(self) -> poptorch.DataLoader:
        """Return whole combined batches, in an order that depends on the seed and the epoch alone."""
        args, (index, count) = self.args, self.instance
        combined = args.per_device_train_batch_size * self.ipu_config.batch_size_factor()
        seed = args.seed if args.data_seed is None else args.data_seed
        workers = args.dataloader_num_workers
        return poptorch.DataLoader(
            self.opts,
            self.train_dataset,
            batch_size=args.per_device_train_batch_size,
            sampler=EpochSampler(self.train_dataset, combined * count, seed, count, index),
            collate_fn=self.data_collator,
            num_workers=workers,
            persistent_workers=False,  # they would iterate for ever, deaf to the Trainer's epochs
            mode=args.dataloader_mode,
            rebatched_worker_size=2 * (combined // workers) if workers else combined,
            auto_distributed_partitioning=False,
        )

    def get_eval_dataloader(self, eval_dataset=None) -> poptorch.DataLoader:
        """Return all rows in order, the last combined batch filled; each instance of poprun scores all of them."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        batch = self.args.per_device_eval_batch_size
        return poptorch.DataLoader(
            self.eval_opts,
            PaddedDataset(rows, batch * self.ipu_config.batch_size_factor(for_inference=True)),
            batch_size=batch,
            shuffle=False,
            collate_fn=self.data_collator,
            drop_last=False,
            num_workers=self.args.dataloader_num_workers,
            auto_distributed_partitioning=False,
        )

    get_test_dataloader = get_eval_dataloader

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Score the filled batches, cut off the filling, and compute loss and metrics from the rows that remain."""
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics
        filled = dataloader.dataset
        if len(output.predictions) != len(filled) or len(output.label_ids) != len(filled):
            raise RuntimeError(f"{len(filled)} rows in, {len(output.predictions)} rows out")
        weight_L = self.model.pos_weight_L
        return scored(
            output.predictions, output.label_ids, filled.num_rows, weight_L, compute_metrics, metric_key_prefix
        )

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Make the schedule, and tell the device its first rate: else the first update has the full one."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self.training_model.setOptimizer(self.optimizer)
        return scheduler

    def compile_model(self, model, sample_batch, log: bool = False) -> None:
        """Take the IPUs and compile."""
        try:
            super().compile_model(model, sample_batch, log)
        except (poptorch.Error, RuntimeError) as error:
            raise InputError(
                f"the model did not start on the IPUs: {error}. If they are in use, gc-monitor shows by whom, and "
                "POPTORCH_WAIT_FOR_IPU=1 waits for them. If memory is short, set matmul_proportion lower or spread "
                "layers_per_ipu otherwise by --ipu_config_overrides."
            ) from error

    def trained_model(self) -> ViTForImageClassification:
        """Return the trained model as a plain `ViTForImageClassification`."""
        return self.model.plain()

    def _restore(self, folder: str, model) -> None:
        model.deparallelize()
        super()._restore(folder, model)
        model.parallelize(**model.ipu_config._parallelize_kwargs)


def training_arguments(given: Dict[str, Any], options: Dict[str, Any]) -> IPUTrainingArguments:
    """Build IPUTrainingArguments.

    Args:
        given: values of TrainingArguments' fields; those that IPUs do not have are left out.
        options: `fp32`, and in training `loss_scaling` and `dataloader_mode`.

    Raises:
        InputError: values that contradict each other.
    """
    workers = given.get("dataloader_num_workers", 0)
    if options.get("dataloader_mode") == "async_rebatched" and workers < 2:
        raise InputError(f"--dataloader_mode async_rebatched needs --dataloader_num_workers 2 or more, not {workers}.")
    fields = IPUTrainingArguments.__dataclass_fields__
    given = {name: value for name, value in given.items() if name in fields}
    given["dataloader_pin_memory"] = False
    if given.get("log_level", "passive") == "passive":
        given["log_level"] = "warning"  # else it lists every layer's IPU again at every save
    try:
        return IPUTrainingArguments(**given, **options)
    except ValueError as error:
        raise InputError(f"IPUTrainingArguments: {error}") from error


def make_trainer(
    model,
    processor,
    args: IPUTrainingArguments,
    config: PipelineConfig,
    train_dataset,
    eval_dataset,
    pos_weight: Optional[Sequence[float]],
    metrics: Callable,
    instance: Tuple[int, int],
    to_pixel_values: Optional[GreyToPixelValues],
) -> PipelinedTrainer:
    """Return the IPU's trainer, after checking what would fail only when compiled.

    Args:
        model, processor, train_dataset, eval_dataset, pos_weight, metrics, to_pixel_values: as for
            `backend.make_trainer`.
        args: of `training_arguments`.
        config: of `ipu_config.read_ipu_config`, of all of poprun's instances together.
        instance: index and number of poprun's instances.

    Raises:
        InputError: layers that are not the model's, too few images or IPUs.
    """
    plan = StagePlan.from_config(config, model.config, args.per_device_train_batch_size, args.fp32)
    mode = plan.mode
    if train_dataset is not None and plan.refusal():
        raise InputError(f"{plan.refusal()}. Set --gradient_accumulation_steps higher, or use fewer stages.")
    if train_dataset is not None:
        _check_images(len(train_dataset), args, mode)
    needed = max(mode.num_ipus if train_dataset is not None else 0, config.inference.num_ipus)
    if not poptorch.ipuHardwareIsAvailable(needed // instance[1]):
        raise InputError(
            f"{needed // instance[1]} IPUs are needed, and this system has no such number "
            "(gc-info --list-devices). Set --n_ipu, or another --ipu_config_name."
        )
    local = _local(config, instance[1])
    pipelined = PipelinedViT.from_transformers(model, local)
    pipelined.pos_weight_L = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
    trainer = PipelinedTrainer(
        model=pipelined,
        ipu_config=local,
        args=args,
        data_collator=IPUCollate(to_pixel_values, torch.float32 if args.fp32 else torch.float16),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        tokenizer=processor,
        compute_metrics=metrics,
        callbacks=[LogBeforeSave()],
    )
    trainer.instance = instance
    replace_progress_bars(trainer, show=not args.disable_tqdm)
    return trainer


def _check_images(found: int, args: IPUTrainingArguments, mode: PipelineMode) -> None:
    needed = args.per_device_train_batch_size * mode.batch_size_factor
    if found < needed:
        raise InputError(
            f"{found:,} training images are fewer than the {needed:,} of one combined batch: "
            f"per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{mode.gradient_accumulation_steps} x replicas {mode.replication_factor}. "
            "Lower --gradient_accumulation_steps, or --n_ipu."
        )


def _local(config: PipelineConfig, num_instances: int) -> PodConfig:
    """Return the configuration of one instance, with the executable cache where the environment wants it.

    A loss is returned for each micro-batch: by default it is the last one's, of as little as one image."""
    values = {"output_mode": "all", **config.to_dict()}
    for name in ("replication_factor", "inference_replication_factor"):
        found = values.get(name, 1)
        values[name], rest = divmod(found, num_instances)
        if rest:
            raise InputError(f"{name} {found} cannot be shared by poprun's {num_instances} instances.")
    cache = os.environ.get("POPLAR_EXECUTABLE_CACHE_DIR")
    if cache:
        values["executable_cache_dir"] = cache
    return PodConfig(**values)
