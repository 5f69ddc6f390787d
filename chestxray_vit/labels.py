"""Label sets: the names that an N-hot row stands for, and how rows are made of names and read again.

A label set travels with the files: ingest_report.json, config.json of a run, the header of predictions.csv, auc.json.

Shapes: L labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

MULTI_LABEL, SINGLE_LABEL = "multi_label", "single_label"
KINDS = (MULTI_LABEL, SINGLE_LABEL)
SEPARATOR = "|"  # between the labels of one image, in NIH's CSV and in what `predict` writes


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, in the order of their columns.

    >>> labels = LabelSet("two", ("Mass", "Nodule"), negative="No Finding")
    >>> labels.encode(["Nodule"]), labels.encode(["No Finding"])
    ([0.0, 1.0], [0.0, 0.0])
    >>> labels.decode([0.0, 1.0])
    ['Nodule']

    Attributes:
        name: of the set, such as "NIH ChestX-ray14".
        names: L names, one a column of an N-hot row.
        kind: `multi_label`, any number of labels an image, each scored by a sigmoid; or `single_label`, one class an
            image, scored by a softmax.
        negative: the name of "none of the others"; a row of zeros, unless it is the last of `names` and so a column
            of its own. None where there is no such name.
    """

    name: str
    names: Tuple[str, ...]
    kind: str = MULTI_LABEL
    negative: Optional[str] = None

    def __post_init__(self) -> None:
        """Refuse names that are no label set."""
        object.__setattr__(self, "names", tuple(self.names))
        doubled = sorted({name for name in self.names if self.names.count(name) > 1})
        if doubled:
            raise ValueError(f"label {doubled[0]!r} is named twice")
        if not self.findings:
            raise ValueError("a label set needs at least one label")
        if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in self.names):
            raise ValueError(f"labels must be printable texts, found {list(self.names)}")
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of a label set. Known: {', '.join(KINDS)}")
        if self.has_negative_column and self.names[-1] != self.negative:
            raise ValueError(f"{self.negative!r} must be the last label")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_negative_column(self) -> bool:
        """Whether the negative has a column of its own."""
        return self.negative in self.names

    @property
    def findings(self) -> Tuple[str, ...]:
        """The labels without the negative: the first columns, which reports and the macro AUC are of."""
        return tuple(name for name in self.names if name != self.negative)

    @property
    def problem_type(self) -> str:
        """The name of the kind in a Hugging Face config.json."""
        return f"{self.kind}_classification"

    def with_negative_column(self) -> LabelSet:
        """Return the set with the negative as its last column.

        Raises:
            ValueError: the set has no negative.
        """
        if self.negative is None:
            raise ValueError(f"the label set {self.name} has no negative label")
        return LabelSet(self.name, (*self.findings, self.negative), self.kind, self.negative)

    def encode(self, names: Iterable[str]) -> List[float]:
        """Turn the names of an image's labels into an N-hot row.

        Args:
            names: labels in any order; empty or the negative alone for no label.

        Returns:
            L floats, 0.0 or 1.0.

        Raises:
            ValueError: a name is unknown, the negative stands beside another, or a single-label row has not one name.
        """
        present = set(names)
        known = (*self.findings, *((self.negative,) if self.negative else ()))
        unknown = sorted(present.difference(known))
        if unknown:
            raise ValueError(f"unknown finding {unknown[0]!r}. Known: {', '.join(known)}")
        if self.negative in present and len(present) > 1:
            others = ", ".join(sorted(name for name in present if name != self.negative))
            raise ValueError(f"{self.negative!r} stands beside {others}")
        if not present and self.negative is not None:
            present = {self.negative}
        if self.kind == SINGLE_LABEL and len(present) != 1:
            raise ValueError(f"an image has one class, found {len(present)}: {', '.join(sorted(present)) or 'none'}")
        return [float(name in present) for name in self.names]

    def decode(self, labels: Sequence[float]) -> List[str]:
        """Turn an N-hot row into the names of its labels, without the negative; none gives an empty list.

        Raises:
            ValueError: the row has another length, or a value is neither 0 nor 1.
        """
        if len(labels) != len(self):
            raise ValueError(f"an N-hot row of {self.name} has {len(self)} columns, found {len(labels)}")
        wrong = [value for value in labels if value not in (0, 1)]
        if wrong:
            raise ValueError(f"an N-hot row holds 0 and 1 only, found {wrong[0]!r}")
        return [name for name, value in zip(self.names, labels) if value and name != self.negative]

    def to_dict(self) -> Dict[str, Any]:
        """Return the set as JSON holds it."""
        return {"name": self.name, "names": list(self.names), "kind": self.kind, "negative": self.negative}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LabelSet:
        """Return the set of what `to_dict` made.

        Raises:
            ValueError: it is no label set.
        """
        try:
            names, negative = content["names"], content.get("negative")
            if isinstance(names, str) or not isinstance(negative, (str, type(None))):
                raise TypeError("names must be a list, and negative a text or null")
            return cls(str(content["name"]), tuple(names), content.get("kind", MULTI_LABEL), negative)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no label set: {error}") from error

    @classmethod
    def of_names(cls, names: Sequence[str], name: str = "") -> LabelSet:
        """Return the multi-label set of these columns: NIH's where they are NIH's, else one without a negative."""
        for known in LABEL_SETS_OF_0_5:
            if tuple(names) == known.names:
                return known
        return cls(name or f"{len(names)} labels", tuple(names))


# In the order of Wang et al., CVPR 2017, table 1, which published tables use.
NIH_CHESTXRAY14 = LabelSet(
    name="NIH ChestX-ray14",
    names=(
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
    ),
    kind=MULTI_LABEL,
    negative="No Finding",
)

# What a file of 0.5.0 or earlier can hold, where no label set travels with it: the number of columns says which.
LABEL_SETS_OF_0_5 = (NIH_CHESTXRAY14, NIH_CHESTXRAY14.with_negative_column())
