"""Subgroups: bands by hand, the covariance against plain loops over patients and the jackknife, p by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.metrics.roc_auc import macro, obuchowski, roc_auc
from chestxray_vit.metrics.subgroups import GROUPINGS, MIN_PATIENTS, UNKNOWN, group_masks, subgroups
from chestxray_vit.reporting.sections.subgroups import subgroup_table
from tests.helpers.statistics import clustered, group_of, slow_components

FINDINGS = NIH_CHESTXRAY14.names

L = len(FINDINGS)


def leaning(seed, num_images, num_patients, num_findings=1):
    """Draw as `clustered`, and raise or lower all scores of a patient, so that two sets of their images agree."""
    targets_NL, scores_NL, patients_N = clustered(seed, num_images, num_patients, num_findings)
    return (
        targets_NL,
        scores_NL + 2 * np.random.default_rng(seed).normal(size=num_patients)[patients_N, None],
        patients_N,
    )


def halves(patients_N, seed=0, lean=0.3):
    """Put each image into a or b; with little lean, most patients have images in both."""
    random = np.random.default_rng(seed)
    lean_P = lean * random.normal(size=patients_N.max() + 1)
    in_a_N = lean_P[patients_N] + random.normal(size=len(patients_N)) > 0
    return {"a": in_a_N, "b": ~in_a_N}


def made(num_images=900, num_patients=200, seed=0):
    """Draw predictions of 14 findings with sexes, ages and views; the last finding is rare."""
    random = np.random.default_rng(seed)
    targets_NL, scores_NL, patients_N = clustered(seed, num_images, num_patients, L)
    targets_NL[:, -1] &= random.random(num_images) < 0.06
    sexes_P, ages_P = (
        random.choice(["F", "M", ""], num_patients, p=[0.45, 0.45, 0.1]),
        random.integers(1, 90, num_patients),
    )
    ages = [int(ages_P[patient] + random.integers(0, 8)) for patient in patients_N]
    views = random.choice(["PA", "AP"], num_images).tolist()
    scores_NL = 1 / (1 + np.exp(-scores_NL))
    names, patients = [f"{image}.png" for image in range(num_images)], [f"{patient:08d}" for patient in patients_N]
    return Predictions(names, patients, ages, sexes_P[patients_N].tolist(), views, targets_NL, scores_NL)


def changed(predictions, rows=None, **columns):
    """Return predictions with other columns, or other rows."""
    names = ("file_names", "patient_ids", "ages", "sexes", "views", "targets_NL", "scores_NL")
    values = {name: getattr(predictions, name) for name in names}
    values.update(columns)
    if rows is not None:
        values = {
            name: value[rows] if isinstance(value, np.ndarray) else [value[row] for row in rows]
            for name, value in values.items()
        }
    return Predictions(**values)


# Slow and plain: a loop over patients, a loop over their images.


def slow_covariance(one, other):
    """Return the covariance of the AUCs of two sets of images, each (targets, scores, patients) in lists.

    Of each set, a and b are a patient's sums of V10 - theta over M and of V01 - theta over N, and f = n / (n - 1) of
    its n patients with positives, with negatives, in all; the covariance is the sum over patients of
    sqrt(f10 f10') a a' + sqrt(f01 f01') b b' + sqrt(f f') (a b' + b a').
    """
    sums, factors = [], []
    for targets, scores, patients in (one, other):
        theta, v10, v01 = slow_components(targets, scores)
        counts = [{patients[image] for image in images} for images in (v10, v01, range(len(patients)))]
        factors.append([math.sqrt(len(found) / (len(found) - 1)) for found in counts])
        of_patient = {}
        for patient in counts[2]:
            a = b = 0.0
            for image in range(len(patients)):
                if patients[image] == patient and targets[image] == 1:
                    a += (v10[image] - theta) / len(v10)
                if patients[image] == patient and targets[image] == 0:
                    b += (v01[image] - theta) / len(v01)
            of_patient[patient] = a, b
        sums.append(of_patient)
    (f10, f01, f), (g10, g01, g) = factors
    total = 0.0
    for patient, (a, b) in sums[0].items():
        for another, (c, d) in sums[1].items():
            if patient == another:
                total += f10 * g10 * a * c + f01 * g01 * b * d + f * g * (a * d + b * c)
    return total


def lists(targets_N, scores_N, patients_N, mask_N):
    return tuple(np.asarray(values)[mask_N].tolist() for values in (targets_N, scores_N, patients_N))


# Groups


def test_groups_by_hand():
    values = [
        ("F", 0, "PA", "F", "0-17", "PA"),
        ("M", 17, "AP", "M", "0-17", "AP"),
        (" f ", 17.9, "pa", "F", "0-17", "PA"),
        ("m", 18, " Ap\t", "M", "18-39", "AP"),
        ("", 39.99, "", UNKNOWN, "18-39", UNKNOWN),
        ("O", 40, "LL", UNKNOWN, "40-59", UNKNOWN),
        ("<b>X</b>", 59.5, "<b>X</b>", UNKNOWN, "40-59", UNKNOWN),
        (None, 60, None, UNKNOWN, "60-79", UNKNOWN),
        ("FM", 79, "PAAP", UNKNOWN, "60-79", UNKNOWN),
        ("Female", 79.999, "P A", UNKNOWN, "60-79", UNKNOWN),
        ("unknown", 80, "unknown", UNKNOWN, "80+", UNKNOWN),
        ("F", 95.5, "PA", "F", "80+", "PA"),
        ("F", None, "PA", "F", UNKNOWN, "PA"),
        ("F", math.nan, "PA", "F", UNKNOWN, "PA"),
        ("F", -0.5, "PA", "F", UNKNOWN, "PA"),
        ("F", math.inf, "PA", "F", UNKNOWN, "PA"),
    ]
    sexes, ages, views, *expected = (list(column) for column in zip(*values))
    names, zeros_NL = [str(row) for row in range(len(values))], np.zeros((len(values), L))
    predictions = Predictions(names, names, ages, sexes, views, zeros_NL, zeros_NL)
    masks = group_masks(predictions.sexes, predictions.ages, predictions.views)
    assert list(masks) == list(GROUPINGS) == ["sex", "age", "view"]
    for (grouping, groups), column in zip(masks.items(), expected):
        assert list(groups) == [*GROUPINGS[grouping], UNKNOWN]
        assert [[group for group in groups if groups[group][row]] for row in range(len(values))] == [
            [x] for x in column
        ]
    table = subgroup_table(predictions)
    assert "X" not in json.dumps(table)
    assert group_of(table, "sex", UNKNOWN)["num_images"] == 7
    assert group_of(table, "sex", UNKNOWN)["num_patients"] == 7


@pytest.mark.parametrize("seed", range(2))
def test_groups_have_the_numbers_of_their_images(seed):
    predictions = made(seed=seed)
    patients_N, table = np.array(predictions.patient_ids), subgroup_table(predictions)
    for grouping, masks in group_masks(predictions.sexes, predictions.ages, predictions.views).items():
        for group, mask_N in masks.items():
            found = group_of(table, grouping, group)
            targets_NL, scores_NL = predictions.targets_NL[mask_N], predictions.scores_NL[mask_N]
            patients = patients_N[mask_N]
            assert (found["num_images"], found["num_patients"]) == (mask_N.sum(), len(set(patients)))
            large = []
            for index, row in enumerate(found["findings"]):
                positive_N = targets_NL[:, index] == 1
                num_patients = [len(set(patients[of_class_N])) for of_class_N in (positive_N, ~positive_N)]
                assert row["finding"] == FINDINGS[index]
                assert (row["num_positives"], row["num_positive_patients"]) == (positive_N.sum(), num_patients[0])
                assert row["too_small"] == (min(num_patients) < MIN_PATIENTS)
                if row["too_small"]:
                    assert row["auc"] is row["low"] is row["high"] is row["difference"] is row["p"] is None
                else:
                    large.append(index)
                    estimate = obuchowski(targets_NL[:, index], scores_NL[:, index], patients)
                    assert row["auc"] == estimate.auc
                    assert (row["low"], row["high"]) == (pytest.approx(estimate.low), pytest.approx(estimate.high))
            assert found["macro"]["num_findings"] == len(large)
            if large:
                estimate = macro(targets_NL[:, large], scores_NL[:, large], patients)
                numbers = [found["macro"][name] for name in ("auc", "low", "high")]
                assert numbers == pytest.approx([estimate.auc, estimate.low, estimate.high], rel=1e-12)
    assert any(row["too_small"] for row in group_of(table, "age", "80+")["findings"])
    assert group_of(table, "sex", UNKNOWN)["num_images"] > 50


# The difference


@pytest.mark.parametrize("seed", range(4))
def test_variance_of_the_difference_equals_the_loops(seed):
    targets_NL, scores_NL, patients_N = leaning(seed, num_images=160, num_patients=40)
    masks = halves(patients_N, seed)
    columns = targets_NL[:, 0], scores_NL[:, 0], patients_N
    a, b = (lists(*columns, mask_N) for mask_N in masks.values())
    assert len(set(a[2]) & set(b[2])) > 15
    slow = slow_covariance(a, a) + slow_covariance(b, b) - 2 * slow_covariance(a, b)
    found = subgroups(targets_NL, scores_NL, patients_N, masks)["a"].findings[0]
    assert found.estimate.variance == pytest.approx(slow_covariance(a, a), rel=1e-10)
    assert found.difference.variance == pytest.approx(slow, rel=1e-10)
    assert found.difference.difference == pytest.approx(roc_auc(*a[:2]) - roc_auc(*b[:2]), abs=1e-14)
    assert found.difference.z == pytest.approx(found.difference.difference / math.sqrt(slow), rel=1e-9)
    assert found.difference.p == pytest.approx(math.erfc(abs(found.difference.z) / math.sqrt(2)))
    assert abs(slow_covariance(a, b)) > 0.02 * slow  # it matters


def test_variance_of_the_difference_by_hand():
    # In a and in b positives 2, 4 and negatives 1, 3: AUC 3/4, V10 = 1/2, 1, V01 = 1, 1/2. Over M = N = 2, the
    # influences of 2, 4, 1, 3 are -1/8, 1/8, 1/8, -1/8.
    # ABCD EFGH: each variance is DeLong's, 2 * 2/64 + 2 * 2/64 = 1/8; nobody is in both, 1/8 + 1/8.
    # ABAB CDCD: A's influences are -1/8 + 1/8, B's 1/8 - 1/8; 2 * 2/64 + 2 * 2/64 - 2 * 2 * 2/64 = 0.
    # ABCD DCBA: A has 2 in a and 3 in b, B 4 and 1, C 1 and 4, D 3 and 2, each a product of 1/64, a positive's by a
    # negative's: f = 4/3, cov = 4/3 * 4/64 = 1/12; 1/8 + 1/8 - 2/12 = 1/12.
    targets, scores = [1, 1, 0, 0] * 2, [2, 4, 1, 3] * 2
    masks = {"a": np.arange(8) < 4, "b": np.arange(8) >= 4}
    expected = {"ABABCDCD": 0.0, "ABCDEFGH": 1 / 4, "ABCDDCBA": 1 / 12}
    for patients, variance in expected.items():
        found = hand(targets, scores, list(patients), masks)
        assert found.difference.variance == pytest.approx(variance, abs=1e-15)
        assert found.difference.difference == 0


def hand(targets, scores, patients, masks):
    """Return finding 0 of group a, however few patients there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestxray_vit.metrics.subgroups.MIN_PATIENTS", 2)
        return subgroups(np.array(targets)[:, None], np.array(scores)[:, None], patients, masks)["a"].findings[0]


def test_without_common_patients_the_variances_add_up():
    targets_NL, scores_NL, patients_N = clustered(1, num_images=600, num_patients=150, num_findings=3)
    masks = {"a": patients_N < 70, "b": patients_N >= 70}
    groups = subgroups(targets_NL, scores_NL, patients_N, masks)
    for index in range(3):
        a, b = (groups[group].findings[index].estimate.variance for group in "ab")
        assert groups["a"].findings[index].difference.variance == pytest.approx(a + b, rel=1e-12)
    a, b = (groups[group].macro.variance for group in "ab")
    assert groups["a"].macro_difference.variance == pytest.approx(a + b, rel=1e-12)


def test_the_same_images_of_the_same_patients_do_not_differ():
    targets_NL, scores_NL, patients_N = clustered(2, num_images=300, num_patients=80)
    twice = np.arange(600) < 300
    groups = subgroups(
        np.tile(targets_NL, (2, 1)), np.tile(scores_NL, (2, 1)), np.tile(patients_N, 2), {"a": twice, "b": ~twice}
    )
    found = groups["a"].findings[0]
    assert found.estimate.variance > 0
    assert (found.difference.difference, found.difference.variance) == (0, 0)
    assert math.isnan(found.difference.p)


@pytest.mark.parametrize("lean", [0.3, 1.0])
def test_variance_agrees_with_the_jackknife_of_patients(lean):
    targets_NL, scores_NL, patients_N = leaning(8, num_images=1200, num_patients=250, num_findings=3)
    masks = halves(patients_N, lean=lean)
    left = []
    for patient in range(250):
        kept_N = patients_N != patient
        a, b = (macro(targets_NL[mask_N & kept_N], scores_NL[mask_N & kept_N]).auc for mask_N in masks.values())
        left.append(a - b)
    jackknife = 249 / 250 * np.sum((left - np.mean(left)) ** 2)
    group = subgroups(targets_NL, scores_NL, patients_N, masks)["a"]
    assert group.macro_difference.variance == pytest.approx(jackknife, rel=0.04)
    apart = sum(macro(targets_NL[mask_N], scores_NL[mask_N], patients_N[mask_N]).variance for mask_N in masks.values())
    assert apart > 1.2 * jackknife  # were nobody in both


def test_macro_difference_is_the_mean_of_all_covariances():
    targets_NL, scores_NL, patients_N = clustered(3, num_images=240, num_patients=60, num_findings=2)
    masks = halves(patients_N)
    columns = [(targets_NL[:, index], scores_NL[:, index], patients_N) for index in range(2)]
    signed = [(sign, lists(*column, mask_N)) for sign, mask_N in zip((1, -1), masks.values()) for column in columns]
    slow = sum(s * t * slow_covariance(one, other) for s, one in signed for t, other in signed) / 4
    group = subgroups(targets_NL, scores_NL, patients_N, masks)["a"]
    assert group.macro_difference.variance == pytest.approx(slow, rel=1e-10)
    expected = sum(sign * roc_auc(*column[:2]) for sign, column in signed) / 2
    assert group.macro_difference.difference == pytest.approx(expected, abs=1e-14)


def test_rest_is_the_other_known_groups():
    predictions = made(seed=3)
    ages = [None if age == 50 else age for age in predictions.ages]
    masks = group_masks(predictions.sexes, ages, predictions.views)["age"]
    groups = subgroups(predictions.targets_NL, predictions.scores_NL, predictions.patient_ids, masks)
    known_N, in_N = ~masks[UNKNOWN], masks["40-59"][~masks[UNKNOWN]]
    columns = predictions.targets_NL, predictions.scores_NL, np.array(predictions.patient_ids)
    alone = subgroups(*[column[known_N] for column in columns], {"a": in_N, "b": ~in_N})
    assert groups["40-59"].findings[0].difference == alone["a"].findings[0].difference
    assert groups["40-59"].findings[0].difference.p < 1
    assert 0 < masks[UNKNOWN].sum() < 100


def test_two_groups_are_each_others_rest():
    targets_NL, scores_NL, patients_N = clustered(4, num_images=300, num_patients=80, num_findings=2)
    groups = subgroups(targets_NL, scores_NL, patients_N, halves(patients_N))
    pairs = list(zip(groups["a"].findings, groups["b"].findings))
    pairs = [(a.difference, b.difference) for a, b in pairs]
    for a, b in [*pairs, (groups["a"].macro_difference, groups["b"].macro_difference)]:
        assert (a.difference, a.z) == (-b.difference, -b.z)
        assert (a.variance, a.p) == (b.variance, b.p)
        assert 0 < a.p < 1


def test_no_group_is_tested_against_nothing():
    predictions = made()
    table = subgroup_table(changed(predictions, sexes=["F"] * 900, views=[""] * 900))
    for grouping, group in (("sex", "F"), ("view", UNKNOWN)):
        found = group_of(table, grouping, group)
        assert found["num_images"] == 900
        assert found["macro"]["auc"] > 0.5
        for row in [*found["findings"], found["macro"]]:
            assert row["difference"] is row["se"] is row["p"] is row["p_holm"] is None


def test_a_variance_of_zero_gives_no_test():
    patients_N, targets_N = np.arange(80), np.arange(80) % 2
    masks = {"a": patients_N < 40, "b": patients_N >= 40}
    scores_N = np.where(masks["a"], targets_N, 0.5)  # perfect in a, constant in b
    found = subgroups(targets_N[:, None], scores_N[:, None], patients_N, masks)["a"].findings[0]
    assert (found.estimate.auc, found.difference.difference, found.difference.variance) == (1.0, 0.5, 0.0)
    assert math.isnan(found.difference.p)


def test_p_holds_its_promise_where_patients_are_in_both():
    """On 120 patients of 1 to 7 images, scores correlate by 0.6 within a patient; both views are equally hard."""
    random = np.random.default_rng(1997)
    num_repeats, alarms = 1000, {"joint": 0, "apart": 0}
    for _ in range(num_repeats):
        patients_N = np.repeat(np.arange(120), random.integers(1, 8, 120))
        num_images = len(patients_N)
        ill_P, shared_P = random.random(120) < 0.4, random.normal(size=120)
        targets_N = np.where(random.random(num_images) < 0.9, ill_P[patients_N], random.random(num_images) < 0.4)
        own_N = random.normal(size=num_images)
        scores_N = targets_N + math.sqrt(0.6) * shared_P[patients_N] + math.sqrt(0.4) * own_N
        pa_N = random.random(num_images) < 0.5
        groups = subgroups(targets_N[:, None], scores_N[:, None], patients_N, {"PA": pa_N, "AP": ~pa_N})
        pa, ap = (groups[group].findings[0] for group in ("PA", "AP"))
        alarms["joint"] += pa.difference.p < 0.05
        z = pa.difference.difference / math.sqrt(pa.estimate.variance + ap.estimate.variance)
        alarms["apart"] += abs(z) > 1.96
    assert 0.03 <= alarms["joint"] / num_repeats <= 0.07
    assert alarms["apart"] / num_repeats < 0.02  # as if nobody were in both: blind


# Too small


@pytest.mark.parametrize(("number", "too_small"), [(MIN_PATIENTS - 1, True), (MIN_PATIENTS, False)])
@pytest.mark.parametrize("rare", [0, 1])
def test_too_small_counts_patients_of_the_rarer_class(number, too_small, rare):
    # a: two images of each of 40 patients, `number` of whom have one of the rare class; b: 40 others, half of each
    patients_N = np.repeat(np.arange(80), 2)
    is_rare_N = np.where(patients_N < 40, (patients_N < number) & (np.arange(160) % 2 == 0), patients_N % 2 == 0)
    targets_N = np.where(is_rare_N, rare, 1 - rare)
    scores_N = np.random.default_rng(0).random(160)
    groups = subgroups(targets_N[:, None], scores_N[:, None], patients_N, {"a": patients_N < 40, "b": patients_N >= 40})
    a, b = groups["a"].findings[0], groups["b"].findings[0]
    assert (a.too_small, b.too_small) == (too_small, False)
    assert math.isnan(a.estimate.auc) == math.isnan(a.difference.p) == math.isnan(b.difference.p) == too_small
    assert not math.isnan(b.estimate.auc)
    assert groups["a"].macro.num_findings == (0 if too_small else 1)
    assert (a.num_positives, a.num_positive_patients) == ((number, number) if rare else (80 - number, 40))


def test_macro_counts_large_findings_and_is_tested_on_the_same_ones():
    targets_NL, scores_NL, patients_N = clustered(5, num_images=600, num_patients=150, num_findings=3)
    masks = halves(patients_N, lean=0.0)
    targets_NL[masks["a"], 2] = 0
    groups = subgroups(targets_NL, scores_NL, patients_N, masks)
    assert (groups["a"].macro.num_findings, groups["b"].macro.num_findings) == (2, 3)
    assert math.isnan(groups["a"].macro_difference.p)
    assert math.isnan(groups["a"].macro_difference.difference)
    two = subgroups(targets_NL[:, :2], scores_NL[:, :2], patients_N, masks)
    assert two["a"].macro == groups["a"].macro
    targets_NL[:, 2] = 0  # too small in both
    groups = subgroups(targets_NL, scores_NL, patients_N, masks)
    assert groups["a"].macro_difference == two["a"].macro_difference
    assert 0 < groups["a"].macro_difference.p < 1


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"a": [True, False]}, r"the mask of a has shape \(2,\), expected \(3,\)"),
        ({"a": [True, False, False], "b": [True, True, True]}, "an image is in two groups"),
    ],
)
def test_wrong_masks_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        subgroups([[0], [1], [1]], [[0.1], [0.2], [0.3]], [1, 2, 3], masks)
