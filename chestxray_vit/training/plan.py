"""What a training does, decided before it starts: nothing is left open once `resolve` has returned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Mapping, Optional

import numpy as np

from chestxray_vit.data.dataset import XrayDataset, targets_of
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.training import recipe, run_folder
from chestxray_vit.training.arguments import PipelineArguments, TrainArguments, ViTSizeArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import Engine
from chestxray_vit.training.global_batch import GlobalBatch

RESUME_LAST = ("last", "true", "True")


@dataclass(frozen=True)
class TrainCommand:
    """The parsed command line of `train`.

    Attributes:
        args, size, pipeline: our own arguments.
        values: of TrainingArguments' fields, the recipe's where none was named.
    """

    args: TrainArguments
    size: ViTSizeArguments
    pipeline: PipelineArguments
    values: Mapping[str, Any]

    @property
    def output_dir(self) -> str:
        """The run's folder."""
        return str(self.values["output_dir"])

    @property
    def flags(self) -> Dict[str, Any]:
        """Our own arguments by name."""
        return {**asdict(self.args), **asdict(self.size), **asdict(self.pipeline)}

    def check(self) -> None:
        """Refuse arguments that lack another or contradict it; all of them at once.

        Raises:
            InputError: what is wrong, a line each.
        """
        wrong = []
        if not self.args.dataset_dir:
            wrong.append("--dataset_dir is missing: name the ingested folder.")
        if not self.values["output_dir"]:
            wrong.append("--output_dir is missing: name the run's folder.")
        if self.size.named() and not self.args.from_scratch:
            wrong.append(f"--{next(iter(self.size.named()))} goes with --from_scratch: a checkpoint has its own size.")
        if self.args.global_batch_size is not None and self.args.global_batch_size < 1:
            wrong.append(f"--global_batch_size is {self.args.global_batch_size}, expected 1 or more.")
        if self.pipeline.pipeline and not self.pipeline.ipu_config_name:
            wrong.append("--pipeline goes with --ipu_config_name, which says where to cut the model.")
        if wrong:
            raise InputError("\n".join(wrong))


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a training needs beside the data set.

    Attributes:
        command: what the user asked for.
        engine: that trains.
        label_set: what the model's outputs stand for.
        splits: rows of `train` and, where it is evaluated on, `validation`.
        pipeline_config: the IPU configuration that gives the global batch, if one was named.
        global_batch: how the images of an update are divided.
        training_arguments: the engine's TrainingArguments.
    """

    command: TrainCommand
    engine: Engine
    label_set: LabelSet
    splits: Mapping[str, Any]
    pipeline_config: Optional[PipelineConfig]
    global_batch: GlobalBatch
    training_arguments: Any

    @property
    def resume_from(self) -> Optional[str]:
        """The checkpoint to go on with."""
        return self.command.values["resume_from_checkpoint"] or None

    def facts(self) -> Dict[str, Any]:
        """Return what train_config.json says of the plan."""
        return {
            "flags": self.command.flags,
            "training_arguments": self.training_arguments.to_dict(),
            "device": self.engine.device,
            "processes": self.engine.ranks.world_size,
            "global_batch": self.global_batch.to_dict(),
        }


def open_output(command: TrainCommand, ranks: Ranks) -> TrainCommand:
    """Return the command with the checkpoint to go on with, or see that the output folder is free.

    Raises:
        InputError: there is no whole checkpoint, or the folder holds an earlier run.
    """
    resume = command.values["resume_from_checkpoint"]
    if resume in RESUME_LAST:
        resume = run_folder.last_checkpoint(command.output_dir)
    if ranks.is_main and not resume:
        run_folder.check_free(command.output_dir, command.args.overwrite)
    return replace(command, values={**command.values, "resume_from_checkpoint": resume})


def resolve(command: TrainCommand, engine: Engine, dataset: XrayDataset) -> TrainingPlan:
    """Decide whatever the command line left open.

    Args:
        command: of `open_output`.
        engine: of `engines.choose`.
        dataset: of `open_dataset`.

    Raises:
        InputError: arguments contradict the engine, the data set or one another.
    """
    engine.check(command.args)
    values = dict(command.values)
    splits = _splits(dataset, values)
    if "validation" not in splits:
        values["load_best_model_at_end"] = False
    config = engine.pipeline_config()
    if config is not None:
        micro_batch_size, steps = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
        config = config.with_batch(micro_batch_size or 1, steps, command.args.global_batch_size)
    batch = engine.global_batch(values, command.args.global_batch_size, config)
    arguments = engine.arguments({**values, **batch.fields()}, config)
    return TrainingPlan(command, engine, dataset.label_set, splits, config, batch, arguments)


def _splits(dataset: XrayDataset, values: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the rows of the training split and, if it is evaluated on, of the validation split."""
    splits = {"train": dataset.split("train")}
    if recipe.evaluates(values):
        splits["validation"] = dataset.split("validation")
        num_findings = len(dataset.label_set.findings)
        _check_validation(targets_of(splits["validation"])[:, :num_findings], str(dataset.dataset_dir))
    return splits


def _check_validation(targets_NL: np.ndarray, dataset_dir: str) -> None:
    """Refuse a validation split on which no finding has an AUC: no best epoch could be chosen."""
    positives_L = targets_NL.sum(axis=0)
    if not ((positives_L > 0) & (positives_L < len(targets_NL))).any():
        raise InputError(
            f"{dataset_dir}: no finding has both classes among the {len(targets_NL)} validation images, so no epoch "
            "can be chosen by AUC. Ingest with a larger --val_fraction, or train with --eval_strategy no."
        )
