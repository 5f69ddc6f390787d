"""auc.json as text for a terminal, Markdown and CSV. Each shows the numbers of that one dict and computes none."""

from __future__ import annotations

import csv
import io
import textwrap
from typing import Any, Dict, List, Optional

from chestxray_vit.labels import FINDINGS
from chestxray_vit.reporting.render.tables import aligned

FEW_PATIENTS = 30  # with fewer positive patients, a normal interval is a rough guess
FEW = f"fewer than {FEW_PATIENTS} positive patients"


def to_text(results: Dict[str, Any]) -> str:
    """Return the tables and their notes as plain text, at most 110 columns wide."""
    parts = [
        headline(results),
        aligned(_in_two_lines(_table(results))),
        "\n".join(textwrap.fill(note, 110) for note in [*notes(results), *_sources(results)]),
    ]
    if results["comparison"]:
        method = textwrap.fill(f"{results['comparison']['method']}.", 110)
        parts += [aligned(_in_two_lines(_comparison_table(results["comparison"]))), method]
    return "\n\n".join([*parts, results["caution"]]) + "\n"


def to_markdown(results: Dict[str, Any]) -> str:
    """Return the tables and their notes as Markdown, with the published macro AUCs."""
    parts = ["# AUC report", headline(results), headline_table(results)]
    parts.append("\n".join(f"- {note}" for note in [*notes(results), *_sources(results)]))
    if results["comparison"]:
        parts += ["## Comparison of two runs", _piped(_comparison_table(results["comparison"]))]
        parts += [f"{results['comparison']['method']}."]
    published = [
        [row["model"], row["split"], row["source"], shown(row["auc"])] for row in results["published"]["macro"]
    ]
    if published:
        parts += ["## Published macro AUCs", _piped([["model", "split", "source", "AUC"], *published], num_left=3)]
    return "\n\n".join([*parts, results["caution"]]) + "\n"


def to_csv(results: Dict[str, Any]) -> str:
    """Return a row a finding and one of the macro, with every digit; empty where undefined."""
    published = results["published"]["findings"]
    macro_row = {**results["macro"], "finding": "macro", "num_images": results["num_images"]}
    compared = results["comparison"]
    differences = [*compared["findings"], compared["macro"]] if compared else [{}] * (len(FINDINGS) + 1)
    table = []
    for row, difference in zip([*results["findings"], macro_row], differences):
        row = {**row, **difference, "finding": row["finding"], "notes": "; ".join(row["notes"])}
        row.update({model: values["auc"].get(row["finding"]) for model, values in published.items()})
        table.append(row)
    of_difference = list(compared["findings"][0])[1:] if compared else []
    columns = [*results["findings"][0], *published, *of_difference]
    return _csv(columns, table)


def to_operating_csv(results: Dict[str, Any]) -> str:
    """Return a row for each finding and rule: threshold, the four counts, and the rates with their intervals."""
    table, columns = [], ["finding", "rule"]
    for row in (results["operating_points"] or {"findings": []})["findings"]:
        for rule, point in row["points"].items():
            cells = {"finding": row["finding"], "rule": rule}
            for name, value in (point or {}).items():
                if isinstance(value, dict):
                    cells.update({name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]})
                else:
                    cells[name] = value
            columns += [name for name in cells if name not in columns]
            table.append(cells)
    return _csv(columns, table)


def to_subgroup_csv(results: Dict[str, Any]) -> str:
    """Return a row for each group and finding, and one of each group's macro, with every digit."""
    table, columns = [], ["grouping", "group", "num_images", "num_patients", "finding"]
    for grouping in results["subgroups"]["groupings"]:
        for group in grouping["groups"]:
            about = {name: group[name] for name in columns[1:4]}
            for row in [*group["findings"], {**group["macro"], "finding": "macro"}]:
                table.append({"grouping": grouping["grouping"], **about, **row})
                columns += [name for name in row if name not in columns]
    return _csv(columns, table)


def _csv(columns: List[str], rows: List[Dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def headline_table(results: Dict[str, Any]) -> str:
    """Return the main table as Markdown, for the report and the model card."""
    return _piped(_table(results))


def headline(results: Dict[str, Any]) -> str:
    """Return what was scored, in a sentence."""
    return f"AUC-ROC on {results['num_images']:,} images of {results['num_patients']:,} patients."


def _table(results: Dict[str, Any]) -> List[List[str]]:
    """Return the cells of the main table: a header, a row a finding, the macro."""
    published = results["published"]["findings"]
    header = ["finding", "positives", "positive patients", "AUC", "95 % interval", "average precision", "prevalence"]
    rows = [[*header, *published]]
    for row in results["findings"]:
        cells = [row["finding"] + (" *" if FEW in row["notes"] else "")]
        cells += [f"{row['num_positives']:,}", f"{row['num_positive_patients']:,}", shown(row["auc"]), interval(row)]
        cells += [shown(row["average_precision"]), shown(row["prevalence"])]
        rows.append(cells + [shown(values["auc"][row["finding"]]) for values in published.values()])
    overall, means = results["macro"], {row["model"]: row["auc"] for row in results["published"]["macro"]}
    label = f"macro over {overall['num_findings']} findings"
    cells = [label, "", "", shown(overall["auc"]), interval(overall), "", ""]
    return [*rows, cells + [shown(means[model]) for model in published]]


def _comparison_table(comparison: Dict[str, Any]) -> List[List[str]]:
    rows = [["finding", "AUC a", "AUC b", "difference", "standard error", "z", "p", "p by Holm"]]
    for row in [*comparison["findings"], {**comparison["macro"], "finding": "macro"}]:
        cells = [row["finding"], shown(row["auc_a"]), shown(row["auc_b"]), shown(row["difference"], "+.3f")]
        cells += [shown(row["se"], ".4f"), shown(row["z"], "+.2f")]
        rows.append([*cells, shown_p(row["p"]), shown_p(row["p_holm"]) if "p_holm" in row else ""])
    return rows


def notes(results: Dict[str, Any]) -> List[str]:
    """Return what a reader of the main table must know."""
    found = [f"Interval: {results['interval']}."]
    if any(FEW in row["notes"] for row in results["findings"]):
        found.append(f"Findings marked * have {FEW}: the interval is a rough guess.")
    for row in [*results["findings"], {**results["macro"], "finding": "macro"}]:
        found += [f"{row['finding']}: {note}." for note in row["notes"] if note != FEW]
    left_out = results["macro"]["findings_left_out"]
    if left_out:
        found.append(f"Left out of the macro: {', '.join(left_out)}.")
    splits = "; ".join(f"{model}: {values['split']}" for model, values in results["published"]["findings"].items())
    if splits:
        found.append(f"Published: {splits}. Not comparable unless the split is the same.")
    return found


def _sources(results: Dict[str, Any]) -> List[str]:
    found = []
    for letter, source in zip("ab", results["source"]):
        name = repr(source["file_name"])[1:-1].replace("`", "'")  # a hostile file name stays text in Markdown
        found.append(f"Source {letter}: `{name}`, sha256 {source['sha256'][:16]}.")
    return found


def interval(row: Dict[str, Any]) -> str:
    """Return `low to high`."""
    return "undefined" if row["low"] is None else f"{shown(row['low'])} to {shown(row['high'])}"


def shown(number: Optional[float], form: str = ".3f") -> str:
    """Return a number as people read it."""
    return "undefined" if number is None else format(number, form)


def shown_p(p: Optional[float]) -> str:
    """Return a p as people read it."""
    return "<0.001" if p is not None and p < 0.001 else shown(p)


def _in_two_lines(rows: List[List[str]]) -> List[List[str]]:
    """Return rows with the header cut at each cell's last space."""
    header = [cell.rpartition(" ") for cell in rows[0]]
    return [[above for above, _, _ in header], [below for _, _, below in header], *rows[1:]]


def _piped(rows: List[List[str]], num_left: int = 1) -> str:
    lines = [rows[0], ["---"] * num_left + ["---:"] * (len(rows[0]) - num_left), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
