"""The 14 findings of ChestX-ray14, in NIH's order, and their N-hot form.

The order is that of Wang et al., CVPR 2017, table 1: published tables use it, so ours do.
`No Finding` is not a finding: it is the row of zeros."""

from __future__ import annotations

from typing import Iterable, List, Sequence, Tuple

FINDINGS: Tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
SEPARATOR = "|"  # between the findings of one image in NIH's CSV


def label_names(include_no_finding: bool = False) -> Tuple[str, ...]:
    """Return what each place of an N-hot row stands for: 14 names, or 15 with `No Finding` last."""
    return (*FINDINGS, NO_FINDING) if include_no_finding else FINDINGS


def encode(names: Iterable[str], include_no_finding: bool = False) -> List[float]:
    """Turn the names of an image's findings into an N-hot row.

    Args:
        names: findings in any order; empty or `["No Finding"]` for a row of zeros.
        include_no_finding: add the tutorial's 15th place, 1.0 where there is no finding.

    Returns:
        14 (or 15) floats, 0.0 or 1.0, in the order of `label_names`.

    Raises:
        ValueError: a name is unknown, or `No Finding` stands beside another.
    """
    present = set(names)
    unknown = sorted(present.difference(FINDINGS, [NO_FINDING]))
    if unknown:
        raise ValueError(f"unknown finding {unknown[0]!r}. Known: {', '.join(FINDINGS)}, {NO_FINDING}")
    if NO_FINDING in present and len(present) > 1:
        raise ValueError(f"{NO_FINDING!r} stands beside {', '.join(sorted(present - {NO_FINDING}))}")
    present = present or {NO_FINDING}
    return [float(name in present) for name in label_names(include_no_finding)]


def decode(labels: Sequence[float]) -> List[str]:
    """Turn an N-hot row of 14 or 15 places into the names of its findings; no finding gives an empty list.

    Raises:
        ValueError: the row has another length, or a value is neither 0 nor 1.
    """
    if len(labels) not in (len(FINDINGS), len(FINDINGS) + 1):
        raise ValueError(f"an N-hot row has {len(FINDINGS)} or {len(FINDINGS) + 1} places, found {len(labels)}")
    wrong = [value for value in labels if value not in (0, 1)]
    if wrong:
        raise ValueError(f"an N-hot row holds 0 and 1 only, found {wrong[0]!r}")
    return [name for name, value in zip(FINDINGS, labels) if value]
