from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, SINGLE_LABEL, LabelSet
from chestxray_vit.models.label_config import label_fields, label_set_of, read_label_set
from chestxray_vit.models.vit import build_from_scratch, build_model, load_label_set, load_model
from tests.unit.models.conftest import TINY, as_foreign, edit_config, save_run

THREE = LabelSet.of_names(("Mass", "Nodule", "Edema"))
SETS = {
    "NIH": NIH_CHESTXRAY14,
    "NIH with its negative": NIH_CHESTXRAY14.with_negative_column(),
    "three": THREE,
    "named": LabelSet("a hospital's", ("Mass", "Nodule")),
    "with a negative": LabelSet("two", ("Mass", "No Finding"), negative="No Finding"),
    "a negative without a column": LabelSet("two", ("Mass", "Edema"), negative="Normal"),
}


def save(folder, label_set):
    torch.manual_seed(0)
    return save_run(folder, *build_from_scratch(TINY, label_set))


@pytest.mark.parametrize("name", SETS)
def test_label_set_travels_with_the_run(name, tmp_path):
    run = save(tmp_path, SETS[name])
    vit, _ = load_model(run)
    assert label_set_of(vit.config) == load_label_set(run) == SETS[name]
    assert vit(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, len(SETS[name]))
    again = save(tmp_path / "again", label_set_of(vit.config))
    assert (again / "config.json").read_text() == (run / "config.json").read_text()


def test_nihs_set_needs_no_field_of_its_own(tmp_path):
    content = json.loads((save(tmp_path, NIH_CHESTXRAY14) / "config.json").read_text())
    assert "label_set" not in content
    assert content["problem_type"] == "multi_label_classification"
    assert content["label2id"]["Hernia"] == 13


def test_three_labels_start_from_another_task_and_go_on_from_their_own(run_dir, tmp_path):
    as_foreign(run_dir)  # three classes, too, but others
    vit, processor = build_model(str(run_dir), THREE)
    assert label_set_of(vit.config) == THREE
    save_run(tmp_path / "three", vit, processor)
    again, _ = build_model(str(tmp_path / "three"), THREE)
    assert torch.equal(again.classifier.weight, vit.classifier.weight)
    with pytest.raises(InputError, match="its outputs are Mass, Nodule, Edema; expected Atelectasis, "):
        build_model(str(tmp_path / "three"))


def test_single_label_sets_are_built(run_dir):
    classes = LabelSet("classes", ("covid", "normal"), SINGLE_LABEL)
    as_foreign(run_dir)
    vit, _ = build_model(str(run_dir), classes)
    assert vit.config.problem_type == "single_label_classification"
    assert label_set_of(vit.config) == classes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"label2id": {"Mass": 1, "Nodule": 0, "Edema": 2}},
            "its outputs are Mass, Nodule, Edema; expected Nodule, Ma",
        ),
        ({"label2id": {"Mass": 0, "Nodule": 1}}, "expected Mass, Nodule, in this order"),
        ({"label2id": {"Mass": 0, "Nodule": 0, "Edema": None}}, "under wrong names"),
        ({"id2label": {"0": "Mass", "1": "Mass"}, "label2id": None}, "names no label set: label 'Mass' is named twice"),
        ({"id2label": {}, "label2id": None}, "a label set needs at least one label"),
        ({"id2label": {"0": "a\nb"}, "label2id": None}, "labels must be printable"),
        ({"label_set": {"name": "x", "names": ["Mass", "Edema", "Nodule"]}}, "expected Mass, Edema, Nodule"),
        ({"label_set": "three"}, "names no label set"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(tmp_path, changes, text):
    run = save(tmp_path, THREE)
    edit_config(run, **changes)
    for load in (load_label_set, load_model):
        with pytest.raises(InputError, match=text):
            load(run)


def test_names_alone_are_enough():
    content = {"id2label": {"0": "Mass", "1": "Edema"}, "problem_type": "multi_label_classification"}
    assert read_label_set(content, "run") == LabelSet.of_names(("Mass", "Edema"))
    assert label_fields(THREE)["label2id"] == {"Mass": 0, "Nodule": 1, "Edema": 2}
