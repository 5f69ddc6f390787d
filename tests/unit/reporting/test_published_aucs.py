"""Published values: matched by name, each with its split and source, never beside other data."""

from __future__ import annotations

import numpy as np
import pytest

from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.reporting.published_aucs import caution, published_aucs
from chestxray_vit.reporting.render.csv_tables import to_csv
from chestxray_vit.reporting.render.text import to_markdown, to_text
from tests.unit.reporting.examples import random_predictions, report_of

FINDINGS = NIH_CHESTXRAY14.names


def test_published_values():
    published = report_of(random_predictions())["published"]
    wang, chexnet = published["findings"]["Wang 2017"], published["findings"]["CheXNet 2017"]
    assert (wang["split"], chexnet["split"]) == ("its own split", "undisclosed random split")
    assert (wang["auc"]["Atelectasis"], wang["auc"]["Infiltration"], wang["auc"]["Hernia"]) == (0.716, 0.609, 0.767)
    assert (chexnet["auc"]["Atelectasis"], chexnet["auc"]["Pneumothorax"]) == (0.8094, 0.8887)
    assert chexnet["auc"]["Hernia"] == 0.9164
    assert list(wang["auc"]) == list(chexnet["auc"]) == list(FINDINGS)
    aucs = {row["model"]: row["auc"] for row in published["macro"]}
    assert np.mean(list(wang["auc"].values())) == pytest.approx(aucs["Wang 2017"], abs=5e-4)
    assert np.mean(list(chexnet["auc"].values())) == pytest.approx(aucs["CheXNet 2017"], abs=5e-4)
    assert aucs["EVA-X B"] == 0.835
    assert len(published["macro"]) == 14
    assert all(row["split"] and row["source"] for row in published["macro"])


# Comparison


def test_no_published_value_stands_beside_synthetic_xrays():
    results = report_of(random_predictions(), provenance={"synthetic": True})
    assert results["published"] == {"macro": [], "findings": {}}
    for text in (to_text(results), to_markdown(results), to_csv(results)):
        assert "Wang" not in text
        assert "ublished" not in text
    for text in (to_text(results), to_markdown(results)):
        assert "say nothing about patients" in text
        assert "one hospital" not in text


def test_published_values_are_matched_by_name_in_any_order():
    order = list(np.random.default_rng(5).permutation(FINDINGS))
    published = published_aucs(LabelSet("another order", order), is_synthetic=False)
    for model, first in published_aucs(NIH_CHESTXRAY14, is_synthetic=False)["findings"].items():
        assert published["findings"][model]["auc"] == first["auc"]
        assert list(published["findings"][model]["auc"]) == order
    assert len(published["macro"]) == 14


def test_published_values_of_some_labels_stand_without_a_macro():
    published = published_aucs(LabelSet.of_names(("Hernia", "Mass", "Edema")), is_synthetic=False)
    assert published["findings"]["Wang 2017"]["auc"] == {"Hernia": 0.767, "Mass": 0.706, "Edema": 0.835}
    assert published["findings"]["CheXNet 2017"]["auc"] == {"Hernia": 0.9164, "Mass": 0.8676, "Edema": 0.8878}
    assert published["macro"] == []  # a mean over other labels is no reference


def test_no_published_value_stands_beside_other_label_sets():
    # Atelectasis and Edema are CheXpert's too, where the labels and the patients are others
    chexpert = LabelSet("CheXpert", ("Atelectasis", "Edema", "Enlarged Cardiomediastinum"))
    assert published_aucs(chexpert, is_synthetic=False) == {"macro": [], "findings": {}}
    assert caution(chexpert, is_synthetic=False) == "For research use only."
    with_negative = NIH_CHESTXRAY14.with_negative_column()
    assert published_aucs(with_negative, False) == published_aucs(NIH_CHESTXRAY14, False)
