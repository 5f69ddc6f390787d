from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from chestxray_vit.metrics.ranking import NUM_THRESHOLDS, average_precision, curve


def test_counts_of_a_case_by_hand():
    found = curve(np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.8, 0.8, 0.3, 0.1]))
    assert found == {
        "thresholds": [0.9, 0.8, 0.3, 0.1],
        "true_positives": [1, 2, 2, 2],
        "false_positives": [0, 1, 2, 3],
    }


def test_counts_are_exact_at_every_threshold_given():
    random = np.random.default_rng(0)
    targets_N, scores_N = random.integers(0, 2, 5000), np.round(random.random(5000), 3)
    found = curve(targets_N, scores_N, thresholds=[0.12345, 0.5, 1.5, -1.0])
    assert set(found["thresholds"]) >= {0.12345, 0.5, 1.5, -1.0}
    assert found["thresholds"] == sorted(set(found["thresholds"]), reverse=True)
    assert len(found["thresholds"]) <= NUM_THRESHOLDS + 4
    for threshold, positives, negatives in zip(*found.values()):
        called = scores_N >= threshold
        assert (positives, negatives) == (called[targets_N == 1].sum(), called[targets_N == 0].sum())


def test_curve_begins_with_the_highest_score_and_ends_with_all():
    random = np.random.default_rng(1)
    targets_N, scores_N = (random.random(3000) < 0.02).astype(int), random.random(3000)
    found = curve(targets_N, scores_N)
    assert found["thresholds"][0] == scores_N.max()
    assert found["true_positives"][-1] == targets_N.sum()
    assert found["false_positives"][-1] == 3000 - targets_N.sum()
    called = np.array(found["true_positives"]) + np.array(found["false_positives"])
    assert (called <= 30).sum() >= 10  # where precision changes most


@pytest.mark.parametrize("targets", [[], [0], [1], [0, 0, 0], [1, 1]])
def test_curve_of_one_class_or_none_is_no_error(targets):
    found = curve(np.array(targets, dtype=int), np.linspace(0, 1, len(targets)))
    assert len(found["thresholds"]) == len(targets)


def test_average_precision_is_scikit_learns():
    random = np.random.default_rng(2)
    for num_levels in (2, 5, 1000):
        targets_N = np.append(1, random.integers(0, 2, 300))
        scores_N = random.integers(0, num_levels, 301) / num_levels
        assert average_precision(targets_N, scores_N) == pytest.approx(
            average_precision_score(targets_N, scores_N), abs=1e-12
        )


def test_average_precision_by_hand():
    # thresholds .9: recall 1/2, precision 1; .7: recall 2/2, precision 2/3; so 1/2 x 1 + 1/2 x 2/3
    assert average_precision(np.array([1, 0, 1]), np.array([0.9, 0.8, 0.7])) == pytest.approx(5 / 6)
    assert average_precision(np.array([1, 1]), np.array([0.1, 0.9])) == 1.0
    assert math.isnan(average_precision(np.array([0, 0]), np.array([0.1, 0.9])))
    assert math.isnan(average_precision(np.array([], dtype=int), np.array([])))
