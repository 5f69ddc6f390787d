"""Score any chest X-rays, PNG or JPEG, with a trained run.

    python -m chestxray_vit.predict run IMAGE_OR_FOLDER... --output scores.csv

Where `evaluate` has written thresholds.json into the run, the findings called positive are listed beside the scores. An
image that cannot be read is named and left out, and the exit code is then 1; it gets no score."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from pathlib import Path
from typing import Dict, Optional, Sequence

from chestxray_vit.artifacts.thresholds import FILE as THRESHOLDS
from chestxray_vit.artifacts.thresholds import read_thresholds
from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.images.files import find_images
from chestxray_vit.labels import SEPARATOR
from chestxray_vit.metrics.operating_points import RULE_NAMES, RULES, Table, decide
from chestxray_vit.storage.atomic import write_text

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.predict",
        description="Score chest X-rays for the findings of a trained run. Research use only.",
        epilog="example: python -m chestxray_vit.predict run xray.png more_xrays/ --output scores.csv",
        allow_abbrev=False,
    )
    result.add_argument("run", help="folder of a trained run")
    result.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="PNG or JPEG, or a folder of them"
    )
    result.add_argument(
        "--output", type=Path, metavar="F.csv", help="write the scores here, all digits (default: print four)"
    )
    result.add_argument(
        "--rule",
        choices=RULE_NAMES,
        default=RULE_NAMES[0],
        help=f"which thresholds of RUN/{THRESHOLDS} call a finding positive (default: {RULE_NAMES[0]})",
    )
    result.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="engine (default: auto)")
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    paths = find_images(args.images)
    _check_output(args.output, paths)

    from chestxray_vit.models.inference import open_run, score_images  # only here: it loads torch

    run, table = open_run(args.run, args.device), io.StringIO()
    unreadable: Dict[Path, str] = {}
    findings = run.label_set.findings
    thresholds = _thresholds(Path(args.run), findings, args.rule)
    writer = csv.writer(table, lineterminator="\n")
    called = [] if thresholds is None else [f"called_positive_{args.rule}"]
    writer.writerow(["file_name", *(f"score_{finding}" for finding in findings), *called])
    for path, scores_L in score_images(run, paths, unreadable):
        shown_L = scores_L if args.output else [f"{value:.4f}" for value in scores_L]
        decided = [] if thresholds is None else [SEPARATOR.join(decide(scores_L, findings, thresholds, args.rule))]
        name = path.as_posix().encode("utf-8", "backslashreplace").decode()  # a name may hold bytes of no text
        writer.writerow([name, *shown_L, *decided])
    if args.output:
        write_text(args.output, table.getvalue())
        print(f"wrote {args.output}: {len(paths) - len(unreadable):,} images")
    else:
        print(table.getvalue(), end="")
    for problem in unreadable.values():
        print(f"error: {problem}", file=sys.stderr)
    if unreadable:
        print(f"error: {len(unreadable):,} of {len(paths):,} images have no score", file=sys.stderr)
    return 1 if unreadable else 0


def _check_output(output: Optional[Path], paths: Sequence[Path]) -> None:
    """Refuse what could not be written after all images are scored, or would overwrite one."""
    if output is None:
        return
    if output.is_dir() or output.resolve() in {path.resolve() for path in paths}:
        raise InputError(
            f"--output: {output} is {'a folder' if output.is_dir() else 'an image'}. Name a file of its own."
        )
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output: {output.parent}: no such folder. Make it first.")


def _thresholds(run_dir: Path, findings: Sequence[str], rule_name: str) -> Optional[Table]:
    """Return the thresholds that `evaluate` wrote into a run, and log what they are; None where there are none."""
    path = run_dir / THRESHOLDS
    if not path.is_file():
        return None
    thresholds = read_thresholds(path, findings)
    title = next(rule.title for rule in RULES if rule.name == rule_name)
    logger.info(
        "called positive: by the %s, chosen on %s images of %s patients",
        title,
        f"{thresholds.chosen_on.num_images:,}",
        f"{thresholds.chosen_on.num_patients:,}",
    )
    undecided = [finding for finding, row in thresholds.table.items() if row[rule_name] is None]
    if undecided:
        logger.warning("never called, since they have no such threshold: %s", ", ".join(undecided))
    return thresholds.table


if __name__ == "__main__":
    sys.exit(main())
