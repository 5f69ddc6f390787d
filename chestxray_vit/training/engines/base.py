"""The Trainer of CUDA and CPU, and what it shares with the IPU's: restoring, logging, the progress bar.

`Trainer` itself loads a ViT's checkpoint by names that the live module no longer has, warns once, and goes on with
random weights: here every tensor is restored, or nothing is.

B batch, L labels."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np
import torch
import transformers
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DistributedSampler, RandomSampler
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from chestxray_vit.errors import InputError
from chestxray_vit.models.label_config import label_set_of
from chestxray_vit.models.vit import load_model

logger = logging.getLogger(__name__)

# From version 5 on, accelerate gives each process its share of the images, and seeds each epoch's order.
ACCELERATE_SHARES = int(transformers.__version__.split(".")[0]) >= 5


class Restoring:
    """What both engines' trainers do with checkpoints and logs; comes before the Trainer among the bases."""

    def log(self, logs: Dict[str, float], *args) -> None:
        """Log, without what is undefined: JSON has no NaN, and trainer_state.json is JSON."""
        super().log({name: value for name, value in logs.items() if not _is_nan(value)}, *args)

    to_pixel_values: Optional[Callable] = None  # makes pixel values of cached planes
    augment: Optional[Callable] = None  # changes them in training

    def _prepare_inputs(self, inputs):
        """Move a batch to the device, make pixel values of grey planes there, and change them in training."""
        inputs = super()._prepare_inputs(inputs)
        for change in (self.to_pixel_values, self.augment if self.model.training else None):
            if change is not None and "pixel_values" in inputs:
                inputs["pixel_values"] = change(inputs["pixel_values"])
        return inputs

    def trained_model(self):
        """Return the trained model as a plain `ViTForImageClassification`."""
        return self.model

    def _load_rng_state(self, checkpoint):
        # transformers 4 does not tell torch >= 2.6 that the numpy part of the state is harmless
        if not hasattr(torch.serialization, "safe_globals"):
            return super()._load_rng_state(checkpoint)
        rebuild = np.zeros(1).__reduce__()[0]
        with torch.serialization.safe_globals([rebuild, np.ndarray, np.dtype, type(np.dtype(np.uint32))]):
            return super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._restore(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self):
        if self.is_world_process_zero():
            logger.info("loading the best checkpoint: %s", Path(self.state.best_model_checkpoint).name)
        self._restore(self.state.best_model_checkpoint, self.model)

    def _restore(self, folder: str, model) -> None:
        """Load through `from_pretrained`, which knows both namings; leave the random state as it was."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            saved, _ = load_model(folder)
        found, expected = label_set_of(saved.config), label_set_of(model.config)
        if found != expected:
            raise InputError(f"{folder}: a checkpoint for {list(found.names)}, expected {list(expected.names)}.")
        try:
            model.load_state_dict(saved.state_dict(), strict=True)
        except RuntimeError as error:
            raise InputError(f"{folder}: a checkpoint of another size than this model: {error}") from error


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


class EpochSampler(DistributedSampler):
    """One process's share of an epoch of whole global batches: an update of fewer images would weigh them more.

    An epoch's order follows from the seed and its number alone, and is that of accelerate's seeded sampler, so that
    engines, versions and resumed runs see the same images; all processes' shares together make up the batches."""

    def __init__(self, dataset, batch: int, seed: int, processes: int = 1, process: int = 0):
        """Args: dataset: to draw from; batch: images of one update; processes, process: how many, and which this is."""
        super().__init__(dataset, num_replicas=processes, rank=process, seed=seed)
        self.whole = len(dataset) // batch * batch
        self.num_samples = self.whole // processes

    def __iter__(self):
        """Yield the rows of an epoch: the one that `set_epoch` told, else the next (in an asynchronous loader)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.dataset), generator=generator)[: self.whole]
        return iter(order[self.rank :: self.num_replicas].tolist())


class PaddedDataset(torch.utils.data.Dataset):
    """A data set whose last row is repeated up to whole batches; `num_rows` says how many rows are its own."""

    def __init__(self, rows, batch: int):
        """Args: rows: of `pixels.model_inputs`; batch: images of which there must be whole ones."""
        self.rows = rows
        self.num_rows = len(rows)
        self.length = -(-self.num_rows // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> Dict[str, torch.Tensor]:
        return self.rows[min(place, self.num_rows - 1)]

    def __getitems__(self, places: Sequence[int]) -> Any:
        """Return rows, or a batch where the data set makes one."""
        own = [min(place, self.num_rows - 1) for place in places]
        whole = getattr(self.rows, "__getitems__", None)
        return [self.rows[place] for place in own] if whole is None else whole(own)


def scored(
    logits_NL: np.ndarray,
    targets_NL: np.ndarray,
    num_rows: int,
    pos_weight_L: Optional[torch.Tensor],
    compute_metrics: Optional[Callable],
    prefix: str,
) -> EvalLoopOutput:
    """Cut off the filling, and return loss and metrics of the rows that remain.

    Args:
        logits_NL, targets_NL: of all rows of a `PaddedDataset`, in its order.
        num_rows: its own.
        pos_weight_L: weights of the positives in the loss.
        compute_metrics: of the Trainer.
        prefix: of the metrics' names.
    """
    logits_NL = np.asarray(logits_NL[:num_rows], dtype=np.float32)
    targets_NL = np.asarray(targets_NL[:num_rows], dtype=np.float32)
    loss = binary_cross_entropy_with_logits(
        torch.from_numpy(logits_NL), torch.from_numpy(targets_NL), pos_weight=pos_weight_L
    )
    metrics = {"loss": loss.item()}
    if compute_metrics is not None:
        metrics.update(compute_metrics(EvalPrediction(predictions=logits_NL, label_ids=targets_NL)))
    named = {f"{prefix}_{name}": value for name, value in metrics.items()}
    return EvalLoopOutput(logits_NL, targets_NL, named, num_rows)


class RestoringTrainer(Restoring, Trainer):
    """A Trainer for several findings at once, on CUDA and CPU, that restores every tensor of a checkpoint, or fails."""

    pos_weight_L: Optional[torch.Tensor] = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean binary cross-entropy over images and findings, in float32."""
        outputs = model(pixel_values=inputs["pixel_values"])
        logits_BL = outputs.logits.float()
        weight_L = None if self.pos_weight_L is None else self.pos_weight_L.to(logits_BL.device)
        loss = binary_cross_entropy_with_logits(logits_BL, inputs["labels"], pos_weight=weight_L)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _get_train_sampler(self, *_):
        """Draw whole global batches, as an IPU does."""
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        if not ACCELERATE_SHARES:
            return EpochSampler(self.train_dataset, batch, seed, args.world_size, args.process_index)
        whole = len(self.train_dataset) // batch * batch
        return RandomSampler(self.train_dataset, num_samples=whole, generator=torch.Generator().manual_seed(seed))


class Progress(ProgressCallback):
    """One bar for the updates, one line for each log: the Trainer's own prints 14 AUCs in a row."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("train")
            self.training_bar.unit = "update"

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **_):
        """Show a bar for a scoring that takes more than two seconds, and take it away after."""
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                self.prediction_bar = tqdm(
                    total=len(eval_dataloader), desc="score", unit="batch", delay=2, leave=False, dynamic_ncols=True
                )
            self.prediction_bar.update(1)

    def on_log(self, args, state, control, logs=None, **_):
        """Print a line above the bar."""
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            text = f"validation loss {logs['eval_loss']:.4f}"
            if "eval_roc_auc" in logs:
                text += f", AUC {logs['eval_roc_auc']:.4f} over {logs['eval_num_findings']:.0f} findings"
        elif "loss" in logs:
            text = f"loss {float(logs['loss']):.4f}, learning rate {float(logs['learning_rate']):.2e}"
        else:
            return
        self.training_bar.write(f"epoch {state.epoch:.2f}, update {state.global_step}: {text}")


class LogBeforeSave(TrainerCallback):
    """Log wherever a checkpoint is saved, so that a resumed run logs the same means as an undisturbed one."""

    def on_step_end(self, args, state, control, **_):
        """Ask for a log."""
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args, state, control, **_):
        """Ask for a log, unless this update has one: there would be nothing to take the mean of."""
        logged = any("loss" in entry and entry["step"] == state.global_step for entry in state.log_history[-2:])
        control.should_log = (control.should_log or control.should_save) and not logged


def replace_progress_bars(trainer, show: bool) -> None:
    """Take away what the libraries print of a training, and show our bar and lines in its place, if wanted."""
    for theirs in (PrinterCallback, ProgressCallback, transformers.trainer.DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(theirs)
    if show:
        trainer.add_callback(Progress())
