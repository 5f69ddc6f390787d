"""Predictions and reports that the tests of reporting share."""

from __future__ import annotations

import dataclasses

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.labels import LabelSet
from chestxray_vit.reporting.summary import Options, ReportInputs, build_report

OTHER_LABELS = LabelSet("Ward <7> & co", ("Rib fracture", "<b>a|b</b> *x* _y_", "cost $5$ & more 肺"))


def report_of(predictions, compare_with=None, options=None, **inputs):
    """Return the report of predictions."""
    return build_report(ReportInputs(predictions, compare_with=compare_with, **inputs), options or Options())


def random_predictions(seed=0, num_images=400, num_patients=100):
    random = np.random.default_rng(seed)
    patients = np.append(np.arange(num_patients), random.integers(0, num_patients, num_images - num_patients))
    targets_NL = (random.random((num_images, 14)) < 0.3).astype(int)
    scores_NL = np.round(np.clip(0.2 * targets_NL + 0.8 * random.random((num_images, 14)), 0, 1), 2)
    return table(targets_NL, scores_NL, patients)


def table(targets_NL, scores_NL, patients):
    num_images = len(targets_NL)
    names = [f"{image:04d}.png" for image in range(num_images)]
    unknown = [""] * num_images
    return Predictions(
        names, [str(patient) for patient in patients], [None] * num_images, unknown, unknown, targets_NL, scores_NL
    )


def edge_cases():
    """Six images of six patients: the first findings are one of each kind of trouble, the others are plain."""
    targets_NL = np.tile([[1, 1, 1, 0, 0, 0]], (14, 1)).T
    scores_NL = np.tile([[0.9, 0.8, 0.3, 0.4, 0.2, 0.1]], (14, 1)).T
    targets_NL[:, 0] = 0  # Atelectasis: no positive
    targets_NL[:, 1] = 1  # Cardiomegaly: no negative
    targets_NL[:, 2] = [1, 0, 0, 0, 0, 0]  # Effusion: one positive patient
    targets_NL[:, 3] = [0, 1, 1, 1, 1, 1]  # Infiltration: one negative patient
    scores_NL[:, 4] = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]  # Mass: perfect
    return table(targets_NL, scores_NL, range(6))


def shuffled(predictions, order):
    return Predictions(
        *([getattr(predictions, name)[row] for row in order] for name in ("file_names", "patient_ids")),
        *([getattr(predictions, name)[row] for row in order] for name in ("ages", "sexes", "views")),
        predictions.targets_NL[order],
        predictions.scores_NL[order],
    )


def every_result():
    other = random_predictions()
    other = table(other.targets_NL, np.round(other.scores_NL**2, 2), other.patient_ids)  # nearly the same ranking
    return [
        report_of(random_predictions()),
        report_of(random_predictions(), other),
        report_of(edge_cases()),
        report_of(edge_cases(), edge_cases()),
    ]


def other_labels(num_images=400):
    """Return predictions for a label set that is not NIH's, with names that HTML, Markdown and matplotlib could take
    for markup."""
    return with_labels(random_predictions(num_images=num_images), OTHER_LABELS)


def with_labels(predictions, label_set):
    """Return the first columns of predictions as those of another label set."""
    size = len(label_set)
    return dataclasses.replace(
        predictions,
        targets_NL=predictions.targets_NL[:, :size],
        scores_NL=predictions.scores_NL[:, :size],
        label_set=label_set,
    )
