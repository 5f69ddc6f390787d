"""The Trainer of a pipeline on CUDA or CPU: one process a stage, the same run folder as any other engine's.

The Trainer believes itself alone: every process runs the same loop over the same updates, and what takes all stages
is overridden: the step, the norm of the gradients, scoring, and whatever is written. A checkpoint is an ordinary one,
weights and optimizer of the whole model, so that any other engine, or another cut, can go on with it."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTForImageClassification

from chestxray_vit.data.cached_dataset import CachedXrays
from chestxray_vit.data.dataset import collate, targets_of
from chestxray_vit.errors import InputError
from chestxray_vit.models.vit import load_model
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stages import Pipeline, Place
from chestxray_vit.training.engines.base import (
    EpochSampler,
    LogBeforeSave,
    PaddedDataset,
    Restoring,
    replace_progress_bars,
    scored,
)

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


class LoneState(PartialState):
    """accelerate's state of a process that trains alone, whatever torchrun's variables say.

    By them accelerate would wrap each stage in data parallelism. All `PartialState`s share their attributes, so the
    first one made decides for the Trainer's own.
    """

    def _prepare_backend(
        self, cpu: bool, sagemaker_dp: bool = False, backend: Optional[str] = None
    ) -> Tuple[None, DistributedType]:
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


def share_of(given: Dict[str, Any]) -> Dict[str, Any]:
    """Return the values of TrainingArguments' fields for a Trainer to which a replica's share is one batch.

    Raises:
        InputError: half precision, in which the stages do not yet exchange what they compute; or compiling.
    """
    half = [name for name in ("bf16", "fp16") if given.get(name)]
    if half:
        raise InputError(f"--{half[0]}: a pipeline computes in float32. Leave it out.")
    if given.get("torch_compile"):
        raise InputError("--torch_compile: the stages of a pipeline are not compiled. Leave it out.")
    share = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    return {**given, "per_device_train_batch_size": share, "gradient_accumulation_steps": 1}


class LabelsOnly(torch.utils.data.Dataset):
    """The labels of a data set, for stages that see no pixels: no image is decoded for them."""

    def __init__(self, targets_NL: torch.Tensor):
        """Args: targets_NL: all labels, in the data set's order."""
        self.targets_NL = targets_NL

    def __len__(self) -> int:
        return len(self.targets_NL)

    def __getitem__(self, place: int) -> Dict[str, torch.Tensor]:
        return {"labels": self.targets_NL[place]}


def _targets(rows) -> torch.Tensor:
    return rows.targets_NL if isinstance(rows, CachedXrays) else torch.from_numpy(targets_of(rows))


def collate_labels(rows: Sequence[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    """Stack the labels (B, L)."""
    return {"labels": torch.stack([row["labels"] for row in rows])}


class StageTrainer(Restoring, Trainer):
    """A Trainer that runs one stage, in step with the others."""

    pipeline: Pipeline

    def _loader(self, dataset, sampler, batch: int) -> DataLoader:
        first = self.pipeline.place.is_first
        return DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            collate_fn=collate if first else collate_labels,
            num_workers=self.args.dataloader_num_workers if first else 0,
            pin_memory=self.args.dataloader_pin_memory and first,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return this replica's share of whole global batches."""
        args, place = self.args, self.pipeline.place
        batch = self.pipeline.micro_batch * self.pipeline.num_micro
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = EpochSampler(self.train_dataset, batch * place.num_replicas, seed, place.num_replicas, place.replica)
        return self._loader(self.train_dataset, sampler, batch)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Run one update's images forward and backward through all stages."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        return self.pipeline.step(inputs.get("pixel_values"), inputs["labels"])

    def floating_point_ops(self, inputs) -> int:
        """Count nothing: a stage does not know the others' work."""
        return 0

    def _clip_grad_norm(self, model):
        return self.pipeline.clip_gradients(self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        return self.pipeline.gradient_norm() if grad_norm is None else grad_norm

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Score every row once, through all stages; every process learns the result."""
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        place, rows = self.pipeline.place, dataloader.dataset
        logits: List[torch.Tensor] = []
        targets: List[torch.Tensor] = []
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            targets.append(batch["labels"])
            logits_BL = self.pipeline.score(batch.get("pixel_values"), len(batch["labels"]))
            if place.is_last:
                logits.append(logits_BL)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        targets_NL = torch.cat(targets)
        logits_NL = torch.cat(logits) if logits else torch.empty_like(targets_NL)
        torch.distributed.broadcast(logits_NL, place.rank(place.num_stages - 1), group=place.pipeline)
        weight_L = self.pipeline.pos_weight_L
        return scored(
            logits_NL.cpu().numpy(),
            targets_NL.cpu().numpy(),
            rows.num_rows,
            None if weight_L is None else weight_L.cpu(),
            self.compute_metrics,
            metric_key_prefix,
        )

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Return all rows in order, the last micro-batch filled; each replica scores all of them."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        micro = self.pipeline.micro_batch
        batch = micro * -(-self.args.per_device_eval_batch_size // micro)
        filled = PaddedDataset(rows, micro)
        return self._loader(filled, torch.utils.data.SequentialSampler(filled), batch)

    get_test_dataloader = get_eval_dataloader

    # What is written

    def trained_model(self) -> Optional[ViTForImageClassification]:
        """Return the whole model on the main process, else None; all processes must ask."""
        weights = self.pipeline.weights()
        if weights is None:
            return None
        vit = self._empty_model()
        vit.load_state_dict(weights, assign=True)
        return vit

    def _empty_model(self) -> ViTForImageClassification:
        with torch.device("meta"):
            return ViTForImageClassification(self.model.config)

    def save_model(self, output_dir=None, _internal_call: bool = False) -> None:
        """Write the whole model, once."""
        vit = self.trained_model()
        if vit is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            vit.save_pretrained(folder, safe_serialization=True)
            self.processing_class.save_pretrained(folder)
        torch.distributed.barrier()

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        torch.distributed.barrier()  # none goes on, to be killed, while the first still writes

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            super()._save_rng_state(output_dir)

    def _parameter_names(self, model) -> List[List[str]]:
        """Return the parameters' names by group of the optimizer: those that decay, and the others."""
        decay = set(self.get_decay_parameter_names(model))
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return [[name for name in names if name in decay], [name for name in names if name not in decay]]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = self.optimizer.state_dict()
        names = [name for group in self._parameter_names(self.model) for name in group]
        by_name = self.pipeline.gather({names[number]: value for number, value in state["state"].items()})
        if by_name is None:
            return
        groups = self._parameter_names(self._empty_model())
        places = {name: number for number, name in enumerate(name for group in groups for name in group)}
        whole = {
            "state": {places[name]: value for name, value in by_name.items()},
            "param_groups": [
                {**options, "params": [places[name] for name in group]}
                for options, group in zip(state["param_groups"], groups)
            ],
        }
        torch.save(whole, os.path.join(output_dir, OPTIMIZER))
        torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        if checkpoint is None:
            return
        whole = torch.load(Path(checkpoint, OPTIMIZER), map_location="cpu", weights_only=True)
        names = [name for group in self._parameter_names(self._empty_model()) for name in group]
        by_name = {names[number]: value for number, value in whole["state"].items()}
        own = self._parameter_names(self.model)
        numbers = {name: number for number, name in enumerate(name for group in own for name in group)}
        state = {number: by_name[name] for name, number in numbers.items() if name in by_name}
        groups = [
            {**options, "params": [numbers[name] for name in group]}
            for options, group in zip(whole["param_groups"], own)
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER), weights_only=True))

    def _restore(self, folder: str, model) -> None:
        with torch.random.fork_rng(devices=[]):
            saved, _ = load_model(folder)
        weights = saved.state_dict()
        own = model.state_dict()
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        if wrong:
            raise InputError(f"{folder}: a checkpoint of another size than this model (first: {wrong[0]}).")
        model.load_state_dict({name: weights[name] for name in own}, strict=True)


class TellEpoch(TrainerCallback):
    """Tell the sampler which epoch begins: a resumed run starts in the midst of them."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        """Set the epoch."""
        train_dataloader.sampler.set_epoch(int(state.epoch or 0))


def make_trainer(
    model,
    processor,
    args: StageArguments,
    config: PipelineConfig,
    place: Place,
    schedule: str,
    train_dataset,
    eval_dataset,
    pos_weight: Optional[Sequence[float]],
    metrics: Callable,
) -> StageTrainer:
    """Return the trainer of this process's stage.

    Args:
        model: a whole one, the same in every process; it is cut in place.
        processor, train_dataset, eval_dataset, pos_weight, metrics: as for `backend.make_trainer`.
        args: whose batch is a replica's share of an update.
        config: of `ipu_config.read_ipu_config`.
        place: of `stages.init_stage_rank`.
        schedule: one of `schedule.SCHEDULES`.

    Raises:
        InputError: layers that are not the model's, too few images, or too few micro-batches for the schedule.
    """
    config.check_layers(model.config.num_hidden_layers)
    mode = config.training
    needed = args.per_device_train_batch_size * place.num_replicas
    if len(train_dataset) < needed:
        raise InputError(
            f"{len(train_dataset):,} training images are fewer than one global batch of {needed}. "
            "Lower --gradient_accumulation_steps, or start fewer replicas."
        )
    micro = args.per_device_train_batch_size // mode.gradient_accumulation_steps
    recompute = config.recompute_checkpoint_every_layer
    weight_L = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
    pipeline = Pipeline(model, place, mode, micro, recompute, schedule, weight_L)
    if not place.is_first:
        train_dataset, eval_dataset = (
            None if data is None else LabelsOnly(_targets(data)) for data in (train_dataset, eval_dataset)
        )
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=metrics,
        processing_class=processor,
        callbacks=[LogBeforeSave(), TellEpoch()],
    )
    trainer.pipeline = pipeline
    replace_progress_bars(trainer, show=place.is_main and not args.disable_tqdm)
    return trainer
