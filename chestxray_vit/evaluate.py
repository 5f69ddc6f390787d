"""Score a split with a trained run: predictions.csv, a row for every image, and the AUC report.

    python -m chestxray_vit.evaluate run --dataset_dir chest-xray-nihcc

The rows come in the data set's order, and it is checked that none was lost and none counted twice."""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from chestxray_vit import flags
from chestxray_vit.problems import InputError, reported

logger = logging.getLogger(__name__)

RECIPE_HELP = """flags of TrainingArguments (--help_all lists them all):
  --output_dir O (default: RUN/SPLIT)  --per_device_eval_batch_size 64  --dataloader_num_workers N

example:
  python -m chestxray_vit.evaluate run --dataset_dir chest-xray-nihcc"""


@dataclasses.dataclass
class EvaluateFlags:
    """Our own flags of `evaluate`."""

    dataset_dir: Optional[str] = dataclasses.field(
        default=None, metadata={"metavar": "DIR", "help": "ingested folder, with metadata.jsonl"}
    )
    split: str = dataclasses.field(
        default="test", metadata={"help": "images to score (default: test)", "choices": ["train", "validation", "test"]}
    )
    device: str = dataclasses.field(
        default="auto",
        metadata={
            "help": "engine (default: auto, IPUs or CUDA if there)",
            "choices": ["auto", "ipu", "cuda", "cpu"],
        },
    )

    cache_dir: Optional[str] = dataclasses.field(
        default=None,
        metadata={"metavar": "DIR", "help": "of the images at the model's size, as in train (none: decode each time)"},
    )
    allow_unreadable: bool = dataclasses.field(
        default=False, metadata={"help": "leave out images that cannot be read, and list them"}
    )


@reported
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage."""
    (own, ipu_flags), given, run_dir = flags.parse(
        (EvaluateFlags, flags.IPUFlags),
        "python -m chestxray_vit.evaluate",
        "Score a split with a trained run: predictions.csv and the AUC report.",
        RECIPE_HELP,
        argv,
        positional=("run", "folder of a trained run"),
    )
    if not own.dataset_dir:
        raise InputError("--dataset_dir is missing: name the ingested folder.")
    evaluate(run_dir, own, ipu_flags, given)
    return 0


def evaluate(run_dir: str, own: EvaluateFlags, ipu_flags: flags.IPUFlags, given: Dict[str, Any]) -> None:
    """Score a split, and write predictions.csv and the report.

    Args:
        run_dir: of `train`, or a checkpoint folder of ours.
        own, ipu_flags: our flags.
        given: values of TrainingArguments' fields, as `flags.parse` returns them.

    Raises:
        InputError: whatever of the input the user can mend.
    """
    from chestxray_vit import backend, ipu_config, model, phantom, pixels, predictions, processes, results, xrays

    device = backend.pick_device(own.device)
    vit, processor = model.load_model(run_dir)
    preprocess = xrays.Preprocess(processor, backend.pixel_dtype(device, ipu_flags.fp32))
    cache = pixels.open_cache(own.dataset_dir, preprocess, own.cache_dir, own.allow_unreadable)
    dataset = pixels.readable(xrays.load_xrays(own.dataset_dir, own.split), cache)
    targets_NL = xrays.targets_of(dataset)
    if targets_NL.shape[1] != vit.config.num_labels:
        raise InputError(
            f"{run_dir} scores {vit.config.num_labels} labels, {own.dataset_dir} has {targets_NL.shape[1]}. "
            "Ingest with or without --include_no_finding, as for the training."
        )
    output_dir = given["output_dir"] or str(Path(run_dir) / own.split)
    args = backend.training_arguments({**given, **backend.no_training(), "output_dir": output_dir}, device, ipu_flags)
    own_config = Path(run_dir) / ipu_config.FILE
    config = backend.ipu_config_for(ipu_flags, device, str(own_config) if own_config.is_file() else ipu_config.DEFAULT)
    front = None if cache is None else pixels.Front(preprocess)
    trainer = backend.make_trainer(vit, processor, args, config=config, front=front)
    if processes.is_main_process():
        logger.info("%s: scoring %s %s images", device, f"{len(dataset):,}", own.split)
    view = pixels.views_of({own.split: dataset}, preprocess, cache)[own.split]
    logits_NL = backend.predict_logits(trainer, view, targets_NL)
    if processes.is_main_process():
        table = _predictions(dataset, targets_NL[:, :14], logits_NL[:, :14])
        path = Path(output_dir) / "predictions.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        predictions.write_predictions(path, table)
        summary = results.summarise(table, source=[path], drawn=phantom.is_drawn(own.dataset_dir))
        print(results.to_text(summary))
        for written in (path, *results.write_results(summary, path.parent)):
            print(f"wrote {written}")
    processes.leave()


def _predictions(dataset, targets_NL, logits_NL):
    from chestxray_vit.predictions import Predictions, probabilities

    about = dataset.remove_columns(["image", "labels"]).to_dict()
    return Predictions(
        file_names=about["file_name"],
        patient_ids=[str(patient) for patient in about["patient_id"]],
        ages=about["age"],
        sexes=[sex or "" for sex in about["sex"]],
        views=[view or "" for view in about["view"]],
        targets_NL=targets_NL.astype(int),
        scores_NL=probabilities(logits_NL),
    )


if __name__ == "__main__":
    sys.exit(main())
