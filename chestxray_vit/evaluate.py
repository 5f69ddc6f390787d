"""Score a split with a trained run: predictions.csv, a row for every image, and the AUC report, auc.html.

    python -m chestxray_vit.evaluate run --dataset_dir chest-xray-nihcc

The rows come in the data set's order, and it is checked that none was lost and none counted twice. The validation
patients are scored too: what the report chooses (thresholds, recalibration) is chosen on them."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ContextManager, Dict, List, Mapping, Optional, Sequence

from chestxray_vit.artifacts.predictions import VALIDATION
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError, explain_out_of_memory
from chestxray_vit.training.arguments import CommandHelp, EvaluateArguments, IPUArguments, parse

if TYPE_CHECKING:
    from chestxray_vit.data.dataset import XrayDataset
    from chestxray_vit.training.distributed import Ranks

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
HELP = CommandHelp(
    prog="python -m chestxray_vit.evaluate",
    description="Score a split with a trained run: predictions.csv and the AUC report.",
    training="""flags of TrainingArguments (--help_all lists them all):
  --output_dir O (default: RUN/SPLIT)  --per_device_eval_batch_size 32 (64 on CUDA)  --dataloader_num_workers N

example:
  python -m chestxray_vit.evaluate run --dataset_dir chest-xray-nihcc""",
    positional=("run", "folder of a trained run"),
)


@dataclass(frozen=True)
class EvaluateCommand:
    """The parsed command line of `evaluate`.

    Attributes:
        run_dir: of `train`, or a checkpoint folder of this package.
        args, ipu: our own arguments.
        values: of TrainingArguments' fields.
        words: of the command line, for the report.
    """

    run_dir: str
    args: EvaluateArguments
    ipu: IPUArguments
    values: Mapping[str, Any]
    words: Sequence[str]

    @property
    def output_dir(self) -> Path:
        """The report's folder."""
        return Path(self.values["output_dir"] or Path(self.run_dir, self.args.split))

    def check(self) -> None:
        """Refuse a command without a data set, or whose output folder is a file.

        Raises:
            InputError: says which.
        """
        if not self.args.dataset_dir:
            raise InputError("--dataset_dir is missing: name the ingested folder.")
        if self.output_dir.is_file():
            raise InputError(f"{self.output_dir}: cannot be written to: it is a file. Name a folder with --output_dir.")


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    (args, ipu), values, run_dir = parse((EvaluateArguments, IPUArguments), HELP, argv)
    words = ["python", "-m", "chestxray_vit.evaluate", *(sys.argv[1:] if argv is None else argv)]

    from chestxray_vit.models.checkpoint import quiet_transformers  # only here: they load torch
    from chestxray_vit.training.distributed import Ranks

    command = EvaluateCommand(str(run_dir), args, ipu, values, words)
    command.check()
    with quiet_transformers():
        evaluate(command, Ranks.from_environment())
    return 0


def evaluate(command: EvaluateCommand, ranks: Ranks) -> None:
    """Score a split, and write predictions.csv and the report.

    Args:
        command: parsed and checked.
        ranks: of this process.

    Raises:
        InputError: whatever of the input the user can correct.
    """
    from chestxray_vit.data.dataset import open_dataset
    from chestxray_vit.training import distributed

    dataset = open_dataset(str(command.args.dataset_dir))
    scorer = Scorer(command, ranks, dataset)
    with _lock(command.output_dir, ranks):
        tables = {name: scorer.score(name) for name in scorer.splits}
        if ranks.is_main:
            _report(command, dataset, tables)
    distributed.leave()


class Scorer:
    """A trained run, ready to score the splits of a data set.

    Attributes:
        splits: rows of the split to score and, unless that is it or there is none, of the validation split.
    """

    def __init__(self, command: EvaluateCommand, ranks: Ranks, dataset: XrayDataset):
        """Load the run and open the images.

        Raises:
            InputError: the run is for other labels than the data set, or does not fit the engine.
        """
        from chestxray_vit.data.cached_dataset import model_inputs, open_cache, readable
        from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
        from chestxray_vit.metrics.roc_auc import RocAucMetrics
        from chestxray_vit.models.label_config import label_set_of
        from chestxray_vit.models.vit import load_model
        from chestxray_vit.training import recipe
        from chestxray_vit.training.engines.base import TrainerInputs, check_labels
        from chestxray_vit.training.engines.choose import choose

        args, self.label_set = command.args, dataset.label_set
        self.engine = choose(args.device, command.ipu, ranks)
        vit, processor = load_model(command.run_dir)
        check_labels(command.run_dir, label_set_of(vit.config), str(args.dataset_dir), self.label_set)
        names = [args.split, *(name for name in dataset.split_names if name == "validation" != args.split)]
        rows = {name: dataset.split(name) for name in names}
        preprocess = Preprocess(processor, self.engine.pixel_dtype)
        cache = open_cache(dataset, preprocess, args.cache_dir, args.allow_unreadable)
        self.splits = {name: readable(split, cache) for name, split in rows.items()}
        self.inputs = model_inputs(self.splits, preprocess, cache)
        values = {**command.values, **recipe.without_training(), "output_dir": str(command.output_dir)}
        values["bf16"] = values["bf16"] or False  # not by default: the same scores on every engine
        self.training_arguments = self.engine.arguments(values)
        config = self.engine.pipeline_config(default=_ipu_config_of(command.run_dir))
        to_pixel_values = None if cache is None else GreyToPixelValues(preprocess)
        trainer_inputs = TrainerInputs(metrics=RocAucMetrics(self.label_set), to_pixel_values=to_pixel_values)
        self.trainer = self.engine.trainer(vit, processor, self.training_arguments, trainer_inputs, config)

    def score(self, name: str) -> Any:
        """Return the predictions of a split, on the main process with a line on it."""
        from chestxray_vit.artifacts.predictions import predictions_of
        from chestxray_vit.data.dataset import targets_of
        from chestxray_vit.training.engines.base import predict_logits

        rows, inputs = self.splits[name], self.inputs[name]
        if self.engine.ranks.is_main:
            logger.info("%s: scoring %s %s images", self.engine.device, f"{len(inputs):,}", name)
        targets_NL = targets_of(rows)
        with explain_out_of_memory(self.training_arguments.eval_batch_size, "lower --per_device_eval_batch_size"):
            logits_NL = predict_logits(self.trainer, inputs, targets_NL)
        facts = rows.remove_columns(["image", "labels"]).to_dict()
        return predictions_of(facts, targets_NL, logits_NL, self.label_set)


def _ipu_config_of(run_dir: str) -> Optional[str]:
    """Return the path of a run's own IPU configuration, None where it has none."""
    from chestxray_vit.pipeline.ipu_config import FILE

    path = Path(run_dir) / FILE
    return str(path) if path.is_file() else None


def _lock(output_dir: Path, ranks: Ranks) -> ContextManager[None]:
    """Return the lock of the report's folder; the main process holds it for all."""
    from chestxray_vit.artifacts import evaluation
    from chestxray_vit.reporting.write import OUTPUTS
    from chestxray_vit.storage.lock import folder_lock

    names = (PREDICTIONS, VALIDATION, evaluation.FILE, *OUTPUTS)
    return folder_lock(output_dir, names) if ranks.is_main else contextlib.nullcontext()


def _report(command: EvaluateCommand, dataset: XrayDataset, tables: Mapping[str, Any]) -> None:
    """Write predictions, their provenance and the report, all or none; then the model's thresholds and card."""
    from chestxray_vit.artifacts import thresholds
    from chestxray_vit.artifacts.evaluation import FILE
    from chestxray_vit.reporting import model_card
    from chestxray_vit.reporting.write import OUTPUTS
    from chestxray_vit.storage.atomic import atomic_write_many

    run_dir, output_dir, split = Path(command.run_dir), command.output_dir, command.args.split
    file_of = {name: PREDICTIONS if name == split else VALIDATION for name in tables}
    names = [*file_of.values(), FILE, *OUTPUTS]
    paths: List[Path] = [output_dir / name for name in names]
    with atomic_write_many(paths) as asides:
        by_file = {file_of[name]: table for name, table in tables.items()}
        summary = _write(command, dataset, by_file, dict(zip(names, asides)))
        if VALIDATION not in names:
            # an earlier evaluation's does not belong to these predictions, and goes before they come
            with contextlib.suppress(FileNotFoundError):
                (output_dir / VALIDATION).unlink()
    if VALIDATION in names:
        thresholds.write_thresholds(run_dir / thresholds.FILE, tables["validation"], output_dir / VALIDATION)
        paths.append(run_dir / thresholds.FILE)
    if split == "test" and model_card.write_card(run_dir, summary):
        paths.append(run_dir / model_card.CARD)
    for path in paths:
        print(f"wrote {path}")


def _write(
    command: EvaluateCommand, dataset: XrayDataset, tables: Mapping[str, Any], path_of: Mapping[str, Path]
) -> Dict[str, Any]:
    """Write predictions, provenance and report to the path of each, by its name, and return the report's numbers."""
    from chestxray_vit.artifacts.evaluation import FILE, IngestedData, provenance, source_of, write_provenance
    from chestxray_vit.artifacts.predictions import write_predictions
    from chestxray_vit.images.thumbnails import thumbnails
    from chestxray_vit.reporting.render.text import to_text
    from chestxray_vit.reporting.sections.curves import mistaken_images
    from chestxray_vit.reporting.summary import ReportInputs, build_report
    from chestxray_vit.reporting.write import texts
    from chestxray_vit.training.run_folder import versions

    for name, table in tables.items():
        write_predictions(path_of[name], table)
    data = IngestedData(dataset.metadata_path, dataset.fingerprint, dataset.label_set, dataset.is_synthetic)
    where = provenance(path_of[PREDICTIONS], command.args.split, command.words, versions(), command.run_dir, data)
    write_provenance(path_of[FILE], where)
    source = source_of(path_of[PREDICTIONS])._replace(file_name=PREDICTIONS)
    summary = build_report(
        ReportInputs(tables[PREDICTIONS], tables.get(VALIDATION), sources=[source], provenance=where)
    )
    print(to_text(summary))
    pictures = thumbnails(dataset.root, mistaken_images(summary)) if command.args.thumbnails else None
    for name, text in texts(summary, pictures).items():
        path_of[name].write_bytes(text.encode("utf-8"))
    return summary


if __name__ == "__main__":
    sys.exit(main())
