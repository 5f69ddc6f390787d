"""The AUC report as one page, auc.html: it needs no network and no other file, so that it opens from an e-mail.

The page shows auc.json's numbers. Some of its words come from files of others (labels, image names, a command line), so
the template escapes all of them, and a content security policy allows nothing but the page's own script to run.

Its parts lie in templates/: auc.html (Jinja2), auc.css, auc.js."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from chestxray_vit.labels import LabelSet
from chestxray_vit.reporting.published_aucs import is_nih
from chestxray_vit.reporting.render.charts import Curves, Reliability, forest
from chestxray_vit.reporting.render.tables import interval, label_of, shown, shown_p
from chestxray_vit.reporting.render.text import counted, notes, title_of
from chestxray_vit.reporting.sections.auc_table import FEW, FEW_PATIENTS

if TYPE_CHECKING:
    import jinja2

Results = Dict[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
CURVE_RULE = "youden"  # the operating point that the curves show


def to_html(results: Results, pictures: Optional[Dict[str, str]] = None) -> str:
    """Return the page.

    Args:
        results: of `build_report`.
        pictures: data URIs by file name, of the mistakes' images; None for a page without patients' images.
    """
    script = (TEMPLATES / "auc.js").read_text(encoding="utf-8")
    label_set = LabelSet.from_dict(results["label_set"])
    return (
        _environment()
        .get_template("auc.html")
        .render(
            **results,
            title=title_of(label_set),
            is_nih=is_nih(label_set) and not (results["provenance"] or {}).get("synthetic"),
            headline_notes=notes(results),
            few=FEW,
            few_patients=FEW_PATIENTS,
            pictures=pictures or {},
            figures=_figures(results),
            explorer=_explorer(results),
            style=(TEMPLATES / "auc.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def percent(share: Optional[float], digits: int = 1) -> str:
    """Return a share for readers."""
    return "undefined" if share is None else f"{100 * share:.{digits}f} %"


def count(number: Any) -> str:
    """Return a count for readers; what an evaluation.json lacks, or has as another type, is unknown."""
    return f"{number:,}" if isinstance(number, int) else "unknown"


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # evaluation.json may lack what another version wrote
    )
    environment.filters.update(
        shown=shown, p=shown_p, percent=percent, count=count, interval=interval, label_of=label_of, counted=counted
    )
    return environment


def _figures(results: Results) -> Dict[str, Any]:
    """Return the SVGs by their names in the template."""
    rows = results["findings"]
    macro = {**results["macro"], "label": f"macro over {results['macro']['num_findings']}"}
    published = results["published"]["findings"]
    curves, reliability = Curves(), Reliability()
    return {
        "forest": forest([*rows, macro], published, "forest", "AUC of each finding with its 95 % interval"),
        "curves": [
            curves.draw(curve, row, point, f"curve-{index}")
            for index, (curve, row, point) in enumerate(zip(results["curves"], rows, _points(results)))
        ],
        "reliability": [
            reliability.draw(row["bins"], label_of(row["finding"]), f"reliability-{index}")
            for index, row in enumerate(results["calibration"]["findings"])
        ],
        "subgroups": forest(_groups(results), {}, "subgroups", "Macro AUC of each group with its 95 % interval"),
    }


def _points(results: Results) -> List[Optional[Dict[str, Any]]]:
    """Return the operating point of each finding that the curves show; None without validation predictions."""
    if results["operating_points"] is None:
        return [None] * len(results["findings"])
    return [row["points"][CURVE_RULE] for row in results["operating_points"]["findings"]]


def _groups(results: Results) -> List[Dict[str, Any]]:
    """Return the groups' macro AUCs as rows of a forest."""
    return [
        {**group["macro"], "label": f"{grouping['grouping']} {group['group']} (n = {group['num_images']:,})"}
        for grouping in results["subgroups"]["groupings"]
        for group in grouping["groups"]
        if group["num_images"]
    ]


def _explorer(results: Results) -> List[Dict[str, Any]]:
    """Return what the explorer computes with: exact counts by threshold, and the chosen thresholds."""
    chosen = results["operating_points"]
    rows = []
    for index, (row, curve) in enumerate(zip(results["findings"], results["curves"])):
        points = chosen["findings"][index]["points"] if chosen else {}
        thresholds = {rule: point["threshold"] for rule, point in points.items() if point is not None}
        positives = row["num_positives"]
        rows.append({**curve, "positives": positives, "negatives": row["num_images"] - positives, "chosen": thresholds})
    return rows
