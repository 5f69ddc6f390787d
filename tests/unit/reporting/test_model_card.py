"""The model card: what a run is, its AUCs by label name, and the same for the Hub's index."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("huggingface_hub")
yaml = pytest.importorskip("yaml")

from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.reporting.model_card import CARD, CONFIG, model_card, write_card
from tests.unit.reporting.examples import edge_cases, report_of

FINDINGS = NIH_CHESTXRAY14.names

AUCS = {f"roc_auc_{name}": 0.5 + index / 100 for index, name in enumerate(FINDINGS)}


def config(synthetic=False, **data):
    return {
        "flags": {"from_scratch": False, "model_name_or_path": "google/vit"},
        "versions": {"chestxray-vit": "0.6.0"},
        "data": {"name": "release", "synthetic": synthetic, "images": {"train": 1200, "validation": 30}, **data},
        "validation_auc": {"roc_auc": 0.565, **AUCS, "num_findings": 14},
    }


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_card_says_what_the_model_is_and_is_not():
    card = model_card("run", config())
    assert "scores frontal chest X-rays for 14 findings of NIH ChestX-ray14" in card
    assert "is for research use only and is not a medical device. The labels were mined from the text of" in card
    assert "- Data: `release`, 1,200 train, 30 validation images" in card
    assert "- Initial weights: vit" in card
    assert "| Mass | 0.540 |" in card
    assert "| **mean over 14 findings** | **0.565** |" in card
    assert front_matter(card)["base_model"] == "google/vit"
    assert "model-index" not in front_matter(card)
    assert "AUC on the test patients" not in card


def test_card_of_synthetic_xrays_claims_nothing_about_patients():
    for data in ({"synthetic": True}, {"drawn": True}):  # 0.5.0 wrote the latter
        content = config()
        content["data"] = {"name": "release", "images": {"train": 3}, **data}
        card = model_card("run", content)
        assert "It was trained on synthetic X-rays: these numbers show that the software works and say nothing" in card
        assert "one hospital" not in card


def test_card_without_validation_says_so():
    content = {**config(), "validation_auc": {}}
    assert "The model was not evaluated during training." in model_card("run", content)


def test_card_indexes_the_aucs_on_test_patients():
    results = report_of(edge_cases())
    metrics = front_matter(model_card("run", config(), results))["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for result in metrics for metric in result["metrics"]}
    assert values["AUC-ROC, macro over 12 findings"] == results["macro"]["auc"]
    assert "AUC-ROC, Atelectasis" not in values  # undefined
    assert values["AUC-ROC, Mass"] == 1.0
    assert {result["dataset"]["name"] for result in metrics} == {"NIH ChestX-ray14"}
    assert {result["dataset"]["type"] for result in metrics} == {"nih-chestx-ray14"}


def test_card_of_another_label_set_names_its_labels():
    labels = LabelSet("Ward 7", ("Rib fracture", "a|b <i>"))
    content = config(label_set=labels.to_dict())
    content["validation_auc"] = {"roc_auc": 0.7, "roc_auc_Rib_fracture": 0.6, "roc_auc_a|b_<i>": 0.8, "num_findings": 2}
    card = model_card("run", content)
    assert "for 2 findings of Ward 7" in card
    assert "| Rib fracture | 0.600 |" in card
    assert r"| a\|b \<i\> | 0.800 |" in card
    assert "NIH" not in card and "hospital" not in card and "14" not in card


def test_card_is_written_again_into_a_run_only(tmp_path):
    assert not write_card(tmp_path, report_of(edge_cases()))
    (tmp_path / CONFIG).write_text(json.dumps(config()))
    assert write_card(tmp_path, report_of(edge_cases()))
    card = (tmp_path / CARD).read_text()
    assert "## AUC on the test patients" in card and f"# {tmp_path.name}" in card
