"""The label columns that a report is of: those of the findings, in the order of the predictions that it reports."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet


def findings_only(predictions: Predictions) -> Predictions:
    """Return predictions without the column of the negative label: it is no finding, and in no macro AUC."""
    label_set = predictions.label_set
    if not label_set.has_negative_column:
        return predictions
    kept = LabelSet(label_set.name, label_set.findings, label_set.kind, label_set.negative)
    return _with_columns(predictions, kept)


def with_columns_of(predictions: Predictions, other: Predictions, what: str) -> Predictions:
    """Return other predictions with the columns of `predictions`, in that order: columns are matched by name.

    Args:
        predictions: that the report is of.
        other: to compare with, or to choose on.
        what: the other is, for the message.

    Raises:
        InputError: the labels differ.
    """
    expected, found = predictions.label_set.findings, other.label_set.findings
    if set(expected) != set(found):
        raise InputError(
            f"{what} are of other labels. Expected {', '.join(expected)}; found {', '.join(found)}. "
            "Give predictions of a model for the same labels."
        )
    if other.label_set.names == predictions.label_set.names:
        return other
    return _with_columns(other, predictions.label_set)


def _with_columns(predictions: Predictions, label_set: LabelSet) -> Predictions:
    columns = [predictions.label_set.names.index(name) for name in label_set.names]
    replaced: Dict[str, Any] = {
        "targets_NL": predictions.targets_NL[:, columns],
        "scores_NL": predictions.scores_NL[:, columns],
        "label_set": label_set,
    }
    return dataclasses.replace(predictions, **replaced)
