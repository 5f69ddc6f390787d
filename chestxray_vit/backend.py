"""The one place where an engine is chosen, and where one version of transformers differs from another.

Hands over the arguments class, the recipe's defaults, the cut of the global batch, and a Trainer.

N images, L labels."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
import transformers
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from chestxray_vit.auc import compute_metrics
from chestxray_vit.problems import InputError
from chestxray_vit.trainer import LogBeforeSave, Progress, RestoringTrainer
from chestxray_vit.xrays import collate

logger = logging.getLogger(__name__)

IPU_CONFIGS = Path(__file__).parent.parent / "ipu_configs"
LARGEST_BATCH = {"cpu": 32, "cuda": 64}  # images of one forward pass, where the user names none

# The tutorial's recipe, under transformers 5's names.
RECIPE: Dict[str, Any] = {
    "output_dir": None,
    "num_train_epochs": 3.0,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,  # below 1: a share of all updates
    "optim": "adamw_torch",
    "seed": 1337,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "roc_auc",
    "greater_is_better": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # a loss that is NaN must be seen
    "report_to": "none",
    "disable_tqdm": False,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "per_device_train_batch_size": None,  # these two follow from the global batch
    "gradient_accumulation_steps": None,
    "per_device_eval_batch_size": 64,
    "save_safetensors": True,
}

# transformers 5's names of flags, and the older ones.
RENAMED = (("eval_strategy", "evaluation_strategy"), ("use_cpu", "no_cuda"), ("warmup_steps", "warmup_ratio"))
FIELDS = frozenset(TrainingArguments.__dataclass_fields__)


def name_here(name: str) -> str:
    """Return a TrainingArguments field's name in the installed transformers, given its newer or older one."""
    for new, old in RENAMED:
        if name in (new, old) and name not in FIELDS:
            return old if name == new else new
    return name


def recipe() -> Dict[str, Any]:
    """Return the recipe's defaults under the names of the installed transformers."""
    defaults = {name_here(name): value for name, value in RECIPE.items()}
    if "warmup_ratio" in FIELDS:  # there, warmup_steps counts updates
        defaults["warmup_ratio"] = defaults.pop("warmup_steps")
        defaults["warmup_steps"] = 0
    return {name: value for name, value in defaults.items() if name in FIELDS}


def pick_device(device: str) -> str:
    """Return `cuda` or `cpu` for `auto`, and refuse what is not there."""
    if device == "ipu":
        raise InputError("--device ipu: this version trains on CUDA and CPU only. Use --device auto.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch. Use --device cpu, or check nvidia-smi.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def world_size() -> int:
    """Return the number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tell whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def read_ipu_config(name: str) -> Dict[str, Any]:
    """Read an ipu_config.json by folder, file, or bare name of a folder in `ipu_configs/`.

    Raises:
        InputError: there is none, or it is not JSON with the batch's factors.
    """
    candidates = [Path(name), Path(name) / "ipu_config.json", IPU_CONFIGS / name / "ipu_config.json"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(folder.name for folder in IPU_CONFIGS.glob("*") if folder.is_dir()))
        raise InputError(f"--ipu_config_name {name}: no ipu_config.json there. Known names: {known}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}.") from error
    for key in ("gradient_accumulation_steps", "replication_factor"):
        if not (isinstance(config.get(key), int) and config[key] > 0):
            raise InputError(f"{path}: {key} is {config.get(key)!r}, expected a whole number above 0.")
    return config


def settle_batch(
    given: Dict[str, Any], device: str, global_batch_size: Optional[int], ipu_config: Optional[Dict[str, Any]]
) -> Dict[str, Any]:
    """Return `given` with the batch of one pass and the accumulation that make up the global batch.

    The global batch is the flag, else micro batch x gradient accumulation x replicas of the IPU configuration,
    else 128 as in the tutorial. On CUDA and CPU it may be cut otherwise than on IPUs: the updates stay the same.

    Raises:
        InputError: the numbers contradict each other or do not divide.
    """
    passed, accumulation = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    if global_batch_size is None and ipu_config is not None:
        factors = ipu_config["gradient_accumulation_steps"] * ipu_config["replication_factor"]
        global_batch_size = (passed or 1) * factors
    if global_batch_size is None:
        global_batch_size = passed * accumulation * world_size() if passed and accumulation else 128
    share, rest = divmod(global_batch_size, world_size() * (accumulation or 1))
    if passed is None and not rest and share:
        largest = share if accumulation else LARGEST_BATCH[device]
        passed = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
    if accumulation is None and passed:
        accumulation, rest = divmod(global_batch_size, world_size() * passed)
    if not passed or not accumulation or passed * accumulation * world_size() != global_batch_size:
        raise InputError(
            f"global batch {global_batch_size} is not per_device_train_batch_size {passed or '?'} x "
            f"gradient_accumulation_steps {accumulation or '?'} x {world_size()} processes. "
            "Leave out one of the first two, or set --global_batch_size to their product."
        )
    return {**given, "per_device_train_batch_size": passed, "gradient_accumulation_steps": accumulation}


def _global_batch(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()


def evaluates(given: Dict[str, Any]) -> bool:
    """Tell whether these values of TrainingArguments' fields evaluate during training."""
    strategy = given[name_here("eval_strategy")]
    return getattr(strategy, "value", strategy) != "no"


def no_training() -> Dict[str, Any]:
    """Return the values of TrainingArguments' fields that leave out all of training, for inference alone."""
    return {
        name_here("eval_strategy"): "no",
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
    }


def training_arguments(given: Dict[str, Any], device: str) -> TrainingArguments:
    """Build TrainingArguments for a device from the values of its fields."""
    given = dict(given)
    given[name_here("use_cpu")] = device == "cpu"
    if device == "cpu":
        given["dataloader_pin_memory"] = False
        if world_size() > 1 and not given.get("ddp_backend"):
            given["ddp_backend"] = "gloo"
    if world_size() > 1 and given.get("ddp_find_unused_parameters") is None:
        given["ddp_find_unused_parameters"] = False
    try:
        return TrainingArguments(**given)
    except (ValueError, ImportError) as error:
        raise InputError(f"TrainingArguments: {error}") from error


def last_checkpoint(output_dir: str) -> str:
    """Return the newest checkpoint of a run.

    Raises:
        InputError: there is none.
    """
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found is None:
        raise InputError(f"--resume_from_checkpoint: no checkpoint in {output_dir}. Start without this flag.")
    return found


def clear_run(output_dir: str) -> None:
    """Remove an earlier run's checkpoints, so that none of them is taken for this run's."""
    for folder in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(folder)


def make_trainer(
    model,
    processor,
    args: TrainingArguments,
    train_dataset=None,
    eval_dataset=None,
    pos_weight: Optional[Sequence[float]] = None,
    metrics: Callable = compute_metrics,
) -> RestoringTrainer:
    """Return the Trainer of the chosen engine.

    Args:
        model, processor: of `chestxray_vit.model`; the processor is saved beside every checkpoint.
        args: of `training_arguments`.
        train_dataset, eval_dataset: of `chestxray_vit.xrays.preprocessed`.
        pos_weight: L weights of the positives in the loss; None for 1.
        metrics: called with logits and labels of the whole evaluation set.
    """
    if train_dataset is not None and len(train_dataset) < _global_batch(args):
        raise InputError(
            f"{len(train_dataset):,} training images are fewer than one global batch of {_global_batch(args)}. "
            "Lower --global_batch_size."
        )
    processing = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    if world_size() > 1 and not transformers.__version__.startswith(("4.29.", "5.")):
        raise InputError(
            f"several processes need transformers 4.29 or 5, where their shares of the images are tested; "
            f"found {transformers.__version__}."
        )
    trainer = RestoringTrainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=metrics,
        callbacks=[LogBeforeSave()],
        **{processing: processor},
    )
    # our loss is a mean, to be averaged over the accumulated batches; else newer Trainers take their sum
    trainer.model_accepts_loss_kwargs = False
    trainer.pos_weight_L = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
    trainer.remove_callback(PrinterCallback)
    if not args.disable_tqdm:
        trainer.remove_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK)
        trainer.add_callback(Progress())
    return trainer


def predict_logits(trainer: RestoringTrainer, dataset, targets_NL: np.ndarray) -> np.ndarray:
    """Return the float32 logits (N, L) of a data set, a row for each of its rows and in its order.

    Args:
        trainer: of `make_trainer`.
        dataset: of `chestxray_vit.xrays.preprocessed`.
        targets_NL: its labels, to prove the order.

    Raises:
        RuntimeError: rows were lost or changed places: a defect, never to be reported as an AUC.
    """
    output = trainer.predict(dataset)
    logits_NL = np.asarray(output.predictions, dtype=np.float32)
    if logits_NL.shape != targets_NL.shape or not np.array_equal(output.label_ids, targets_NL):
        raise RuntimeError(f"{len(targets_NL)} rows in, {len(logits_NL)} rows out, or in another order")
    return logits_NL


def versions() -> Dict[str, str]:
    """Return the versions that a run depends on."""
    from importlib.metadata import version

    names: List[str] = ["chestxray-vit", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow"]
    return {name: version(name) for name in names}


def leave() -> None:
    """End the process group, if torchrun started one, after all processes are done.

    Without the wait, gloo's thread may still hold a tensor of the last gathering when the group is taken down;
    it then waits for Python's lock, and Python for the thread, for ever (seen with torch 2.13).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
