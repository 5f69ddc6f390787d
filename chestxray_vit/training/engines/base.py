"""What an engine is, and what all engines' trainers do alike with checkpoints, logs and pixel values.

`Trainer` itself loads a ViT's checkpoint by names that the live module no longer has, warns once, and goes on with
random weights: here every tensor is restored, or nothing is.

B batch, N images, L labels."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from chestxray_vit.errors import InputError
from chestxray_vit.images.preprocess import GreyToPixelValues
from chestxray_vit.labels import LabelSet
from chestxray_vit.models.label_config import label_set_of
from chestxray_vit.models.vit import load_model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.training.arguments import IPUArguments, TrainArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.progress import replace_progress_bars
from chestxray_vit.training.global_batch import GlobalBatch

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerInputs:
    """What a trainer reads and how.

    Attributes:
        train, validation: of `chestxray_vit.data.cached_dataset.model_inputs`.
        metrics: called with logits and labels of the whole evaluation set; None for the loss alone.
        pos_weight_L: weights of the positives in the loss; None for 1.
        to_pixel_values: makes pixel values of cached planes; None where the rows are pixel values.
        augment: changes pixel values in training.
    """

    train: Any = None
    validation: Any = None
    metrics: Optional[Callable] = None
    pos_weight_L: Optional[torch.Tensor] = None
    to_pixel_values: Optional[GreyToPixelValues] = None
    augment: Optional[Callable] = None


class Engine(ABC):
    """Where and how a model trains and scores.

    Attributes:
        device: `cpu`, `cuda` or `ipu`.
        options: our IPU and pipeline arguments.
        ranks: of this process.
    """

    def __init__(self, device: str, options: IPUArguments, ranks: Ranks):
        self.device, self.options, self.ranks = device, options, ranks

    @property
    def pixel_dtype(self) -> type:
        """The type of the pixel values that the loader sends."""
        return np.float32

    def check(self, args: TrainArguments) -> None:  # noqa: B027
        """Refuse arguments that this engine does not have."""

    def pipeline_config(self, default: Optional[str] = None) -> Optional[PipelineConfig]:
        """Return the IPU configuration to follow, if one is named or the engine needs one.

        Args:
            default: its name where none is named and the engine needs one.
        """
        name = self.options.ipu_config_name
        return None if name is None else self._read_config(name)

    def _read_config(self, name: str) -> PipelineConfig:
        return ipu_config.read_ipu_config(
            name, ipu_config.num_ipus(self.options.n_ipu), self.options.ipu_config_overrides
        )

    @abstractmethod
    def global_batch(
        self, values: Mapping[str, Any], global_batch_size: Optional[int], config: Optional[PipelineConfig]
    ) -> GlobalBatch:
        """Return how the global batch is divided: that of the IPU configuration, if there is one, on every engine.

        Args:
            values: of TrainingArguments' fields.
            global_batch_size: images per update, where the user named them.
            config: of `pipeline_config`, with its accumulation resolved.
        """

    @abstractmethod
    def arguments(self, values: Mapping[str, Any], config: Optional[PipelineConfig] = None) -> Any:
        """Return the engine's TrainingArguments, and join the other processes.

        Args:
            values: of TrainingArguments' fields; `bf16` may be `auto`.
            config: of `pipeline_config`.

        Raises:
            InputError: values that contradict each other, or that this engine does not have.
        """

    @abstractmethod
    def trainer(
        self, model: Any, processor: Any, args: Any, inputs: TrainerInputs, config: Optional[PipelineConfig] = None
    ) -> Any:
        """Return the engine's Trainer.

        Args:
            model, processor: of `chestxray_vit.models.vit`; the processor is saved beside every checkpoint.
            args: of `arguments`.
            inputs: what it reads.
            config: of `pipeline_config`.

        Raises:
            InputError: too few images, or a model that does not fit the configuration.
        """

    def notes(self, config: Optional[PipelineConfig], micro_batch_size: int, size: ViTSize) -> List[str]:
        """Return what a user should know of this engine's training, once per run."""
        return []


class BaseTrainer(TrainerBase):
    """What all engines' trainers do alike; comes before a library's Trainer among the bases."""

    model: Any  # set by the library's Trainer
    args: Any
    train_dataset: Any
    processing_class: Any

    def __init__(self, inputs: TrainerInputs, show_progress: bool, **options: Any):
        """Args: inputs: what it reads; show_progress: print a bar; options: of the library's Trainer."""
        self.to_pixel_values, self.augment, self.pos_weight_L = (
            inputs.to_pixel_values,
            inputs.augment,
            inputs.pos_weight_L,
        )
        super().__init__(
            train_dataset=inputs.train, eval_dataset=inputs.validation, compute_metrics=inputs.metrics, **options
        )
        replace_progress_bars(self, show_progress)

    def log(self, logs: Dict[str, float], *args: Any) -> None:
        """Log, without what is undefined: JSON has no NaN, and trainer_state.json is JSON."""
        super().log({name: value for name, value in logs.items() if not _is_nan(value)}, *args)

    def _prepare_inputs(self, inputs: Dict[str, Any]) -> Dict[str, Any]:
        """Move a batch to the device, make pixel values of grey planes there, and change them in training."""
        inputs = super()._prepare_inputs(inputs)
        for change in (self.to_pixel_values, self.augment if self.model.training else None):
            if change is not None and "pixel_values" in inputs:
                inputs["pixel_values"] = change(inputs["pixel_values"])
        return inputs

    def trained_model(self) -> Any:
        """Return the trained model as a plain `ViTForImageClassification`."""
        return self.model

    def _load_rng_state(self, checkpoint: Optional[str]) -> None:
        # transformers 4 does not tell torch >= 2.6 that the numpy part of the state is harmless
        if not hasattr(torch.serialization, "safe_globals"):
            return super()._load_rng_state(checkpoint)
        rebuild: Any = np.zeros(1).__reduce__()[0]
        harmless = [rebuild, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        with torch.serialization.safe_globals(harmless):
            return super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        if self.is_world_process_zero():
            logger.info("loading the best checkpoint: %s", Path(best).name)
        self._restore(best, self.model)

    def _restore(self, folder: str, model: Any) -> None:
        """Load through `from_pretrained`, which knows both namings; leave the random state as it was."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            saved, _ = load_model(folder)
        found, expected = label_set_of(saved.config), label_set_of(model.config)
        if found.names != expected.names:
            raise InputError(f"{folder}: a checkpoint for {list(found.names)}, expected {list(expected.names)}.")
        try:
            model.load_state_dict(saved.state_dict(), strict=True)
        except RuntimeError as error:
            raise InputError(f"{folder}: a checkpoint of another size than this model: {error}") from error


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def scored(
    output: Union[EvalPrediction, EvalLoopOutput],
    num_rows: int,
    pos_weight_L: Optional[torch.Tensor],
    compute_metrics: Optional[Callable],
    prefix: str,
) -> EvalLoopOutput:
    """Cut off the padding, and return loss and metrics of the rows that remain.

    Args:
        output: logits and targets (N, L) of all rows of a `PaddedDataset`, in its order.
        num_rows: how many rows are not padding.
        pos_weight_L: weights of the positives in the loss.
        compute_metrics: of the Trainer.
        prefix: of the metrics' names.
    """
    logits_NL = np.asarray(output.predictions, dtype=np.float32)[:num_rows]
    targets_NL = np.asarray(output.label_ids, dtype=np.float32)[:num_rows]
    loss = binary_cross_entropy_with_logits(
        torch.from_numpy(logits_NL), torch.from_numpy(targets_NL), pos_weight=pos_weight_L
    )
    metrics = {"loss": loss.item()}
    if compute_metrics is not None:
        metrics.update(compute_metrics(EvalPrediction(predictions=logits_NL, label_ids=targets_NL)))
    named = {f"{prefix}_{name}": value for name, value in metrics.items()}
    return EvalLoopOutput(logits_NL, targets_NL, named, num_rows)


def predict_logits(trainer: Any, rows: Any, targets_NL: np.ndarray) -> np.ndarray:
    """Return the float32 logits (N, L) of a data set, a row for each of its rows and in its order.

    Args:
        trainer: of `Engine.trainer`.
        rows: of `chestxray_vit.data.cached_dataset.model_inputs`.
        targets_NL: its labels, to prove the order.

    Raises:
        RuntimeError: rows were lost or changed their order: a defect, never to be reported as an AUC.
    """
    output = trainer.predict(rows)
    logits_NL = np.asarray(output.predictions, dtype=np.float32)
    if logits_NL.shape != targets_NL.shape or not np.array_equal(output.label_ids, targets_NL):
        raise RuntimeError(f"{len(targets_NL)} rows in, {len(logits_NL)} rows out, or in another order")
    return logits_NL


def check_labels(run_dir: str, found: LabelSet, dataset_dir: str, expected: LabelSet) -> None:
    """Refuse a model for other labels than a data set's, or in another order.

    Raises:
        InputError: names the labels that only one of them has.
    """
    if found.names == expected.names:
        return
    lacking = [name for name in expected.names if name not in found.names]
    unknown = [name for name in found.names if name not in expected.names]
    differences = [f"the model lacks {', '.join(lacking)}"] if lacking else []
    differences += [f"the data set lacks {', '.join(unknown)}"] if unknown else []
    raise InputError(
        f"{run_dir} scores {len(found)} labels, {dataset_dir} has {len(expected)}: "
        f"{'; '.join(differences) or 'they are in another order'}. Use the data set's labels as in the training "
        "(for NIH's: ingest with or without --include_no_finding, as then)."
    )


def pos_weights(targets_NL: np.ndarray) -> List[float]:
    """Return negatives / positives by label, as CheXNet weighted its loss; 1 where a label has no positive."""
    positives_L: Sequence[float] = targets_NL.sum(axis=0)
    return [float((len(targets_NL) - count) / count) if count else 1.0 for count in positives_L]
