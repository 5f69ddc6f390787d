"""Measure the package against the public way of doing the same, in one run on one machine.

    python -m tests.benchmarks [name ...] [--json F] [--rows N]
    python -m tests.benchmarks --scale

Prints a Markdown table; the limit is that of a bare loop, which does only what no way can leave out. The exit code is 1
if a target is missed: on a busy machine, run it again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Optional, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of Hugging Face's: no round may wait for a network

from tests.benchmarks import bootstrap, data, evaluating, learning, pipelines, reading, scaling
from tests.benchmarks.measure import machine, to_markdown
from tests.benchmarks.releases import FULL

BENCHMARKS = {
    "ingest": data.ingest_in_process,
    "ingest_end_to_end": data.ingest_end_to_end,
    "open": data.open_dataset,
    "preprocess": data.preprocess,
    "cache_build": reading.cache_build,
    "cached_read": reading.cached_read,
    "waiting": reading.waiting,
    "evaluate": evaluating.evaluate,
    "auc": learning.auc_of_test_list,
    "bootstrap": bootstrap.patient_bootstrap,
    "step": learning.training_step,
    "pipeline": pipelines.two_stages,
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the benchmarks that the arguments name, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure the package's speed.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the numbers here too")
    parser.add_argument("--rows", type=int, default=FULL, help="size of the release; targets hold for the default only")
    parser.add_argument("--scale", action="store_true", help="show how cost grows from 1,000 to 16,000 images, alone")
    args = parser.parse_args(argv)
    if args.scale:
        with tempfile.TemporaryDirectory(prefix="chestxray_vit.") as scratch:
            print(scaling.scale(Path(scratch)))
        return 0
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}. Known: {', '.join(BENCHMARKS)}")
    if args.rows < 200:
        parser.error(f"--rows is {args.rows}, expected 200 or more")

    facts, results = machine(), []
    for name in args.names or BENCHMARKS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="chestxray_vit.") as scratch:
            results += BENCHMARKS[name](Path(scratch), args.rows)
        print(f"{name}: measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if args.rows < FULL:
        results = [dataclasses.replace(result, at_least=None, below=None) for result in results]
    print(to_markdown(results))
    print()
    print("Medians of interleaved rounds. " + "; ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    if args.json:
        content = {"machine": facts, "rows": args.rows, "results": [result.as_dict() for result in results]}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(result.reached is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
