"""Logits and probabilities: the one sigmoid, and logistic regression with a few columns.

Shapes: N images, L labels, K columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.errors import InputError

MOST_STEPS = 200  # of Newton's method; ten are usual, 50 where the classes overlap by a hair
FARTHEST = 1000.0  # that one step may move a logit: more than lies between those of any two scores


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logit)) in float64; no logit overflows.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)); exactly 0 and 1 get the logit of the next float inside, -744.4 and 36.7.

    >>> logit(np.array([0.5, 0.8])).round(3).tolist()
    [0.0, 1.386]
    """
    inside = np.clip(probabilities, np.nextafter(0.0, 1.0), np.nextafter(1.0, 0.0))
    return np.log(inside) - np.log1p(-inside)


def probabilities(logits_NL: ArrayLike) -> np.ndarray:
    """Return the sigmoid of each logit, in the strict order of the float32 logits of its finding.

    >>> probabilities([[0.0], [50.0], [60.0]]).ravel().tolist()
    [0.5, 0.9999999999999999, 1.0]

    A float64 sigmoid ties float32 logits above 36 or so, and ties cost AUC. Where it does, the lower logit gets the
    next float below (above, near 0): a change in the sixteenth digit that keeps the ranking.

    Args:
        logits_NL: any real dtype; ranked as float32.

    Returns:
        float64 in [0, 1]; equal logits of a finding stay equal.

    Raises:
        InputError: a logit is not finite.
    """
    logits_NL = finite_logits(logits_NL).astype(np.float64)
    return np.stack([_ordered_sigmoid(logits_N) for logits_N in logits_NL.T], axis=1)


def _ordered_sigmoid(logits_N: np.ndarray) -> np.ndarray:
    logits, index_N = np.unique(logits_N, return_inverse=True)
    values = sigmoid(logits)
    # The bits of floats >= 0, read as integers, count the floats: one less is the next float below.
    steps = np.arange(len(logits))
    bits = values.view(np.int64) - steps
    bits = np.minimum.accumulate(bits[::-1])[::-1] + steps  # from the top down, each at least one below the next
    bits = np.maximum.accumulate(np.maximum(bits, 0) - steps) + steps  # from 0 up, each at least one above the last
    return bits.view(np.float64)[index_N]


def finite_logits(logits: ArrayLike) -> np.ndarray:
    """Return logits as float32.

    Raises:
        InputError: a logit is NaN or infinite, or too large for float32.
    """
    with np.errstate(over="ignore"):
        logits = np.asarray(logits).astype(np.float32)
    wrong = int((~np.isfinite(logits)).sum())
    if wrong:
        raise InputError(
            f"{wrong:,} of {logits.size:,} logits are NaN or infinite: training diverged. "
            "Lower --learning_rate and train again, or evaluate an earlier checkpoint."
        )
    return logits


def maximum_likelihood(targets_N: np.ndarray, columns_NK: np.ndarray, offsets_N: np.ndarray) -> np.ndarray:
    """Return the coefficients_K of logit P = offset + columns @ coefficients that make the targets likeliest.

    >>> maximum_likelihood(np.array([True, False, True, True]), np.ones((4, 1)), np.zeros(4)).round(4).tolist()
    [1.0986]

    Newton's method from 0; a step that would raise the deviance is halved until it does not. The maximum must exist.
    """
    signs_N = np.where(targets_N, -1.0, 1.0)
    columns_NK, logits_N = columns_NK * signs_N[:, None], offsets_N * signs_N  # now a positive logit is an error
    coefficients_K, deviance = np.zeros(columns_NK.shape[1]), _deviance(logits_N)
    for _ in range(MOST_STEPS):
        errors_N = sigmoid(logits_N)
        curvature_KK = (columns_NK.T * (errors_N * sigmoid(-logits_N))) @ columns_NK
        try:
            step_K = -np.linalg.solve(curvature_KK, columns_NK.T @ errors_N)
        except np.linalg.LinAlgError:  # flat to the last digit
            break
        move_N = columns_NK @ step_K
        size = 1 / max(1.0, np.abs(move_N).max() / FARTHEST)
        reached = _deviance(logits_N + size * move_N)
        while reached > deviance * (1 + 1e-13):  # more than rounding adds
            size /= 2
            reached = _deviance(logits_N + size * move_N)
        coefficients_K, logits_N, deviance = coefficients_K + size * step_K, logits_N + size * move_N, reached
        if size * np.abs(step_K).max() <= 1e-12 * max(1.0, np.abs(coefficients_K).max()):
            break
    return coefficients_K


def _deviance(logits_N: np.ndarray) -> float:
    """Return -2 log likelihood, where positive logits are errors."""
    return 2 * float((np.maximum(logits_N, 0.0) + np.log1p(np.exp(-np.abs(logits_N)))).sum())
