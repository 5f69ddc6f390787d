"""Fine-tune a ViT on an ingested data set, on IPUs, CUDA or CPU, one process or several.

    python -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run

The defaults are the Graphcore tutorial's recipe: 3 epochs, global batch 128, learning rate 2e-4, cosine with
25 % warm-up. The split is by patient, and the best epoch is kept by the mean AUC over the 14 findings."""

import contextlib
import dataclasses
import logging
import sys
from typing import Any, ContextManager, Dict, List, Optional, Sequence, Tuple

from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.training import arguments as flags

logger = logging.getLogger(__name__)

RECIPE_HELP = """flags of TrainingArguments, with the recipe's defaults (--help_all lists them all):
  --output_dir RUN  --num_train_epochs 3  --learning_rate 2e-4  --lr_scheduler_type cosine  --warmup_steps 0.25
  --seed 1337  --eval_strategy epoch  --save_strategy epoch  --save_total_limit 2  --load_best_model_at_end true
  --metric_for_best_model roc_auc  --resume_from_checkpoint last|FOLDER  --dataloader_num_workers N
  --bf16 true|false|auto (default: on CUDA that has it; auto: on a CPU that has it, too)  --torch_compile true

examples:
  python -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run
  torchrun --nproc-per-node 2 -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run
  python -m chestxray_vit.train --ipu_config_name vit-base-pod16 --dataset_dir chest-xray-nihcc --output_dir run"""


@dataclasses.dataclass
class TrainFlags:
    """Our own flags of `train`."""

    dataset_dir: Optional[str] = dataclasses.field(
        default=None, metadata={"metavar": "DIR", "help": "ingested folder, with metadata.jsonl"}
    )
    model_name_or_path: str = dataclasses.field(
        default="google/vit-base-patch16-224-in21k",
        metadata={
            "metavar": "MODEL",
            "help": "ViT to start from: a folder or a name on the Hub (default: google/vit-base-patch16-224-in21k)",
        },
    )
    device: str = dataclasses.field(
        default="auto",
        metadata={
            "help": "engine (default: auto, IPUs or CUDA if there)",
            "choices": ["auto", "ipu", "cuda", "cpu"],
        },
    )
    global_batch_size: Optional[int] = dataclasses.field(
        default=None,
        metadata={
            "metavar": "N",
            "help": "images of one update, over all processes (default: 128, or the IPU config's)",
        },
    )
    pos_weight: str = dataclasses.field(
        default="none",
        metadata={
            "help": "auto: weight each finding's positives by negatives / positives in training (default: none)",
            "choices": ["none", "auto"],
        },
    )
    cache_dir: Optional[str] = dataclasses.field(
        default=None,
        metadata={
            "metavar": "DIR",
            "help": "keep the images at the model's size here, for every later epoch and run (default: pixel_cache in "
            "the data set's folder, or Hugging Face's cache; none: decode each time)",
        },
    )
    allow_unreadable: bool = dataclasses.field(
        default=False, metadata={"help": "leave out images that cannot be read, and list them"}
    )
    augment: bool = dataclasses.field(
        default=False,
        metadata={"help": "turn, shift, scale, brighten each training image a little, never flip (CUDA and CPU)"},
    )
    overwrite: bool = dataclasses.field(default=False, metadata={"help": "replace an earlier run in --output_dir"})
    from_scratch: bool = dataclasses.field(
        default=False, metadata={"help": "start from random weights, of the size that the next flags give"}
    )
    image_size: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "pixels (default: 224)"}
    )
    patch_size: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "pixels (default: 16)"}
    )
    hidden_size: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "width (default: 768)"}
    )
    num_hidden_layers: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "depth (default: 12)"}
    )
    num_attention_heads: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "heads (default: 12)"}
    )
    intermediate_size: Optional[int] = dataclasses.field(
        default=None, metadata={"metavar": "N", "help": "MLP width (default: 3072)"}
    )


@dataclasses.dataclass
class TrainIPUFlags(flags.IPUFlags):
    """What training in a pipeline asks besides."""

    loss_scaling: Optional[float] = dataclasses.field(
        default=None, metadata={"metavar": "X", "help": "factor on the loss in float16 (default: 1)"}
    )
    dataloader_mode: str = dataclasses.field(
        default="sync",
        metadata={
            "help": "how the host loads images for IPUs (default: sync)",
            "choices": ["sync", "async", "async_rebatched"],
        },
    )
    pipeline: bool = dataclasses.field(
        default=False,
        metadata={"help": "on CUDA or CPU: a process for each stage of --ipu_config_name, started by torchrun"},
    )
    pipeline_schedule: str = dataclasses.field(
        default="1f1b",
        metadata={"help": "order of forward and backward in --pipeline (default: 1f1b)", "choices": ["1f1b", "gpipe"]},
    )


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage."""
    (own, ipu_flags), given, _ = flags.parse(
        (TrainFlags, TrainIPUFlags),
        "python -m chestxray_vit.train",
        "Fine-tune a ViT on an ingested ChestX-ray14 folder, on IPUs, CUDA or CPU.",
        RECIPE_HELP,
        argv,
    )
    _check(own, ipu_flags, given)
    from chestxray_vit.models.checkpoint import quiet_transformers

    with _claim(given["output_dir"]), quiet_transformers():
        train(own, ipu_flags, given)
    return 0


def _claim(output_dir: str) -> ContextManager[None]:
    """Return the claim of a run's folder; the main process holds it for all."""
    from chestxray_vit.storage.lock import folder_lock
    from chestxray_vit.training import distributed as processes
    from chestxray_vit.training import run_folder as run

    return folder_lock(output_dir, run.NAMES) if processes.is_main_process() else contextlib.nullcontext()


def train(own: TrainFlags, ipu_flags: TrainIPUFlags, given: Dict[str, Any]) -> Dict[str, float]:
    """Train, write the run folder, and return the validation metrics of the best checkpoint.

    Args:
        own, ipu_flags: our flags.
        given: values of TrainingArguments' fields, as `flags.parse` returns them.

    Raises:
        InputError: whatever of the input the user can mend.
    """
    from transformers import set_seed

    from chestxray_vit.data import cached_dataset as pixels
    from chestxray_vit.data import dataset as xrays
    from chestxray_vit.images.augment import Augment
    from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
    from chestxray_vit.models.vit_size import ViTSize
    from chestxray_vit.pipeline import stages
    from chestxray_vit.training import distributed as processes
    from chestxray_vit.training import interruption as stopping
    from chestxray_vit.training import run_folder as run
    from chestxray_vit.training.engines import choose as backend

    device = backend.pick_device(own.device)
    if own.augment and device == "ipu":
        raise InputError("--augment is for CUDA and CPU. Leave it out on IPUs.")
    output_dir = given["output_dir"]
    resume = given["resume_from_checkpoint"]
    if resume in ("last", "true", "True"):
        resume = run.last_checkpoint(output_dir)
    if processes.is_main_process() and not resume:
        run.check_free(output_dir, own.overwrite)

    datasets, given = _open_splits(own.dataset_dir, given)
    config = _ipu_config(own, ipu_flags, given, device)
    place = stages.init_stage_rank(config, device, processes.local_rank()) if ipu_flags.pipeline else None
    batch = backend.settle_batch(given, device, own.global_batch_size, config, place)
    given = {**given, **batch.fields(), "resume_from_checkpoint": resume}
    args = backend.training_arguments(given, device, ipu_flags, place)
    set_seed(args.seed)
    model, processor = _build(own, resume, xrays.targets_of(datasets["train"]).shape[1])
    num_parameters, shape = model.num_parameters(), ViTSize.of(model.config)  # now: a pipeline cuts the model
    preprocess = Preprocess(processor, backend.pixel_dtype(device, ipu_flags.fp32))
    cache = pixels.open_cache(xrays.open_dataset(own.dataset_dir), preprocess, own.cache_dir, own.allow_unreadable)
    datasets = {name: pixels.readable(dataset, cache) for name, dataset in datasets.items()}
    targets_NL = xrays.targets_of(datasets["train"])
    views = pixels.model_inputs(datasets, preprocess, cache)
    trainer = backend.make_trainer(
        model,
        processor,
        args,
        views["train"],
        views.get("validation"),
        pos_weight=_pos_weight(targets_NL) if own.pos_weight == "auto" else None,
        config=config,
        place=place,
        schedule=ipu_flags.pipeline_schedule,
        to_pixel_values=None if cache is None else GreyToPixelValues(preprocess),
    )
    trainer.augment = Augment() if own.augment else None
    if processes.is_main_process():
        if not resume:
            run.clear_run(output_dir)
        _announce(len(targets_NL), args, batch, device, config, num_parameters)
        for note in backend.notes(device, config, place, batch.at_a_time, shape, ipu_flags.fp32):
            logger.info("%s", note)
    with processes.explain_lost_process(), stopping.explain_disk_and_memory_errors(
        output_dir, batch.at_a_time, batch.total
    ):
        with stopping.after_an_update(trainer):
            trainer.train(resume_from_checkpoint=resume)
        metrics = trainer.evaluate() if "validation" in views else {}
        trained = trainer.trained_model()
    if processes.is_main_process():
        facts = {
            "flags": {**dataclasses.asdict(own), **dataclasses.asdict(ipu_flags)},
            "training_arguments": args.to_dict(),
            "device": device,
            "processes": processes.num_processes(),
            "global_batch": {**dataclasses.asdict(batch), "total": batch.total},
            "updates": trainer.state.global_step,
            "versions": backend.versions(),
            "data": run.data_facts(own.dataset_dir, {name: len(dataset) for name, dataset in datasets.items()}),
        }
        with stopping.explain_disk_and_memory_errors(output_dir, batch.at_a_time, batch.total):
            run.write_run(output_dir, trained, processor, trainer.state, facts, metrics, config)
        _tell_result(output_dir, own.dataset_dir, metrics)
    processes.leave()
    return metrics


def _open_splits(dataset_dir: str, given: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the training split and, if it is evaluated on, the validation split; and `given` without what lacks it."""
    from chestxray_vit.data import dataset as xrays
    from chestxray_vit.training.engines import choose as backend

    datasets = {"train": xrays.load_xrays(dataset_dir, "train")}
    if not backend.evaluates(given):
        return datasets, {**given, "load_best_model_at_end": False}
    datasets["validation"] = xrays.load_xrays(dataset_dir, "validation")
    _check_validation(xrays.targets_of(datasets["validation"]), dataset_dir)
    return datasets, given


def _tell_result(output_dir: str, dataset_dir: str, metrics: Dict[str, float]) -> None:
    if "eval_roc_auc" in metrics:
        macro, count = metrics["eval_roc_auc"], metrics["eval_num_findings"]
        print(f"validation AUC {macro:.4f}, mean over {count:.0f} findings (best epoch)")
    print(f"wrote {output_dir}. Next: python -m chestxray_vit.evaluate {output_dir} --dataset_dir {dataset_dir}")


def _check(own: TrainFlags, ipu_flags: TrainIPUFlags, given: Dict[str, Any]) -> None:
    wrong: List[str] = []
    if not own.dataset_dir:
        wrong.append("--dataset_dir is missing: name the ingested folder.")
    if not given["output_dir"]:
        wrong.append("--output_dir is missing: name the run's folder.")
    sizes = [name for name in _size_names() if getattr(own, name) is not None]
    if sizes and not own.from_scratch:
        wrong.append(f"--{sizes[0]} goes with --from_scratch: a checkpoint has its own size.")
    if own.global_batch_size is not None and own.global_batch_size < 1:
        wrong.append(f"--global_batch_size is {own.global_batch_size}, expected 1 or more.")
    if ipu_flags.pipeline and not ipu_flags.ipu_config_name:
        wrong.append("--pipeline goes with --ipu_config_name, which says where to cut the model.")
    if wrong:
        raise InputError("\n".join(wrong))


def _size_names() -> List[str]:
    names = [field.name for field in dataclasses.fields(TrainFlags)]
    return names[names.index("from_scratch") + 1 :]


def _build(own: TrainFlags, resume: Optional[str], num_labels: int):
    """Return the model and its processor: from the checkpoint to go on with, from scratch, or from a ViT."""
    from chestxray_vit.labels import FINDINGS, LabelSet, label_names
    from chestxray_vit.models import vit as model
    from chestxray_vit.models.vit_size import ViTSize

    label_set = LabelSet.of_names(label_names(include_no_finding=num_labels > len(FINDINGS)))
    if resume:
        return model.load_model(resume)
    if own.from_scratch:
        sizes = {name: getattr(own, name) for name in _size_names() if getattr(own, name) is not None}
        return model.build_from_scratch(ViTSize(**sizes), label_set)
    return model.build_model(own.model_name_or_path, label_set)


def _ipu_config(own: TrainFlags, ipu_flags: TrainIPUFlags, given: Dict[str, Any], device: str):
    """Return the IPU configuration with the accumulation that the flags make of it, or None."""
    from chestxray_vit.training.engines import choose as backend

    config = (backend.pipeline_config if ipu_flags.pipeline else backend.ipu_config_for)(ipu_flags, device)
    if config is None:
        return None
    at_a_time, passes = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    return config.with_batch(at_a_time or 1, passes, own.global_batch_size)


def _check_validation(targets_NL, dataset_dir: str) -> None:
    """Refuse a validation split on which no finding has an AUC: no best epoch could be chosen."""
    positives_L = targets_NL[:, :14].sum(axis=0)
    if not ((positives_L > 0) & (positives_L < len(targets_NL))).any():
        raise InputError(
            f"{dataset_dir}: no finding has both classes among the {len(targets_NL)} validation images, so no epoch "
            "can be chosen by AUC. Ingest with a larger --val_fraction, or train with --eval_strategy no."
        )


def _pos_weight(targets_NL) -> List[float]:
    """Return negatives / positives by finding, as CheXNet weighted its loss; 1 where a finding has no positive."""
    positives_L = targets_NL.sum(axis=0)
    return [float((len(targets_NL) - count) / count) if count else 1.0 for count in positives_L]


def _announce(num_images: int, args, batch, device: str, config, num_parameters: int) -> None:
    copies = f" x {batch.copies} {'processes' if config is None else 'replicas'}" if batch.copies > 1 else ""
    logger.info(
        "%s: %s training images, %s, %s images an update (%s at a time x %s%s), ViT of %s parameters",
        device,
        f"{num_images:,}",
        f"{args.max_steps:,} updates" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        batch.total,
        batch.at_a_time,
        batch.passes,
        copies,
        f"{num_parameters:,}",
    )


if __name__ == "__main__":
    sys.exit(main())
