"""The one sigmoid, in the strict order of the logits."""

from __future__ import annotations

import numpy as np
import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.metrics.probability import probabilities

# probabilities


def test_probabilities_are_sigmoids():
    logits_NL = np.array([[0.0, 2.0, -2.0], [1.0, 1.0, 1.0]], dtype=np.float32)
    expected = [[0.5, 0.8807970779778823, 0.1192029220221176], [0.7310585786300049] * 3]  # 1 / (1 + exp(-logit))
    np.testing.assert_allclose(probabilities(logits_NL), expected, rtol=1e-15)


@pytest.mark.parametrize(
    "logits",
    [
        [40, 41],
        [24, 24.000002],
        [30, 36, 36.5, 37, 40, 1e30, 3e38],
        [-1e30, -800, -745.2, -745.1, -104, -103, 0],
        [-3e38, -1e38, 1e38, 3e38],
        np.nextafter(np.full(200, 50, np.float32), 51).cumsum(),
    ],
)
def test_probabilities_keep_the_order_where_a_sigmoid_ties(logits):
    logits_N = np.array(logits, dtype=np.float32)
    rising = probabilities(logits_N[:, None])[:, 0]
    assert (np.diff(rising) > 0).all()
    assert rising.min() >= 0
    assert rising.max() <= 1
    twice = probabilities(np.append(logits_N, logits_N)[:, None])[:, 0]
    np.testing.assert_array_equal(twice, np.append(rising, rising))  # equal logits stay equal


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_rank_as_random_extreme_logits_do(dtype):
    random = np.random.default_rng(7)
    scale_NL = 10.0 ** random.uniform(-8, 4, (2000, 3))
    logits_NL = np.round(random.normal(size=(2000, 3)), 2) * scale_NL
    logits_NL[::7] = logits_NL[0]  # ties
    logits_NL = logits_NL.astype(dtype)
    scores_NL = probabilities(logits_NL)
    assert scores_NL.dtype == np.float64
    for logits_N, scores_N in zip(logits_NL.astype(np.float32).T, scores_NL.T):
        ranks, expected = (np.unique(values, return_inverse=True)[1] for values in (scores_N, logits_N))
        np.testing.assert_array_equal(ranks, expected)
    exact = 1 / (1 + np.exp(-np.clip(logits_NL.astype(np.float32).astype(float), -700, 700)))
    np.testing.assert_allclose(scores_NL, exact, rtol=1e-11, atol=1e-300)


def test_probabilities_refuse_diverged_logits():
    with pytest.raises(InputError, match="1 of 2 logits are NaN or infinite: training diverged"):
        probabilities([[0.0], [np.nan]])
