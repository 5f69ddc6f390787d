"""AUC by sex, age and view, and the difference of each group to the rest, as auc.json holds them.

Shapes: N images, L findings, T tests."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Sequence

import numpy as np

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.metrics.intervals import Difference, Estimate, holm
from chestxray_vit.metrics.ranking import checked, rank
from chestxray_vit.metrics.subgroups import MIN_PATIENTS, UNKNOWN, Group, group_masks, ranked_subgroups
from chestxray_vit.storage.json_files import none_for_nan

METHOD = (
    "a group less the images of the other known groups; by patient (Obuchowski 1997), patients in both counted; "
    "two-sided normal p; p by Holm (1979) over all findings and groups, for the macro over all groups"
)


def subgroup_table(predictions: Predictions) -> Dict[str, Any]:
    """Return the groups of all groupings as auc.json holds them: None where undefined.

    Holm's method counts each test once: with two groups, the one less the other is the other less the one.

    Returns:
        `method`, `min_patients`, `num_tests` and `num_macro_tests` that were adjusted together, and `groupings`, a
        list of `grouping` and `groups`; of each group its sizes, `macro`, and a row for each finding.
    """
    targets_NL, scores_NL = checked(predictions.targets_NL, predictions.scores_NL, num_axes=2)
    patients_N = np.unique(np.asarray(predictions.patient_ids, dtype=str), return_inverse=True)[1]
    rankings = [rank(*columns) for columns in zip(targets_NL.T, scores_NL.T)]
    groupings = group_masks(predictions.sexes, predictions.ages, predictions.views)
    results = {grouping: ranked_subgroups(rankings, patients_N, masks) for grouping, masks in groupings.items()}
    tests = list(
        dict.fromkeys((name, _tested_as(group, groups)) for name, groups in results.items() for group in groups)
    )
    p_TL = np.array([[row.difference.p for row in results[name][group].findings] for name, group in tests])
    macro_p_T = np.array([results[name][group].macro_difference.p for name, group in tests])
    adjusted = dict(zip(tests, zip(holm(p_TL.ravel()).reshape(p_TL.shape), holm(macro_p_T))))
    names, rows = predictions.label_set.names, []
    for grouping, groups in results.items():
        adjusted_of = {group: adjusted[grouping, _tested_as(group, groups)] for group in groups}
        listed = [_row(group, groups[group], names, *adjusted_of[group]) for group in groups]
        rows.append({"grouping": grouping, "groups": listed})
    num_tests = {"num_tests": _num_defined(p_TL), "num_macro_tests": _num_defined(macro_p_T)}
    return {"method": METHOD, "min_patients": MIN_PATIENTS, **num_tests, "groupings": rows}


def _num_defined(numbers: np.ndarray) -> int:
    return int((~np.isnan(numbers)).sum())


def _tested_as(group: str, groups: Dict[str, Group]) -> str:
    """Return the group whose tests are those of this one: of two that have images, the first; else the group."""
    known = [name for name, result in groups.items() if name != UNKNOWN and result.num_images]
    return known[0] if len(known) == 2 and group == known[1] else group


def _row(group: str, result: Group, names: Sequence[str], p_holm_L: np.ndarray, macro_p_holm: float) -> Dict[str, Any]:
    """Return what auc.json holds of a group."""
    findings = [
        {
            "finding": finding,
            **_numbers(found.estimate, found.difference, p_holm),
            "num_positives": found.num_positives,
            "num_positive_patients": found.num_positive_patients,
            "too_small": found.too_small,
        }
        for finding, found, p_holm in zip(names, result.findings, p_holm_L)
    ]
    overall = _numbers(result.macro, result.macro_difference, macro_p_holm)
    return {
        "group": group,
        "num_images": result.num_images,
        "num_patients": result.num_patients,
        "macro": {**overall, "num_findings": result.macro.num_findings},
        "findings": findings,
    }


def _numbers(estimate: Estimate, difference: Difference, p_holm: float) -> Dict[str, Optional[float]]:
    return none_for_nan(
        {
            "auc": estimate.auc,
            "low": estimate.low,
            "high": estimate.high,
            "difference": difference.difference,
            "se": math.sqrt(difference.variance),
            "p": difference.p,
            "p_holm": p_holm,
        }
    )
