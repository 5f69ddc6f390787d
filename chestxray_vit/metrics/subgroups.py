"""AUCs by sex, age and view, and whether a group differs from the rest of its grouping.

One patient may have images in a group and in its rest: a PA and an AP view, or two ages. The two AUCs then vary
together, so the variance of their difference is var(group) + var(rest) - 2 cov, by patient (`influence`). The
many tests are adjusted together by Holm's method: without that, one in twenty is below 0.05 where nothing differs.

A difference of AUCs says that ranking is harder in one group; it does not say why. Groups differ in prevalence,
in how ill their patients are, and in what else their images show.

Shapes: N images, L findings, P patients."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.metrics.intervals import (
    Difference,
    Estimate,
    Macro,
    influence,
    mean_estimate,
    normal_test,
    variance_of,
)
from chestxray_vit.metrics.ranking import Ranking, checked, num_different, patient_codes, rank

AGE_STARTS = (0, 18, 40, 60, 80)
GROUPINGS = {"sex": ("F", "M"), "age": ("0-17", "18-39", "40-59", "60-79", "80+"), "view": ("PA", "AP")}
UNKNOWN = "unknown"
MIN_PATIENTS = 10  # with a finding, and without it: with fewer, an AUC tells of single patients
NO_TEST = Difference(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Subgroup:
    """One finding in one group.

    Attributes:
        num_positives: images of the group that show the finding.
        num_positive_patients: patients who have such an image.
        too_small: fewer than MIN_PATIENTS have one, or fewer have one without the finding; no AUC is given then.
        estimate: the AUC by patient.
        difference: to the rest of the grouping; NaN if either is too small, or the group is `unknown`.
    """

    num_positives: int
    num_positive_patients: int
    too_small: bool
    estimate: Estimate
    difference: Difference


@dataclass(frozen=True)
class Group:
    """All findings in one group.

    Attributes:
        findings: L of them.
        macro: over the findings that are large enough here.
        macro_difference: to the rest; NaN unless the same findings are large enough there.
    """

    num_images: int
    num_patients: int
    findings: Tuple[Subgroup, ...]
    macro: Macro
    macro_difference: Difference


class _Part(NamedTuple):
    """One finding in one set of images."""

    num_positives: int
    num_positive_patients: int
    auc: float
    influence_4P: Optional[np.ndarray]  # None if too small


def group_masks(
    sexes: Sequence[Optional[str]], ages: Sequence[Optional[float]], views: Sequence[Optional[str]]
) -> Dict[str, Dict[str, np.ndarray]]:
    """Return for each grouping and each of its groups, in order, whether an image is in it.

    Case and surrounding blanks do not matter. Ages are counted in whole years: 17.9 is 0-17. Any other value is in
    `unknown`, the last group of each grouping, and is named nowhere.

    >>> group_masks(["F", "m"], [17, 40], ["PA", None])["age"]["40-59"]
    array([False,  True])

    Args:
        sexes, ages, views: of N images; None or anything else where unknown. Ages are in years.

    Returns:
        Grouping -> group -> mask_N, booleans; each image is in one group of each grouping.
    """
    values = {
        "sex": [str(sex).strip().upper() for sex in sexes],
        "age": [_age_band(age) for age in ages],
        "view": [str(view).strip().upper() for view in views],
    }
    masks = {}
    for grouping, groups in GROUPINGS.items():
        code_of = {group: code for code, group in enumerate(groups)}
        codes_N = np.array([code_of.get(value, len(groups)) for value in values[grouping]], dtype=np.int64)
        masks[grouping] = {group: codes_N == code for code, group in enumerate((*groups, UNKNOWN))}
    return masks


def _age_band(age: Optional[float]) -> str:
    if age is None or not 0 <= age < math.inf:
        return UNKNOWN
    return GROUPINGS["age"][bisect_right(AGE_STARTS, age) - 1]


def subgroups(
    targets_NL: ArrayLike, scores_NL: ArrayLike, patients_N: ArrayLike, masks: Dict[str, np.ndarray]
) -> Dict[str, Group]:
    """Return the AUCs of each group of a grouping, and their differences to the other groups together.

    >>> targets, scores, patients = [[0], [1]] * 20, [[0.2], [0.7]] * 20, list(range(40))
    >>> masks = {"F": [True] * 20 + [False] * 20, "M": [False] * 20 + [True] * 20}
    >>> groups = subgroups(targets, scores, patients, masks)
    >>> groups["F"].num_images, groups["F"].findings[0].estimate.auc
    (20, 1.0)

    Args:
        targets_NL: 0 or 1.
        scores_NL: any finite score, higher = more likely.
        patients_N: integers or strings, equal for the images of one patient.
        masks: group -> mask_N, booleans, as `group_masks` returns them; no image is in two.

    Returns:
        Group -> its numbers. A difference is that of the group less that of the images of all others but `unknown`;
        z and p are NaN where its variance is zero.

    Raises:
        ValueError: as `macro`, or a mask is of another length, or groups overlap.
    """
    targets_NL, scores_NL = checked(targets_NL, scores_NL, num_axes=2)
    patients_N = patient_codes(patients_N, len(targets_NL))
    masks = {group: np.asarray(mask_N, dtype=bool) for group, mask_N in masks.items()}
    for group, mask_N in masks.items():
        if mask_N.shape != patients_N.shape:
            raise ValueError(f"the mask of {group} has shape {mask_N.shape}, expected {patients_N.shape}")
    if (np.sum(list(masks.values()), axis=0) > 1).any():
        raise ValueError("an image is in two groups of one grouping")
    rankings = [rank(*columns) for columns in zip(targets_NL.T, scores_NL.T)]
    return ranked_subgroups(rankings, patients_N, masks)


def ranked_subgroups(
    rankings: Sequence[Ranking], patients_N: np.ndarray, masks: Dict[str, np.ndarray]
) -> Dict[str, Group]:
    """Return what `subgroups` does, of findings that are ranked: once, for all groupings.

    Args:
        rankings: of the L findings, by `ranking.rank`.
        patients_N: codes 0 to P - 1.
        masks: group -> mask_N, booleans.
    """
    num_patients = int(patients_N.max(initial=-1)) + 1
    known_N = np.any([mask_N for group, mask_N in masks.items() if group != UNKNOWN], axis=0)
    groups = {}
    for group, mask_N in masks.items():
        rest_N = known_N & ~mask_N & (group != UNKNOWN)
        parts, rests = (
            [_part(ranking, patients_N, part_N, num_patients) for ranking in rankings] for part_N in (mask_N, rest_N)
        )
        findings = tuple(_subgroup(part, rest) for part, rest in zip(parts, rests))
        sizes = int(mask_N.sum()), num_different(patients_N[mask_N])
        groups[group] = Group(*sizes, findings, mean_estimate(*_large(parts)), _macro_difference(parts, rests))
    return groups


def _part(ranking: Ranking, patients_N: np.ndarray, part_N: np.ndarray, num_patients: int) -> _Part:
    part_N = part_N[ranking.order_N]
    targets_N, patients_N = ranking.targets_N[part_N], patients_N[ranking.order_N][part_N]
    num_positives, num_positive_patients = int(targets_N.sum()), num_different(patients_N[targets_N])
    if min(num_positive_patients, num_different(patients_N[~targets_N])) < MIN_PATIENTS:
        return _Part(num_positives, num_positive_patients, math.nan, None)
    return _Part(
        num_positives, num_positive_patients, *influence(targets_N, ranking.scores_N[part_N], patients_N, num_patients)
    )


def _large(parts: Sequence[_Part]) -> Tuple[List[float], List[np.ndarray]]:
    """Return the AUCs and influences of the findings that are large enough."""
    large = [(part.auc, part.influence_4P) for part in parts if part.influence_4P is not None]
    return [auc for auc, _ in large], [influence_4P for _, influence_4P in large]


def _subgroup(part: _Part, rest: _Part) -> Subgroup:
    estimate = mean_estimate(*_large([part]))
    sizes = part.num_positives, part.num_positive_patients
    return Subgroup(*sizes, part.influence_4P is None, estimate, _macro_difference([part], [rest]))


def _macro_difference(parts: Sequence[_Part], rests: Sequence[_Part]) -> Difference:
    """Return the mean AUC of a group less that of its rest, over findings that are the same in both."""
    same = all((part.influence_4P is None) == (rest.influence_4P is None) for part, rest in zip(parts, rests))
    (aucs, influences), (rest_aucs, rest_influences) = _large(parts), _large(rests)
    if not (same and aucs):
        return NO_TEST
    variance = variance_of(np.mean(influences, axis=0) - np.mean(rest_influences, axis=0))
    return normal_test(float(np.mean(aucs) - np.mean(rest_aucs)), variance)
