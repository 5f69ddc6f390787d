"""Operating points: by hand, against slow versions and scikit-learn, by simulation; and wrong thresholds.json."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_curve

from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics import operating_points as module
from chestxray_vit.metrics.operating_points import (
    RULES,
    Rate,
    Rule,
    at_prevalence,
    choose,
    choose_all,
    choose_each,
    decide,
    measure,
    measure_all,
    wilson,
)
from tests.unit.artifacts.test_predictions import drawn
from tests.unit.metrics.test_roc_auc import clustered

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


def slow_effective_number(counts, totals):
    """Return total over the design effect, with both variances as written; there must be one, and 1 or more."""
    patients = [(count, total) for count, total in zip(counts, totals) if total]
    m, total = len(patients), sum(totals)
    p = Fraction(sum(counts), total)
    by_patient = Fraction(m, m - 1) * sum((c - p * n) ** 2 for c, n in patients) / total**2
    by_image = Fraction(m, m - 1) * p * (1 - p) / total
    assert by_patient >= by_image
    return float(total / (by_patient / by_image))


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


# Intervals


def test_wilson_by_hand():
    # z^2 = 3.84146; 8 of 10: (0.8 + 0.192073 -+ 1.95996 * sqrt(0.016 + 0.00960365)) / 1.384146
    #                         = (0.992073 -+ 0.313617) / 1.384146
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    # none of 10: from 0 to z^2 / (10 + z^2) = 3.84146 / 13.84146
    assert wilson(0, 10) == (0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(1 - 0.277533, abs=1e-6), 1)
    assert wilson(0, 0) == pytest.approx((NAN, NAN), nan_ok=True)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 2), (1, 200_000), (8, 10), (199_999, 200_000), (700, 1000)])
def test_wilson_solves_its_equation(count, total):
    # the limits are the p with (share - p)^2 = z^2 p (1 - p) / total
    for limit in wilson(count, total):
        left, right = (count / total - limit) ** 2, 1.959963984540054**2 * limit * (1 - limit) / total
        assert left == pytest.approx(right, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (3, 7), (7, 7), (1, 25_596), (25_000, 25_596)])
def test_wilson_equals_statsmodels(count, total):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(count, total, alpha=0.05, method="wilson")
    assert wilson(count, total) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_other_counts(count, total):
    with pytest.raises(ValueError, match=f"count is {count}, expected from 0 to {total}"):
        wilson(count, total)


def effective_number(counts, totals):
    counts, totals = np.array(counts), np.array(totals)
    return module._effective_number(counts, totals - counts)


def test_effective_number_by_hand():
    # p = 3/5; c - p n = 0.8, -1.2, 0.4: squares 2.24, where independent images have 5 * 0.6 * 0.4 = 1.2
    assert effective_number([2, 0, 1], [2, 2, 1]) == pytest.approx(5 / (2.24 / 1.2), rel=1e-15)
    assert effective_number([2, 0, 1, 0], [2, 2, 1, 0]) == effective_number([2, 0, 1], [2, 2, 1])
    # patients differ less than if images were independent: bounded by the number of images
    assert effective_number([1, 1, 2], [2, 2, 3]) == 7
    assert effective_number([1, 1, 2], [2, 2, 2]) == 6
    assert effective_number([2, 2, 4], [4, 4, 4]) == 6  # the same, twice
    # all or none of each of 4 patients: two images tell as much as one
    assert effective_number([2, 2, 2, 0], [2, 2, 2, 2]) == 4


@pytest.mark.parametrize(
    ("counts", "totals", "expected"),
    [
        ([3, 2, 4], [3, 2, 4], 3),  # all
        ([0, 0, 0], [3, 2, 4], 3),  # none
        ([1, 1, 1, 0], [1, 1, 1, 0], 3),  # one image a patient: their number is that of the images
        ([2, 0], [5, 0], 1),  # one patient
    ],
)
def test_without_a_design_effect_patients_count(counts, totals, expected):
    assert effective_number(counts, totals) == expected


@pytest.mark.parametrize("seed", range(5))
def test_effective_number_equals_the_papers_variances(seed):
    random = np.random.default_rng(seed)
    totals = random.integers(0, 6, 30)
    counts = random.binomial(totals, random.beta(0.4, 0.2, 30))
    assert effective_number(counts, totals) == pytest.approx(slow_effective_number(counts.tolist(), totals.tolist()))


def test_effective_number_equals_statsmodels():
    regression = pytest.importorskip("statsmodels.api")
    for seed in range(3):
        random = np.random.default_rng(seed)
        totals = random.integers(1, 6, 30)
        counts = random.binomial(totals, random.beta(0.4, 0.2, 30))
        counts_N = np.concatenate([np.arange(total) < count for count, total in zip(counts, totals)]).astype(float)
        patients_N = np.repeat(np.arange(30), totals)
        # the mean as a regression on nothing; its variance by cluster has the factor m / (m - 1)
        fit = regression.OLS(counts_N, np.ones(len(counts_N))).fit(cov_type="cluster", cov_kwds={"groups": patients_N})
        share = counts_N.mean()
        expected = share * (1 - share) * (30 / 29) / fit.bse[0] ** 2
        assert effective_number(counts, totals) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_one_image_a_patient_is_wilson(seed):
    targets_N, scores_N, _ = one_finding(seed)
    shuffled = np.random.default_rng(0).permutation(len(targets_N))
    for threshold in np.unique(scores_N):
        point = measure(targets_N, scores_N, threshold, shuffled)
        assert point == measure(targets_N, scores_N, threshold)
        for found in (getattr(point, name) for name in RATES):
            if found.total:
                assert (found.low, found.high) == wilson(found.count, found.total)  # to the last bit


def test_copies_of_every_image_change_no_interval_by_patient():
    num_below_1 = 0
    for seed in range(20):
        targets_N, scores_N, patients_N = one_finding(seed, decimals=0)
        for threshold in np.unique(scores_N):
            once = measure(targets_N, scores_N, threshold, patients_N)
            num_below_1 += sum(
                bool(found.total) and (found.low, found.high) == wilson(found.count, found.total)
                for found in (getattr(once, name) for name in RATES)
            )
            for copies in (2, 5):
                copied = measure(
                    *(np.tile(column, copies) for column in (targets_N, scores_N)),
                    threshold,
                    np.tile(patients_N, copies),
                )
                for name in RATES:
                    before, after = getattr(once, name), getattr(copied, name)
                    assert (after.value, after.low, after.high) == pytest.approx(
                        (before.value, before.low, before.high), rel=0, abs=0, nan_ok=True
                    )
                    assert after.total == copies * before.total
    assert num_below_1 > 20  # where only the bound speaks


def test_copies_beyond_64_bits():
    once = effective_number([2, 0, 1], [2, 2, 1])
    assert effective_number([2 * 10**8, 0, 10**8], [2 * 10**8, 2 * 10**8, 10**8]) == once


def test_intervals_by_patient_cover_and_by_image_do_not():
    """On 120 patients of 1 to 7 images, scores correlate by 0.6 within a patient, and so do most targets."""
    random = np.random.default_rng(1992)
    num_repeats, truth = 1000, 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))  # Phi(0.5), for positives and negatives
    ppv, npv = at_prevalence(truth, truth, 0.4)
    covered = {unit: dict.fromkeys(RATES, 0) for unit in ("patient", "image")}
    for _ in range(num_repeats):
        patients_N = np.repeat(np.arange(120), random.integers(1, 8, 120))
        ill_P, shared_P, num_images = random.random(120) < 0.4, random.normal(size=120), len(patients_N)
        targets_N = np.where(random.random(num_images) < 0.9, ill_P[patients_N], random.random(num_images) < 0.4)
        scores_N = targets_N + math.sqrt(0.6) * shared_P[patients_N] + math.sqrt(0.4) * random.normal(size=num_images)
        for unit, units_N in (("patient", patients_N), ("image", None)):
            point = measure(targets_N, scores_N, 0.5, units_N)
            for name, value in zip(RATES, (truth, truth, ppv, npv)):
                found = getattr(point, name)
                covered[unit][name] += found.low <= value <= found.high
    assert all(0.93 <= covered["patient"][name] / num_repeats <= 0.97 for name in RATES)
    assert all(covered["image"][name] / num_repeats < 0.85 for name in RATES)


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


# All findings


def test_all_findings_are_chosen_and_measured():
    validation, test = drawn(60, seed=1), drawn(40, seed=2)
    table = choose_all(validation)
    assert list(table) == list(FINDINGS)
    points = measure_all(test, table)
    for place, finding in enumerate(FINDINGS):
        chosen = choose_each(validation.targets_NL[:, place], validation.scores_NL[:, place])
        assert list(table[finding]) == list(chosen) == list(points[finding])
        for name, threshold in chosen.items():
            assert table[finding][name] == (None if math.isnan(threshold) else threshold)
            if not math.isnan(threshold):
                columns = test.targets_NL[:, place], test.scores_NL[:, place]
                assert points[finding][name] == measure(*columns, threshold, test.patient_ids)


def with_column(place, targets, scores):
    predictions = drawn(len(targets))
    predictions.targets_NL[:, place], predictions.scores_NL[:, place] = targets, scores
    return predictions


def test_what_is_undefined_is_none_in_a_table():
    one_class = with_column(4, [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])
    assert choose_all(one_class)["Mass"] == dict.fromkeys(RULE)
    assert measure_all(drawn(), choose_all(one_class))["Mass"] == dict.fromkeys(RULE)
    # the highest score of a negative is 1, and no probability is above
    saturated = choose_all(with_column(4, [1, 1, 0, 0], [0.1, 0.2, 0.3, 1.0]))["Mass"]
    assert saturated == {**dict.fromkeys(RULE), "sensitivity_90": 0.1, "sensitivity_95": 0.1}
    below = choose_all(with_column(4, [1, 1, 0, 0], [0.1, 0.2, 0.3, np.nextafter(1, 0)]))["Mass"]
    assert below["specificity_90"] == 1.0


def test_patients_of_predictions_are_told_apart_by_their_whole_id():
    predictions = drawn(6)
    long = dataclasses.replace(predictions, patient_ids=[f"{'0' * 40}{patient}" for patient in predictions.patient_ids])
    table = choose_all(predictions)
    assert measure_all(long, table) == measure_all(predictions, table)


# Calls


def test_decide_calls_what_reaches_its_threshold():
    table = {finding: {**dict.fromkeys(RULE, 0.5), "sensitivity_90": 0.25} for finding in FINDINGS}
    table["Edema"]["youden"] = None
    scores_L = np.full(14, 0.1)
    scores_L[[0, 4, 9, 13]] = [0.5, np.nextafter(0.5, 0), 0.99, 0.6]
    assert decide(scores_L, table, "youden") == ["Atelectasis", "Hernia"]  # Edema has no threshold
    assert decide(scores_L.tolist(), table, "sensitivity_90") == ["Atelectasis", "Mass", "Edema", "Hernia"]
    assert decide([0.0] * 14, table, "youden") == []


def test_decide_calls_as_measure_counts():
    predictions = drawn(30)
    table = choose_all(predictions)
    called = [decide(scores_L, table, "sensitivity_90") for scores_L in predictions.scores_NL]
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
        decide(scores, choose_all(drawn(30)), rule)


def test_rates_are_plain_numbers():
    point = measure(*one_finding(0)[:2], np.float64(1.0))
    kinds = {type(value) for name in RATES for value in dataclasses.astuple(getattr(point, name))}
    assert kinds == {int, float}
    assert {type(value) for value in (point.threshold, *counts_of(point))} == {int, float}
    assert isinstance(point.ppv, Rate)
