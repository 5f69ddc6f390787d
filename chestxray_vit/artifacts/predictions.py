"""The table of targets and scores, one row an image, and its CSV: what `evaluate` writes and `report` reads.

Any tool may write one, so reading trusts nothing and reports all problems at once. Scores are written with every
digit: an AUC ranks them, and a rounded score ties images that the model distinguished.

Shapes: N images, L labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit.artifacts.predictions_rows import REMEDY, header_of, read_rows
from chestxray_vit.errors import InputError, Problems
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.metrics.probability import probabilities
from chestxray_vit.storage.atomic import PathLike, atomic_write

VALIDATION = "predictions_validation.csv"  # lies beside predictions.csv: what thresholds are chosen on


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so == would raise
class Predictions:
    """What a model said of N images, beside what their labels say.

    Attributes:
        file_names: N names, each once.
        patient_ids: N texts, equal for the images of one patient.
        ages: N numbers of years, None where unknown.
        sexes: N texts, empty where unknown.
        views: N texts (PA, AP), empty where unknown.
        targets_NL: 0 or 1.
        scores_NL: probabilities in [0, 1], float64.
        label_set: the names of the L columns.
    """

    file_names: Sequence[str]
    patient_ids: Sequence[str]
    ages: Sequence[Optional[float]]
    sexes: Sequence[str]
    views: Sequence[str]
    targets_NL: np.ndarray
    scores_NL: np.ndarray
    label_set: LabelSet = NIH_CHESTXRAY14

    def __post_init__(self) -> None:
        """Refuse a table that its own CSV would not hold."""
        num_images = len(self.file_names)
        for name in ("patient_ids", "ages", "sexes", "views"):
            if len(getattr(self, name)) != num_images:
                raise ValueError(f"{name} holds {len(getattr(self, name))} values, file_names {num_images}")
        for name in ("targets_NL", "scores_NL"):
            expected = (num_images, len(self.label_set))
            if np.shape(getattr(self, name)) != expected:
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}, not {expected}")
        if len(set(self.file_names)) < num_images:
            raise ValueError("file_names holds a name twice")
        for name in ("file_names", "patient_ids"):
            if not all(str(value).strip() for value in getattr(self, name)):
                raise ValueError(f"{name} holds an empty text")
        if not ((self.targets_NL == 0) | (self.targets_NL == 1)).all():
            raise ValueError("targets_NL must be 0 or 1")
        if not ((self.scores_NL >= 0) & (self.scores_NL <= 1)).all():
            raise ValueError("scores_NL must be in [0, 1]; `probabilities` makes such of logits")

    def columns(self) -> Iterator[Tuple[str, np.ndarray, np.ndarray]]:
        """Give the name, the targets_N and the scores_N of each label."""
        return zip(self.label_set.names, self.targets_NL.T, self.scores_NL.T)


def predictions_of(
    rows: Mapping[str, Sequence[Any]], targets_NL: np.ndarray, logits_NL: np.ndarray, label_set: LabelSet
) -> Predictions:
    """Return the predictions of the findings for rows of a data set.

    Args:
        rows: columns `file_name`, `patient_id`, `age`, `sex` and `view`, of N values, None where unknown.
        targets_NL: 0 or 1.
        logits_NL: in the order of the rows.
        label_set: of the columns; that of the negative label is left out, for it is no finding.

    Raises:
        InputError: a logit is not finite.
    """
    kept = len(label_set.findings)  # the negative is the last
    return Predictions(
        file_names=list(rows["file_name"]),
        patient_ids=[str(patient) for patient in rows["patient_id"]],
        ages=list(rows["age"]),
        sexes=[sex or "" for sex in rows["sex"]],
        views=[view or "" for view in rows["view"]],
        targets_NL=np.asarray(targets_NL)[:, :kept].astype(int),
        scores_NL=probabilities(np.asarray(logits_NL)[:, :kept]),
        label_set=LabelSet(label_set.name, label_set.findings, label_set.kind, label_set.negative),
    )


def write_predictions(path: PathLike, predictions: Predictions) -> None:
    """Write predictions.csv, whole or not at all; `read_predictions` gives back every digit."""
    columns = (predictions.file_names, predictions.patient_ids, predictions.ages, predictions.sexes, predictions.views)
    texts = (predictions.file_names, predictions.patient_ids, predictions.sexes, predictions.views)
    # a carriage return that is not quoted ends the line, and `csv` quotes it only with all other texts
    breaks = any("\r" in str(text) for column in texts for text in column)
    targets = np.asarray(predictions.targets_NL).astype(int).tolist()
    scores = np.asarray(predictions.scores_NL, dtype=np.float64).tolist()
    with atomic_write(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if breaks else csv.QUOTE_MINIMAL)
        writer.writerow(header_of(predictions.label_set.names))
        for *about, target_L, score_L in zip(*columns, targets, scores):
            writer.writerow([*about, *target_L, *score_L])  # csv writes a float by repr: all its digits


def read_predictions(path: PathLike) -> Predictions:
    """Read predictions.csv, from whatever tool wrote it. Further columns are ignored, with a notice.

    Raises:
        InputError: the file is not there, or is no such table; all problems at once, with line and column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return Predictions(**read_rows(csv.reader(file), Problems(str(path))))
    except FileNotFoundError as err:
        raise InputError(f"{path}: there is no such file. {REMEDY}") from err
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8: {err}. {REMEDY}") from err
