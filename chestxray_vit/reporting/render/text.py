"""auc.json as text for a terminal and as Markdown. Both show the numbers of that one dict and compute none."""

from __future__ import annotations

import textwrap
from typing import Any, Callable, Dict, List

from chestxray_vit.labels import LabelSet
from chestxray_vit.reporting.render.tables import (
    Rows,
    aligned,
    in_two_lines,
    interval,
    markdown,
    piped,
    shown,
    shown_p,
)
from chestxray_vit.reporting.sections.auc_table import FEW

Results = Dict[str, Any]
Escape = Callable[[str], str]  # of what files name: labels
WIDTH = 110  # columns of the terminal's notes


def to_text(results: Results) -> str:
    """Return the tables and their notes as plain text, at most 110 columns wide but for long labels."""
    parts = [
        textwrap.fill(headline(results), WIDTH),
        aligned(in_two_lines(_table(results, str))),
        "\n".join(textwrap.fill(note, WIDTH) for note in [*notes(results), *_sources(results)]),
    ]
    if results["comparison"]:
        method = textwrap.fill(f"{results['comparison']['method']}.", WIDTH)
        parts += [aligned(in_two_lines(_comparison_table(results["comparison"], str))), method]
    return "\n\n".join([*parts, textwrap.fill(results["caution"], WIDTH)]) + "\n"


def to_markdown(results: Results) -> str:
    """Return the tables and their notes as Markdown, with the published macro AUCs."""
    parts = ["# AUC report", headline(results, markdown), headline_table(results)]
    parts.append("\n".join(f"- {note}" for note in [*notes(results, markdown), *_sources(results)]))
    if results["comparison"]:
        parts += ["## Comparison of two runs", piped(_comparison_table(results["comparison"], markdown))]
        parts += [f"{results['comparison']['method']}."]
    published = [
        [row["model"], row["split"], row["source"], shown(row["auc"])] for row in results["published"]["macro"]
    ]
    if published:
        parts += ["## Published macro AUCs", piped([["model", "split", "source", "AUC"], *published], num_left=3)]
    return "\n\n".join([*parts, results["caution"]]) + "\n"


def counted(num_findings: int) -> str:
    """Return a number of findings in words."""
    return f"{num_findings} finding{'' if num_findings == 1 else 's'}"


def title_of(label_set: LabelSet) -> str:
    """Return how many findings a label set has and, where it has a name, its name."""
    count = len(label_set.findings)
    is_unnamed = label_set.name in ("", f"{count} labels")
    return counted(count) if is_unnamed else f"{counted(count)} of {label_set.name}"


def headline(results: Results, escape: Escape = str) -> str:
    """Return what was scored, in a sentence."""
    title = escape(title_of(LabelSet.from_dict(results["label_set"])))
    return f"AUC-ROC for {title}, on {results['num_images']:,} images of {results['num_patients']:,} patients."


def headline_table(results: Results) -> str:
    """Return the main table as Markdown, for the report and the model card."""
    return piped(_table(results, markdown))


def _table(results: Results, escape: Escape) -> Rows:
    """Return the cells of the main table: a header, a row for each finding, the macro AUC."""
    published = results["published"]["findings"]
    header = ["finding", "positives", "positive patients", "AUC", "95 % interval", "average precision", "prevalence"]
    rows = [[*header, *published]]
    for row in results["findings"]:
        cells = [escape(row["finding"]) + (" *" if FEW in row["notes"] else "")]
        cells += [f"{row['num_positives']:,}", f"{row['num_positive_patients']:,}", shown(row["auc"]), interval(row)]
        cells += [shown(row["average_precision"]), shown(row["prevalence"])]
        rows.append(cells + [shown(values["auc"].get(row["finding"])) for values in published.values()])
    overall, means = results["macro"], {row["model"]: row["auc"] for row in results["published"]["macro"]}
    label = f"macro over {counted(overall['num_findings'])}"
    cells = [label, "", "", shown(overall["auc"]), interval(overall), "", ""]
    return [*rows, cells + [shown(means[model]) if model in means else "" for model in published]]


def _comparison_table(comparison: Dict[str, Any], escape: Escape) -> Rows:
    rows = [["finding", "AUC a", "AUC b", "difference", "standard error", "z", "p", "p (Holm)"]]
    for row in [*comparison["findings"], {**comparison["macro"], "finding": "macro"}]:
        cells = [escape(row["finding"]), shown(row["auc_a"]), shown(row["auc_b"]), shown(row["difference"], "+.3f")]
        cells += [shown(row["se"], ".4f"), shown(row["z"], "+.2f")]
        rows.append([*cells, shown_p(row["p"]), shown_p(row["p_holm"]) if "p_holm" in row else ""])
    return rows


def notes(results: Results, escape: Escape = str) -> List[str]:
    """Return what a reader of the main table must know."""
    found = [f"Intervals: {results['interval']}."]
    if any(FEW in row["notes"] for row in results["findings"]):
        found.append(f"Findings marked * have {FEW}: their intervals are only approximate.")
    for row in [*results["findings"], {**results["macro"], "finding": "macro"}]:
        found += [escape(f"{row['finding']}: {note}.") for note in row["notes"] if note != FEW]
    left_out = results["macro"]["findings_left_out"]
    if left_out:
        found.append(f"Left out of the macro AUC: {escape(', '.join(left_out))}.")
    splits = "; ".join(f"{model}: {values['split']}" for model, values in results["published"]["findings"].items())
    if splits:
        found.append(
            f"Published values are on NIH ChestX-ray14 ({splits}). They are comparable only if the split is the same."
        )
    return found


def _sources(results: Results) -> List[str]:
    found = []
    for letter, source in zip("ab", results["sources"]):
        name = repr(source["file_name"])[1:-1].replace("`", "'")  # a hostile file name stays text in Markdown
        found.append(f"Source {letter}: `{name}`, sha256 {source['sha256'][:16]}.")
    return found
