"""The AUC table of one evaluation, made once as the dict that is auc.json, and its faces: text, Markdown, CSV.

All faces show the numbers of that one dict, so that no two of them can disagree. Published values stand beside,
each with its split: a number from another split is a landmark, not a rival.

Shapes: N images, L = 14 findings in NIH's order."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from chestxray_vit import __version__
from chestxray_vit.auc import Difference, Estimate, Macro, auc, compare, compare_macro, macro, obuchowski
from chestxray_vit.files import PathLike, sha256, write_json, write_text
from chestxray_vit.findings import FINDINGS
from chestxray_vit.predictions import Predictions
from chestxray_vit.problems import InputError, Problems

OUTPUTS = ("auc.json", "auc.csv", "auc.md")
FEW_PATIENTS = 30  # with fewer positive patients, a normal interval is a rough guess
FEW = f"fewer than {FEW_PATIENTS} positive patients"
INTERVAL = "95 %, by patient (Obuchowski 1997), Wald, clipped to [0, 1]"
COMPARISON = "a is the first file, b the second; paired, by patient (Obuchowski 1997), two-sided normal p, uncorrected"
CAUTION = "Research use; labels mined from report text; one hospital."
DRAWN = "Drawn X-rays: these numbers show that the software works, and say nothing of patients."

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


def summarise(
    predictions: Predictions,
    compare_with: Optional[Predictions] = None,
    source: Optional[Sequence[PathLike]] = None,
    drawn: bool = False,
) -> Dict[str, Any]:
    """Return the AUC table of an evaluation: the content of auc.json, None where undefined.

    Args:
        predictions: of the run to report.
        compare_with: of another run on the same images, in any order.
        source: the file of `predictions`, then that of `compare_with`; their base names and sha256 are kept.
        drawn: the images are a phantom's; no published value stands beside those.

    Raises:
        InputError: the two runs differ in images, targets or patients.
    """
    targets_NL = predictions.targets_NL
    patients_N = np.unique(np.asarray(predictions.patient_ids, dtype=str), return_inverse=True)[1]
    findings = [
        _finding(finding, targets_NL[:, place], predictions.scores_NL[:, place], patients_N)
        for place, finding in enumerate(FINDINGS)
    ]
    return {
        "package_version": __version__,
        "source": [{"file_name": Path(path).name, "sha256": sha256(path)} for path in source or ()],
        "num_images": len(predictions.file_names),
        "num_patients": len(np.unique(patients_N)),
        "caution": DRAWN if drawn else CAUTION,
        "interval": INTERVAL,
        "macro": _macro(macro(targets_NL, predictions.scores_NL, patients_N), findings),
        "findings": findings,
        "published": {"macro": [], "findings": {}} if drawn else PUBLISHED,
        "comparison": None if compare_with is None else _comparison(predictions, compare_with, patients_N),
    }


def _finding(finding: str, targets_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray) -> Dict[str, Any]:
    from sklearn.metrics import average_precision_score  # here, since it takes a second to import

    num_images, num_positives = len(targets_N), int(targets_N.sum())
    num_positive_patients = len(np.unique(patients_N[targets_N == 1]))
    num_negative_patients = len(np.unique(patients_N[targets_N == 0]))
    estimate = obuchowski(targets_N, scores_N, patients_N)
    notes = []
    if num_positive_patients < FEW_PATIENTS:
        notes.append(FEW)
    for count, name in ((num_positive_patients, "positive"), (num_negative_patients, "negative")):
        if count == 0:
            notes.append(f"undefined: no {name}")
        elif count == 1 and not math.isnan(estimate.auc):
            notes.append(f"interval undefined: one {name} patient")
    if estimate.variance == 0:
        notes.append("zero-width interval: not informative")
    return {
        "finding": finding,
        "num_images": num_images,
        "num_positives": num_positives,
        "num_positive_patients": num_positive_patients,
        "prevalence": num_positives / num_images if num_images else None,
        **_numbers(estimate),
        "average_precision": float(average_precision_score(targets_N, scores_N)) if num_positives else None,
        "notes": notes,
    }


def _macro(estimate: Macro, findings: List[Dict[str, Any]]) -> Dict[str, Any]:
    without_interval = [row["finding"] for row in findings if row["auc"] is not None and row["low"] is None]
    notes = [f"interval undefined: so is that of {', '.join(without_interval)}"] if without_interval else []
    return {
        **_numbers(estimate),
        "num_findings": estimate.num_findings,
        "findings_left_out": [row["finding"] for row in findings if row["auc"] is None],
        "notes": notes if estimate.num_findings else ["undefined: so is every finding"],
    }


def _numbers(estimate: Estimate) -> Dict[str, Optional[float]]:
    return {name: _defined(getattr(estimate, name)) for name in ("auc", "variance", "low", "high")}


def _comparison(a: Predictions, b: Predictions, patients_N: np.ndarray) -> Dict[str, Any]:
    targets_NL, scores_a_NL, scores_b_NL = a.targets_NL, a.scores_NL, b.scores_NL[_rows_of_same_images(a, b)]
    rows = []
    for finding, targets_N, scores_a_N, scores_b_N in zip(FINDINGS, targets_NL.T, scores_a_NL.T, scores_b_NL.T):
        aucs = auc(targets_N, scores_a_N), auc(targets_N, scores_b_N)
        rows.append({"finding": finding, **_difference(*aucs, compare(targets_N, scores_a_N, scores_b_N, patients_N))})
    aucs = macro(targets_NL, scores_a_NL).auc, macro(targets_NL, scores_b_NL).auc
    overall = _difference(*aucs, compare_macro(targets_NL, scores_a_NL, scores_b_NL, patients_N))
    return {"method": COMPARISON, "macro": overall, "findings": rows}


def _difference(auc_a: float, auc_b: float, difference: Difference) -> Dict[str, Optional[float]]:
    numbers = {
        "auc_a": auc_a,
        "auc_b": auc_b,
        "difference": difference.difference,
        "se": math.sqrt(difference.variance),
        "z": difference.z,
        "p": difference.p,
    }
    return {name: _defined(number) for name, number in numbers.items()}


def _rows_of_same_images(a: Predictions, b: Predictions) -> List[int]:
    """Return where the images of a are in b, or raise an InputError that lists what differs."""
    problems = Problems("the two predictions files cannot be compared")
    row_of = {name: row for row, name in enumerate(b.file_names)}
    for name in a.file_names:
        if name not in row_of:
            problems.add("an image is in the first file only", name)
    for name in sorted(set(row_of).difference(a.file_names)):
        problems.add("an image is in the second file only", name)
    for row_a, name in enumerate(a.file_names):
        row_b = row_of.get(name)
        if row_b is None:
            continue
        if (a.targets_NL[row_a] != b.targets_NL[row_b]).any():
            problems.add("the targets of an image differ", name, "Were both runs evaluated on one metadata.jsonl?")
        if a.patient_ids[row_a] != b.patient_ids[row_b]:
            ids = f"{a.patient_ids[row_a]!r} and {b.patient_ids[row_b]!r}"
            problems.add("the patient_id of an image differs", f"{name}: {ids}")
    problems.raise_if_any()
    return [row_of[name] for name in a.file_names]


def _defined(number: float) -> Optional[float]:
    """Return None for NaN: JSON has none."""
    return None if math.isnan(number) else float(number)


def to_text(results: Dict[str, Any]) -> str:
    """Return the tables and their notes as plain text, at most 110 columns wide."""
    parts = [
        _headline(results),
        _aligned(_table(results)),
        "\n".join(textwrap.fill(note, 110) for note in _notes(results)),
    ]
    if results["comparison"]:
        parts += [_aligned(_comparison_table(results["comparison"])), f"{results['comparison']['method']}."]
    return "\n\n".join([*parts, results["caution"]]) + "\n"


def to_markdown(results: Dict[str, Any]) -> str:
    """Return the tables and their notes as Markdown, with the published macro AUCs."""
    parts = ["# AUC report", _headline(results), _piped(_table(results))]
    parts.append("\n".join(f"- {note}" for note in _notes(results)))
    if results["comparison"]:
        parts += ["## Comparison of two runs", _piped(_comparison_table(results["comparison"]))]
        parts += [f"{results['comparison']['method']}."]
    published = [
        [row["model"], row["split"], row["source"], _shown(row["auc"])] for row in results["published"]["macro"]
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
    columns = [*results["findings"][0], *published, *(compared["macro"] if compared else ())]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def write_results(results: Dict[str, Any], output_dir: PathLike) -> List[Path]:
    """Write auc.json, auc.csv and auc.md, each whole or not at all, and return their paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    paths = [Path(output_dir) / name for name in OUTPUTS]
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_json(paths[0], results)
        write_text(paths[1], to_csv(results))
        write_text(paths[2], to_markdown(results))
    except OSError as err:
        raise InputError(f"{output_dir}: cannot be written to: {err}. Name another with --output_dir.") from err
    return paths


def _headline(results: Dict[str, Any]) -> str:
    return f"AUC-ROC on {results['num_images']:,} images of {results['num_patients']:,} patients."


def _table(results: Dict[str, Any]) -> List[List[str]]:
    """Return the cells of the main table: a header, a row a finding, the macro."""
    published = results["published"]["findings"]
    header = ["finding", "positives", "positive patients", "AUC", "95 % interval", "average precision", "prevalence"]
    rows = [[*header, *published]]
    for row in results["findings"]:
        cells = [row["finding"] + (" *" if FEW in row["notes"] else "")]
        cells += [f"{row['num_positives']:,}", f"{row['num_positive_patients']:,}", _shown(row["auc"]), _interval(row)]
        cells += [_shown(row["average_precision"]), _shown(row["prevalence"])]
        rows.append(cells + [_shown(values["auc"][row["finding"]]) for values in published.values()])
    overall, means = results["macro"], {row["model"]: row["auc"] for row in results["published"]["macro"]}
    label = f"macro over {overall['num_findings']} findings"
    cells = [label, "", "", _shown(overall["auc"]), _interval(overall), "", ""]
    return [*rows, cells + [_shown(means[model]) for model in published]]


def _comparison_table(comparison: Dict[str, Any]) -> List[List[str]]:
    rows = [["finding", "AUC a", "AUC b", "difference", "standard error", "z", "p"]]
    for row in [*comparison["findings"], {**comparison["macro"], "finding": "macro"}]:
        cells = [row["finding"], _shown(row["auc_a"]), _shown(row["auc_b"]), _shown(row["difference"], "+.3f")]
        cells += [_shown(row["se"], ".4f"), _shown(row["z"], "+.2f")]
        rows.append([*cells, "<0.001" if row["p"] is not None and row["p"] < 0.001 else _shown(row["p"])])
    return rows


def _notes(results: Dict[str, Any]) -> List[str]:
    notes = [f"Interval: {results['interval']}."]
    if any(FEW in row["notes"] for row in results["findings"]):
        notes.append(f"Findings marked * have {FEW}: the interval is a rough guess.")
    for row in [*results["findings"], {**results["macro"], "finding": "macro"}]:
        notes += [f"{row['finding']}: {note}." for note in row["notes"] if note != FEW]
    left_out = results["macro"]["findings_left_out"]
    if left_out:
        notes.append(f"Left out of the macro: {', '.join(left_out)}.")
    splits = "; ".join(f"{model}: {values['split']}" for model, values in results["published"]["findings"].items())
    if splits:
        notes.append(f"Published: {splits}. Not comparable unless the split is the same.")
    for letter, source in zip("ab", results["source"]):
        name = repr(source["file_name"])[1:-1].replace("`", "'")  # a hostile file name stays text in Markdown
        notes.append(f"Source {letter}: `{name}`, sha256 {source['sha256'][:16]}.")
    return notes


def _interval(row: Dict[str, Any]) -> str:
    return "undefined" if row["low"] is None else f"{_shown(row['low'])} to {_shown(row['high'])}"


def _shown(number: Optional[float], form: str = ".3f") -> str:
    return "undefined" if number is None else format(number, form)


def _aligned(rows: List[List[str]]) -> str:
    """Return cells in aligned columns: a header of two lines, rules, the last row set apart."""
    header = [cell.rpartition(" ") for cell in rows[0]]
    lines = [[above for above, _, _ in header], [below for _, _, below in header], *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    texts = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*texts[:2], rule, *texts[2:-1], rule, texts[-1]])


def _piped(rows: List[List[str]], num_left: int = 1) -> str:
    lines = [rows[0], ["---"] * num_left + ["---:"] * (len(rows[0]) - num_left), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
