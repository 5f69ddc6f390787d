"""Benchmark of the patient bootstrap."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np

from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.benchmarks.learning import PREVALENCES, TEST_IMAGES, TEST_PATIENTS
from tests.benchmarks.measure import Result, interleave
from tests.benchmarks.releases import FULL

FINDINGS = NIH_CHESTXRAY14.names

REPLICATES, AT_ONCE = 1000, 100
MEASURED = 4  # replicates: scikit-learn takes two minutes for all


def patient_bootstrap(scratch: Path, num_rows: int) -> List[Result]:
    """1,000 patient-bootstrap replicates of the 14 AUCs of a test list of NIH's size and prevalence."""
    from sklearn.metrics import roc_auc_score

    from chestxray_vit.metrics.bootstrap import bootstrap, finding_intervals

    num_images = max(200, TEST_IMAGES * num_rows // FULL)
    num_patients = max(2, TEST_PATIENTS * num_images // TEST_IMAGES)
    rng = np.random.default_rng(1337)
    targets_NL = (rng.random((num_images, len(FINDINGS))) < np.array(PREVALENCES)).astype(int)
    scores_NL = (rng.standard_normal(targets_NL.shape) + targets_NL).astype(np.float32)
    patients_N = np.append(np.arange(num_patients), rng.integers(0, num_patients, num_images - num_patients))
    columns = list(zip(targets_NL.T.copy(), scores_NL.T.copy()))
    images_of = [np.flatnonzero(patients_N == patient) for patient in range(num_patients)]

    def scikit_learn() -> np.ndarray:
        draws, aucs_RL = np.random.default_rng(1337), np.full((MEASURED, len(FINDINGS)), np.nan)
        for aucs_L in aucs_RL:
            rows = np.concatenate([images_of[patient] for patient in draws.integers(num_patients, size=num_patients)])
            for index, (targets_N, scores_N) in enumerate(columns):
                resampled_N = targets_N[rows]
                if resampled_N.any() and not resampled_N.all():
                    aucs_L[index] = roc_auc_score(resampled_N, scores_N[rows])
        return aucs_RL

    def package() -> np.ndarray:
        result = bootstrap(targets_NL, scores_NL, patients_N, REPLICATES, seed=1337)
        finding_intervals(result)
        return result.aucs_RL

    def cumulative_sums() -> None:
        for num_positive in targets_NL.sum(axis=0).tolist():
            wins_GB = np.zeros((num_positive, AT_ONCE), np.int32)
            for _ in range(0, REPLICATES, AT_ONCE):
                np.cumsum(wins_GB, axis=0, out=wins_GB)

    np.testing.assert_allclose(package()[:MEASURED], scikit_learn(), rtol=0, atol=1e-12)
    seconds = interleave({"scikit-learn": scikit_learn, "package": package, "limit": cumulative_sums}, 5)
    scaled = seconds["scikit-learn"] * REPLICATES / MEASURED
    baseline_is = f"roc_auc_score of the drawn rows, measured at {MEASURED} replicates and scaled linearly"
    work = f"{REPLICATES:,} patient-bootstrap replicates of 14 AUCs on {num_images:,} images"
    limit, limit_is = seconds["limit"], "cumulative sums at the positives alone"
    return [Result("bootstrap", work, "s", seconds["package"], scaled, baseline_is, 100, None, limit, limit_is)]
