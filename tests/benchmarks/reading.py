"""Benchmarks of the pixel cache: building it, reading it, and how long training waits for it."""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence, Tuple
from unittest import mock

from chestxray_vit.images import png
from tests.benchmarks import releases
from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.releases import FULL

SIZE, BATCH = (224, 224), 64
BASELINE = "Pillow RGB, one process"


def cache_build(scratch: Path, num_rows: int) -> List[Result]:
    """Decode and resize to a whole cache, by as many threads as cores, against Pillow in RGB in one process."""
    import numpy as np
    from PIL import Image

    paths, source = releases.xrays_1024(scratch / "xrays", _num_images(num_rows))

    def pillow() -> List[Any]:
        result = []
        for path in paths:
            with Image.open(path) as image:
                result.append(np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))[:, :, 0])
        return result

    builds = {"Pillow alone": _build(scratch, paths, None)}
    isal_zlib = png.fast_zlib()
    if isal_zlib is not None:
        builds["isal and Pillow"] = _build(scratch, paths, isal_zlib)
    planes = pillow()
    for build in builds.values():
        cache = build()
        places = cache.rows_of([path.name for path in paths])
        assert all(np.array_equal(cache.pixels_NHW[index], plane) for index, plane in zip(places, planes))
    seconds = interleave({"Pillow": pillow, **builds, "limit": lambda: _inflate_all(paths)}, 5)
    rates = {name: len(paths) / value for name, value in seconds.items()}
    limit_is = f"reading and zlib's inflate alone, {os.cpu_count()} threads"
    results = []
    for name in builds:
        work = f"build the cache by {name}: {source} to {SIZE[0]} px, bit-identical, on disk"
        rate, baseline, limit = rates[name], rates["Pillow"], rates["limit"]
        results.append(Result("cache_build", work, "images/s", rate, baseline, BASELINE, 2.3, None, limit, limit_is))
    return results


def _build(scratch: Path, paths: Sequence[Path], fast_zlib: Any) -> Callable[[], Any]:
    """Return what builds a cache in a folder that is new each time, inflating by `fast_zlib` where that is not None."""
    from chestxray_vit.data.pixel_cache.build import build_cache
    from chestxray_vit.data.pixel_cache.key import Resize

    names = [path.name for path in paths]

    def build():
        folder = Path(tempfile.mkdtemp(dir=scratch))
        with mock.patch.object(png, "fast_zlib", lambda: fast_zlib):
            return build_cache(paths[0].parent, names, Resize(SIZE, 2), folder)

    return build


def _inflate_all(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(inflate, paths))


def inflate(path: Path) -> bytes:
    """Read a PNG and inflate its pixels, which no way to decode it can leave out."""
    content, parts, start = path.read_bytes(), [], 8
    while start < len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] == b"IDAT":
            parts.append(content[start + 8 : end])
        start = end + 4
    return zlib.decompress(b"".join(parts))


def cached_read(scratch: Path, num_rows: int) -> List[Result]:
    """Random batches of 64 through a DataLoader, from the cache, against PNGs decoded on the fly."""
    import numpy as np
    import torch

    from chestxray_vit.data.cached_dataset import CachedXrays
    from chestxray_vit.data.dataset import collate
    from chestxray_vit.images.preprocess import GreyToPixelValues

    cached, decoded, preprocess, source = views(scratch, _num_images(num_rows))
    to_pixel_values = GreyToPixelValues(preprocess)
    few, many, rounds = (1, 100, 5) if num_rows >= FULL else (1, 3, 1)
    in_memory_NHW = np.array(cached.planes)

    def batches(rows, count: int) -> Iterator[Any]:
        sampler = torch.utils.data.RandomSampler(rows, replacement=True, num_samples=count * BATCH)
        return iter(torch.utils.data.DataLoader(rows, BATCH, sampler=sampler, collate_fn=collate))

    def gather(kind: torch.dtype) -> None:
        for places_B in np.random.default_rng(1337).integers(len(in_memory_NHW), size=(many, BATCH)):
            torch.from_numpy(in_memory_NHW[places_B]).to(kind)

    def png_on_the_fly() -> None:
        with mock.patch.object(png, "fast_zlib", lambda: None):
            for _ in batches(decoded, few):
                pass

    ways = {
        "png": png_on_the_fly,
        "uint8": lambda: sum(len(batch["labels"]) for batch in batches(cached, many)),
        "normalised": lambda: sum(len(to_pixel_values(batch["pixel_values"])) for batch in batches(cached, many)),
        "uint8 limit": lambda: gather(torch.uint8),
        "normalised limit": lambda: gather(torch.float32),
    }
    assert isinstance(cached, CachedXrays)
    seconds = interleave(ways, rounds)
    on_the_fly = few * BATCH / seconds["png"]
    results = []
    for name, least, limit_is in (("uint8", 2000, "RAM gather"), ("normalised", 350, "RAM gather as float32")):
        work = f"second epoch's read, batches of {BATCH}, {name} ({source})"
        rate, limit = (many * BATCH / seconds[way] for way in (name, f"{name} limit"))
        results.append(
            Result(
                "cached_read",
                work,
                "images/s",
                rate,
                on_the_fly,
                "PNG on the fly by Pillow",
                least,
                None,
                limit,
                limit_is,
            )
        )
    return results


def waiting(scratch: Path, num_rows: int) -> List[Result]:
    """The share of an epoch in which a ViT-Ti/16 on the CPU waits for its images."""
    import torch
    from torch.utils.data import DataLoader

    from chestxray_vit.data.dataset import collate
    from chestxray_vit.images.preprocess import GreyToPixelValues
    from chestxray_vit.models.vit import build_from_scratch
    from chestxray_vit.models.vit_size import ViTSize

    full = num_rows >= FULL
    cached, _, preprocess, source = views(scratch, _num_images(num_rows))
    shape = ViTSize(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    tiny = ViTSize(patch_size=32, hidden_size=24, num_hidden_layers=1, num_attention_heads=1, intermediate_size=24)
    vit, _ = build_from_scratch(shape if full else tiny)
    to_pixel_values, optimizer = GreyToPixelValues(preprocess), torch.optim.AdamW(vit.parameters())
    waited = 0.0
    start = before = time.perf_counter()
    for batch in DataLoader(cached, 8, shuffle=True, collate_fn=collate):
        pixels = to_pixel_values(batch["pixel_values"])
        waited += time.perf_counter() - before
        logits_BL = vit(pixel_values=pixels).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits_BL, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = time.perf_counter()
    share = 100 * waited / (time.perf_counter() - start)
    work = f"time that {'ViT-Ti/16' if full else 'a tiny ViT'} on the CPU waits for images ({source})"
    return [Result("waiting", work, "%", share, below=1)]


def _num_images(num_rows: int) -> int:
    return 271 if num_rows >= FULL else 4  # all real ones that are at hand


def views(scratch: Path, num_images: int) -> Tuple[Any, Any, Any, str]:
    """Return the same images as cached planes and as PNGs, the preprocessing, and what they are."""
    import datasets
    import numpy as np

    from chestxray_vit.data.cached_dataset import CachedXrays
    from chestxray_vit.data.dataset import preprocessed
    from chestxray_vit.data.pixel_cache.build import build_cache
    from chestxray_vit.data.pixel_cache.key import Resize
    from chestxray_vit.images.preprocess import Preprocess
    from chestxray_vit.models.vit import build_from_scratch
    from chestxray_vit.models.vit_size import ViTSize

    paths, source = releases.xrays_1024(scratch / "xrays", num_images)
    small = ViTSize(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    preprocess = Preprocess(build_from_scratch(small)[1])
    names = [path.name for path in paths]
    cache = build_cache(paths[0].parent, names, Resize(SIZE, preprocess.resample), scratch / "cache")
    columns = {
        "image": [str(path) for path in paths],
        "labels": np.zeros((len(paths), 14)).tolist(),
        "file_name": names,
    }
    kinds = datasets.Image(), datasets.Sequence(datasets.Value("float32"), length=14), datasets.Value("string")
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(zip(columns, kinds)))
    return CachedXrays(rows, cache), preprocessed(rows, preprocess), preprocess, source
