"""Benchmark of scoring: a split's images to logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.reading import views
from tests.benchmarks.releases import FULL, xrays_1024

BATCH = 32


def evaluate(scratch: Path, num_rows: int) -> List[Result]:
    """Score cached images by our Trainer, against transformers' own with the image processor at work on PNGs."""
    import torch
    from transformers import Trainer

    from chestxray_vit.images.preprocess import GreyToPixelValues
    from chestxray_vit.models.vit import build_from_scratch
    from chestxray_vit.training.engines.base import predict_logits
    from tests.helpers.engines import trainer_of

    full = num_rows >= FULL
    vit, processor = build_from_scratch(_shape(full))
    paths, _ = xrays_1024(scratch / "xrays", 64 if full else 4)
    cached, _, preprocess, source = views(scratch, len(paths))
    args = _arguments(scratch)
    theirs = Trainer(model=vit, args=args)
    ours = trainer_of(vit, processor, args, to_pixel_values=GreyToPixelValues(preprocess))
    images, targets_NL = _OnTheFly(paths, processor), np.zeros((len(paths), 14), np.float32)
    batches = torch.stack([row["pixel_values"] for row in images]).split(BATCH)

    def forward_passes() -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([vit(pixel_values=batch).logits for batch in batches]).numpy()

    ways = {
        "theirs": lambda: theirs.predict(images).predictions,
        "ours": lambda: predict_logits(ours, cached, targets_NL),
        "limit": forward_passes,
    }
    logits_NL = ways["theirs"]()
    assert np.ptp(logits_NL, axis=0).max() > 1e-3  # images differ, else any order would do
    np.testing.assert_allclose(ways["ours"](), logits_NL, rtol=0, atol=1e-5)
    np.testing.assert_allclose(forward_passes(), logits_NL, rtol=0, atol=1e-5)
    rates = {name: len(paths) / seconds for name, seconds in interleave(ways, 5).items()}
    work = f"score with {'ViT-Ti/16 at 224' if full else 'a tiny ViT'}, CPU, float32, cached ({source})"
    baseline_is = "transformers' Trainer, image processor on the fly"
    values = rates["ours"], rates["theirs"], baseline_is, None, None, rates["limit"], "forward passes alone"
    return [Result("evaluate", work, "images/s", *values)]


def _shape(full: bool) -> Any:
    """Return ViT-Ti/16, or a ViT that takes no time."""
    from chestxray_vit.models.vit_size import ViTSize

    if full:
        return ViTSize(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    return ViTSize(patch_size=32, hidden_size=24, num_hidden_layers=1, num_attention_heads=1, intermediate_size=24)


def _arguments(scratch: Path) -> Any:
    """Return the arguments of both Trainers."""
    from tests.helpers.engines import arguments_of

    return arguments_of(scratch / "run", disable_tqdm=True, per_device_eval_batch_size=BATCH, bf16=False)


class _OnTheFly:
    """PNGs as the public way reads them: opened as RGB, and put through the image processor, one by one."""

    def __init__(self, paths: List[Path], processor: Any):
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        import torch
        from PIL import Image

        if index >= len(self.paths):
            raise IndexError(index)
        with Image.open(self.paths[index]) as image:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.zeros(14)}
