"""Time two ways of doing one thing side by side, and lay the numbers out.

The machine is shared: a baseline timed an hour ago says nothing about ours timed now. So every round runs each way
once, in an order that turns, and the medians of the rounds are compared."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

PACKAGES = ("numpy", "pyarrow", "pandas", "scikit-learn", "pillow", "torch", "transformers", "datasets")
OPTIONAL = ("isal",)


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        benchmark: its name on the command line.
        work: what is done.
        unit: of both values; one that ends in `/s` is better when higher, any other when lower.
        baseline, ours: medians; None where the public way has none.
        baseline_is: the public way that the baseline goes.
        at_least: the smallest ratio to reach; None without one.
        below: the value that ours must stay under; None without one.
        limit: the median of a bare loop that does only what no way can leave out; None where none is known.
        limit_is: what that loop does.
    """

    benchmark: str
    work: str
    unit: str
    ours: float
    baseline: Optional[float] = None
    baseline_is: str = ""
    at_least: Optional[float] = None
    below: Optional[float] = None
    limit: Optional[float] = None
    limit_is: str = ""

    @property
    def ratio(self) -> Optional[float]:
        """How many times better ours is than the baseline."""
        if self.baseline is None:
            return None
        return self.ours / self.baseline if self.unit.endswith("/s") else self.baseline / self.ours

    @property
    def reached(self) -> Optional[bool]:
        """Whether the target is reached; None without one."""
        if self.below is not None:
            return self.ours < self.below
        return None if self.at_least is None else self.ratio >= self.at_least

    def as_dict(self) -> Dict[str, Any]:
        """Return what goes into the JSON file."""
        return {**vars(self), "ratio": self.ratio, "reached": self.reached}


def interleave(
    ways: Dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Dict[str, float]:
    """Return the median seconds of each way, after one round that is not counted.

    Args:
        ways: name to what is timed.
        rounds: how often each is run.
        clock: `time.perf_counter` for wall time, `time.process_time` for CPU seconds of all threads.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds + 1):
        for name in names if turn % 2 else reversed(names):
            start = clock()
            ways[name]()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> Dict[str, Any]:
    """Return what the numbers are measured on; to be asked before measuring."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    facts = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        facts["load before"] = round(os.getloadavg()[0], 1)  # above 0, others were at work: seconds are too high
    packages = {name: version(name) for name in PACKAGES}
    for name in OPTIONAL:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {**facts, **packages}


def to_markdown(results: List[Result]) -> str:
    """Return the results as a Markdown table, aligned so that it reads well in a terminal too."""
    rows = [["benchmark", "what", "baseline", "ours", "ratio", "limit", "target"]]
    for result in results:
        baseline = f"{_shown(result.baseline, result.unit)} ({result.baseline_is})" if result.baseline else ""
        ratio = f"{result.ratio:.2f}x" if result.ratio and result.ratio < 10 else f"{result.ratio or 0:.0f}x"
        limit = f"{_shown(result.limit, result.unit)} ({result.limit_is})" if result.limit else ""
        rows.append([result.benchmark, result.work, baseline, _shown(result.ours, result.unit)])
        rows[-1] += [ratio if result.ratio else "", limit, _target(result)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _shown(value: float, unit: str) -> str:
    if value >= 1:
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{value:.2g} {unit}"


def _target(result: Result) -> str:
    if result.reached is None:
        return ""
    target = f"< {result.below:g} {result.unit}" if result.below is not None else f">= {result.at_least:g}x"
    return f"{target}: {'reached' if result.reached else 'MISSED'}"


def flags_of(scratch: Path) -> Dict[str, Any]:
    """Return values of TrainingArguments' fields: the recipe's, without what is not an update."""
    from tests.helpers.engines import values_of

    return values_of(scratch / "run", save_strategy="no", disable_tqdm=True)
