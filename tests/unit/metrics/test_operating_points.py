"""Operating points: by hand, against slow versions and scikit-learn, by simulation; and wrong thresholds.json."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_curve

from chestxray_vit.artifacts.thresholds import choose_all, measure_all
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.metrics.intervals import wilson
from chestxray_vit.metrics.operating_points import (
    RULES,
    Rate,
    Rule,
    at_prevalence,
    choose,
    choose_each,
    decide,
    measure,
)
from tests.helpers.statistics import clustered
from tests.unit.artifacts.test_predictions import random_predictions

FINDINGS = NIH_CHESTXRAY14.names

NAN = math.nan


RULE = {rule.name: rule for rule in RULES}


RATES = ("sensitivity", "specificity", "ppv", "npv")


COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")


def counts_of(point):
    return tuple(getattr(point, name) for name in COUNTS)


def one_finding(seed, decimals=1):
    targets_NL, scores_NL, patients_N = clustered(seed)
    return targets_NL[:, 0], np.round(scores_NL[:, 0], decimals), patients_N


# Slow and plain: every threshold is tried, every share is a fraction.


def slow_choose(targets, scores, rule):
    positives, negatives = targets.count(1), targets.count(0)
    if not positives or not negatives:
        return NAN
    best, best_key = NAN, None
    for threshold in sorted(set(scores)):
        called = [target for target, score in zip(targets, scores) if score >= threshold]
        sensitivity = Fraction(called.count(1), positives)
        specificity = 1 - Fraction(called.count(0), negatives)
        if rule.kind == "youden":
            key, reached = (sensitivity + specificity, -threshold), sensitivity + specificity > 1
        elif rule.kind == "sensitivity":
            key, reached = threshold, sensitivity >= Fraction(str(rule.at_least))
        else:
            key, reached = -threshold, specificity >= Fraction(str(rule.at_least))
        if reached and (best_key is None or key > best_key):
            best, best_key = threshold, key
    if best_key is None and rule.kind == "specificity":
        return float(np.nextafter(max(scores), math.inf))
    return best


# Rules


def test_rules_by_hand():
    # scores    1    2    3    4    5
    # targets   -    +    -    -+   +       3 positives, 3 negatives
    # called    3,3  3,2  2,2  2,1  1,0     positives, negatives from here up
    # J         0    1/3  0    1/3  1/3
    targets, scores = [0, 1, 0, 0, 1, 1], [1, 2, 3, 4, 4, 5]
    assert choose_each(targets, scores) == {
        "youden": 2,  # the lowest of three equals
        "sensitivity_90": 2,
        "sensitivity_95": 2,
        "specificity_90": 5,
        "specificity_95": 5,
    }
    assert choose(targets, scores, Rule("", "", "sensitivity", 0.66)) == 4  # 2 of 3 are more
    assert choose(targets, scores, Rule("", "", "sensitivity", 0.67)) == 2  # and less
    assert choose(targets, scores, Rule("", "", "specificity", 0.34)) == 4  # 2 of 3 are below
    assert choose(targets, scores, Rule("", "", "specificity", 0.33)) == 2  # 1 of 3, as below 3


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_choose_equals_trying_every_threshold(seed, decimals, rule):
    targets_N, scores_N, _ = one_finding(seed, decimals)
    for sign in (1, -1):  # with -1 the scores rank the wrong way
        expected = slow_choose(targets_N.tolist(), (sign * scores_N).tolist(), rule)
        assert choose(targets_N, sign * scores_N, rule) == pytest.approx(expected, abs=0, nan_ok=True)


def test_choose_equals_trying_every_threshold_on_a_few_tied_images():
    random = np.random.default_rng(0)
    num_undefined = num_above = 0
    for _ in range(400):
        targets, scores = random.integers(0, 2, 7).tolist(), random.integers(0, 4, 7).astype(float).tolist()
        expected = {rule.name: slow_choose(targets, scores, rule) for rule in RULES}
        assert choose_each(targets, scores) == pytest.approx(expected, abs=0, nan_ok=True)
        num_undefined += math.isnan(expected["youden"])
        num_above += expected["specificity_95"] > max(scores)
    assert num_undefined > 20
    assert num_above > 20


@pytest.mark.parametrize("seed", range(5))
def test_youden_equals_scikit_learn(seed):
    targets_N, scores_N, _ = one_finding(seed)
    false_rates, true_rates, thresholds = roc_curve(targets_N, scores_N, drop_intermediate=False)
    best = np.flatnonzero(np.isclose(true_rates - false_rates, (true_rates - false_rates).max(), rtol=0, atol=1e-12))
    assert choose(targets_N, scores_N, RULE["youden"]) == thresholds[best[-1]]  # its thresholds fall


def test_scores_that_rank_the_wrong_way_have_no_youden_threshold():
    targets, scores = [1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]
    false_rates, true_rates, thresholds = roc_curve(targets, scores)
    assert thresholds[np.argmax(true_rates - false_rates)] in (math.inf, 1.4)  # what must never reach a file
    assert math.isnan(choose(targets, scores, RULE["youden"]))
    assert math.isnan(choose([1, 0, 1, 0], [0.5] * 4, RULE["youden"]))


@pytest.mark.parametrize(
    ("at_least", "total", "reached"), [(0.9, 10, 9), (0.95, 20, 19), (0.07, 100, 7), (0.57, 100, 57)]
)
@pytest.mark.parametrize("kind", ["sensitivity", "specificity"])
def test_a_share_is_reached_exactly(kind, at_least, total, reached):
    # as floats 0.07 * 100 is above 7, and 0.9 is above 9/10
    # one score each: the others, then `total` of the class that the rule is about, or the other way round
    rule, ranks = Rule("", "", kind, at_least), np.arange(total + 1.0)
    if kind == "sensitivity":
        targets, expected = [0] + [1] * total, total + 1 - reached
    else:
        targets, expected = [0] * total + [1], reached
    assert choose(targets, ranks, rule) == expected
    assert getattr(measure(targets, ranks, expected), kind).count == reached


@pytest.mark.parametrize("highest", [0.25, 3.0, -2.0, 0.0])
def test_where_no_score_is_specific_none_is_called(highest):
    targets, scores = [1, 0, 0], [highest - 1, highest, highest]
    threshold = choose(targets, scores, RULE["specificity_90"])
    assert threshold == np.nextafter(highest, math.inf)
    assert counts_of(measure(targets, scores, threshold)) == (0, 0, 1, 2)


def test_no_threshold_is_infinite():
    largest = np.finfo(float).max
    assert math.isnan(choose([1, 0], [0, largest], RULE["specificity_90"]))
    assert choose([1, 0], [0, np.nextafter(largest, 0)], RULE["specificity_90"]) == largest


@pytest.mark.parametrize("targets", [[1, 1, 1], [0, 0, 0], []])
def test_one_class_only_is_undefined(targets):
    chosen = choose_each(targets, [0.1, 0.2, 0.3][: len(targets)])
    assert list(chosen) == list(RULE)
    assert all(math.isnan(threshold) for threshold in chosen.values())


def test_a_rising_transform_moves_the_threshold_along():
    targets_N, scores_N, patients_N = one_finding(3)
    for name, threshold in choose_each(targets_N, scores_N).items():
        moved = choose(targets_N, np.exp(scores_N / 3), RULE[name])
        assert moved == np.exp(np.float64(threshold) / 3)
        before = measure(targets_N, scores_N, threshold, patients_N)
        after = measure(targets_N, np.exp(scores_N / 3), moved, patients_N)
        assert dataclasses.replace(after, threshold=threshold) == before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_least", [0.5, 0.9, 0.95])
def test_sensitivity_is_specificity_with_classes_and_scores_turned_over(seed, at_least):
    targets_N, scores_N, patients_N = one_finding(seed)
    threshold = choose(targets_N, scores_N, Rule("", "", "specificity", at_least))
    turned = choose(1 - targets_N, -scores_N, Rule("", "", "sensitivity", at_least))
    # turned over, score <= -turned is called: the threshold is the next score above
    assert threshold == scores_N[scores_N > -turned].min()
    point = measure(targets_N, scores_N, threshold, patients_N)
    over = measure(1 - targets_N, -scores_N, turned, patients_N)
    assert counts_of(over) == counts_of(point)[::-1]
    assert (over.sensitivity, over.specificity) == (point.specificity, point.sensitivity)
    assert (over.ppv, over.npv) == (point.npv, point.ppv)


def test_choosing_does_not_depend_on_order_or_copies():
    targets_N, scores_N, _ = one_finding(1)
    order = np.random.default_rng(0).permutation(len(targets_N))
    chosen = choose_each(targets_N, scores_N)
    assert choose_each(targets_N[order], scores_N[order]) == chosen
    assert choose_each(np.tile(targets_N, 3), np.tile(scores_N, 3)) == chosen


def test_products_of_counts_beyond_32_bits():
    targets_N = np.arange(200_000) >= 120_000
    chosen = choose_each(targets_N, np.arange(200_000.0))
    assert chosen == {
        "youden": 120_000,  # 80,000 * 120,000 pairs
        "sensitivity_90": 128_000,
        "sensitivity_95": 124_000,
        "specificity_90": 108_000,
        "specificity_95": 114_000,
    }


@pytest.mark.parametrize(
    ("kind", "at_least", "message"),
    [
        ("recall", 0.9, "kind is 'recall', expected youden, sensitivity or specificity"),
        ("youden", 0.9, "at_least is 0.9"),
        ("sensitivity", None, r"at_least is None, expected a share in \(0, 1\]"),
        ("sensitivity", 0.0, "at_least is 0.0"),
        ("specificity", 1.5, "at_least is 1.5"),
        ("specificity", NAN, "at_least is nan"),
    ],
)
def test_a_rule_that_chooses_nothing_is_refused(kind, at_least, message):
    with pytest.raises(ValueError, match=message):
        Rule("name", "title", kind, at_least)


@pytest.mark.parametrize(
    ("targets", "scores", "message"),
    [
        ([0, 1], [0.1], r"targets have shape \(2,\), scores \(1,\)"),
        ([0, 2], [0.1, 0.2], "targets must be 0 or 1, found 2"),
        ([0, 1], [0.1, NAN], "scores must be finite, found nan"),
    ],
)
def test_wrong_arrays_are_refused(targets, scores, message):
    with pytest.raises(ValueError, match=message):
        choose(targets, scores, RULE["youden"])
    with pytest.raises(ValueError, match=message):
        measure(targets, scores, 0.5)


# Points


def test_a_point_by_hand():
    # called from 0.5 up: two of three positives, one of four negatives; the score 0.5 itself is called
    point = measure([1, 1, 1, 0, 0, 0, 0], [0.9, 0.5, 0.4, 0.6, 0.3, 0.2, 0.1], 0.5)
    assert counts_of(point) == (2, 1, 1, 3)
    values = [getattr(point, name).value for name in RATES]
    assert values == [2 / 3, 3 / 4, 2 / 3, 3 / 4]
    assert [(getattr(point, name).count, getattr(point, name).total) for name in RATES] == [(2, 3), (3, 4)] * 2
    assert (point.threshold, point.sensitivity.low, point.sensitivity.high) == (0.5, *wilson(2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_scikit_learn(seed):
    targets_N, scores_N, patients_N = one_finding(seed)
    for threshold in (*np.unique(scores_N), -100, 100):
        point = measure(targets_N, scores_N, threshold, patients_N)
        tn, fp, fn, tp = confusion_matrix(targets_N, scores_N >= threshold, labels=[0, 1]).ravel().tolist()
        assert counts_of(point) == (tp, fp, fn, tn)
        expected = [(tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn)]
        assert [(getattr(point, name).count, getattr(point, name).total) for name in RATES] == expected


def test_a_rate_of_no_images_is_undefined():
    point = measure([1, 1], [0.2, 0.3], 0.9)
    for name in ("specificity", "ppv"):
        found = dataclasses.astuple(getattr(point, name))
        assert found == pytest.approx((NAN, NAN, NAN, 0, 0), nan_ok=True)
    assert (point.sensitivity.value, point.npv.value) == (0, 0)
    nothing = measure([], [], 0.5)
    assert counts_of(nothing) == (0, 0, 0, 0)
    assert math.isnan(nothing.npv.value)


def test_names_of_patients_and_order_of_images_do_not_matter():
    targets_N, scores_N, patients_N = one_finding(5)
    order = np.random.default_rng(1).permutation(len(targets_N))
    names = [f"patient {7 * patient % 25}" for patient in patients_N[order]]
    assert measure(targets_N[order], scores_N[order], 1.0, names) == measure(targets_N, scores_N, 1.0, patients_N)


@pytest.mark.parametrize("threshold", [NAN, math.inf, -math.inf])
def test_a_threshold_that_is_not_finite_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}, expected a finite number"):
        measure([0, 1], [0.1, 0.2], threshold)


def test_a_missing_patient_is_refused():
    with pytest.raises(ValueError, match="a patient is missing"):
        measure([0, 1], [0.1, 0.2], 0.5, [1, NAN])


# Bayes


def test_predictive_values_by_hand():
    # of 1000 images 100 are positive: 90 called, 10 not; of 900 negatives 180 called, 720 not
    assert at_prevalence(0.9, 0.8, 0.1) == pytest.approx((90 / 270, 720 / 730))


def test_predictive_values_at_the_samples_own_prevalence_are_its_own():
    targets_N, scores_N, _ = one_finding(2)
    point = measure(targets_N, scores_N, 1.0)
    values = at_prevalence(point.sensitivity.value, point.specificity.value, targets_N.mean())
    assert values == pytest.approx((point.ppv.value, point.npv.value), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.9, 0.8, 0), (0, 1)),
        ((0.9, 0.8, 1), (1, 0)),
        ((0, 1, 0.3), (NAN, 0.7)),  # none is called
        ((1, 0, 0.3), (0.3, NAN)),  # all are
        ((0.9, 1, 0), (NAN, 1)),
        ((NAN, 0.8, 0.1), (NAN, NAN)),
        ((0.9, NAN, 0.1), (NAN, NAN)),
        ((0.9, 0.8, NAN), (NAN, NAN)),
    ],
)
def test_predictive_values_at_the_ends(arguments, expected):
    assert at_prevalence(*arguments) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("arguments", [(1.1, 0.5, 0.5), (0.5, -0.1, 0.5), (0.5, 0.5, 5), (0.5, 0.5, math.inf)])
def test_predictive_values_outside_0_and_1_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], found"):
        at_prevalence(*arguments)


# Calls


def test_decide_calls_what_reaches_its_threshold():
    table = {finding: {**dict.fromkeys(RULE, 0.5), "sensitivity_90": 0.25} for finding in FINDINGS}
    table["Edema"]["youden"] = None
    scores_L = np.full(14, 0.1)
    scores_L[[0, 4, 9, 13]] = [0.5, np.nextafter(0.5, 0), 0.99, 0.6]
    assert decide(scores_L, FINDINGS, table, "youden") == ["Atelectasis", "Hernia"]  # Edema has no threshold
    assert decide(scores_L.tolist(), FINDINGS, table, "sensitivity_90") == ["Atelectasis", "Mass", "Edema", "Hernia"]
    assert decide([0.0] * 14, FINDINGS, table, "youden") == []


def test_decide_calls_as_measure_counts():
    predictions = random_predictions(30)
    table = choose_all(predictions)
    called = [decide(scores_L, FINDINGS, table, "sensitivity_90") for scores_L in predictions.scores_NL]
    for finding in FINDINGS:
        point = measure_all(predictions, table)[finding]["sensitivity_90"]
        assert sum(finding in names for names in called) == point.true_positives + point.false_positives


@pytest.mark.parametrize(
    ("scores", "rule", "message"),
    [
        ([0.5] * 13, "youden", "expected 14 finite scores"),
        ([NAN] + [0.5] * 13, "youden", "expected 14 finite scores, found .nan"),
        ([0.5] * 14, "best", "unknown rule 'best'. Known: youden, sensitivity_90, sensitivity_95, specificity_90"),
    ],
)
def test_decide_refuses_other_scores_and_rules(scores, rule, message):
    with pytest.raises(ValueError, match=message):
        decide(scores, FINDINGS, choose_all(random_predictions(30)), rule)


def test_rates_are_plain_numbers():
    point = measure(*one_finding(0)[:2], np.float64(1.0))
    kinds = {type(value) for name in RATES for value in dataclasses.astuple(getattr(point, name))}
    assert kinds == {int, float}
    assert {type(value) for value in (point.threshold, *counts_of(point))} == {int, float}
    assert isinstance(point.ppv, Rate)
