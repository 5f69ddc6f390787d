"""Report the AUC of a predictions.csv: per finding and macro, with intervals by patient, without torch.

    python -m chestxray_vit.report PREDICTIONS.csv [--compare OTHER.csv] [--output_dir O]

It takes the file from anywhere, so that a team can check a model that it did not train."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

from chestxray_vit.predictions import read_predictions
from chestxray_vit.problems import InputError, reported
from chestxray_vit.results import OUTPUTS, summarise, to_text, write_results


@reported
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the AUC table of a predictions file and write auc.json, auc.csv and auc.md."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxray_vit.report",
        description="Report the AUC-ROC of a predictions.csv per finding and over all, with 95 % intervals by patient. "
        "Writes auc.json, auc.csv and auc.md.",
        epilog="example: python -m chestxray_vit.report run/predictions.csv --compare other_run/predictions.csv",
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS.csv", help="from chestxray_vit.evaluate or another tool")
    add("--compare", type=Path, metavar="OTHER.csv", help="predictions of another run on the same images")
    add("--output_dir", type=Path, metavar="DIR", help="where to write (default: beside PREDICTIONS.csv)")
    args = parser.parse_args(argv)

    output_dir = args.output_dir or args.predictions.parent
    paths = [args.predictions, args.compare] if args.compare else [args.predictions]
    outputs = {(output_dir / name).resolve() for name in OUTPUTS}
    for path in paths:
        if path.resolve() in outputs:
            raise InputError(f"{path}: the report would overwrite it. Name another folder with --output_dir.")
    runs = [read_predictions(path) for path in paths]
    results = summarise(*runs, source=paths)
    print(to_text(results))
    for path in write_results(results, output_dir):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
