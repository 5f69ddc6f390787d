"""Benchmarks of the pixel cache: building it, reading it, and how long training waits for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from tests.benchmarks import releases
from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.releases import FULL

SIZE, BATCH = (224, 224), 64


def cache_build(scratch: Path, num_rows: int) -> List[Result]:
    """Decode and resize to a whole cache, by as many threads as cores, against Pillow in RGB in one process."""
    import numpy as np
    from PIL import Image

    from chestxray_vit.cache import build_cache

    paths, source = _images(scratch, num_rows)
    folder = paths[0].parent

    def pillow() -> List[Any]:
        result = []
        for path in paths:
            with Image.open(path) as image:
                result.append(np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))[:, :, 0])
        return result

    def package():
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        return build_cache(folder, [path.name for path in paths], SIZE, 2, scratch / "cache")

    cache = package()
    places = cache.places_of([path.name for path in paths])
    assert all(np.array_equal(cache.pixels_NHW[place], plane) for place, plane in zip(places, pillow()))
    seconds = interleave({"Pillow": pillow, "package": package}, 3)
    theirs, ours = (len(paths) / seconds[name] for name in ("Pillow", "package"))
    work = f"build the cache: {source} to {SIZE[0]} px, bit-identical, on disk"
    return [Result("cache_build", work, "images/s", ours, theirs, "Pillow RGB, one process", at_least=2.3)]


def cached_read(scratch: Path, num_rows: int) -> List[Result]:
    """Random batches of 64 through a DataLoader, from the cache, against PNGs decoded on the fly."""
    from torch.utils.data import DataLoader

    from chestxray_vit.pixels import CachedXrays, Front
    from chestxray_vit.xrays import collate

    cached, decoded, preprocess, source = _views(scratch, num_rows)
    front = Front(preprocess)
    few, many = (1, 100) if num_rows >= FULL else (1, 3)

    def batches(rows, count: int) -> Iterator[Any]:
        import torch

        sampler = torch.utils.data.RandomSampler(rows, replacement=True, num_samples=count * BATCH)
        return iter(DataLoader(rows, BATCH, sampler=sampler, collate_fn=collate))

    ways = {
        "png": lambda: sum(len(batch["labels"]) for batch in batches(decoded, few)),
        "uint8": lambda: sum(len(batch["labels"]) for batch in batches(cached, many)),
        "normalised": lambda: sum(len(front(batch["pixel_values"])) for batch in batches(cached, many)),
    }
    assert isinstance(cached, CachedXrays)
    seconds = interleave(ways, 3)
    png = few * BATCH / seconds["png"]
    results = []
    for name, least in (("uint8", 2000), ("normalised", 350)):
        work = f"second epoch's read, batches of {BATCH}, {name} ({source})"
        rate = many * BATCH / seconds[name]
        results.append(Result("cached_read", work, "images/s", rate, png, "PNG on the fly", at_least=least))
    return results


def waiting(scratch: Path, num_rows: int) -> List[Result]:
    """The share of an epoch in which a ViT-Ti/16 on the CPU waits for its images."""
    import torch
    from torch.utils.data import DataLoader

    from chestxray_vit.model import build_from_scratch
    from chestxray_vit.pixels import Front
    from chestxray_vit.shape import Shape
    from chestxray_vit.xrays import collate

    full = num_rows >= FULL
    cached, _, preprocess, source = _views(scratch, num_rows)
    shape = Shape(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    tiny = Shape(patch_size=32, hidden_size=24, num_hidden_layers=1, num_attention_heads=1, intermediate_size=24)
    vit, _ = build_from_scratch(shape if full else tiny)
    front, optimizer = Front(preprocess), torch.optim.AdamW(vit.parameters())
    waited = 0.0
    start = before = time.perf_counter()
    for batch in DataLoader(cached, 8, shuffle=True, collate_fn=collate):
        pixels = front(batch["pixel_values"])
        waited += time.perf_counter() - before
        logits_BL = vit(pixel_values=pixels).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits_BL, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = time.perf_counter()
    share = 100 * waited / (time.perf_counter() - start)
    work = f"time that {'ViT-Ti/16' if full else 'a tiny ViT'} on the CPU waits for images ({source})"
    return [Result("waiting", work, "%", share, below=1)]


def _images(scratch: Path, num_rows: int) -> Tuple[List[Path], str]:
    return releases.xrays_1024(scratch / "xrays", 271 if num_rows >= FULL else 4)


def _views(scratch: Path, num_rows: int) -> Tuple[Any, Any, Any, str]:
    """Return the same images as cached planes and as PNGs, the preprocessing, and what they are."""
    import datasets
    import numpy as np

    from chestxray_vit.cache import build_cache
    from chestxray_vit.model import build_from_scratch
    from chestxray_vit.pixels import CachedXrays
    from chestxray_vit.shape import Shape
    from chestxray_vit.xrays import Preprocess, preprocessed

    paths, source = _images(scratch, num_rows)
    small = Shape(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    preprocess = Preprocess(build_from_scratch(small)[1])
    names = [path.name for path in paths]
    cache = build_cache(paths[0].parent, names, SIZE, preprocess.resample, scratch / "cache")
    columns = {"image": [str(path) for path in paths], "labels": np.zeros((len(paths), 14), np.float32).tolist()}
    rows = datasets.Dataset.from_dict({**columns, "file_name": names}).cast_column("image", datasets.Image())
    return CachedXrays(rows, cache), preprocessed(rows, preprocess), preprocess, source
