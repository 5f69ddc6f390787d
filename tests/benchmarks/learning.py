"""Benchmarks of the numbers and of a training step."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Dict, List

import numpy as np

from chestxray_vit.findings import FINDINGS
from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.releases import FULL

TEST_IMAGES, TEST_PATIENTS = 25_596, 2_797  # of NIH's test list
PREVALENCES = (0.128, 0.042, 0.182, 0.239, 0.068, 0.063, 0.022, 0.104, 0.071, 0.036, 0.043, 0.017, 0.045, 0.0034)


def auc_of_test_list(scratch: Path, num_rows: int) -> List[Result]:
    """The 14 AUCs of a test list of NIH's size and prevalence; and their variance by patient."""
    from sklearn.metrics import roc_auc_score

    from chestxray_vit.auc import auc, obuchowski

    num_images = max(200, TEST_IMAGES * num_rows // FULL)
    rng = np.random.default_rng(1337)
    targets_LN = (rng.random((len(FINDINGS), num_images)) < np.array(PREVALENCES)[:, None]).astype(int)
    targets_LN[:, :2] = (0, 1)  # both classes, however small
    scores_LN = (rng.standard_normal(targets_LN.shape) + targets_LN).astype(np.float32)
    patients_N = np.sort(rng.integers(0, max(2, TEST_PATIENTS * num_images // TEST_IMAGES), num_images))

    def scikit_learn() -> List[float]:
        return [roc_auc_score(targets_N, scores_N) for targets_N, scores_N in zip(targets_LN, scores_LN)]

    def package() -> List[float]:
        return [auc(targets_N, scores_N) for targets_N, scores_N in zip(targets_LN, scores_LN)]

    def by_patient() -> None:
        for targets_N, scores_N in zip(targets_LN, scores_LN):
            obuchowski(targets_N, scores_N, patients_N)

    np.testing.assert_allclose(package(), scikit_learn(), rtol=0, atol=1e-12)
    ways = {"scikit-learn": scikit_learn, "package": package, "by patient": by_patient}
    times = {name: 1000 * seconds for name, seconds in interleave(ways, 7).items()}
    on = f"on {num_images:,} images"
    return [
        Result("auc", f"14 AUCs {on}", "ms", times["package"], times["scikit-learn"], "scikit-learn's roc_auc_score"),
        Result("auc", f"14 AUCs with Obuchowski's variance by patient {on}", "ms", times["by patient"]),
    ]


def training_step(scratch: Path, num_rows: int) -> List[Result]:
    """One update of a ViT by our Trainer, against a bare PyTorch loop with the same batches, optimiser and clipping.

    The bare loop's updates are made between those of the Trainer, so that both meet the same load.
    """
    import torch
    from torch.utils.data import DataLoader, RandomSampler
    from transformers import TrainerCallback

    from chestxray_vit import backend
    from chestxray_vit.model import build_from_scratch
    from chestxray_vit.shape import Shape
    from chestxray_vit.xrays import collate

    full = num_rows >= FULL
    size = Shape(224 if full else 32, 16, 3, 192, 12 if full else 1, 3, 768)  # ViT-Ti/16
    batch, num_steps, rate, seed = 8, 32 if full else 6, 1e-4, 1337
    generator = torch.Generator().manual_seed(seed)
    rows = [
        {
            "pixel_values": torch.randn(3, size.image_size, size.image_size, generator=generator),
            "labels": torch.randint(0, 2, (len(FINDINGS),), generator=generator).float(),
        }
        for _ in range(batch * num_steps)
    ]
    model, processor = build_from_scratch(size)
    bare, _ = build_from_scratch(size)
    bare.load_state_dict(model.state_dict())
    bare.train()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=rate, weight_decay=0.0)
    sampler = RandomSampler(rows, generator=torch.Generator().manual_seed(seed))
    batches = iter(DataLoader(rows, batch, sampler=sampler, collate_fn=collate))

    def bare_step() -> None:
        inputs = next(batches)
        logits_BL = bare(pixel_values=inputs["pixel_values"]).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits_BL, inputs["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

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

    flags = {
        **backend.recipe(),
        **backend.no_training(),
        "output_dir": str(scratch / "run"),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "seed": seed,
        "disable_tqdm": True,
    }
    trainer = backend.make_trainer(model, processor, backend.training_arguments(flags, "cpu"), rows)
    trainer.add_callback(InTurn())
    trainer.train()
    for ours, theirs in zip(model.parameters(), bare.parameters()):
        torch.testing.assert_close(ours, theirs)
    times = {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}
    work = f"update of {'ViT-Ti/16 at 224' if full else 'a tiny ViT'} on {batch} images, CPU, float32"
    return [Result("step", work, "ms", times["package"], times["bare"], "bare PyTorch loop", at_least=0.97)]
