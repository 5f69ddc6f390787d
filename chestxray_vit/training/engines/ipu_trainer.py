"""The engine of IPUs: optimum-graphcore's IPUTrainer on a ViT cut into pipeline stages.

Only `choose` loads this module, and only for IPUs: it needs optimum-graphcore 0.7.1 and the Poplar SDK's PopTorch.
Evaluation pads the last combined batch and cuts the padding off again: PopTorch takes whole batches only, and dropping
rows or scoring them twice would make another AUC.

B images of a micro-batch, N of a split, L labels."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import MISSING, asdict, fields, replace
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import poptorch
import torch
from optimum.graphcore import IPUTrainer, IPUTrainingArguments
from transformers import TrainingArguments, ViTForImageClassification
from transformers.trainer_utils import EvalLoopOutput

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.ipu_config import DEFAULT
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stage_plan import StagePlan
from chestxray_vit.training import global_batch, precision
from chestxray_vit.training.arguments import TrainArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import BaseTrainer, Engine, TrainerInputs, scored
from chestxray_vit.training.engines.ipu_model import PipelinedViT, PodConfig, pod_config
from chestxray_vit.training.engines.loading import EpochSampler, IPUCollate, PaddedDataset
from chestxray_vit.training.engines.progress import LogBeforeSave
from chestxray_vit.training.global_batch import GlobalBatch
from chestxray_vit.training.recipe import FIELDS, recipe

IPU_FIELDS = IPUTrainingArguments.__dataclass_fields__


class IPUEngine(Engine):
    """IPUs, in one process or in poprun's instances."""

    @property
    def pixel_dtype(self) -> type:
        """The type of the pixel values that the loader sends: float16 for a half model."""
        return np.float32 if self.options.fp32 else np.float16

    def check(self, args: TrainArguments) -> None:
        """Refuse augmentation, which is computed on the device."""
        if args.augment:
            raise InputError("--augment is for CUDA and CPU. Leave it out on IPUs.")

    def pipeline_config(self, default: Optional[str] = None) -> PipelineConfig:
        """Return the IPU configuration named, else the default one."""
        return self._read_config(self.options.ipu_config_name or default or DEFAULT)

    def global_batch(
        self, values: Mapping[str, Any], global_batch_size: Optional[int], config: Optional[PipelineConfig]
    ) -> GlobalBatch:
        """Return the configuration's own division."""
        assert config is not None
        return global_batch.of_pipeline(config, values["per_device_train_batch_size"])

    def arguments(self, values: Mapping[str, Any], config: Optional[PipelineConfig] = None) -> IPUTrainingArguments:
        """Return IPUTrainingArguments; refuse what was asked for and IPUs do not have."""
        values = precision.resolved(values, self.device)
        values["per_device_eval_batch_size"] = values["per_device_eval_batch_size"] or 1
        _refuse_unknown(values)
        workers = values.get("dataloader_num_workers", 0)
        if getattr(self.options, "dataloader_mode", None) == "async_rebatched" and workers < 2:
            raise InputError(
                f"--dataloader_mode async_rebatched needs --dataloader_num_workers 2 or more, not {workers}."
            )
        if self.ranks.instance > 0:  # only the first instance writes the run; the others' checkpoints are their own
            values["output_dir"], values["disable_tqdm"] = tempfile.mkdtemp(prefix="instance."), True
            atexit.register(shutil.rmtree, values["output_dir"], ignore_errors=True)
        values["dataloader_pin_memory"] = False
        if values.get("log_level", "passive") == "passive":
            values["log_level"] = "warning"  # else it lists every layer's IPU again at every save
        options = {**asdict(self.options), "ipu_config_name": None, "n_ipu": None, "ipu_config_overrides": None}
        known = {name: value for name, value in {**values, **options}.items() if name in IPU_FIELDS}
        try:
            return IPUTrainingArguments(**known)
        except ValueError as error:
            raise InputError(f"IPUTrainingArguments: {error}") from error

    def trainer(
        self, model: Any, processor: Any, args: Any, inputs: TrainerInputs, config: Optional[PipelineConfig] = None
    ) -> PipelinedTrainer:
        """Return the IPU's trainer, after checking what would fail only when compiled.

        Args:
            model, processor, args, inputs: as of `Engine.trainer`.
            config: of all of poprun's instances together.

        Raises:
            InputError: layers that are not the model's, too few images or IPUs.
        """
        assert config is not None
        self._check(StagePlan.from_config(config, model.config, args.per_device_train_batch_size, args.fp32), inputs)
        local = pod_config(config, self.ranks.num_instances)
        pipelined = PipelinedViT.of(model, local, inputs.pos_weight_L)
        return PipelinedTrainer(pipelined, processor, args, inputs, local, self.ranks)

    def _check(self, plan: StagePlan, inputs: TrainerInputs) -> None:
        """Refuse a plan that cannot be compiled, lacks images, or needs more IPUs than there are."""
        needed = plan.config.inference.num_ipus
        if inputs.train is not None:
            if plan.refusal():
                raise InputError(f"{plan.refusal()}. Set --gradient_accumulation_steps higher, or use fewer stages.")
            _check_images(len(inputs.train), plan)
            needed = max(needed, plan.mode.num_ipus)
        needed //= self.ranks.num_instances
        if not poptorch.ipuHardwareIsAvailable(needed):
            raise InputError(
                f"{needed} IPUs are needed, and this system has no such number "
                "(gc-info --list-devices). Set --n_ipu, or another --ipu_config_name."
            )

    def notes(self, config: Optional[PipelineConfig], micro_batch_size: int, size: ViTSize) -> List[str]:
        """Return which IPU has which layers, whether they fit, and what differs from other engines."""
        assert config is not None
        plan = StagePlan.from_config(config, size, micro_batch_size, self.options.fp32)
        number_format = "float32" if self.options.fp32 else "float16"
        return [
            f"layers by IPU: {plan.summary()}",
            f"memory, estimated: {plan.advice()[0]}",
            f"ipu: {number_format}; AdamW without bias correction, gradients not clipped; other engines have both",
        ]


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    """Refuse values of fields that IPUTrainingArguments lacks, where they are not the defaults."""
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    defaults.update(precision.resolved(recipe(), "ipu"))
    lost = sorted(
        name
        for name in FIELDS - set(IPU_FIELDS)
        if name in values and defaults[name] is not MISSING and values[name] != defaults[name]
    )
    if lost:
        raise InputError(
            f"--{', --'.join(lost)}: IPUs have no such flag. They compute in float16 unless --fp32 is given, "
            "and their optimizer is AdamW."
        )


def _check_images(found: int, plan: StagePlan) -> None:
    mode, micro_batch_size = plan.mode, plan.micro_batch_size
    needed = micro_batch_size * mode.batch_size_factor
    if found < needed:
        raise InputError(
            f"{found:,} training images are fewer than the {needed:,} of one combined batch: "
            f"per_device_train_batch_size {micro_batch_size} x gradient_accumulation_steps "
            f"{mode.gradient_accumulation_steps} x replicas {mode.replication_factor}. "
            "Lower --gradient_accumulation_steps, or --n_ipu."
        )


class PipelinedTrainer(BaseTrainer, IPUTrainer):
    """An IPUTrainer that scores every row once, restores every tensor or fails, and resumes in the same order."""

    def __init__(
        self,
        model: PipelinedViT,
        processor: Any,
        args: IPUTrainingArguments,
        inputs: TrainerInputs,
        config: PodConfig,
        ranks: Ranks,
    ):
        """Args: config: of this instance; ranks: which of poprun's this is; the others as of `Engine.trainer`."""
        self.ranks = ranks
        super().__init__(
            replace(inputs, to_pixel_values=None),  # the collator's work, on the host
            show_progress=not args.disable_tqdm,
            model=model,
            ipu_config=config,
            args=args,
            data_collator=IPUCollate(inputs.to_pixel_values, torch.float32 if args.fp32 else torch.float16),
            tokenizer=processor,
            callbacks=[LogBeforeSave()],
        )

    def get_train_dataloader(self) -> poptorch.DataLoader:
        """Return whole combined batches, in an order that depends on the seed and the epoch alone."""
        args, index, count = self.args, self.ranks.instance, self.ranks.num_instances
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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> poptorch.DataLoader:
        """Return all rows in order, the last combined batch padded; each instance of poprun scores all of them."""
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

    def get_test_dataloader(self, test_dataset: Any) -> poptorch.DataLoader:
        """Return the same of another data set."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: Optional[bool] = None,
        ignore_keys: Optional[List[str]] = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score the padded batches, cut off the padding, and compute loss and metrics from the rows that remain."""
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics
        padded = dataloader.dataset
        logits_NL, targets_NL = np.asarray(output.predictions), np.asarray(output.label_ids)
        if len(logits_NL) != len(padded) or len(targets_NL) != len(padded):
            raise RuntimeError(f"{len(padded)} rows in, {len(logits_NL)} rows out")
        return scored(output, padded.num_rows, self.pos_weight_L, compute_metrics, metric_key_prefix)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule, and send the device its first rate: else the first update has the full one."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self.training_model.setOptimizer(self.optimizer)
        return scheduler

    def compile_model(self, model: Any, sample_batch: Dict[str, Any], log: bool = False) -> None:
        """Acquire the IPUs and compile."""
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

    def _restore(self, folder: str, model: Any) -> None:
        model.deparallelize()
        super()._restore(folder, model)
        model.parallelize(**model.ipu_config._parallelize_kwargs)
