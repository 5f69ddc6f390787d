"""The one place where an engine is chosen, and where one version of transformers differs from another.

Hands over the arguments class, the recipe's defaults, the cut of the global batch, and a Trainer.

N images, L labels."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import platform
import shutil
import tempfile
from dataclasses import MISSING, asdict, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
import transformers
from transformers import Trainer, TrainingArguments

from chestxray_vit.data.dataset import collate
from chestxray_vit.errors import InputError
from chestxray_vit.images.preprocess import GreyToPixelValues
from chestxray_vit.metrics.roc_auc import compute_metrics
from chestxray_vit.models.device import pick_device as pick_torch_device
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.stage_plan import StagePlan
from chestxray_vit.training import global_batch as batch
from chestxray_vit.training import precision
from chestxray_vit.training.distributed import instance, is_main_process, world_size
from chestxray_vit.training.engines.base import LogBeforeSave, RestoringTrainer, replace_progress_bars

logger = logging.getLogger(__name__)

EVALUATION_BATCH = {"cpu": 32, "cuda": 64, "ipu": 1}  # on the CPU 1.05 to 1.15 times as fast as by 64

# The tutorial's recipe, under transformers 5's names.
RECIPE: Dict[str, Any] = {
    "output_dir": None,
    "num_train_epochs": 3.0,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,  # below 1: a share of all updates
    "optim": None,  # this and the next follow from the device
    "bf16": None,
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
    "per_device_train_batch_size": None,  # these follow from the global batch and the engine
    "gradient_accumulation_steps": None,
    "per_device_eval_batch_size": None,
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
    """Return `ipu`, `cuda` or `cpu` for `auto`, and refuse what is not there."""
    if device == "ipu" or (device == "auto" and _is_installed("poptorch")):
        problem = _without_ipus()
        if problem is None:
            return "ipu"
        if device == "ipu":
            raise InputError(f"--device ipu: {problem}")
        logger.warning("no IPU: %s", problem)
    return pick_torch_device(device)


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _without_ipus() -> Optional[str]:
    """Return why IPUs cannot be used here, and the remedy; None if they can."""
    if not _is_installed("poptorch"):
        return (
            "PopTorch is not installed. Enable the Poplar SDK (source SDK/enable) and install its wheel "
            "(pip install SDK/poptorch-*.whl)."
        )
    try:
        import poptorch
    except (ImportError, OSError, AssertionError) as error:  # it asserts its own torch
        return (
            f"PopTorch cannot be loaded by Python {platform.python_version()} with torch {torch.__version__}: {error}. "
            f"Poplar SDK 3.3 and 3.4 go with Python 3.8 and torch 2.0.1; is the SDK enabled in this shell?"
        )
    if not _is_installed("optimum") or not _is_installed("optimum.graphcore"):
        return "optimum-graphcore is not installed: pip install -r requirements.txt, in the SDK's environment."
    if not poptorch.ipuHardwareIsAvailable():
        return "no IPU is there (gc-info --list-devices). On a pod, is a V-IPU partition made and enabled?"
    return None


def settle_batch(
    given: Dict[str, Any], device: str, total: Optional[int], config: Optional[PipelineConfig], place: Any = None
) -> batch.GlobalBatch:
    """Return how the global batch is cut: that of the IPU configuration, if there is one, on every engine.

    Args:
        given: values of TrainingArguments' fields.
        device: of `pick_device`.
        total: images of one update, where the user gave them.
        config: of `ipu_config_for`, with its accumulation settled.
        place: of `stages.init_stage_rank`; there the cut is the configuration's own.
    """
    at_a_time, passes = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    if config is not None:
        wanted = batch.on_ipus(config, at_a_time)
        if device == "ipu" or place is not None:
            return wanted
        passes, total = None, wanted.total
    return batch.on_processes(at_a_time, passes, total, world_size(), device)


def ipu_config_for(options: Any, device: str, default: str = ipu_config.DEFAULT) -> Optional[PipelineConfig]:
    """Return the IPU configuration to go by, if one was named or IPUs are to be used.

    Args:
        options: our IPU flags.
        device: of `pick_device`.
        default: the name on IPUs, where none was given.
    """
    name = options.ipu_config_name or (default if device == "ipu" else None)
    if name is None:
        return None
    return ipu_config.read_ipu_config(name, ipu_config.num_ipus(options.n_ipu), options.ipu_config_overrides)


def pipeline_config(options: Any, device: str) -> PipelineConfig:
    """Return the IPU configuration with this run's processes in the IPUs' place.

    Args:
        options: our flags of pipelines.
        device: of `pick_device`.

    Raises:
        InputError: no pipeline can run here, or the processes are not a multiple of the stages.
    """
    if device == "ipu":
        raise InputError("--pipeline is for CUDA and CPU; on IPUs the model is always pipelined. Leave it out.")
    if not transformers.__version__.startswith("5.") or not _is_installed("torch.distributed.pipelining"):
        raise InputError(
            "--pipeline needs transformers 5 and torch.distributed.pipelining (torch 2.6 or newer); found "
            f"transformers {transformers.__version__}, torch {torch.__version__}."
        )
    name, found = options.ipu_config_name, world_size()
    stages = ipu_config.read_ipu_config(name, None, options.ipu_config_overrides).training.ipus_per_replica
    if found % stages or "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"--pipeline: {stages} stages need a process each, or a multiple; found {found}. "
            f"Start them: torchrun --nproc-per-node {stages} -m chestxray_vit.train ..."
        )
    return ipu_config.read_ipu_config(name, found, options.ipu_config_overrides)


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


def training_arguments(given: Dict[str, Any], device: str, options: Any = None, place: Any = None) -> Any:
    """Build the engine's TrainingArguments.

    Args:
        given: values of TrainingArguments' fields; `bf16` may be `auto`.
        device: of `pick_device`.
        options: our IPU flags.
        place: of `stages.init_stage_rank`; there a batch is what one replica takes of an update.

    Raises:
        InputError: values that contradict each other, or that this engine does not have.
    """
    given = precision.settled(given, device, place is not None)
    given["per_device_eval_batch_size"] = given["per_device_eval_batch_size"] or EVALUATION_BATCH[device]
    if device == "ipu":
        return _ipu_arguments(given, options)
    given[name_here("use_cpu")] = device == "cpu"
    is_parallel = world_size() > 1 and place is None  # else each process trains a stage, as if it were alone
    if device == "cpu" and is_parallel and not given.get("ddp_backend"):
        given["ddp_backend"] = "gloo"
    if is_parallel and given.get("ddp_find_unused_parameters") is None:
        given["ddp_find_unused_parameters"] = False
    kind = TrainingArguments
    if place is not None:
        from chestxray_vit.training.engines import pipeline_trainer as pipelined

        kind = pipelined.StageArguments
        given = pipelined.share_of(given)
    try:
        return kind(**given)
    except (ValueError, ImportError) as error:
        raise InputError(f"TrainingArguments: {error}") from error


def _ipu_arguments(given: Dict[str, Any], options: Any) -> Any:
    """Build IPUTrainingArguments, and refuse what was asked for and is not theirs."""
    from chestxray_vit.training.engines import ipu_trainer as ipu

    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    defaults.update(precision.settled(recipe(), "ipu"))
    lost = sorted(
        name
        for name in FIELDS - set(ipu.IPUTrainingArguments.__dataclass_fields__)
        if name in given and defaults[name] is not MISSING and given[name] != defaults[name]
    )
    if lost:
        raise InputError(
            f"--{', --'.join(lost)}: IPUs have no such flag. They compute in float16 unless --fp32 is given, "
            "and their optimizer is AdamW."
        )
    if instance()[0] > 0:  # only the first instance writes the run; the others' checkpoints are for themselves
        given["output_dir"], given["disable_tqdm"] = tempfile.mkdtemp(prefix="instance."), True
        atexit.register(shutil.rmtree, given["output_dir"], ignore_errors=True)
    known = ipu.IPUTrainingArguments.__dataclass_fields__
    theirs = {name: value for name, value in asdict(options).items() if name in known}
    return ipu.training_arguments(
        given, {**theirs, "ipu_config_name": None, "n_ipu": None, "ipu_config_overrides": None}
    )


def make_trainer(
    model,
    processor,
    args: Any,
    train_dataset=None,
    eval_dataset=None,
    pos_weight: Optional[Sequence[float]] = None,
    metrics: Callable = compute_metrics,
    config: Optional[PipelineConfig] = None,
    place: Any = None,
    schedule: str = "1f1b",
    to_pixel_values: Optional[GreyToPixelValues] = None,
) -> Any:
    """Return the Trainer of the chosen engine.

    Args:
        model, processor: of `chestxray_vit.models.vit`; the processor is saved beside every checkpoint.
        args: of `training_arguments`; those for IPUs make an IPUTrainer.
        train_dataset, eval_dataset: of `chestxray_vit.data.cached_dataset.model_inputs`.
        pos_weight: L weights of the positives in the loss; None for 1.
        metrics: called with logits and labels of the whole evaluation set.
        config: of `ipu_config_for`, for IPUs and pipelines.
        place: of `stages.init_stage_rank`: this process trains one stage.
        schedule: of the pipeline, one of `schedule.SCHEDULES`.
        to_pixel_values: for cached planes; None for pixel values.
    """
    if not isinstance(args, TrainingArguments):
        from chestxray_vit.training.engines import ipu_trainer as ipu

        data = train_dataset, eval_dataset
        return ipu.make_trainer(model, processor, args, config, *data, pos_weight, metrics, instance(), to_pixel_values)
    if place is not None:
        from chestxray_vit.training.engines import pipeline_trainer as pipelined

        data = train_dataset, eval_dataset
        trainer = pipelined.make_trainer(model, processor, args, config, place, schedule, *data, pos_weight, metrics)
        trainer.to_pixel_values = to_pixel_values
        return trainer
    needed = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    if train_dataset is not None and len(train_dataset) < needed:
        raise InputError(
            f"{len(train_dataset):,} training images are fewer than one global batch of {needed}. "
            "Lower --global_batch_size."
        )
    processing = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    if world_size() > 1 and not transformers.__version__.startswith(("4.29.", "5.")):
        raise InputError(
            f"several processes need transformers 4.29 or 5, where their shares of the images are tested; "
            f"found {transformers.__version__}."
        )
    told = precision.fit(model, args)
    if is_main_process():
        logger.info("%s", told)
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
    trainer.to_pixel_values = to_pixel_values
    trainer.pos_weight_L = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
    replace_progress_bars(trainer, show=not args.disable_tqdm)
    return trainer


def predict_logits(trainer, dataset, targets_NL: np.ndarray) -> np.ndarray:
    """Return the float32 logits (N, L) of a data set, a row for each of its rows and in its order.

    Args:
        trainer: of `make_trainer`.
        dataset: of `chestxray_vit.data.cached_dataset.model_inputs`.
        targets_NL: its labels, to prove the order.

    Raises:
        RuntimeError: rows were lost or changed places: a defect, never to be reported as an AUC.
    """
    output = trainer.predict(dataset)
    logits_NL = np.asarray(output.predictions, dtype=np.float32)
    if logits_NL.shape != targets_NL.shape or not np.array_equal(output.label_ids, targets_NL):
        raise RuntimeError(f"{len(targets_NL)} rows in, {len(logits_NL)} rows out, or in another order")
    return logits_NL


def notes(
    device: str, config: Optional[PipelineConfig], place: Any, micro_batch: int, shape: ViTSize, fp32: bool
) -> List[str]:
    """Return what a user should know of a pipeline, once a run.

    Args:
        device, config, place: of this run; without a pipeline there is nothing to say.
        micro_batch: images that a stage takes at a time.
        shape: of the model.
        fp32: IPUs compute in float32.
    """
    if device != "ipu" and place is None:
        return []
    plan = StagePlan.from_config(config, shape, micro_batch, fp32)
    told = [f"layers by {'IPU' if place is None else 'process'}: {plan.summary()}"]
    if device == "ipu":
        told.append(f"memory, estimated: {plan.advice()[0]}")
        precision = "float32" if fp32 else "float16"
        told.append(f"ipu: {precision}; AdamW without bias correction, gradients not clipped; other engines have both")
    return told


def pixel_dtype(device: str, fp32: bool) -> type:
    """Return the type of the pixels that the engine's loader sends: IPUs take float16 for a half model."""
    return np.float16 if device == "ipu" and not fp32 else np.float32


def versions() -> Dict[str, str]:
    """Return the versions that a run depends on; those of the IPU stack where they are installed."""
    names = ["chestxray-vit", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow"]
    found = {name: version(name) for name in names}
    for name in ("optimum-graphcore", "poptorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
