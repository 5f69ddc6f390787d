"""The AUC report as one page, auc.html: no network, no file beside it, so that it opens from a mail.

The page shows auc.json's numbers. Its words come from files that strangers wrote (image names, a command line), so the
template escapes all of them, and a content security policy lets nothing run but the page's own script.

Its parts lie beside this module: page.html (Jinja2), page.css, page.js."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from chestxray_vit.reporting.render.charts import Curves, Reliability, forest
from chestxray_vit.reporting.render.text import FEW, FEW_PATIENTS, interval, notes, shown, shown_p

DRAWN_RULE = "youden"  # the operating point that the curves show


def to_html(results: Dict[str, Any], pictures: Optional[Dict[str, str]] = None) -> str:
    """Return the page.

    Args:
        results: of `results.build_report`.
        pictures: data URIs by file name, of the mistakes' images; None for a page without patients' images.
    """
    import jinja2

    here = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = jinja2.ChainableUndefined  # evaluation.json may lack what another version wrote
    environment.filters.update(shown=shown, p=shown_p, percent=percent, count=count, interval=interval)
    script = (here / "auc.js").read_text(encoding="utf-8")
    return environment.get_template("auc.html").render(
        **results,
        headline_notes=notes(results),
        few=FEW,
        few_patients=FEW_PATIENTS,
        pictures=pictures or {},
        figures=_figures(results),
        explorer=_explorer(results),
        style=(here / "auc.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        as_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def percent(share: Optional[float], digits: int = 1) -> str:
    """Return a share as people read it."""
    return "undefined" if share is None else f"{100 * share:.{digits}f} %"


def count(number: Optional[int]) -> str:
    """Return a count as people read it."""
    return "unknown" if number is None else f"{number:,}"


def _figures(results: Dict[str, Any]) -> Dict[str, Any]:
    """Return the SVGs by place in the page."""
    points, curves, reliability = _points(results), Curves(), Reliability()
    rows = [{**row, "finding": row["finding"].replace("_", " ")} for row in results["findings"]]
    macro = {**results["macro"], "finding": f"macro over {results['macro']['num_findings']}"}
    published = {
        model: {**values, "auc": {finding.replace("_", " "): auc for finding, auc in values["auc"].items()}}
        for model, values in results["published"]["findings"].items()
    }
    return {
        "forest": forest([*rows, macro], published, "forest", "AUC of each finding with its 95 % interval"),
        "curves": [
            curves.draw(curve, row, point, f"curve-{place}")
            for place, (curve, row, point) in enumerate(zip(results["curves"], rows, points))
        ],
        "reliability": [
            reliability.draw(row["bins"], row["finding"].replace("_", " "), f"reliability-{place}")
            for place, row in enumerate(results["calibration"]["findings"])
        ],
        "subgroups": forest(_groups(results), {}, "subgroups", "Macro AUC of each group with its 95 % interval"),
    }


def _points(results: Dict[str, Any]) -> List[Optional[Dict[str, Any]]]:
    """Return the operating point of each finding that the curves show; None without validation predictions."""
    if results["operating_points"] is None:
        return [None] * len(results["findings"])
    return [row["points"][DRAWN_RULE] for row in results["operating_points"]["findings"]]


def _groups(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return the groups' macro AUCs as rows of a forest."""
    return [
        {**group["macro"], "finding": f"{grouping['grouping']} {group['group']} (n = {group['num_images']:,})"}
        for grouping in results["subgroups"]["groupings"]
        for group in grouping["groups"]
        if group["num_images"]
    ]


def _explorer(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return what the explorer computes with: exact counts by threshold, and where the chosen points lie."""
    chosen = results["operating_points"]
    rows = []
    for place, (row, curve) in enumerate(zip(results["findings"], results["curves"])):
        points = chosen["findings"][place]["points"] if chosen else {}
        thresholds = {rule: point["threshold"] for rule, point in points.items() if point is not None}
        positives = row["num_positives"]
        rows.append({**curve, "positives": positives, "negatives": row["num_images"] - positives, "chosen": thresholds})
    return rows
