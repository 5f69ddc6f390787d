"""How cost grows with the number of images: ingest, opening, building the cache, reading it; and memory.

python -m tests.benchmarks --scale"""

from __future__ import annotations

import contextlib
import io
import re
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
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.data.cached_dataset import CachedXrays
from chestxray_vit.data.dataset import load_xrays, names_of

folder = Path(sys.argv[1])
load_xrays(sys.argv[2])  # imports, and what a first call keeps
print("ready", flush=True)
sys.stdin.readline()
rows = load_xrays(folder)
cache = build_cache(folder / "images", names_of(rows), Resize((32, 32), 2), folder / "measured")
cached = CachedXrays(rows, cache)
for start in range(0, len(cached), 64):
    cached.__getitems__(list(range(start, min(start + 64, len(cached)))))
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
    from chestxray_vit.data.cached_dataset import CachedXrays
    from chestxray_vit.data.dataset import load_xrays, names_of
    from chestxray_vit.data.pixel_cache.build import build_cache
    from chestxray_vit.data.pixel_cache.key import Resize

    releases.write_tables(folder, size)
    releases.link_images(folder)
    seconds = {"ingest": _timed(lambda: ingest.main([str(folder)]))}
    opened = {}

    def open_rows() -> None:
        opened["rows"] = load_xrays(folder)

    seconds["open"] = min(_timed(open_rows) for _ in range(3))

    def build() -> None:
        names = names_of(opened["rows"])
        opened["cache"] = build_cache(folder / "images", names, Resize(PIXELS, 2), folder / "cache")

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
    """Return the most bytes that opening, caching and reading take in a process of their own, without files' pages."""
    command = [sys.executable, "-c", MEMORY, str(folder), str(small)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as work:
        work.stdout.readline()
        before = most = _held(work)
        work.stdin.write("go\n")
        work.stdin.flush()
        while work.poll() is None:
            most = max(most, _held(work))
            time.sleep(0.001)
    if work.returncode:
        raise subprocess.CalledProcessError(work.returncode, "the measured process")
    return most - before


def _held(work: subprocess.Popen) -> int:
    """Return the bytes of memory that a process holds, 0 when it has ended."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{work.pid}/status").read_text())
    return 1024 * int(found.group(1)) if found else 0
