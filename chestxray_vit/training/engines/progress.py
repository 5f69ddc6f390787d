"""What a training prints as it goes, and what it logs: one bar, one line per log."""

from __future__ import annotations

from typing import Any, Dict, Optional

import transformers
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class Progress(ProgressCallback):
    """One bar for the updates, one line for each log: the Trainer's own prints an AUC per finding in a row."""

    prediction_bar: Any
    training_bar: Any

    def on_train_begin(self, args, state, control, **kwargs):
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("train")
            self.training_bar.unit = "update"

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **_):
        """Show a bar for a scoring that takes more than two seconds, and remove it afterwards."""
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                self.prediction_bar = _scoring_bar(len(eval_dataloader))
            self.prediction_bar.update(1)

    def on_log(self, args, state, control, logs=None, **_):
        """Print a line above the bar."""
        if self.training_bar is None or not state.is_world_process_zero:
            return
        text = _line(logs)
        if text is not None:
            self.training_bar.write(f"epoch {state.epoch:.2f}, update {state.global_step}: {text}")


def _scoring_bar(num_batches: int) -> Any:
    return tqdm(total=num_batches, desc="score", unit="batch", delay=2, leave=False, dynamic_ncols=True)


def _line(logs: Dict[str, float]) -> Optional[str]:
    """Return what is printed of a log: validation, training, or nothing."""
    if "eval_loss" in logs:
        text = f"validation loss {logs['eval_loss']:.4f}"
        if "eval_roc_auc" in logs:
            text += f", AUC {logs['eval_roc_auc']:.4f} over {logs['eval_num_findings']:.0f} findings"
        return text
    if "loss" in logs:
        return f"loss {float(logs['loss']):.4f}, learning rate {float(logs['learning_rate']):.2e}"
    return None


class LogBeforeSave(TrainerCallback):
    """Log wherever a checkpoint is saved, so that a resumed run logs the same means as an undisturbed one."""

    def on_step_end(self, args, state, control, **_):
        """Ask for a log."""
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args, state, control, **_):
        """Ask for a log, unless this update has one: there would be nothing to take the mean of."""
        logged = any("loss" in entry and entry["step"] == state.global_step for entry in state.log_history[-2:])
        control.should_log = (control.should_log or control.should_save) and not logged


def replace_progress_bars(trainer: Any, show: bool) -> None:
    """Remove the libraries' progress bars from a trainer, and add ours if wanted."""
    for theirs in (PrinterCallback, ProgressCallback, transformers.trainer.DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(theirs)
    if show:
        trainer.add_callback(Progress())
