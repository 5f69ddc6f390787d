"""Clustered data for tests of the statistics, and the papers' sums as plain loops."""

from __future__ import annotations

import math

import numpy as np


def clustered(seed, num_images=120, num_patients=25, num_findings=1):
    """Draw targets and scores with ties, several images a patient, and a patient's own lean in both."""
    random = np.random.default_rng(seed)
    patients_N = np.append(np.arange(num_patients), random.integers(0, num_patients, num_images - num_patients))
    lean_PL = random.normal(size=(num_patients, num_findings))
    noise_NL = random.normal(size=(num_images, num_findings)) + random.normal(size=(num_images, 1))
    targets_NL = (lean_PL[patients_N] + noise_NL > 0.8).astype(int)
    scores_NL = np.round(targets_NL + lean_PL[patients_N] + random.normal(size=targets_NL.shape), 1)
    return targets_NL, scores_NL, patients_N


# Slow and plain: every pair of images is looked at, every sum of the papers is a loop.


def slow_pairs(targets, scores):
    """Return {(positive image, negative image): 1, 1/2 or 0}."""
    positives = [image for image, target in enumerate(targets) if target == 1]
    negatives = [image for image, target in enumerate(targets) if target == 0]
    return {
        (i, j): 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in positives
        for j in negatives
    }


def slow_auc(targets, scores):
    pairs = slow_pairs(targets, scores)
    return sum(pairs.values()) / len(pairs)


def slow_components(targets, scores):
    """Return theta, V10 by positive image, V01 by negative image."""
    pairs = slow_pairs(targets, scores)
    positives, negatives = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
    v10 = {i: sum(pairs[i, j] for j in negatives) / len(negatives) for i in positives}
    v01 = {j: sum(pairs[i, j] for i in positives) / len(positives) for j in negatives}
    return sum(pairs.values()) / len(pairs), v10, v01


def slow_delong_covariance(targets, scores_a, scores_b):
    """Return the covariance of two AUCs on the same images (DeLong, DeLong, Clarke-Pearson, Biometrics 1988)."""
    theta_a, v10_a, v01_a = slow_components(targets, scores_a)
    theta_b, v10_b, v01_b = slow_components(targets, scores_b)
    s10 = sum((v10_a[i] - theta_a) * (v10_b[i] - theta_b) for i in v10_a) / (len(v10_a) - 1)
    s01 = sum((v01_a[j] - theta_a) * (v01_b[j] - theta_b) for j in v01_a) / (len(v01_a) - 1)
    return s10 / len(v10_a) + s01 / len(v01_a)


def slow_obuchowski_covariance(targets_l, scores_l, targets_k, scores_k, patients):
    """Return the covariance of two AUCs by patient; with l = k it is the variance of Obuchowski 1997.

    There S10 = I10 / ((I10 - 1) M) * sum (V10(X_i.) - m_i theta)^2, S01 alike, and
    S11 = I / (I - 1) * sum (V10(X_i.) - m_i theta) (V01(Y_i.) - n_i theta); var = S10/M + S01/N + 2 S11/(M N).
    """
    theta_l, v10_l, v01_l = slow_components(targets_l, scores_l)
    theta_k, v10_k, v01_k = slow_components(targets_k, scores_k)

    def deviations(values, theta):
        return {
            patient: sum(value - theta for image, value in values.items() if patients[image] == patient)
            for patient in set(patients)
        }

    def factor(values):
        count = len({patients[image] for image in values})
        return count / (count - 1)

    a_l, b_l = deviations(v10_l, theta_l), deviations(v01_l, theta_l)
    a_k, b_k = deviations(v10_k, theta_k), deviations(v01_k, theta_k)
    everyone = len(set(patients))
    s10 = math.sqrt(factor(v10_l) * factor(v10_k)) * sum(a_l[p] * a_k[p] for p in a_l)
    s01 = math.sqrt(factor(v01_l) * factor(v01_k)) * sum(b_l[p] * b_k[p] for p in a_l)
    s11_lk = everyone / (everyone - 1) * sum(a_l[p] * b_k[p] for p in a_l)
    s11_kl = everyone / (everyone - 1) * sum(b_l[p] * a_k[p] for p in a_l)
    return (
        s10 / (len(v10_l) * len(v10_k))
        + s01 / (len(v01_l) * len(v01_k))
        + s11_lk / (len(v10_l) * len(v01_k))
        + s11_kl / (len(v01_l) * len(v10_k))
    )


def group_of(table, grouping, group):
    (groups,) = (row["groups"] for row in table["groupings"] if row["grouping"] == grouping)
    (found,) = (row for row in groups if row["group"] == group)
    return found
