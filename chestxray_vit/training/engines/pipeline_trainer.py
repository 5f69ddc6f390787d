"""The engine of a pipeline on CUDA or CPU: one process per stage, the same run folder as any other engine's.

The Trainer assumes that it is the only process: every process runs the same loop over the same updates, and what
involves all stages is overridden: the step, the norm of the gradients, scoring, and whatever is written. A checkpoint
is an ordinary one, weights and optimizer of the whole model, so that any other engine, or another cut, can go on."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
import transformers
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from chestxray_vit.data.dataset import collate
from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stage_plan import StagePlan
from chestxray_vit.pipeline.stages import Pipeline, PipelineSettings, StageRank, init_stage_rank
from chestxray_vit.training import global_batch
from chestxray_vit.training.arguments import PipelineArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import TrainerInputs, scored
from chestxray_vit.training.engines.hf_trainer import HFEngine, build_arguments
from chestxray_vit.training.engines.loading import EpochSampler, LabelsOnly, PaddedDataset, collate_labels
from chestxray_vit.training.engines.progress import LogBeforeSave
from chestxray_vit.training.engines.stage_checkpoint import StageCheckpoints
from chestxray_vit.training.global_batch import GlobalBatch


class PipelineEngine(HFEngine):
    """CUDA or CPU, each process with one stage of the model."""

    def __init__(self, device: str, options: PipelineArguments, ranks: Ranks):
        super().__init__(device, options, ranks)
        self.schedule = options.pipeline_schedule
        self._stage_rank: Optional[StageRank] = None

    def pipeline_config(self, default: Optional[str] = None) -> PipelineConfig:
        """Return the IPU configuration with this run's processes instead of its IPUs.

        Raises:
            InputError: no pipeline can run here, or the processes are not a multiple of the stages.
        """
        if not transformers.__version__.startswith("5.") or find_spec("torch.distributed.pipelining") is None:
            raise InputError(
                "--pipeline needs transformers 5 and torch.distributed.pipelining (torch 2.6 or newer); found "
                f"transformers {transformers.__version__}, torch {torch.__version__}."
            )
        name, overrides, found = self.options.ipu_config_name, self.options.ipu_config_overrides, self.ranks.world_size
        assert name is not None
        stages = ipu_config.read_ipu_config(name, None, overrides).training.ipus_per_replica
        if found % stages or not self.ranks.has_rendezvous:
            raise InputError(
                f"--pipeline: {stages} stages need a process each, or a multiple; found {found}. "
                f"Start them: torchrun --nproc-per-node {stages} -m chestxray_vit.train ..."
            )
        return ipu_config.read_ipu_config(name, found, overrides)

    def global_batch(
        self, values: Mapping[str, Any], global_batch_size: Optional[int], config: Optional[PipelineConfig]
    ) -> GlobalBatch:
        """Return the configuration's own division."""
        assert config is not None
        return global_batch.of_pipeline(config, values["per_device_train_batch_size"])

    def arguments(self, values: Mapping[str, Any], config: Optional[PipelineConfig] = None) -> StageArguments:
        """Join the other stages, and return TrainingArguments to which a replica's share of an update is one batch.

        Raises:
            InputError: half precision, in which the stages do not exchange their results; or compiling.
        """
        assert config is not None
        if self._stage_rank is None:
            self._stage_rank = init_stage_rank(config, self.device, self.ranks.local_rank)
        values = self._resolved(values, pipelined=True)
        half = [name for name in ("bf16", "fp16") if values.get(name)]
        if half:
            raise InputError(f"--{half[0]}: a pipeline computes in float32. Leave it out.")
        if values.get("torch_compile"):
            raise InputError("--torch_compile: the stages of a pipeline are not compiled. Leave it out.")
        share = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
        values.update(per_device_train_batch_size=share, gradient_accumulation_steps=1)
        return build_arguments(StageArguments, values)

    def trainer(
        self, model: Any, processor: Any, args: Any, inputs: TrainerInputs, config: Optional[PipelineConfig] = None
    ) -> Any:
        """Return the trainer of this process's stage; the model is cut in place.

        Raises:
            InputError: layers that are not the model's, too few images, or too few micro-batches for the schedule.
        """
        rank = self._stage_rank
        assert config is not None and rank is not None
        config.check_layers(model.config.num_hidden_layers)
        needed = args.per_device_train_batch_size * rank.num_replicas
        if len(inputs.train) < needed:
            raise InputError(
                f"{len(inputs.train):,} training images are fewer than one global batch of {needed}. "
                "Lower --gradient_accumulation_steps, or start fewer replicas."
            )
        mode, recompute = config.training, config.recompute_checkpoint_every_layer
        micro_batch_size = args.per_device_train_batch_size // mode.gradient_accumulation_steps
        settings = PipelineSettings(mode, micro_batch_size, recompute, self.schedule)
        pipeline = Pipeline(model, rank, settings, inputs.pos_weight_L)
        return StageTrainer(pipeline, model, processor, args, inputs)

    def notes(self, config: Optional[PipelineConfig], micro_batch_size: int, size: ViTSize) -> List[str]:
        """Return which process has which layers."""
        assert config is not None
        plan = StagePlan.from_config(config, size, micro_batch_size, self.options.fp32)
        return [f"layers by process: {plan.summary()}"]


class LoneState(PartialState):
    """accelerate's state of a process that trains alone, whatever torchrun's variables say.

    By them accelerate would wrap each stage in data parallelism. All `PartialState`s share their attributes, so the
    first one made decides for the Trainer's own.
    """

    def _prepare_backend(
        self, cpu: bool = False, sagemaker_dp: bool = False, backend: Optional[str] = None
    ) -> Tuple[Any, DistributedType]:
        return None, DistributedType.NO


class StageArguments(TrainingArguments):
    """TrainingArguments of one stage, whose process group is there: only the first process writes and prints."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        AcceleratorState._reset_state(reset_partial_state=True)
        self.distributed_state = LoneState(cpu=self.use_cpu)
        self._n_gpu = 0 if self.use_cpu else 1
        return torch.device("cpu") if self.use_cpu else torch.device("cuda", torch.cuda.current_device())

    @property
    def process_index(self) -> int:
        """The rank among all stages, which the Trainer asks before it writes."""
        return torch.distributed.get_rank()

    local_process_index = process_index


class SetEpoch(TrainerCallback):
    """Tell the sampler which epoch begins: a resumed run starts in the middle of them."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        """Set the epoch."""
        train_dataloader.sampler.set_epoch(int(state.epoch or 0))


class StageTrainer(StageCheckpoints, Trainer):
    """A Trainer that runs one stage, in step with the others."""

    def __init__(self, pipeline: Pipeline, model: Any, processor: Any, args: StageArguments, inputs: TrainerInputs):
        """Args: pipeline: of this stage; the others as of `Engine.trainer`."""
        self.pipeline, self.rank = pipeline, pipeline.rank
        train, validation = inputs.train, inputs.validation
        if not self.rank.is_first:
            train, validation = LabelsOnly.of(train), LabelsOnly.of(validation)
        super().__init__(
            replace(inputs, train=train, validation=validation),
            show_progress=self.rank.is_main and not args.disable_tqdm,
            model=model,
            args=args,
            processing_class=processor,
            callbacks=[LogBeforeSave(), SetEpoch()],
        )

    def _loader(self, dataset: Any, sampler: Any, batch_size: int) -> DataLoader:
        first = self.rank.is_first
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate if first else collate_labels,
            num_workers=self.args.dataloader_num_workers if first else 0,
            pin_memory=self.args.dataloader_pin_memory and first,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return this replica's share of whole global batches."""
        args, rank, rows = self.args, self.rank, self.train_dataset
        batch = self.pipeline.micro_batch_size * self.pipeline.num_micro_batches
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = EpochSampler(rows, batch * rank.num_replicas, seed, rank.num_replicas, rank.replica)
        return self._loader(rows, sampler, batch)

    def training_step(self, model: Any, inputs: Dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one update's images forward and backward through all stages."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        return self.pipeline.step(inputs.get("pixel_values"), inputs["labels"])

    def floating_point_ops(self, inputs: Any) -> int:
        """Count nothing: a stage does not know the others' work."""
        return 0

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        return self.pipeline.clip_gradients(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.pipeline.gradient_norm() if grad_norm is None else grad_norm

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: Optional[bool] = None,
        ignore_keys: Optional[List[str]] = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score every row once, through all stages; every process learns the result."""
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rank, rows = self.rank, dataloader.dataset
        assert isinstance(rows, PaddedDataset)
        logits: List[torch.Tensor] = []
        targets: List[torch.Tensor] = []
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            targets.append(batch["labels"])
            logits_BL = self.pipeline.score(batch.get("pixel_values"), len(batch["labels"]))
            if logits_BL is not None:
                logits.append(logits_BL)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        targets_NL = torch.cat(targets)
        logits_NL = torch.cat(logits) if logits else torch.empty_like(targets_NL)
        torch.distributed.broadcast(logits_NL, rank.global_rank(rank.num_stages - 1), group=rank.pipeline)
        weight_L = self.pipeline.pos_weight_L
        output = EvalPrediction(logits_NL.cpu().numpy(), targets_NL.cpu().numpy())
        cpu_weight_L = None if weight_L is None else weight_L.cpu()
        return scored(output, rows.num_rows, cpu_weight_L, self.compute_metrics, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return all rows in order, the last micro-batch filled; each replica scores all of them."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        micro = self.pipeline.micro_batch_size
        batch = micro * -(-self.args.per_device_eval_batch_size // micro)
        padded = PaddedDataset(rows, micro)
        return self._loader(padded, SequentialSampler(padded), batch)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the same of another data set."""
        return self.get_eval_dataloader(test_dataset)
