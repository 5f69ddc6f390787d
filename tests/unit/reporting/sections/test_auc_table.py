"""The AUC table: its numbers by slow versions, and what is undefined in plain words."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit import __version__
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.metrics.roc_auc import macro, obuchowski
from chestxray_vit.reporting.render.csv_tables import to_csv
from chestxray_vit.reporting.render.text import to_markdown, to_text
from chestxray_vit.reporting.summary import Options
from tests.unit.reporting.examples import edge_cases, random_predictions, report_of, table

FINDINGS = NIH_CHESTXRAY14.names


def slow_average_precision(targets, scores):
    """Sum over the distinct thresholds, from high to low, of (gain in recall) x precision."""
    total, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [target for target, score in zip(targets, scores) if score >= threshold]
        recall = sum(called) / sum(targets)
        total += (recall - last_recall) * sum(called) / len(called)
        last_recall = recall
    return total


def test_numbers_of_a_finding():
    predictions = random_predictions()
    results = report_of(predictions)
    assert (results["package_version"], results["num_images"], results["num_patients"]) == (__version__, 400, 100)
    assert [row["finding"] for row in results["findings"]] == list(FINDINGS)
    for row, targets_N, scores_N in zip(results["findings"], predictions.targets_NL.T, predictions.scores_NL.T):
        positive_patients = {patient for patient, target in zip(predictions.patient_ids, targets_N) if target}
        assert (row["num_images"], row["num_positives"]) == (400, sum(targets_N))
        assert row["num_positive_patients"] == len(positive_patients)
        assert row["prevalence"] == sum(targets_N) / 400
        assert row["auc"] == pytest.approx(roc_auc_score(targets_N, scores_N), abs=1e-12)
        assert row["average_precision"] == pytest.approx(slow_average_precision(targets_N, scores_N), abs=1e-12)
        estimate = obuchowski(targets_N, scores_N, predictions.patient_ids)
        assert (row["variance"], row["low"], row["high"]) == (estimate.variance, estimate.low, estimate.high)
        assert row["notes"] == []


def test_average_precision_by_hand():
    # ranked: positive, negative, positive: precision 1 at recall 1/2, 2/3 at recall 1; AP = 1/2 + 1/2 * 2/3 = 5/6
    predictions = table(np.tile([[1, 0, 1]], (14, 1)).T, np.tile([[0.9, 0.5, 0.1]], (14, 1)).T, range(3))
    row = report_of(predictions)["findings"][0]
    assert row["average_precision"] == pytest.approx(5 / 6)
    assert row["auc"] == 0.5


def test_macro_and_interval():
    predictions = random_predictions()
    results = report_of(predictions)
    estimate = macro(predictions.targets_NL, predictions.scores_NL, predictions.patient_ids)
    assert results["macro"] == {
        "auc": estimate.auc,
        "variance": estimate.variance,
        "low": estimate.low,
        "high": estimate.high,
        "num_findings": 14,
        "findings_left_out": [],
        "notes": [],
    }
    assert results["interval"] == "95 %, by patient (Obuchowski 1997), Wald, clipped to [0, 1]"


def test_what_is_undefined_is_noted_in_plain_words():
    results = report_of(edge_cases())
    few = "fewer than 30 positive patients"
    rows = {row["finding"]: row for row in results["findings"]}
    assert rows["Atelectasis"]["notes"] == [few, "undefined: there is no positive image"]
    assert rows["Cardiomegaly"]["notes"] == [few, "undefined: there is no negative image"]
    assert rows["Effusion"]["notes"] == [few, "interval undefined: there is only one positive patient"]
    assert rows["Infiltration"]["notes"] == [few, "interval undefined: there is only one negative patient"]
    assert rows["Mass"]["notes"] == [few, "zero-width interval: not informative"]
    assert rows["Nodule"]["notes"] == [few]
    assert [rows[name]["auc"] for name in FINDINGS[:5]] == [None, None, 1.0, 0.0, 1.0]
    assert rows["Atelectasis"]["average_precision"] is None
    assert rows["Effusion"]["low"] is None
    assert results["macro"]["num_findings"] == 12
    assert results["macro"]["findings_left_out"] == ["Atelectasis", "Cardiomegaly"]
    assert results["macro"]["auc"] == pytest.approx((1 + 0 + 1 + 9 * 8 / 9) / 12)  # the plain ones: 8 of 9 pairs
    assert results["macro"]["low"] is None
    assert results["macro"]["notes"] == ["interval undefined, as is that of Effusion, Infiltration"]


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_all_undefined(num_images):
    predictions = table(np.zeros((num_images, 14), int), np.full((num_images, 14), 0.5), range(num_images))
    results = report_of(predictions, compare_with=predictions)
    assert results["macro"]["auc"] is None
    assert results["macro"]["notes"] == ["undefined: no finding has a defined AUC"]
    assert results["comparison"]["macro"]["p"] is None
    text = to_text(results)
    assert re.search(r"^macro over 0 findings +undefined +undefined +0.738 +0.841$", text, re.MULTILINE)
    assert "nan" not in (text + to_markdown(results) + to_csv(results)).lower()
    json.dumps(results, allow_nan=False)


def test_interval_is_the_one_asked_for():
    table = random_predictions()
    wald, logit, resampled = (report_of(table, options=Options(kind)) for kind in ("wald", "logit", "bootstrap"))
    patients_N = np.array(table.patient_ids)
    for index in range(14):
        estimate = obuchowski(table.targets_NL[:, index], table.scores_NL[:, index], patients_N)
        odds = math.log(estimate.auc / (1 - estimate.auc))
        half = 1.959964 * math.sqrt(estimate.variance) / (estimate.auc * (1 - estimate.auc))
        expected = [1 / (1 + math.exp(-value)) for value in (odds - half, odds + half)]
        rows = [results["findings"][index] for results in (wald, logit, resampled)]
        assert [rows[0]["low"], rows[0]["high"]] == [estimate.low, estimate.high]
        assert [rows[1]["low"], rows[1]["high"]] == pytest.approx(expected, abs=1e-6)
        assert rows[2]["low"] == pytest.approx(estimate.low, abs=0.02) and rows[2]["low"] != rows[0]["low"]
        assert len({row["auc"] for row in rows}) == 1
    assert "logit" in logit["interval"] and "bootstrap" in resampled["interval"]
