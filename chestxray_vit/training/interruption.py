"""What ends a training early: a signal, a full disk, no memory; in plain words, and after a signal with a checkpoint.

A training that takes days is stopped by whoever needs the machine. So the first SIGINT (Ctrl-C) or SIGTERM (a
scheduler's) lets the update finish and saves it; resumed, the run equals one without a stop, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from chestxray_vit.entry_point import Stopped, handle_signals
from chestxray_vit.errors import REMEDIES, InputError, explain_out_of_memory, is_disk_error, is_foreign
from chestxray_vit.training import distributed
from chestxray_vit.training.distributed import Ranks

logger = logging.getLogger(__name__)


class StopAfterUpdate(TrainerCallback):
    """Ends a training after the update in which a signal came, with a checkpoint, in all processes at the same one.

    Where the update is an epoch's last, that epoch's evaluation comes first: a resumed run would not make up for it.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Args: ranks: of this process."""
        self.ranks = ranks
        self.received = 0  # the signal's number
        self.agreed = 0  # the same, of any process
        self.group: Optional[Any] = None  # of all processes, on CPUs: to ask there does not hold up a GPU
        if ranks.world_size > 1 and torch.distributed.is_initialized():
            self.group = torch.distributed.new_group(backend="gloo")

    def receive(self, number: int) -> None:
        """Note a signal."""
        self.received = number
        if self.ranks.is_main:
            logger.warning("stopping: finishing this update and saving a checkpoint; a second Ctrl-C leaves at once")

    def agree(self) -> int:
        """Return the signal that any of the processes received, 0 for none; all must ask."""
        self.agreed = self.received
        if self.group is not None:
            number = torch.tensor(self.received)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self.group)
            self.agreed = int(number)
        return self.agreed

    def on_step_end(self, args, state, control, **_):
        """Ask for a checkpoint, unless the epoch's end is due."""
        if self.agree():
            control.should_training_stop = True
            if state.epoch % 1:
                control.should_save = control.should_log = True

    def on_epoch_end(self, args, state, control, **_):
        """Ask for a checkpoint."""
        control.should_save = control.should_save or bool(self.agreed)

    def on_save(self, args, state, control, **_):
        """Let others read the checkpoint as far as umask does; leave, if a signal asks for it."""
        if state.is_world_process_zero:
            _apply_umask(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        if self.agreed:
            # now: the Trainer would load the best model, and remove this checkpoint if one only is to be kept
            self.leave(state.global_step, saved=True)

    def leave(self, updates: int, saved: bool) -> None:
        """End the run, once all processes are here; one of them says so."""
        distributed.leave()
        if not self.ranks.is_main:
            raise SystemExit(128 + self.agreed)
        remedy = "; go on with --resume_from_checkpoint last" if saved else ", without a checkpoint"
        raise Stopped(self.agreed, f"stopped after update {updates}{remedy}")


def _apply_umask(folder: Path) -> None:
    """Give weights the mode that other files have: safetensors writes for its owner alone."""
    mode = (folder / "trainer_state.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


@contextlib.contextmanager
def after_an_update(trainer: Any, ranks: Ranks) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end a training after its update, with a checkpoint; the second leaves at once.

    Args:
        trainer: of `Engine.trainer`, for whose `train` this is.
        ranks: of this process.

    Raises:
        Stopped: a signal ended the training.
    """
    callback = StopAfterUpdate(ranks)
    trainer.add_callback(callback)
    with handle_signals(callback.receive):
        try:
            yield
        except BaseException as error:
            _end_bars(trainer)  # else the next message stands at the end of one
            if callback.received and is_foreign(error, "loader ended"):  # before it could ignore the signal
                saved = any(Path(trainer.args.output_dir).glob("checkpoint-*"))
                callback.agreed = callback.received
                callback.leave(trainer.state.global_step, saved)
            raise
        if callback.agree():  # after the last update
            saved = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}").is_dir()
            callback.leave(trainer.state.global_step, saved)


def _end_bars(trainer: Any) -> None:
    for callback in trainer.callback_handler.callbacks:
        for name in ("prediction_bar", "training_bar"):
            bar = getattr(callback, name, None)
            if bar is not None:
                bar.close()


@contextlib.contextmanager
def explain_disk_and_memory_errors(folder: str, micro_batch_size: int, global_batch_size: int) -> Iterator[None]:
    """Report a full disk and a lack of memory as errors that the user can correct.

    Args:
        folder: that is written to.
        micro_batch_size: images of one forward and backward pass.
        global_batch_size: images per update.

    Raises:
        InputError: in place of the errors of torch and safetensors.
    """
    remedy = f"lower --per_device_train_batch_size (the global batch of {global_batch_size:,} stays)"
    try:
        with explain_out_of_memory(micro_batch_size, remedy):
            yield
    except OSError as error:
        if error.filename is None and is_disk_error(error):
            error.filename = folder
        raise
    except (RuntimeError, SafetensorError) as error:
        if not is_foreign(error, "disk full"):
            raise
        remedy = REMEDIES[errno.ENOSPC]
        raise InputError(f"{folder}: the disk is full. {remedy}. Earlier outputs are whole.") from error
