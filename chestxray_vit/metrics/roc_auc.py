"""AUC-ROC per finding, its variance by patient, the macro, and the paired comparison of two runs.

Images of one patient are not independent: by image, a nominal 95 % interval covers the truth as little as 56 %
of the time on NIH's test list. So every variance here is the generalised DeLong of Obuchowski (Biometrics 1997),
which sums what each patient adds to the AUC; DeLong's own is the case of one image a patient.

Conventions are those of R's pROC: a higher score means the finding, a tie counts half, variances divide by n - 1,
the 95 % interval is Wald's, clipped to [0, 1]. What is undefined is NaN, never 0 and never 0.5.

Shapes: N images, L findings, P patients."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.labels import LabelSet
from chestxray_vit.metrics.intervals import (
    Difference,
    Estimate,
    Macro,
    influence,
    mean_estimate,
    normal_test,
    variance_of,
)
from chestxray_vit.metrics.probability import finite_logits
from chestxray_vit.metrics.ranking import checked, patient_codes


def roc_auc(targets_N: ArrayLike, scores_N: ArrayLike) -> float:
    """Return the share of (positive, negative) pairs that the scores order rightly; a tie counts half.

    >>> roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        The exact AUC in [0, 1]; NaN if there is no positive or no negative.

    Raises:
        ValueError: shapes differ, a score is not finite, or a target is neither 0 nor 1.
    """
    targets_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    positives, negatives = scores_N[targets_N], scores_N[~targets_N]
    pairs = len(positives) * len(negatives)
    negatives.sort()
    positives.sort()  # a search for sorted values stays in the cache
    wins = sum(int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return wins / (2 * pairs) if pairs else math.nan


def delong(targets_N: ArrayLike, scores_N: ArrayLike) -> Estimate:
    """Return the AUC with DeLong's variance (Biometrics 1988), which takes the images as independent.

    >>> estimate = delong([0, 1, 0, 1, 0, 1], [0.1, 0.4, 0.6, 0.8, 0.2, 0.3])
    >>> round(estimate.auc, 4), round(estimate.variance, 4)
    (0.7778, 0.0617)

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        The estimate; with one positive or one negative the AUC is defined and its interval is not.

    Raises:
        ValueError: as `roc_auc`.
    """
    return obuchowski(targets_N, scores_N, np.arange(np.size(targets_N)))


def obuchowski(targets_N: ArrayLike, scores_N: ArrayLike, patients_N: ArrayLike) -> Estimate:
    """Return the AUC with its variance when images cluster in patients (Obuchowski, Biometrics 1997).

    >>> estimate = obuchowski([0, 1, 0, 1, 0, 1], [0.1, 0.4, 0.6, 0.8, 0.2, 0.3], ["a", "a", "b", "b", "c", "c"])
    >>> round(estimate.auc, 4), round(estimate.variance, 4)
    (0.7778, 0.0123)

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.
        patients_N: integers or strings, equal for the images of one patient.

    Returns:
        The estimate; the interval is undefined if only one patient has positives, or only one has negatives.

    Raises:
        ValueError: as `roc_auc`, or a patient is missing.
    """
    targets_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    estimate = macro(targets_N[:, None], scores_N[:, None], patients_N)
    return Estimate(estimate.auc, estimate.variance, estimate.low, estimate.high)


def macro(targets_NL: ArrayLike, scores_NL: ArrayLike, patients_N: Optional[ArrayLike] = None) -> Macro:
    """Return the mean AUC over the findings where it is defined, with its variance by patient.

    >>> macro([[0, 1], [1, 0], [0, 1], [1, 0]], [[0.1, 0.9], [0.8, 0.3], [0.4, 0.6], [0.3, 0.2]]).auc
    0.875

    The findings share their patients, so their AUCs are correlated: the variance is the mean of the L x L
    covariance matrix, not that of independent findings.

    Args:
        targets_NL: 0 or 1.
        scores_NL: any finite score, higher = more likely.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        The macro estimate; its interval is undefined if that of a finding which counts is.

    Raises:
        ValueError: as `roc_auc`, or a patient is missing.
    """
    targets_NL, scores_NL = checked(targets_NL, scores_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    targets_NL, scores_NL = _defined(targets_NL, scores_NL)
    return mean_estimate(*_influences(targets_NL, scores_NL, patients_N))


def compare(
    targets_N: ArrayLike, scores_a_N: ArrayLike, scores_b_N: ArrayLike, patients_N: Optional[ArrayLike] = None
) -> Difference:
    """Compare the AUCs of two runs on the same images, paired, by patient.

    >>> targets, a, b = [0, 0, 1, 1, 0, 1], [0.1, 0.2, 0.8, 0.9, 0.3, 0.7], [0.1, 0.8, 0.3, 0.9, 0.2, 0.7]
    >>> round(compare(targets, a, b).difference, 4)
    0.2222

    Args:
        targets_N: 0 or 1.
        scores_a_N: any finite score, higher = more likely.
        scores_b_N: the other run's, in the same order.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        a minus b. z = 0 and p = 1 if the runs do not differ at all; z and p are NaN if they do while the variance
        is zero or undefined.

    Raises:
        ValueError: as `roc_auc`, or a patient is missing.
    """
    targets_N, scores_a_N = checked(targets_N, scores_a_N, num_axes=1)
    _, scores_b_N = checked(targets_N, scores_b_N, num_axes=1)
    return compare_macro(targets_N[:, None], scores_a_N[:, None], scores_b_N[:, None], patients_N)


def compare_macro(
    targets_NL: ArrayLike, scores_a_NL: ArrayLike, scores_b_NL: ArrayLike, patients_N: Optional[ArrayLike] = None
) -> Difference:
    """Compare the macro AUCs of two runs on the same images, paired, by patient.

    >>> targets, a, b = [[0], [0], [1], [1]], [[0.1], [0.2], [0.8], [0.9]], [[0.1], [0.8], [0.3], [0.9]]
    >>> compare_macro(targets, a, b).difference
    0.25

    Args:
        targets_NL: 0 or 1.
        scores_a_NL: any finite score, higher = more likely.
        scores_b_NL: the other run's, in the same order.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Returns:
        As `compare`, over the findings where the AUC is defined.

    Raises:
        ValueError: as `roc_auc`, or a patient is missing.
    """
    targets_NL, scores_a_NL = checked(targets_NL, scores_a_NL, num_axes=2)
    _, scores_b_NL = checked(targets_NL, scores_b_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    _, scores_a_NL = _defined(targets_NL, scores_a_NL)
    targets_NL, scores_b_NL = _defined(targets_NL, scores_b_NL)
    if targets_NL.shape[1] == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    aucs_a, influences_a = _influences(targets_NL, scores_a_NL, patients_N)
    aucs_b, influences_b = _influences(targets_NL, scores_b_NL, patients_N)
    difference = float(np.subtract(aucs_a, aucs_b).mean())
    variance = variance_of(np.mean(influences_a, axis=0) - np.mean(influences_b, axis=0))
    return Difference(0.0, 0.0, 0.0, 1.0) if difference == variance == 0 else normal_test(difference, variance)


class RocAucMetrics:
    """The AUCs of an evaluation, for `transformers.Trainer(compute_metrics=...)`.

    A class, not a closure, so that it can be pickled.

    The logits themselves are ranked, as float32: a half-precision sigmoid ties what differs, and a softmax across
    findings makes them compete.

    >>> from types import SimpleNamespace
    >>> metrics = RocAucMetrics(LabelSet("one", ("Mass",)))
    >>> metrics(SimpleNamespace(predictions=[[-1.0], [2.0], [0.5]], label_ids=[[0], [1], [1]]))
    {'roc_auc': 1.0, 'roc_auc_Mass': 1.0, 'num_findings': 1}
    """

    def __init__(self, label_set: LabelSet):
        """Args: label_set: of the logits' columns."""
        self.label_set = label_set

    def __call__(self, eval_prediction: Any) -> Dict[str, float]:
        """Return the AUC of each label, and their mean over the findings.

        Args:
            eval_prediction: has `predictions` (logits, N x L; or a tuple that begins with them) and `label_ids`
                (0 or 1, the same shape).

        Returns:
            `roc_auc` (mean over the findings where it is defined), `roc_auc_<label>` each, with underscores for
            blanks, and `num_findings`. The negative label's is outside the mean. NaN where undefined.

        Raises:
            InputError: a logit is not finite.
            ValueError: as `roc_auc`, or the columns are not the label set's.
        """
        predictions = eval_prediction.predictions
        logits_NL = finite_logits(predictions[0] if isinstance(predictions, tuple) else predictions)
        targets_NL, logits_NL = checked(eval_prediction.label_ids, logits_NL, num_axes=2)
        if logits_NL.shape[1] != len(self.label_set):
            raise ValueError(f"logits have {logits_NL.shape[1]} columns, expected {len(self.label_set)}")
        aucs = {name: roc_auc(*columns) for name, *columns in zip(self.label_set.names, targets_NL.T, logits_NL.T)}
        defined = [aucs[finding] for finding in self.label_set.findings if not math.isnan(aucs[finding])]
        metrics = {"roc_auc": sum(defined) / len(defined) if defined else math.nan}
        metrics.update({f"roc_auc_{name.replace(' ', '_')}": value for name, value in aucs.items()})
        metrics["num_findings"] = len(defined)
        return metrics


def _defined(targets_NL: np.ndarray, scores_NL: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Keep the findings that have positives and negatives."""
    defined_L = targets_NL.any(axis=0) & ~targets_NL.all(axis=0)
    return targets_NL[:, defined_L], scores_NL[:, defined_L]


def _influences(
    targets_NL: np.ndarray, scores_NL: np.ndarray, patients_N: np.ndarray
) -> Tuple[List[float], List[np.ndarray]]:
    num_patients = int(patients_N.max(initial=-1)) + 1
    pairs = [influence(*columns, patients_N, num_patients) for columns in zip(targets_NL.T, scores_NL.T)]
    return [value for value, _ in pairs], [influence_4P for _, influence_4P in pairs]
