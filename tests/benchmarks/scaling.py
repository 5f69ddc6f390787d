"""How cost grows with the number of images: ingest, opening, building the cache, reading it; and memory.

python -m tests.benchmarks --scale"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

from tests.benchmarks import releases

SIZES = (1_000, 4_000, 16_000)
PIXELS = (32, 32)  # what is measured is the cost of an image, not of its pixels
MEMORY = """
import sys
from pathlib import Path
from chestxray_vit.cache import build_cache
from chestxray_vit.pixels import CachedXrays
from chestxray_vit.xrays import load_xrays

def held():
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

folder = Path(sys.argv[1])
load_xrays(sys.argv[2])  # imports, and what a first call keeps
before = held()
rows = load_xrays(folder)
cache = build_cache(folder / "images", rows["file_name"], (32, 32), 2, folder / "cache")
cached = CachedXrays(rows, cache)
most = held()
for start in range(0, len(cached), 64):
    cached.__getitems__(list(range(start, min(start + 64, len(cached)))))
    most = max(most, held())
print(most - before)
"""


def scale(scratch: Path) -> str:
    """Return a Markdown table of milliseconds for a thousand images, and bytes of memory for one."""
    works: Dict[str, List[float]] = {}
    memory: List[int] = []
    for size in SIZES:
        for work, seconds in _measured(scratch / str(size), size).items():
            works.setdefault(work, []).append(1e6 * seconds / size)
        memory.append(_memory(scratch / str(size), scratch / str(SIZES[0])))
    head = " | ".join(f"{size:,} images" for size in SIZES)
    lines = [f"| work | {head} | last / first |", "|---" * (len(SIZES) + 2) + "|"]
    for work, costs in works.items():
        shown = " | ".join(f"{cost:.1f} ms" for cost in costs)
        lines.append(f"| {work}, for a thousand images | {shown} | {costs[-1] / costs[0]:.2f} |")
    growth = (memory[-1] - memory[-2]) / (SIZES[-1] - SIZES[-2])
    lines += ["", f"Memory of opening, caching and reading grows by {growth:.0f} bytes an image (target: at most 200)."]
    return "\n".join(lines)


def _measured(folder: Path, size: int) -> Dict[str, float]:
    from chestxray_vit import ingest
    from chestxray_vit.cache import build_cache
    from chestxray_vit.pixels import CachedXrays
    from chestxray_vit.xrays import load_xrays

    releases.write_tables(folder, size)
    releases.link_images(folder)
    seconds = {"ingest": _timed(lambda: ingest.main([str(folder)]))}
    opened = {}

    def open_rows() -> None:
        opened["rows"] = load_xrays(folder)

    seconds["open"] = min(_timed(open_rows) for _ in range(3))
    names = opened["rows"]["file_name"]

    def build() -> None:
        opened["cache"] = build_cache(folder / "images", names, PIXELS, 2, folder / "cache")

    seconds["build the cache"] = _timed(build)
    seconds["open the cache"] = min(_timed(build) for _ in range(3))
    cached = CachedXrays(opened["rows"], opened["cache"])

    def read() -> None:
        for start in range(0, size, 64):
            cached.__getitems__(list(range(start, min(start + 64, size))))

    seconds["read it"] = min(_timed(read) for _ in range(3))
    return seconds


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - start


def _memory(folder: Path, small: Path) -> int:
    """Return the bytes that opening, caching and reading take, in a process of their own; files' pages left out."""
    command = [sys.executable, "-c", MEMORY, str(folder), str(small)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
