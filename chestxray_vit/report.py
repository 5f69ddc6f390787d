"""Report the AUC of a predictions.csv: a page to read and mail, and its numbers as JSON and CSV, without torch.

    python -m chestxray_vit.report PREDICTIONS.csv [--validation V.csv] [--compare OTHER.csv] [--output_dir O]

It accepts the file of any tool, so that a team can check a model that it did not train. What `evaluate` wrote beside
the file (the validation predictions, evaluation.json) is used too. Given an auc.json, it renders that report again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from chestxray_vit.artifacts.evaluation import read_provenance, source_of
from chestxray_vit.artifacts.predictions import VALIDATION, read_predictions
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.reporting.render.text import to_text
from chestxray_vit.reporting.schema import read_results
from chestxray_vit.reporting.sections.auc_table import INTERVALS
from chestxray_vit.reporting.sections.curves import mistaken_images
from chestxray_vit.reporting.summary import Options, ReportInputs, build_report
from chestxray_vit.reporting.write import OUTPUTS, write_results
from chestxray_vit.saliency.localisation import read_localisation
from chestxray_vit.storage.lock import folder_lock

OF_PREDICTIONS = ("validation", "compare", "interval", "prevalence", "localisation")  # options that change numbers


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.report",
        description="Report the AUC-ROC of a predictions.csv per finding and over all findings, with 95 % intervals by "
        f"patient. Writes {', '.join(OUTPUTS)}.",
        epilog="example: python -m chestxray_vit.report run/test/predictions.csv "
        "--compare other_run/test/predictions.csv --output_dir compared",
        allow_abbrev=False,
    )
    add = result.add_argument
    add(
        "predictions",
        type=Path,
        metavar="PREDICTIONS.csv",
        help="from chestxray_vit.evaluate or another tool; or the auc.json of a report, to render it again",
    )
    add(
        "--validation",
        type=Path,
        metavar="V.csv",
        help=f"predictions to choose thresholds on (default: {VALIDATION} beside PREDICTIONS.csv, if there is one)",
    )
    add("--compare", type=Path, metavar="OTHER.csv", help="predictions of another run on the same images")
    add("--output_dir", type=Path, metavar="DIR", help="where to write (default: beside PREDICTIONS.csv)")
    add("--interval", choices=tuple(INTERVALS), help="method of the AUCs' intervals (default: wald)")
    add("--prevalence", type=float, metavar="P", help="also give PPV and NPV at this share of positives")
    add("--localisation", type=Path, metavar="L.json", help="of chestxray_vit.explain --boxes, to show in the page")
    add(
        "--thumbnails",
        type=Path,
        metavar="DIR",
        help="show the images of the worst mistakes, from this ingested release or folder; they are patients' data",
    )
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the AUC table of a predictions file, or of an auc.json, and write the report."""
    args = parser().parse_args(argv)
    is_rendered_again = args.predictions.suffix == ".json"
    _check(args, is_rendered_again)
    output_dir = args.output_dir or args.predictions.parent
    _check_outputs([args.predictions, args.compare, _validation(args), args.localisation], output_dir)
    inputs = read_results(args.predictions) if is_rendered_again else _inputs(args)
    options = Options(args.interval or "wald", args.prevalence)
    with folder_lock(output_dir, OUTPUTS):
        results = build_report(inputs, options) if isinstance(inputs, ReportInputs) else inputs
        print(to_text(results))
        for path in write_results(results, output_dir, _pictures(args, results)):
            print(f"wrote {path}")
    return 0


def _check(args: argparse.Namespace, is_rendered_again: bool) -> None:
    if args.prevalence is not None and not 0 <= args.prevalence <= 1:
        raise InputError(f"--prevalence is {args.prevalence}, expected a share from 0 to 1.")
    if args.thumbnails is not None and not args.thumbnails.is_dir():
        raise InputError(f"--thumbnails: {args.thumbnails} is not a folder. Name the ingested release.")
    options = [f"--{name}" for name in OF_PREDICTIONS if getattr(args, name) is not None]
    if is_rendered_again and options:
        raise InputError(
            f"{args.predictions}: the numbers of an auc.json cannot be changed by {', '.join(options)}. "
            "Name the predictions.csv that it was made from, or leave the option out."
        )


def _validation(args: argparse.Namespace) -> Optional[Path]:
    """Return the validation predictions: those that were named, or those beside the predictions."""
    beside = args.predictions.with_name(VALIDATION)
    is_used = args.predictions.suffix != ".json" and beside.is_file() and beside != args.predictions
    return args.validation or (beside if is_used else None)


def _inputs(args: argparse.Namespace) -> ReportInputs:
    validation = _validation(args)
    return ReportInputs(
        predictions=read_predictions(args.predictions),
        validation=None if validation is None else read_predictions(validation),
        compare_with=None if args.compare is None else read_predictions(args.compare),
        sources=[source_of(path) for path in (args.predictions, args.compare) if path is not None],
        provenance=read_provenance(args.predictions),
        localisation=None if args.localisation is None else read_localisation(args.localisation),
    )


def _pictures(args: argparse.Namespace, results: Dict[str, Any]) -> Optional[Dict[str, str]]:
    """Return the images of the mistakes, if they were asked for."""
    if args.thumbnails is None:
        return None
    from chestxray_vit.images.thumbnails import thumbnails  # only here: it loads Pillow

    return thumbnails(_images_dir(args.thumbnails), mistaken_images(results))


def _images_dir(folder: Path) -> Path:
    """Return the folder that file names are relative to: that of the release's metadata, or without one this folder."""
    from chestxray_vit.artifacts.metadata import find_metadata

    try:
        return find_metadata(folder).parent
    except InputError:
        return folder


def _check_outputs(inputs: Sequence[Optional[Path]], output_dir: Path) -> None:
    outputs = {(output_dir / name).resolve() for name in OUTPUTS}
    clashes: List[Path] = [path for path in inputs if path is not None and path.resolve() in outputs]
    if clashes:
        raise InputError(f"{clashes[0]}: the report would overwrite it. Name another folder with --output_dir.")


if __name__ == "__main__":
    sys.exit(main())
