"""How a run's config.json holds its label set: `id2label`, `label2id` and `problem_type`, as Hugging Face reads them.

A set of which these three do not say everything (a name, a negative label) is kept whole under `label_set` too."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NoReturn

from chestxray_vit.errors import InputError, shortened
from chestxray_vit.labels import KINDS, MULTI_LABEL, LabelSet

EXTRA = "label_set"
MULTI_LABEL_PROBLEM = f"{MULTI_LABEL}_classification"


def label_fields(label_set: LabelSet) -> Dict[str, Any]:
    """Return the fields of a ViTConfig that say what its outputs are."""
    fields: Dict[str, Any] = {
        "id2label": dict(enumerate(label_set.names)),
        "label2id": {name: index for index, name in enumerate(label_set.names)},
        "problem_type": label_set.problem_type,
    }
    if label_set != _plain_set(list(label_set.names), label_set.problem_type):
        fields[EXTRA] = label_set.to_dict()
    return fields


def label_set_of(config: Any) -> LabelSet:
    """Return the label set of a model's outputs.

    Args:
        config: the ViTConfig of a model that this package built or loaded.
    """
    extra = getattr(config, EXTRA, None)
    if extra is not None:
        return LabelSet.from_dict(extra)
    return _plain_set([config.id2label[index] for index in range(config.num_labels)], config.problem_type)


def outputs_of(content: Mapping[str, Any]) -> List[str]:
    """Return what a checkpoint's outputs are called, in order, as far as its config.json says it."""
    names = content.get("id2label")
    return [str(names.get(str(index))) for index in range(len(names))] if isinstance(names, dict) else []


def check_outputs(content: Mapping[str, Any], where: str, label_set: LabelSet) -> None:
    """Refuse a checkpoint for other labels.

    Raises:
        InputError: other names, or another order.
    """
    names = outputs_of(content)
    if names != list(label_set.names):
        _refuse(names, where, list(label_set.names))


def read_label_set(content: Mapping[str, Any], where: str) -> LabelSet:
    """Return the label set of a config.json.

    Raises:
        InputError: its fields contradict each other, or are no label set.
    """
    names, indices = outputs_of(content), content.get("label2id")
    if isinstance(indices, dict):
        numbered = {name: index for name, index in indices.items() if type(index) is int}
        if [numbered.get(name) for name in names] != list(range(len(indices))):
            _refuse(names, where, sorted(numbered, key=lambda name: numbered[name]))
    try:
        if content.get(EXTRA) is None:
            return _plain_set(names, content.get("problem_type"))
        label_set = LabelSet.from_dict(content[EXTRA])
    except ValueError as error:
        raise InputError(
            f"{where}: config.json names no label set: {shortened(str(error))}. Is it that of a trained run?"
        ) from error
    check_outputs(content, where, label_set)
    return label_set


def _plain_set(names: List[str], problem_type: Any) -> LabelSet:
    """Return the set of these names that has nothing else to be remembered."""
    label_set = LabelSet.of_names(names)
    if label_set.problem_type == problem_type:
        return label_set
    kind = next((kind for kind in KINDS if problem_type == f"{kind}_classification"), label_set.kind)
    return LabelSet(label_set.name, label_set.names, kind)


def _refuse(found: List[str], where: str, expected: List[str]) -> NoReturn:
    named = shortened(", ".join(found)) or "not named"
    raise InputError(
        f"{where}: its outputs are {named}; expected {shortened(', '.join(expected))}, in this order. "
        "Scores would be read under wrong names. Train on the same findings, or start from another checkpoint."
    )
