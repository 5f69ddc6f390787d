"""Published AUCs on NIH ChestX-ray14, each with the split it was measured on and its source.

A value from another split is a reference point, not a competitor: no table shows one without its split. Values are
matched by the label's name, and shown only where all labels of a report are ChestX-ray14's: other data sets use some
of these names for other labels."""

from __future__ import annotations

from typing import Any, Dict

from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet

WANG = {
    "Atelectasis": 0.716,
    "Cardiomegaly": 0.807,
    "Effusion": 0.784,
    "Infiltration": 0.609,
    "Mass": 0.706,
    "Nodule": 0.671,
    "Pneumonia": 0.633,
    "Pneumothorax": 0.806,
    "Consolidation": 0.708,
    "Edema": 0.835,
    "Emphysema": 0.815,
    "Fibrosis": 0.769,
    "Pleural_Thickening": 0.708,
    "Hernia": 0.767,
}
CHEXNET = {
    "Atelectasis": 0.8094,
    "Cardiomegaly": 0.9248,
    "Effusion": 0.8638,
    "Infiltration": 0.7345,
    "Mass": 0.8676,
    "Nodule": 0.7802,
    "Pneumonia": 0.7680,
    "Pneumothorax": 0.8887,
    "Consolidation": 0.7901,
    "Edema": 0.8878,
    "Emphysema": 0.9371,
    "Fibrosis": 0.8047,
    "Pleural_Thickening": 0.8062,
    "Hernia": 0.9164,
}
OWN, UNDISCLOSED, OFFICIAL = "its own split", "undisclosed random split", "official split"
PUBLIC_LISTS = "public lists by patient (78,468/11,219/22,433 images), not NIH's"
BY_LABEL = {"Wang 2017": (OWN, WANG), "CheXNet 2017": (UNDISCLOSED, CHEXNET)}
MACRO = (
    ("Wang 2017", 0.738, OWN, "Wang et al., CVPR 2017"),
    ("Yao 2017", 0.803, OWN, "Yao et al., arXiv:1710.10501"),
    ("CheXNet 2017", 0.841, UNDISCLOSED, "Rajpurkar et al., arXiv:1711.05225"),
    ("CheXNet re-runs, lowest", 0.843, PUBLIC_LISTS, "re-runs of arXiv:1711.05225"),
    ("CheXNet re-runs, highest", 0.851, PUBLIC_LISTS, "re-runs of arXiv:1711.05225"),
    ("CheXNet re-run, jrzech 2022", 0.8383, PUBLIC_LISTS, "github.com/jrzech/reproduce-chexnet"),
    ("ViT-S/16 ImageNet", 0.796, OFFICIAL, "Xiao et al., WACV 2023"),
    ("ViT-S/16 MAE on X-rays", 0.823, OFFICIAL, "Xiao et al., WACV 2023"),
    ("ViT-B/16 MAE on X-rays", 0.830, OFFICIAL, "Xiao et al., WACV 2023"),
    ("DenseNet-121 ImageNet", 0.822, OFFICIAL, "Xiao et al., WACV 2023"),
    ("EVA-X Ti", 0.824, OFFICIAL, "Yao et al., arXiv:2405.05237"),
    ("EVA-X S", 0.833, OFFICIAL, "Yao et al., arXiv:2405.05237"),
    ("EVA-X B", 0.835, OFFICIAL, "Yao et al., arXiv:2405.05237"),
    (
        "ViT-B/16, 3 epochs",
        0.7916,
        "5 % of the images at random, softmax: not comparable with any of these",
        "Graphcore's tutorial",
    ),
)
RESEARCH_USE = "For research use only."
SYNTHETIC = "Synthetic X-rays: these numbers show that the software works and say nothing about patients."
LIMITATIONS = "The labels were mined from the text of radiology reports, and all images come from one hospital."


def published_aucs(label_set: LabelSet, is_synthetic: bool) -> Dict[str, Any]:
    """Return the published values to show beside a report, as auc.json holds them.

    Args:
        label_set: of the report.
        is_synthetic: the images are synthetic: there is nothing to compare then.

    Returns:
        `macro`, a list, empty unless the report has all labels of ChestX-ray14; and `findings`, by model, with `split`
        and `auc` by label, empty unless all labels of the report are ChestX-ray14's.
    """
    if is_synthetic or not is_nih(label_set):
        return {"macro": [], "findings": {}}
    has_all = set(label_set.findings) == set(NIH_CHESTXRAY14.findings)
    return {
        "macro": [dict(zip(("model", "auc", "split", "source"), row)) for row in MACRO] if has_all else [],
        "findings": {
            model: {"split": split, "auc": {name: aucs[name] for name in label_set.findings}}
            for model, (split, aucs) in BY_LABEL.items()
        },
    }


def caution(label_set: LabelSet, is_synthetic: bool) -> str:
    """Return what each report and model card says of its data in a sentence or two."""
    if is_synthetic:
        return SYNTHETIC
    return f"{RESEARCH_USE} {LIMITATIONS}" if is_nih(label_set) else RESEARCH_USE


def is_nih(label_set: LabelSet) -> bool:
    """Return whether all labels are ChestX-ray14's, in any order."""
    return set(label_set.findings) <= set(NIH_CHESTXRAY14.findings)
