"""Report the AUC of a predictions.csv: a page to read and mail, and its numbers as JSON and CSV, without torch.

    python -m chestxray_vit.report PREDICTIONS.csv [--validation V.csv] [--compare OTHER.csv] [--output_dir O]

It takes the file from anywhere, so that a team can check a model that it did not train. What `evaluate` left beside the
file (the validation predictions, evaluation.json) is taken too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from chestxray_vit.artifacts.evaluation import read_provenance, source_of
from chestxray_vit.artifacts.metadata import find_metadata
from chestxray_vit.artifacts.predictions import VALIDATION, read_predictions
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.images.thumbnails import thumbnails
from chestxray_vit.reporting.render.text import to_text
from chestxray_vit.reporting.summary import INTERVALS, OUTPUTS, Options, build_report, mistaken_images, write_results
from chestxray_vit.saliency.localisation import read_localisation
from chestxray_vit.storage.lock import folder_lock


def parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.report",
        description="Report the AUC-ROC of a predictions.csv per finding and over all, with 95 % intervals by patient. "
        f"Writes {', '.join(OUTPUTS)}.",
        epilog="example: python -m chestxray_vit.report run/test/predictions.csv "
        "--compare other_run/test/predictions.csv --output_dir compared",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS.csv", help="from chestxray_vit.evaluate or another tool")
    add(
        "--validation",
        type=Path,
        metavar="V.csv",
        help=f"predictions to choose thresholds on (default: {VALIDATION} beside PREDICTIONS.csv, if there)",
    )
    add("--compare", type=Path, metavar="OTHER.csv", help="predictions of another run on the same images")
    add("--output_dir", type=Path, metavar="DIR", help="where to write (default: beside PREDICTIONS.csv)")
    add("--interval", choices=tuple(INTERVALS), default="wald", help="of the AUCs (default: wald)")
    add("--prevalence", type=float, metavar="P", help="give PPV and NPV at this share of positives too")
    add("--localisation", type=Path, metavar="L.json", help="of chestxray_vit.explain --boxes, to show in the page")
    add(
        "--thumbnails",
        type=Path,
        metavar="DIR",
        help="show the worst mistakes' images, of this ingested release or folder: they are patients' data",
    )
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the AUC table of a predictions file and write the report."""
    args = parser().parse_args(argv)
    _check(args)
    beside = args.predictions.with_name(VALIDATION)
    validation = args.validation or (beside if beside.is_file() and beside != args.predictions else None)
    output_dir = args.output_dir or args.predictions.parent
    sources = [path for path in (args.predictions, args.compare) if path is not None]
    _check_outputs([*sources, *([validation] if validation else []), args.localisation], output_dir)
    runs = [read_predictions(path) for path in sources]
    with folder_lock(output_dir, OUTPUTS):
        results = build_report(
            runs[0],
            compare_with=runs[1] if len(runs) > 1 else None,
            source=[source_of(path) for path in sources],
            validation=None if validation is None else read_predictions(validation),
            provenance=read_provenance(args.predictions),
            localisation=None if args.localisation is None else read_localisation(args.localisation),
            options=Options(args.interval, args.prevalence),
        )
        print(to_text(results))
        pictures = (
            None if args.thumbnails is None else thumbnails(_images_dir(args.thumbnails), mistaken_images(results))
        )
        for path in write_results(results, output_dir, pictures):
            print(f"wrote {path}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.prevalence is not None and not 0 <= args.prevalence <= 1:
        raise InputError(f"--prevalence is {args.prevalence}, expected a share from 0 to 1.")
    if args.thumbnails is not None and not args.thumbnails.is_dir():
        raise InputError(f"--thumbnails: {args.thumbnails} is not a folder. Name the ingested release.")


def _images_dir(folder: Path) -> Path:
    """Return the folder that file names are relative to: beside the release's metadata, or without one this folder."""
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
