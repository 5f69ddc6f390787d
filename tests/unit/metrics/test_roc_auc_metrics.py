"""The metrics of an evaluation that the Trainer asks for."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.metrics.roc_auc import RocAucMetrics

# compute_metrics


FINDINGS = NIH_CHESTXRAY14.names
compute_metrics = RocAucMetrics(NIH_CHESTXRAY14)


def evaluation(num_columns=14, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    targets_NL = (random.random((300, num_columns)) < 0.3).astype(np.float32)
    return SimpleNamespace(
        predictions=(2 * random.normal(size=targets_NL.shape) + targets_NL).astype(dtype), label_ids=targets_NL
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_compute_metrics_ranks_the_logits(dtype, as_tuple):
    prediction = evaluation(dtype=dtype)
    logits_NL = prediction.predictions.astype(np.float32)
    expected = roc_auc_score(prediction.label_ids, logits_NL, average=None)
    if as_tuple:
        prediction.predictions = (prediction.predictions, np.zeros(3))
    metrics = compute_metrics(prediction)
    assert list(metrics) == ["roc_auc", *(f"roc_auc_{finding}" for finding in FINDINGS), "num_findings"]
    assert [metrics[f"roc_auc_{finding}"] for finding in FINDINGS] == pytest.approx(expected, abs=1e-12)
    assert metrics["roc_auc"] == pytest.approx(expected.mean(), abs=1e-12)
    assert metrics["num_findings"] == 14


def test_compute_metrics_does_not_softmax():
    prediction = evaluation()
    exp_NL = np.exp(prediction.predictions)
    softmaxed = roc_auc_score(prediction.label_ids, exp_NL / exp_NL.sum(axis=1, keepdims=True), average=None)
    metrics = compute_metrics(prediction)
    assert all(abs(metrics[f"roc_auc_{finding}"] - value) > 1e-3 for finding, value in zip(FINDINGS, softmaxed))


def test_compute_metrics_leaves_out_a_finding_of_one_class():
    prediction = evaluation()
    prediction.label_ids[:, 13] = 0
    metrics = compute_metrics(prediction)
    assert math.isnan(metrics["roc_auc_Hernia"])
    assert metrics["num_findings"] == 13
    assert metrics["roc_auc"] == pytest.approx(np.mean([metrics[f"roc_auc_{name}"] for name in FINDINGS[:13]]))
    prediction.label_ids[:] = 0
    metrics = compute_metrics(prediction)
    assert math.isnan(metrics["roc_auc"])
    assert metrics["num_findings"] == 0


def test_compute_metrics_keeps_no_finding_out_of_the_macro():
    prediction = evaluation(num_columns=15)
    fourteen = SimpleNamespace(predictions=prediction.predictions[:, :14], label_ids=prediction.label_ids[:, :14])
    with_15 = RocAucMetrics(NIH_CHESTXRAY14.with_negative_column())(prediction)
    with_14 = compute_metrics(fourteen)
    expected = roc_auc_score(prediction.label_ids[:, 14], prediction.predictions[:, 14])
    assert with_15.pop("roc_auc_No_Finding") == pytest.approx(expected, abs=1e-12)
    assert with_15 == with_14


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_compute_metrics_says_that_training_diverged(wrong):
    prediction = evaluation()
    prediction.predictions[5, 3] = wrong
    with pytest.raises(
        InputError, match=r"1 of 4,200 logits are NaN or infinite: training diverged. Lower --learning_rate"
    ):
        compute_metrics(prediction)


def test_compute_metrics_refuses_other_columns():
    with pytest.raises(ValueError, match="logits have 13 columns, expected 14"):
        compute_metrics(evaluation(num_columns=13))
    prediction = evaluation()
    prediction.label_ids = prediction.label_ids[:-1]
    with pytest.raises(ValueError, match="targets have shape"):
        compute_metrics(prediction)


def test_metrics_of_another_label_set_have_its_names():
    prediction = evaluation(num_columns=2)
    metrics = RocAucMetrics(LabelSet("two", ("Airspace opacity", "Fracture")))(prediction)
    assert list(metrics) == ["roc_auc", "roc_auc_Airspace_opacity", "roc_auc_Fracture", "num_findings"]
    assert metrics["roc_auc"] == (metrics["roc_auc_Airspace_opacity"] + metrics["roc_auc_Fracture"]) / 2


def test_metrics_can_be_pickled():
    metrics = pickle.loads(pickle.dumps(compute_metrics))
    assert metrics(evaluation()) == compute_metrics(evaluation())
