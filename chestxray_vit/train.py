"""Fine-tune a ViT on an ingested data set, on IPUs, CUDA or CPU, one process or several.

    python -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run

The defaults are the Graphcore tutorial's recipe: 3 epochs, global batch 128, learning rate 2e-4, cosine with
25 % warm-up. The split is by patient, and the best epoch is kept by the mean AUC over the findings."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, Dict, NamedTuple, Optional, Sequence, Tuple

from chestxray_vit.entry_point import cli_main
from chestxray_vit.training import arguments

if TYPE_CHECKING:
    from chestxray_vit.data.dataset import XrayDataset
    from chestxray_vit.training.distributed import Ranks
    from chestxray_vit.training.plan import TrainCommand, TrainingPlan

logger = logging.getLogger(__name__)

HELP = arguments.CommandHelp(
    prog="python -m chestxray_vit.train",
    description="Fine-tune a ViT on an ingested ChestX-ray14 folder, on IPUs, CUDA or CPU.",
    training="""flags of TrainingArguments, with the recipe's defaults (--help_all lists them all):
  --output_dir RUN  --num_train_epochs 3  --learning_rate 2e-4  --lr_scheduler_type cosine  --warmup_steps 0.25
  --seed 1337  --eval_strategy epoch  --save_strategy epoch  --save_total_limit 2  --load_best_model_at_end true
  --metric_for_best_model roc_auc  --resume_from_checkpoint last|FOLDER  --dataloader_num_workers N
  --bf16 true|false|auto (default: on CUDA that has it; auto: on a CPU that has it, too)  --torch_compile true

examples:
  python -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run
  torchrun --nproc-per-node 2 -m chestxray_vit.train --dataset_dir chest-xray-nihcc --output_dir run
  python -m chestxray_vit.train --ipu_config_name vit-base-pod16 --dataset_dir chest-xray-nihcc --output_dir run""",
)


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    kinds = arguments.TrainArguments, arguments.ViTSizeArguments, arguments.PipelineArguments
    (args, size, pipeline), values, _ = arguments.parse(kinds, HELP, argv)

    from chestxray_vit.models.checkpoint import quiet_transformers  # only here: they load torch
    from chestxray_vit.storage.lock import folder_lock
    from chestxray_vit.training import run_folder
    from chestxray_vit.training.distributed import Ranks
    from chestxray_vit.training.plan import TrainCommand

    command = TrainCommand(args, size, pipeline, values)
    command.check()
    ranks = Ranks.from_environment()
    lock = folder_lock(command.output_dir, run_folder.NAMES) if ranks.is_main else contextlib.nullcontext()
    with lock, quiet_transformers():
        train(command, ranks)
    return 0


def train(command: TrainCommand, ranks: Ranks) -> Dict[str, float]:
    """Train, write the run folder, and return the validation metrics of the best checkpoint.

    Args:
        command: parsed and checked.
        ranks: of this process.

    Raises:
        InputError: whatever of the input the user can correct.
    """
    from chestxray_vit.data.dataset import open_dataset
    from chestxray_vit.training import distributed
    from chestxray_vit.training.engines.choose import choose
    from chestxray_vit.training.plan import open_output, resolve

    engine = choose(command.args.device, command.pipeline, ranks)
    command = open_output(command, ranks)
    dataset = open_dataset(str(command.args.dataset_dir))
    plan = resolve(command, engine, dataset)
    built = build(plan, dataset)
    announce(plan, built)
    metrics, trained = run(plan, built)
    if ranks.is_main:
        write(plan, built, dataset, metrics, trained)
    distributed.leave()
    return metrics


class Built(NamedTuple):
    """What `build` makes of a plan.

    Attributes:
        trainer: the engine's.
        processor: the model's image processor.
        num_images: by split, of those that could be read.
        notes: what to say of the model before training: a pipeline cuts it.
    """

    trainer: Any
    processor: Any
    num_images: Dict[str, int]
    notes: Tuple[str, ...]


def build(plan: TrainingPlan, dataset: XrayDataset) -> Built:
    """Build the model, its inputs and its trainer."""
    import torch
    from transformers import set_seed

    from chestxray_vit.data.cached_dataset import model_inputs, open_cache, readable
    from chestxray_vit.data.dataset import targets_of
    from chestxray_vit.images.augment import Augment
    from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
    from chestxray_vit.metrics.roc_auc import RocAucMetrics
    from chestxray_vit.models.vit_size import ViTSize
    from chestxray_vit.training.engines.base import TrainerInputs, pos_weights

    args, engine, config = plan.command.args, plan.engine, plan.pipeline_config
    set_seed(plan.training_arguments.seed)
    model, processor = build_model(plan)
    num_parameters, size = model.num_parameters(), ViTSize.of(model.config)
    preprocess = Preprocess(processor, engine.pixel_dtype)
    cache = open_cache(dataset, preprocess, args.cache_dir, args.allow_unreadable)
    splits = {name: readable(rows, cache) for name, rows in plan.splits.items()}
    inputs = model_inputs(splits, preprocess, cache)
    weights = pos_weights(targets_of(splits["train"])) if args.pos_weight == "auto" else None
    trainer_inputs = TrainerInputs(
        train=inputs["train"],
        validation=inputs.get("validation"),
        metrics=RocAucMetrics(plan.label_set),
        pos_weight_L=None if weights is None else torch.tensor(weights, dtype=torch.float32),
        to_pixel_values=None if cache is None else GreyToPixelValues(preprocess),
        augment=Augment() if args.augment else None,
    )
    trainer = engine.trainer(model, processor, plan.training_arguments, trainer_inputs, config)
    notes = (f"ViT of {num_parameters:,} parameters", *engine.notes(config, plan.global_batch.micro_batch_size, size))
    return Built(trainer, processor, {name: len(rows) for name, rows in splits.items()}, notes)


def build_model(plan: TrainingPlan) -> Tuple[Any, Any]:
    """Return the model and its processor: from the checkpoint to go on with, from scratch, or from a ViT.

    Raises:
        InputError: the checkpoint to go on with is for other labels than the data set's.
    """
    from chestxray_vit.models import vit
    from chestxray_vit.models.label_config import label_set_of
    from chestxray_vit.models.vit_size import ViTSize
    from chestxray_vit.training.engines.base import check_labels

    args, label_set = plan.command.args, plan.label_set
    if plan.resume_from:
        model, processor = vit.load_model(plan.resume_from)
        check_labels(plan.resume_from, label_set_of(model.config), str(args.dataset_dir), label_set)
        return model, processor
    if args.from_scratch:
        return vit.build_from_scratch(ViTSize(**plan.command.size.named()), label_set)
    return vit.build_model(args.model_name_or_path, label_set)


def announce(plan: TrainingPlan, built: Built) -> None:
    """Say what is trained how, once; clear an earlier run, which nothing refuses any more."""
    from chestxray_vit.training import run_folder

    if not plan.engine.ranks.is_main:
        return
    if not plan.resume_from:
        run_folder.clear_run(plan.command.output_dir)
    args, batch = plan.training_arguments, plan.global_batch
    noun = "processes" if plan.pipeline_config is None else "replicas"
    replicas = f" x {batch.num_replicas} {noun}" if batch.num_replicas > 1 else ""
    model, *notes = built.notes
    logger.info(
        "%s: %s training images, %s, %s images per update (micro-batch %s x %s accumulated%s), %s",
        plan.engine.device,
        f"{built.num_images['train']:,}",
        f"{args.max_steps:,} updates" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        batch.global_batch_size,
        batch.micro_batch_size,
        batch.gradient_accumulation_steps,
        replicas,
        model,
    )
    for note in notes:
        logger.info("%s", note)


def run(plan: TrainingPlan, built: Built) -> Tuple[Dict[str, float], Any]:
    """Train; return the validation metrics and the trained model, which the main process has."""
    from chestxray_vit.training.distributed import explain_lost_process
    from chestxray_vit.training.interruption import after_an_update, explain_disk_and_memory_errors

    batch, ranks, trainer = plan.global_batch, plan.engine.ranks, built.trainer
    sizes = batch.micro_batch_size, batch.global_batch_size
    with explain_lost_process(ranks), explain_disk_and_memory_errors(plan.command.output_dir, *sizes):
        with after_an_update(trainer, ranks):
            trainer.train(resume_from_checkpoint=plan.resume_from)
        metrics = trainer.evaluate() if "validation" in plan.splits else {}
        return metrics, trainer.trained_model()


def write(plan: TrainingPlan, built: Built, dataset: XrayDataset, metrics: Dict[str, float], trained: Any) -> None:
    """Write the run folder, and print the result."""
    from chestxray_vit.training import run_folder
    from chestxray_vit.training.interruption import explain_disk_and_memory_errors

    output_dir, batch, state = plan.command.output_dir, plan.global_batch, built.trainer.state
    facts = {
        **plan.facts(),
        "updates": state.global_step,
        "versions": run_folder.versions(),
        "data": run_folder.data_facts(dataset, built.num_images),
        "validation_auc": run_folder.validation_auc(metrics),
    }
    with explain_disk_and_memory_errors(output_dir, batch.micro_batch_size, batch.global_batch_size):
        run_folder.write_run(output_dir, trained, built.processor, state, facts, plan.pipeline_config)
    if "eval_roc_auc" in metrics:
        macro, count = metrics["eval_roc_auc"], metrics["eval_num_findings"]
        print(f"validation AUC {macro:.4f}, mean over {count:.0f} findings (best epoch)")
    dataset_dir = plan.command.args.dataset_dir
    print(f"wrote {output_dir}. Next: python -m chestxray_vit.evaluate {output_dir} --dataset_dir {dataset_dir}")


if __name__ == "__main__":
    sys.exit(main())
