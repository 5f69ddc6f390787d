"""Score any chest X-rays, PNG or JPEG, with a trained run.

    python -m chestxray_vit.predict run IMAGE_OR_FOLDER... --output scores.csv

An image that cannot be read is named and left out, and the exit code is then 1: no score is made up for it."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from chestxray_vit.files import write_text
from chestxray_vit.findings import FINDINGS
from chestxray_vit.problems import InputError, reported

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
BATCH = 32


def parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.predict",
        description="Score chest X-rays for 14 findings with a trained run. Research use only.",
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
    result.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="engine (default: auto)")
    return result


@reported
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage."""
    args = parser().parse_args(argv)
    paths = find_images(args.images)

    from chestxray_vit import backend, model  # only here: they load torch

    device = backend.pick_device(args.device, with_ipu=False)
    vit, processor = model.load_model(args.run)
    unreadable: List[str] = []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", *(f"score_{finding}" for finding in FINDINGS)])
    for path, scores_L in score(vit, processor, paths, device, unreadable):
        shown_L = scores_L if args.output else [f"{value:.4f}" for value in scores_L]
        writer.writerow([path.as_posix(), *shown_L])
    if args.output:
        write_text(args.output, table.getvalue())
        print(f"wrote {args.output}: {len(paths) - len(unreadable):,} images")
    else:
        print(table.getvalue(), end="")
    for problem in unreadable:
        print(f"error: {problem}", file=sys.stderr)
    if unreadable:
        print(f"error: {len(unreadable):,} of {len(paths):,} images have no score", file=sys.stderr)
    return 1 if unreadable else 0


def find_images(arguments: Sequence[Path]) -> List[Path]:
    """Return the images that arguments name: files as they are, folders with all their PNG and JPEG, sorted.

    Raises:
        InputError: a path is not there, or a folder holds no image.
    """
    paths: List[Path] = []
    for argument in arguments:
        if argument.is_dir():
            found = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not found:
                raise InputError(f"{argument}: no PNG or JPEG in this folder.")
            paths += found
        elif argument.exists():
            paths.append(argument)
        else:
            raise InputError(f"{argument}: no such file or folder.")
    return paths


def score(
    vit, processor, paths: Sequence[Path], device: str, unreadable: List[str]
) -> Iterator[Tuple[Path, List[float]]]:
    """Yield the path and the 14 probabilities of each image, in order; add to `unreadable` what has none."""
    import torch
    from tqdm import tqdm

    from chestxray_vit.predictions import probabilities
    from chestxray_vit.xrays import Preprocess, read_grey

    preprocess = Preprocess(processor)
    vit = vit.to(device).eval()
    progress = tqdm(total=len(paths), desc="score", unit="image", delay=2, leave=False)
    for start in range(0, len(paths), BATCH):
        readable, pixels = [], []
        for path in paths[start : start + BATCH]:
            try:
                pixels.append(preprocess.pixels(read_grey(path)))
                readable.append(path)
            except InputError as error:
                unreadable.append(str(error))
        if pixels:
            with torch.inference_mode():
                logits_BL = vit(pixel_values=torch.stack(pixels).to(device)).logits.float().cpu().numpy()
            yield from zip(readable, probabilities(logits_BL[:, : len(FINDINGS)]).tolist())
        progress.update(len(paths[start : start + BATCH]))
    progress.close()


if __name__ == "__main__":
    sys.exit(main())
