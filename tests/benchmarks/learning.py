"""Benchmarks of the numbers and of a training step: on the CPU against a bare loop, on a GPU against its peak."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models.vit_size import ViTSize
from tests.benchmarks.gpu import training_on_gpu
from tests.benchmarks.measure import Result, flags_of, interleave
from tests.benchmarks.releases import FULL

FINDINGS = NIH_CHESTXRAY14.names

TEST_IMAGES, TEST_PATIENTS = 25_596, 2_797  # of NIH's test list
PREVALENCES = (0.128, 0.042, 0.182, 0.239, 0.068, 0.063, 0.022, 0.104, 0.071, 0.036, 0.043, 0.017, 0.045, 0.0034)


def auc_of_test_list(scratch: Path, num_rows: int) -> List[Result]:
    """The 14 AUCs of a test list of NIH's size and prevalence; and their variance by patient."""
    from sklearn.metrics import roc_auc_score

    from chestxray_vit.metrics.roc_auc import obuchowski, roc_auc

    num_images = max(200, TEST_IMAGES * num_rows // FULL)
    rng = np.random.default_rng(1337)
    targets_LN = (rng.random((len(FINDINGS), num_images)) < np.array(PREVALENCES)[:, None]).astype(int)
    targets_LN[:, :2] = (0, 1)  # both classes, however small
    scores_LN = (rng.standard_normal(targets_LN.shape) + targets_LN).astype(np.float32)
    patients_N = np.sort(rng.integers(0, max(2, TEST_PATIENTS * num_images // TEST_IMAGES), num_images))

    def scikit_learn() -> List[float]:
        return [roc_auc_score(targets_N, scores_N) for targets_N, scores_N in zip(targets_LN, scores_LN)]

    def package() -> List[float]:
        return [roc_auc(targets_N, scores_N) for targets_N, scores_N in zip(targets_LN, scores_LN)]

    def by_patient() -> None:
        for targets_N, scores_N in zip(targets_LN, scores_LN):
            obuchowski(targets_N, scores_N, patients_N)

    np.testing.assert_allclose(package(), scikit_learn(), rtol=0, atol=1e-12)

    def sort() -> None:
        for scores_N in scores_LN:
            np.sort(scores_N)

    ways = {"scikit-learn": scikit_learn, "package": package, "by patient": by_patient, "sort": sort}
    times = {name: 1000 * seconds for name, seconds in interleave(ways, 7).items()}
    work, baseline_is = f"14 AUCs on {num_images:,} images", "scikit-learn's roc_auc_score"
    limit, limit_is = times["sort"], "sorting the scores alone"
    with_variance = f"{work}, with Obuchowski's variance by patient"
    return [
        Result("auc", work, "ms", times["package"], times["scikit-learn"], baseline_is, 10, None, limit, limit_is),
        Result("auc", with_variance, "ms", times["by patient"], limit=limit, limit_is=limit_is),
    ]


def training_step(scratch: Path, num_rows: int) -> List[Result]:
    """One update of a ViT by our Trainer, against a bare PyTorch loop with the same batches, optimiser and clipping.

    The bare loop's updates are made between those of the Trainer, so that both meet the same load. Beside it, where
    the machine has them: bfloat16 on the CPU against float32, and a GPU against the plain Trainer and its peak.
    """
    import torch

    from chestxray_vit.training import precision

    full = num_rows >= FULL
    size = ViTSize(224 if full else 32, 16, 3, 192, 12 if full else 1, 3, 768)  # ViT-Ti/16
    batch = 8
    times = _updates_in_turn(scratch, size, batch, 52 if full else 6)  # two do not count: the first of each
    work = f"update of {'ViT-Ti/16 at 224' if full else 'a tiny ViT'} on {batch} images, CPU, float32"
    results = [Result("step", work, "ms", times["package"], times["bare"], "bare PyTorch loop", at_least=0.97)]
    base = ViTSize() if full else ViTSize(32, 16, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    name = "ViT-B/16 at 224" if full else "a tiny ViT"
    if precision.has_bf16("cpu"):
        results.append(_bfloat16_on_cpu(base, name, batch))
    if torch.cuda.is_available():
        results += training_on_gpu(scratch, base, name, "cuda")
    return results


def _updates_in_turn(scratch: Path, size: ViTSize, batch: int, num_steps: int) -> Dict[str, float]:
    """Return the median milliseconds of an update by the bare loop and by the Trainer; both end at the same weights."""
    import torch
    from transformers import TrainerCallback

    from chestxray_vit.models.vit import build_from_scratch
    from tests.helpers.engines import engine_of, trainer_of

    rate, seed = 1e-4, 1337
    rows = _random_rows(size.image_size, batch * num_steps, seed)
    model, processor = build_from_scratch(size)
    bare, _ = build_from_scratch(size)
    bare.load_state_dict(model.state_dict())
    bare_step = _bare_loop(bare.train(), rows, batch, rate, seed)
    seconds: Dict[str, List[float]] = {"bare": [], "package": []}

    class InTurn(TrainerCallback):
        last = 0.0

        def on_step_end(self, *_, **__):
            if self.last:
                seconds["package"].append(time.perf_counter() - self.last)
            start = time.perf_counter()
            bare_step()
            self.last = time.perf_counter()
            seconds["bare"].append(self.last - start)

    schedule = {"num_train_epochs": 1, "learning_rate": rate, "lr_scheduler_type": "constant", "seed": seed}
    flags = {**flags_of(scratch), **schedule, "per_device_train_batch_size": batch}
    trainer = trainer_of(model, processor, engine_of().arguments(flags), train=rows)
    trainer.add_callback(InTurn())
    trainer.train()
    for ours, theirs in zip(model.parameters(), bare.parameters()):
        torch.testing.assert_close(ours, theirs)
    return {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}


def _random_rows(image_size: int, num_images: int, seed: int) -> List[Dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "pixel_values": torch.randn(3, image_size, image_size, generator=generator),
            "labels": torch.randint(0, 2, (len(FINDINGS),), generator=generator).float(),
        }
        for _ in range(num_images)
    ]


def _bare_loop(vit: Any, rows: List[Dict[str, Any]], batch: int, rate: float, seed: int) -> Callable[[], None]:
    """Return what makes the next update, on the batches that the Trainer's sampler draws."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    from chestxray_vit.data.dataset import collate

    optimizer = torch.optim.AdamW(vit.parameters(), lr=rate, weight_decay=0.0)
    sampler = RandomSampler(rows, generator=torch.Generator().manual_seed(seed))
    batches = iter(DataLoader(rows, batch, sampler=sampler, collate_fn=collate))

    def step() -> None:
        inputs = next(batches)
        logits_BL = vit(pixel_values=inputs["pixel_values"]).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits_BL, inputs["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _bfloat16_on_cpu(shape: ViTSize, name: str, batch: int) -> Result:
    """One update in bfloat16, with the attention that goes with it, against float32."""
    import torch

    from chestxray_vit.models.vit import build_from_scratch
    from chestxray_vit.training import precision
    from tests.helpers.engines import engine_of

    pixels, targets = torch.randn(batch, 3, shape.image_size, shape.image_size), torch.ones(batch, len(FINDINGS))
    ways = {}
    for half in (False, True):
        model, _ = build_from_scratch(shape)
        precision.fit(model, engine_of().arguments({**flags_of(Path()), "bf16": half}))
        ways[str(half)] = _update(model.train(), torch.optim.AdamW(model.parameters()), pixels, targets, half)
    times = {half: 1000 * seconds for half, seconds in interleave(ways, 3).items()}
    return Result(
        "step", f"update of {name} on {batch} images, CPU, bfloat16", "ms", times["True"], times["False"], "float32"
    )


def _update(model, optimizer, pixels, targets, half: bool) -> Callable[[], None]:
    """Return an update of a model on the CPU, to be timed."""
    import torch

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits_BL = model(pixel_values=pixels).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits_BL.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update
