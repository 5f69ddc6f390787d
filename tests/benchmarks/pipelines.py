"""Two stages in two processes against the whole model in one, on the same machine, at the same global batch."""

from __future__ import annotations

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

from chestxray_vit.models.vit_size import ViTSize
from tests.benchmarks.measure import Result
from tests.benchmarks.releases import FULL

STAGES = 2
TINY = ViTSize(
    image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)
TI = ViTSize(hidden_size=192, num_attention_heads=3, intermediate_size=768)  # ViT-Ti/16 at 224
BASE = ViTSize()  # ViT-B/16 at 224


def two_stages(scratch: Path, num_rows: int) -> List[Result]:
    """Time, idle share and memory of a pipeline, by the number of micro-batches."""
    full = num_rows >= FULL
    shape, images, rounds = (TI, 32, 5) if full else (TINY, 16, 2)
    name = "ViT-Ti/16 at 224" if full else "a tiny ViT"
    results = []
    for count in (2, 4, 8, 16) if full else (2, 4):
        found = _spawned(_timed, scratch, shape, images, count, rounds)
        work = f"update of {name}, {images} images in {count} micro-batches, {STAGES} stages"
        whole = "one process, a thread a core"
        results.append(Result("pipeline", work, "ms", 1000 * found["piped"], 1000 * found["whole"], whole))
        ideal = 100 * (STAGES - 1) / (count + STAGES - 1)
        results.append(
            Result("pipeline", f"idle share of the same, m = {count}", "%", 100 * found["idle"], ideal, "ideal")
        )
    large = BASE if full else TINY
    held = [_spawned(_held, scratch, large, 4, 2, stages)["peak"] / 1e6 for stages in (STAGES, 1)]
    work = f"peak memory of a process, one update of {'ViT-B/16 at 224' if full else 'a tiny ViT'} by AdamW"
    results.append(Result("pipeline", work, "MB", held[0], held[1], "whole model in one process"))
    return results


def _spawned(measure: Any, scratch: Path, shape: ViTSize, images: int, count: int, last: int) -> Dict[str, float]:
    """Run a measurement in processes of its own, and return what the first wrote down."""
    import torch

    folder = scratch / f"{measure.__name__}{count}.{last}"
    folder.mkdir()
    stages = last if measure is _held else STAGES
    torch.multiprocessing.spawn(measure, (str(folder), shape, images, count, last), nprocs=stages)
    return json.loads((folder / "found.json").read_text())


def _timed(rank: int, folder: str, shape: ViTSize, images: int, count: int, rounds: int) -> None:
    """Make updates with both in turn; one process of two threads against two of one."""
    import torch

    from chestxray_vit.pipeline.equivalence import Stopwatch, draw, train_whole

    whole, pixels, labels_NL = draw(shape, images)
    pipeline = _pipeline(rank, folder, copy.deepcopy(whole), images, count, STAGES)
    watch = Stopwatch(pipeline.runner)
    seconds: Dict[str, List[float]] = {"piped": [], "whole": [], "idle": []}
    for turn in range(rounds + 1):
        torch.set_num_threads(1)
        pipeline.stage.zero_grad()
        watch.reset()
        torch.distributed.barrier()
        start = time.perf_counter()
        loss = pipeline.step(pixels, labels_NL)
        torch.distributed.barrier()
        wall = time.perf_counter() - start
        busy = torch.tensor(watch.forward + watch.backward)
        torch.distributed.all_reduce(busy)
        if rank == 0:
            torch.set_num_threads(STAGES)
            whole.zero_grad()
            alone, expected = train_whole(whole, pixels, labels_NL, images // count)
            torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=0)
            if turn:
                for name, value in (("piped", wall), ("whole", alone), ("idle", 1 - busy.item() / (STAGES * wall))):
                    seconds[name].append(value)
    if rank == 0:
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        Path(folder, "found.json").write_text(json.dumps(medians))
    _leave()


def _held(rank: int, folder: str, shape: ViTSize, images: int, count: int, stages: int) -> None:
    """Measure the greatest peak memory of all stages above what the imports take; of one stage: the whole model's."""
    import torch

    from chestxray_vit.pipeline.equivalence import draw, train_whole

    torch.set_num_threads(1)
    before = _peak()
    vit, pixels, labels_NL = draw(shape, images)
    if stages == 1:
        train_whole(vit, pixels, labels_NL, images // count)
    else:
        _pipeline(rank, folder, vit, images, count, stages).step(pixels, labels_NL)
    torch.optim.AdamW(vit.parameters()).step()
    peak = torch.tensor(_peak() - before, dtype=torch.float64)
    if stages > 1:
        torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps({"peak": peak.item()}))
    if stages > 1:
        _leave()


def _pipeline(rank: int, folder: str, vit: Any, images: int, count: int, stages: int) -> Any:
    """Join the other stages, and cut a model in place."""
    import torch

    from chestxray_vit.pipeline.pipeline_config import PipelineMode
    from chestxray_vit.pipeline.stages import Pipeline, PipelineSettings, stage_rank_of

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=stages)
    mode = PipelineMode((-1,), stages, 1, count, 1, (0.3,) * stages)
    return Pipeline(vit, stage_rank_of(stages, torch.device("cpu")), PipelineSettings(mode, images // count))


def _leave() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _peak() -> int:
    """Return the most bytes that this process has held; getrusage's figure may be its parent's, from before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
