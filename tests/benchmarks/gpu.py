"""Benchmark of training on a GPU: against the plain Trainer, and against the card's peak."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models.vit_size import ViTSize
from tests.benchmarks import releases
from tests.benchmarks.measure import Result, flags_of

FINDINGS = NIH_CHESTXRAY14.names

# Dense bfloat16 FLOP/s by NVIDIA's data sheets, under the names that torch reports.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
}


def training_on_gpu(scratch: Path, shape: ViTSize, name: str, device: str) -> List[Result]:
    """Images a second of our Trainer, from the cache, against the plain one with the image processor on the fly."""
    import torch

    batch, num_ours, num_theirs = (64, 50, 3) if shape.image_size == 224 else (2, 3, 2)
    paths, source = releases.xrays_1024(scratch / "xrays", 256 if shape.image_size == 224 else 8)
    ours, theirs = _trainers(scratch, shape, device, paths, (batch, num_ours, num_theirs))
    rates = {}
    for way, trainer, first in (("ours", ours, 10), ("theirs", theirs, 1)):
        clock = _clock(first)
        trainer.add_callback(clock)
        trainer.train()
        rates[way] = batch * clock.num_updates / clock.seconds
    gpu = torch.cuda.get_device_name() if device == "cuda" else device
    work = f"training of {name}, {'bfloat16' if ours.args.bf16 else 'float32'}, batches of {batch}, {gpu} ({source})"
    results = [Result("step", work, "images/s", rates["ours"], rates["theirs"], "plain Trainer, processor on the fly")]
    if gpu in PEAKS:
        # forward and backward, without recomputation, are three times the forward pass
        flops = 3 * sum(shape.stage_flops([shape.num_hidden_layers]))
        share = 100 * rates["ours"] * flops / PEAKS[gpu]
        results.append(Result("step", f"share of {gpu}'s bfloat16 peak in that training", "%", share))
    return results


def _trainers(scratch: Path, shape: ViTSize, device: str, paths: List[Path], size: Tuple[int, int, int]) -> Tuple:
    """Return our trainer and the plain one; size: images a batch, updates of ours, and of the other."""
    from transformers import Trainer, TrainingArguments

    from chestxray_vit.data.cached_dataset import CachedXrays
    from chestxray_vit.data.dataset import collate
    from chestxray_vit.data.pixel_cache.build import build_cache
    from chestxray_vit.data.pixel_cache.key import Resize
    from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
    from chestxray_vit.models.vit import build_from_scratch
    from tests.helpers.engines import engine_of, trainer_of

    batch, num_ours, num_theirs = size
    model, processor = build_from_scratch(shape)
    processor.save_pretrained(scratch / "vit")
    preprocess = Preprocess(processor)
    names = [path.name for path in paths]
    cache = build_cache(paths[0].parent, names, Resize(preprocess.size, preprocess.resample), scratch / "cache")
    same = {"per_device_train_batch_size": batch, "num_train_epochs": 1_000}
    flags = {**flags_of(scratch), **same, "max_steps": num_ours + 10}
    ours = trainer_of(
        model,
        processor,
        engine_of(device).arguments(flags),
        device,
        train=CachedXrays(_unlabelled(names), cache),
        to_pixel_values=GreyToPixelValues(preprocess),
    )
    plain = TrainingArguments(
        str(scratch / "plain"), bf16=ours.args.bf16, max_steps=num_theirs + 1, remove_unused_columns=False,
        save_strategy="no", report_to="none", disable_tqdm=True, **same,
    )  # fmt: skip
    theirs = Trainer(build_from_scratch(shape)[0], plain, collate, _Decoding(paths, scratch / "vit"))
    return ours, theirs


def _unlabelled(names: List[str]):
    """Return rows as `load_xrays` does, without findings."""
    import datasets

    kinds = {"file_name": datasets.Value("string")}
    kinds["labels"] = datasets.Sequence(datasets.Value("float32"), length=len(FINDINGS))
    columns = {"file_name": names, "labels": np.zeros((len(names), len(FINDINGS)), np.float32)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _clock(first: int):
    """Return a callback that times a training's updates after the `first` ones, until the device is done."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        num_updates, seconds, start = 0, 0.0, 0.0

        def on_step_end(self, args, state, control, **_):
            if state.global_step in (first, state.max_steps):
                if args.device.type == "cuda":
                    torch.cuda.synchronize()
                self.seconds, self.start = time.perf_counter() - self.start, time.perf_counter()
                self.num_updates = state.global_step - first

    return Clock()


class _Decoding:
    """X-rays as the checkpoint's image processor makes them, each time anew."""

    def __init__(self, paths: List[Path], folder: Path):
        from transformers import AutoImageProcessor

        self.paths, self.processor = paths, AutoImageProcessor.from_pretrained(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        import torch
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels_3HW = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels_3HW, "labels": torch.zeros(len(FINDINGS))}
