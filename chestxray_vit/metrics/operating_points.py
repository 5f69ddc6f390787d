"""Operating points: thresholds chosen on validation predictions, and what they give on test predictions.

An AUC says how well scores rank, not where to cut. A cut looks better than it is on the images it was chosen on, so
choosing and measuring are apart here.

An image is called positive where score >= threshold. Rates have 95 % intervals by patient, since images of one
patient are not independent. What is undefined is NaN, None in a table; no threshold is infinite.

Shapes: N images, L findings, P patients, S distinct scores from low to high."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.metrics.intervals import effective_number, wilson_interval
from chestxray_vit.metrics.ranking import checked, patient_codes, rank

Table = Dict[str, Dict[str, Optional[float]]]  # finding -> name of a rule -> threshold, None where undefined


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen."""

    name: str
    title: str  # for people
    kind: str  # youden, sensitivity or specificity
    at_least: Optional[float] = None  # the share in (0, 1] that sensitivity or specificity must reach

    def __post_init__(self) -> None:
        if self.kind not in ("youden", "sensitivity", "specificity"):
            raise ValueError(f"kind is {self.kind!r}, expected youden, sensitivity or specificity")
        if not (self.at_least is None if self.kind == "youden" else 0 < (self.at_least or 0) <= 1):
            raise ValueError(f"at_least is {self.at_least}, expected a share in (0, 1], or None with youden")


RULES = (
    Rule("youden", "highest Youden index (sensitivity + specificity - 1)", "youden"),
    Rule("sensitivity_90", "sensitivity of 90 % or more", "sensitivity", 0.9),
    Rule("sensitivity_95", "sensitivity of 95 % or more", "sensitivity", 0.95),
    Rule("specificity_90", "specificity of 90 % or more", "specificity", 0.9),
    Rule("specificity_95", "specificity of 95 % or more", "specificity", 0.95),
)
RULE_NAMES = tuple(rule.name for rule in RULES)


@dataclass(frozen=True)
class Rate:
    """A share of images, count / total, with its 95 % interval; NaN where total is 0."""

    value: float
    low: float
    high: float
    count: int
    total: int


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives: numbers of images, and rates with intervals by patient."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    sensitivity: Rate
    specificity: Rate
    ppv: Rate
    npv: Rate


def choose(targets_N: ArrayLike, scores_N: ArrayLike, rule: Rule) -> float:
    """Return the threshold that a rule chooses among the distinct scores, by exact comparison of counts.

    >>> choose([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], RULES[0])
    0.35

    - youden: the highest sensitivity + specificity - 1 (Youden, Cancer 1950); undefined if none is above 0. Of equals
      the lowest threshold, which has the highest sensitivity: where the index does not decide, miss the fewest.
    - sensitivity: the highest threshold that reaches it, so as to call the fewest negatives.
    - specificity: the lowest threshold that reaches it, so as to call the most positives. If not even the highest
      score does, the next float above: none of these images is called positive.

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.

    Returns:
        A finite threshold; NaN where undefined, as it is without positives or without negatives.

    Raises:
        ValueError: as `roc_auc`.
    """
    return choose_each(targets_N, scores_N, [rule])[rule.name]


def choose_each(targets_N: ArrayLike, scores_N: ArrayLike, rules: Sequence[Rule] = RULES) -> Dict[str, float]:
    """Return the threshold of each rule by its name, as `choose` does, from one sort of the scores.

    >>> choose_each([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])["sensitivity_90"]
    0.35
    """
    is_positive_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    if not is_positive_N.any() or is_positive_N.all():
        return {rule.name: math.nan for rule in rules}
    ranking = rank(is_positive_N, scores_N)
    counts = ranking.called_positive()
    return {rule.name: _on_curve(ranking.scores_S, *counts, rule) for rule in rules}


def measure(
    targets_N: ArrayLike, scores_N: ArrayLike, threshold: float, patients_N: Optional[ArrayLike] = None
) -> OperatingPoint:
    """Return the operating point of a threshold that was chosen on other patients.

    >>> point = measure([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.35)
    >>> point.sensitivity.value, point.specificity.value
    (1.0, 0.5)

    Args:
        targets_N: 0 or 1.
        scores_N: any finite score, higher = more likely.
        threshold: any finite number.
        patients_N: integers or strings; None takes each image as a patient of its own.

    Raises:
        ValueError: as `roc_auc`, a patient is missing, or the threshold is not finite.
    """
    is_positive_N, scores_N = checked(targets_N, scores_N, num_axes=1)
    return measure_codes(is_positive_N, scores_N, threshold, patient_codes(patients_N, len(scores_N)))


def decide(scores_L: Sequence[float], names: Sequence[str], table: Table, rule_name: str) -> List[str]:
    """Return the findings that a rule calls positive in one image, in the order of their columns.

    >>> decide([0.7, 0.2], ["Mass", "Nodule"], {"Mass": {"youden": 0.5}, "Nodule": {"youden": 0.5}}, "youden")
    ['Mass']

    Args:
        scores_L: a probability each, with all their digits.
        names: of the L findings.
        table: thresholds by finding and rule; a finding whose threshold is None is never called: it is not decided.
        rule_name: that of one of `RULES`.

    Raises:
        ValueError: there is not one finite score a name, or there is no such rule.
    """
    values_L = np.asarray(scores_L, dtype=np.float64)
    if values_L.shape != (len(names),) or not np.isfinite(values_L).all():
        raise ValueError(f"expected {len(names)} finite scores, found {values_L.tolist()}")
    if rule_name not in RULE_NAMES:
        raise ValueError(f"unknown rule {rule_name!r}. Known: {', '.join(RULE_NAMES)}")
    rows = zip(names, values_L, [table[name][rule_name] for name in names])
    return [name for name, score, threshold in rows if threshold is not None and score >= threshold]


def at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> Tuple[float, float]:
    """Return the predictive values that Bayes' theorem gives where another share of images is positive.

    >>> ppv, npv = at_prevalence(0.9, 0.8, prevalence=0.1)
    >>> round(ppv, 4), round(npv, 4)
    (0.3333, 0.9863)

    Args:
        sensitivity, specificity: in [0, 1] or NaN; taken to be the same there.
        prevalence: in [0, 1].

    Returns:
        ppv, npv; NaN where no image is called so, or an argument is NaN.

    Raises:
        ValueError: an argument is outside [0, 1].
    """
    for value in (sensitivity, specificity, prevalence):
        if value < 0 or value > 1:
            raise ValueError(f"sensitivity, specificity and prevalence must be in [0, 1], found {value}")
    true_positive, true_negative = sensitivity * prevalence, specificity * (1 - prevalence)
    called = true_positive + (1 - specificity) * (1 - prevalence)
    not_called = true_negative + (1 - sensitivity) * prevalence
    ppv = true_positive / called if called > 0 else math.nan
    return ppv, true_negative / not_called if not_called > 0 else math.nan


def _on_curve(scores_S: np.ndarray, true_positives_S: np.ndarray, false_positives_S: np.ndarray, rule: Rule) -> float:
    num_positives, num_negatives = int(true_positives_S[0]), int(false_positives_S[0])
    if rule.kind == "youden":
        gains_S = true_positives_S * num_negatives - false_positives_S * num_positives
        best = int(np.argmax(gains_S))  # the first, so the lowest, of equals
        return float(scores_S[best]) if gains_S[best] > 0 else math.nan
    if rule.kind == "sensitivity":
        return float(scores_S[true_positives_S >= _least(rule, num_positives)][-1])
    reaching = scores_S[num_negatives - false_positives_S >= _least(rule, num_negatives)]
    if len(reaching):
        return float(reaching[0])
    highest = float(scores_S[-1])
    return float(np.nextafter(highest, math.inf)) if highest < np.finfo(np.float64).max else math.nan


def _least(rule: Rule, total: int) -> int:
    """Return the smallest count that reaches the rule's share, which is the decimal as written: 0.9 is 9/10."""
    return math.ceil(Fraction(str(float(rule.at_least or 0))) * total)


def measure_codes(
    is_positive_N: np.ndarray, scores_N: np.ndarray, threshold: float, codes_N: np.ndarray
) -> OperatingPoint:
    """Return what `measure` does, of arrays that are checked: booleans, finite scores, patients as codes from 0."""
    if not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}, expected a finite number")
    num_patients = int(codes_N.max(initial=-1)) + 1
    cells_N = (2 * is_positive_N + (scores_N >= threshold)) * num_patients + codes_N
    tn_P, fp_P, fn_P, tp_P = np.bincount(cells_N, minlength=4 * num_patients).reshape(4, num_patients)
    tp, fp, fn, tn = (int(counts_P.sum()) for counts_P in (tp_P, fp_P, fn_P, tn_P))
    sensitivity, specificity = _rate(tp_P, fn_P), _rate(tn_P, fp_P)
    return OperatingPoint(
        float(threshold), tp, fp, fn, tn, sensitivity, specificity, _rate(tp_P, fp_P), _rate(tn_P, fn_P)
    )


def _rate(counts_P: np.ndarray, others_P: np.ndarray) -> Rate:
    count, total = int(counts_P.sum()), int(counts_P.sum() + others_P.sum())
    if total == 0:
        return Rate(math.nan, math.nan, math.nan, 0, 0)
    return Rate(count / total, *wilson_interval(count / total, effective_number(counts_P, others_P)), count, total)
