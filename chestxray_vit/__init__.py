"""Fine-tune a multi-label Vision Transformer on NIH ChestX-ray14 and report an AUC-ROC with intervals by patient.

For research use: the labels are mined from report text of one hospital. `README.md` beside this file describes the
layout. The public names are loaded at their first use (PEP 562), so that importing the package loads neither numpy nor
torch:

>>> import chestxray_vit
>>> chestxray_vit.roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
0.875
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

__version__ = "0.6.0"
__all__ = [
    "NIH_CHESTXRAY14",
    "LabelSet",
    "build_report",
    "draw_release",
    "load_model",
    "load_xrays",
    "read_predictions",
    "roc_auc",
]

if TYPE_CHECKING:
    from chestxray_vit.artifacts.predictions import read_predictions
    from chestxray_vit.data.dataset import load_xrays
    from chestxray_vit.data.synthetic.release import draw_release
    from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
    from chestxray_vit.metrics.roc_auc import roc_auc
    from chestxray_vit.models.vit import load_model
    from chestxray_vit.reporting.summary import build_report

_HOMES = {  # public name -> module, and its name there
    "NIH_CHESTXRAY14": ("chestxray_vit.labels", "NIH_CHESTXRAY14"),
    "LabelSet": ("chestxray_vit.labels", "LabelSet"),
    "build_report": ("chestxray_vit.reporting.summary", "build_report"),
    "draw_release": ("chestxray_vit.data.synthetic.release", "draw_release"),
    "load_model": ("chestxray_vit.models.vit", "load_model"),
    "load_xrays": ("chestxray_vit.data.dataset", "load_xrays"),
    "read_predictions": ("chestxray_vit.artifacts.predictions", "read_predictions"),
    "roc_auc": ("chestxray_vit.metrics.roc_auc", "roc_auc"),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    """List the public names, too, before they are loaded."""
    return sorted({*globals(), *__all__})
