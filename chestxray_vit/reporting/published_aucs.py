"""Published AUCs on ChestX-ray14, each with the split it was measured on and its source.

A number from another split is a landmark, not a rival: no table shows one without its split."""

from __future__ import annotations

from chestxray_vit.labels import FINDINGS

WANG = (0.716, 0.807, 0.784, 0.609, 0.706, 0.671, 0.633, 0.806, 0.708, 0.835, 0.815, 0.769, 0.708, 0.767)
CHEXNET = (
    *(0.8094, 0.9248, 0.8638, 0.7345, 0.8676, 0.7802, 0.7680),
    *(0.8887, 0.7901, 0.8878, 0.9371, 0.8047, 0.8062, 0.9164),
)
OWN, UNDISCLOSED, OFFICIAL = "its own split", "undisclosed random split", "official split"
PUBLIC_LISTS = "public lists by patient (78,468/11,219/22,433 images), not NIH's"
PUBLISHED_MACRO = (
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
    ("ViT-B/16, 3 epochs", 0.7916, "5 % of images at random, softmax: comparable with nothing", "Graphcore's tutorial"),
)
PUBLISHED = {
    "macro": [dict(zip(("model", "auc", "split", "source"), row)) for row in PUBLISHED_MACRO],
    "findings": {
        "Wang 2017": {"split": OWN, "auc": dict(zip(FINDINGS, WANG))},
        "CheXNet 2017": {"split": UNDISCLOSED, "auc": dict(zip(FINDINGS, CHEXNET))},
    },
}
