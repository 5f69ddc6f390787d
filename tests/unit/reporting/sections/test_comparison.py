"""The comparison of two runs: images are matched by name, and other images are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.metrics.roc_auc import compare, compare_macro
from tests.unit.reporting.examples import every_result, random_predictions, report_of, shuffled, table

FINDINGS = NIH_CHESTXRAY14.names


def test_comparison_matches_images_by_name():
    a, b = random_predictions(), random_predictions()
    scores_NL = np.round(0.7 * b.scores_NL + 0.3 * np.random.default_rng(1).random(b.scores_NL.shape), 3)
    b = table(b.targets_NL, scores_NL, b.patient_ids)
    results = report_of(a, compare_with=shuffled(b, np.random.default_rng(2).permutation(400)))
    for index, row in enumerate(results["comparison"]["findings"]):
        expected = compare(a.targets_NL[:, index], a.scores_NL[:, index], scores_NL[:, index], a.patient_ids)
        assert row["finding"] == FINDINGS[index]
        assert row["difference"] == pytest.approx(row["auc_a"] - row["auc_b"], abs=1e-12)
        assert row["auc_a"] == results["findings"][index]["auc"]
        assert row["auc_b"] == pytest.approx(roc_auc_score(b.targets_NL[:, index], scores_NL[:, index]), abs=1e-12)
        assert row["se"] == pytest.approx(math.sqrt(expected.variance))
        assert (row["z"], row["p"]) == (pytest.approx(expected.z), pytest.approx(expected.p))
    overall = results["comparison"]["macro"]
    expected = compare_macro(a.targets_NL, a.scores_NL, scores_NL, a.patient_ids)
    assert overall["auc_a"] == results["macro"]["auc"]
    assert overall["difference"] == pytest.approx(overall["auc_a"] - overall["auc_b"], abs=1e-12)
    assert (overall["z"], overall["p"]) == (pytest.approx(expected.z), pytest.approx(expected.p))


def test_comparison_of_a_run_with_itself():
    predictions = random_predictions()
    results = report_of(predictions, compare_with=shuffled(predictions, np.arange(400)[::-1]))
    for row in [*results["comparison"]["findings"], results["comparison"]["macro"]]:
        assert (row["difference"], row["se"], row["z"], row["p"]) == (0, 0, 0, 1)


def test_comparison_of_other_images_is_refused():
    a = random_predictions()
    b = random_predictions()
    b.targets_NL[3, 2] = 1 - b.targets_NL[3, 2]
    patients = [f"{patient}0" if row == 5 else patient for row, patient in enumerate(b.patient_ids)]
    names = ["other.png" if row == 7 else name for row, name in enumerate(b.file_names)]
    b = Predictions(names, patients, b.ages, b.sexes, b.views, b.targets_NL, b.scores_NL)
    with pytest.raises(InputError) as error:
        report_of(a, compare_with=b)
    for part in (
        "the two predictions files cannot be compared: 4 kinds of problems",
        "an image is in the first file only: 0007.png",
        "an image is in the second file only: other.png",
        "the targets of an image differ: 0003.png. Were both runs evaluated on one metadata.jsonl?",
        "the patient_id of an image differs: 0005.png: '5' and '50'",
    ):
        assert part in str(error.value)


# Faces


def test_p_values_are_adjusted_for_fourteen_findings():
    rows = every_result()[1]["comparison"]["findings"]
    ordered = sorted(row["p"] for row in rows)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 14 * ordered[0]))
    assert all(row["p_holm"] >= row["p"] for row in rows)
