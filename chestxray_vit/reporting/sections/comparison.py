"""Compare two runs on the same images: paired, by patient, finding by finding and over all.

Of many tests, some find a difference by chance, so each p stands beside Holm's, adjusted for the number of findings.

Shapes: N images, L findings."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.errors import Problems
from chestxray_vit.metrics.intervals import Difference, holm
from chestxray_vit.metrics.roc_auc import compare, compare_macro, macro, roc_auc
from chestxray_vit.storage.json_files import none_for_nan

METHOD = (
    "Differences are a minus b, where a is the first file and b the second. Tests are paired and by patient "
    "(Obuchowski 1997), with two-sided normal p-values; Holm's method adjusts them for the number of findings, "
    "{num_findings}"
)


def comparison(a: Predictions, b: Predictions) -> Dict[str, Any]:
    """Return the differences of two runs, a minus b, as auc.json holds them: None where undefined.

    Args:
        a: of the run that the report is of.
        b: of another run on the same images, in any order, with the same columns.

    Raises:
        InputError: the two runs differ in images, targets or patients.
    """
    findings = a.label_set.names
    targets_NL, scores_a_NL, scores_b_NL = a.targets_NL, a.scores_NL, b.scores_NL[_rows_of_same_images(a, b)]
    patients_N = np.asarray(a.patient_ids, dtype=str)
    rows, columns = [], zip(findings, targets_NL.T, scores_a_NL.T, scores_b_NL.T)
    for finding, targets_N, scores_a_N, scores_b_N in columns:
        aucs = roc_auc(targets_N, scores_a_N), roc_auc(targets_N, scores_b_N)
        rows.append({"finding": finding, **_difference(*aucs, compare(targets_N, scores_a_N, scores_b_N, patients_N))})
    adjusted = holm([math.nan if row["p"] is None else row["p"] for row in rows])
    for row, p in zip(rows, adjusted):
        row["p_holm"] = none_for_nan(p)
    aucs = macro(targets_NL, scores_a_NL).auc, macro(targets_NL, scores_b_NL).auc
    overall = _difference(*aucs, compare_macro(targets_NL, scores_a_NL, scores_b_NL, patients_N))
    return {"method": METHOD.format(num_findings=len(findings)), "macro": overall, "findings": rows}


def _difference(auc_a: float, auc_b: float, difference: Difference) -> Dict[str, Optional[float]]:
    return none_for_nan(
        {
            "auc_a": auc_a,
            "auc_b": auc_b,
            "difference": difference.difference,
            "se": math.sqrt(difference.variance),
            "z": difference.z,
            "p": difference.p,
        }
    )


def _rows_of_same_images(a: Predictions, b: Predictions) -> List[int]:
    """Return where the images of a are in b, or raise an InputError that lists what differs."""
    problems = Problems("the two predictions files cannot be compared")
    row_of = {name: row for row, name in enumerate(b.file_names)}
    for name in a.file_names:
        if name not in row_of:
            problems.add("an image is in the first file only", name)
    for name in sorted(set(row_of).difference(a.file_names)):
        problems.add("an image is in the second file only", name)
    for row_a, name in enumerate(a.file_names):
        row_b = row_of.get(name)
        if row_b is None:
            continue
        if (a.targets_NL[row_a] != b.targets_NL[row_b]).any():
            problems.add("the targets of an image differ", name, "Were both runs evaluated on one metadata.jsonl?")
        if a.patient_ids[row_a] != b.patient_ids[row_b]:
            ids = f"{a.patient_ids[row_a]!r} and {b.patient_ids[row_b]!r}"
            problems.add("the patient_id of an image differs", f"{name}: {ids}")
    problems.raise_if_any()
    return [row_of[name] for name in a.file_names]
