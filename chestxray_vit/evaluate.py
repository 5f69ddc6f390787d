"""Score a split with a trained run: predictions.csv, a row for every image, and the AUC report, auc.html.

    python -m chestxray_vit.evaluate run --dataset_dir chest-xray-nihcc

The rows come in the data set's order, and it is checked that none was lost and none counted twice. The validation
patients are scored too: what the report chooses (thresholds, recalibration) is chosen on them."""

import contextlib
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any, ContextManager, Dict, Optional, Sequence

from chestxray_vit.artifacts.predictions import VALIDATION
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError, explain_out_of_memory
from chestxray_vit.training import arguments as flags

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
RECIPE_HELP = """flags of TrainingArguments (--help_all lists them all):
  --output_dir O (default: RUN/SPLIT)  --per_device_eval_batch_size 32 (64 on CUDA)  --dataloader_num_workers N

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
    thumbnails: bool = dataclasses.field(
        default=False,
        metadata={"help": "show the worst mistakes' images in auc.html: they are patients' data, mind where it goes"},
    )


@cli_main
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
    words = ["python", "-m", "chestxray_vit.evaluate", *(sys.argv[1:] if argv is None else argv)]
    from chestxray_vit.models.checkpoint import quiet_transformers

    with quiet_transformers():
        evaluate(run_dir, own, ipu_flags, given, words)
    return 0


def evaluate(
    run_dir: str, own: EvaluateFlags, ipu_flags: flags.IPUFlags, given: Dict[str, Any], command: Sequence[str]
) -> None:
    """Score a split, and write predictions.csv and the report.

    Args:
        run_dir: of `train`, or a checkpoint folder of ours.
        own, ipu_flags: our flags.
        given: values of TrainingArguments' fields, as `flags.parse` returns them.
        command: the words of the command line, for the report.

    Raises:
        InputError: whatever of the input the user can mend.
    """
    from chestxray_vit.data import cached_dataset as pixels
    from chestxray_vit.data import dataset as xrays
    from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
    from chestxray_vit.models import vit as model
    from chestxray_vit.pipeline import ipu_config
    from chestxray_vit.training import distributed as processes
    from chestxray_vit.training.engines import choose as backend

    device = backend.pick_device(own.device)
    vit, processor = model.load_model(run_dir)
    preprocess = Preprocess(processor, backend.pixel_dtype(device, ipu_flags.fp32))
    cache = pixels.open_cache(xrays.open_dataset(own.dataset_dir), preprocess, own.cache_dir, own.allow_unreadable)
    splits = {name: pixels.readable(rows, cache) for name, rows in _splits(own).items()}
    found = xrays.targets_of(splits[own.split]).shape[1]
    if found != vit.config.num_labels:
        raise InputError(
            f"{run_dir} scores {vit.config.num_labels} labels, {own.dataset_dir} has {found}. "
            "Ingest with or without --include_no_finding, as for the training."
        )
    output_dir = given["output_dir"] or str(Path(run_dir) / own.split)
    if Path(output_dir).is_file():
        raise InputError(f"{output_dir}: cannot be written to: it is a file. Name a folder with --output_dir.")
    given = {**given, **backend.no_training(), "output_dir": output_dir}
    given["bf16"] = given["bf16"] or False  # not by default: the same scores on every engine
    args = backend.training_arguments(given, device, ipu_flags)
    own_config = Path(run_dir) / ipu_config.FILE
    config = backend.ipu_config_for(ipu_flags, device, str(own_config) if own_config.is_file() else ipu_config.DEFAULT)
    to_pixel_values = None if cache is None else GreyToPixelValues(preprocess)
    trainer = backend.make_trainer(vit, processor, args, config=config, to_pixel_values=to_pixel_values)
    tables = {}
    with _claim(output_dir):
        for name, view in pixels.model_inputs(splits, preprocess, cache).items():
            if processes.is_main_process():
                logger.info("%s: scoring %s %s images", device, f"{len(view):,}", name)
            targets_NL = xrays.targets_of(splits[name])
            with explain_out_of_memory(args.eval_batch_size, "lower --per_device_eval_batch_size"):
                logits_NL = backend.predict_logits(trainer, view, targets_NL)
            tables[name] = _predictions(splits[name], targets_NL[:, :14], logits_NL[:, :14])
        if processes.is_main_process():
            _report(Path(run_dir), own, Path(output_dir), tables, command)
    processes.leave()


def _claim(output_dir: str) -> ContextManager[None]:
    """Return the claim of the report's folder; the main process holds it for all."""
    from chestxray_vit.artifacts import evaluation as provenance
    from chestxray_vit.reporting.write import OUTPUTS
    from chestxray_vit.storage.lock import folder_lock
    from chestxray_vit.training import distributed as processes

    names = (PREDICTIONS, VALIDATION, provenance.FILE, *OUTPUTS)
    return folder_lock(output_dir, names) if processes.is_main_process() else contextlib.nullcontext()


def _splits(own: EvaluateFlags) -> Dict[str, Any]:
    """Return the split to score and, unless that is it or there is none, the validation split."""
    from chestxray_vit.data import dataset as xrays

    splits = {own.split: xrays.load_xrays(own.dataset_dir, own.split)}
    if own.split != "validation" and "validation" in xrays.load_xrays(own.dataset_dir).unique("split"):
        splits["validation"] = xrays.load_xrays(own.dataset_dir, "validation")
    return splits


def _report(
    run_dir: Path, own: EvaluateFlags, output_dir: Path, tables: Dict[str, Any], command: Sequence[str]
) -> None:
    """Write predictions, where they come from and the report, all or none; then the model's thresholds and card."""
    from chestxray_vit.artifacts import thresholds
    from chestxray_vit.artifacts.evaluation import FILE
    from chestxray_vit.reporting import model_card as card
    from chestxray_vit.reporting.write import OUTPUTS
    from chestxray_vit.storage.atomic import atomic_write_many

    file_of = {name: PREDICTIONS if name == own.split else VALIDATION for name in tables}
    names = [*file_of.values(), FILE, *OUTPUTS]
    paths = [output_dir / name for name in names]
    with atomic_write_many(paths) as asides:
        summary = _write(
            run_dir, own, {file_of[name]: table for name, table in tables.items()}, command, dict(zip(names, asides))
        )
        if VALIDATION not in names:
            # an earlier evaluation's does not belong to these predictions, and goes before they come
            with contextlib.suppress(FileNotFoundError):
                (output_dir / VALIDATION).unlink()
    if VALIDATION in names:
        thresholds.write_thresholds(run_dir / thresholds.FILE, tables["validation"], output_dir / VALIDATION)
        paths.append(run_dir / thresholds.FILE)
    if own.split == "test" and card.write_card(run_dir, summary):
        paths.append(run_dir / card.CARD)
    for path in paths:
        print(f"wrote {path}")


def _write(
    run_dir: Path,
    own: EvaluateFlags,
    tables: Dict[str, Any],
    command: Sequence[str],
    path_of: Dict[str, Path],
) -> Dict[str, Any]:
    """Write predictions, provenance and report to the path of each, by its name, and return the report's numbers."""
    from chestxray_vit.artifacts.evaluation import FILE, provenance, source_of, write_provenance
    from chestxray_vit.artifacts.metadata import find_metadata
    from chestxray_vit.artifacts.predictions import write_predictions
    from chestxray_vit.data.synthetic.release import is_synthetic
    from chestxray_vit.images.thumbnails import thumbnails
    from chestxray_vit.reporting.render.text import to_text
    from chestxray_vit.reporting.sections.curves import mistaken_images
    from chestxray_vit.reporting.summary import ReportInputs, build_report
    from chestxray_vit.reporting.write import texts
    from chestxray_vit.training.engines import choose as backend

    for name, table in tables.items():
        write_predictions(path_of[name], table)
    metadata, drawn = find_metadata(own.dataset_dir), is_synthetic(own.dataset_dir)
    where = provenance(path_of[PREDICTIONS], own.split, drawn, command, backend.versions(), run_dir, metadata)
    write_provenance(path_of[FILE], where)
    source = source_of(path_of[PREDICTIONS])._replace(file_name=PREDICTIONS)
    summary = build_report(
        ReportInputs(tables[PREDICTIONS], tables.get(VALIDATION), sources=[source], provenance=where)
    )
    print(to_text(summary))
    pictures = thumbnails(metadata.parent, mistaken_images(summary)) if own.thumbnails else None
    for name, text in texts(summary, pictures).items():
        path_of[name].write_bytes(text.encode("utf-8"))
    return summary


def _predictions(dataset, targets_NL, logits_NL):
    """Return the table of a split's targets and scores."""
    from chestxray_vit.artifacts.predictions import Predictions, probabilities

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
