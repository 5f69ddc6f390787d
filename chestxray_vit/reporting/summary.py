"""The numbers of one evaluation, made once as the dict that is auc.json; every face shows them and makes none.

What is chosen or fitted (thresholds, recalibration) comes of the validation predictions and is applied to those that
the report is of: chosen on the same images, it would flatter.

Shapes: N images, L = 14 findings in NIH's order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit import __version__
from chestxray_vit.artifacts.evaluation import Source
from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.artifacts.thresholds import operating_table
from chestxray_vit.errors import InputError
from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics.bootstrap import bootstrap, finding_intervals, macro_interval
from chestxray_vit.metrics.calibration import calibration_table
from chestxray_vit.metrics.ranking import average_precision, curve
from chestxray_vit.metrics.roc_auc import Estimate, Macro, logit_interval, macro, obuchowski
from chestxray_vit.metrics.subgroups import subgroup_table
from chestxray_vit.reporting.published_aucs import PUBLISHED
from chestxray_vit.reporting.render.html import to_html
from chestxray_vit.reporting.render.text import (
    FEW,
    FEW_PATIENTS,
    to_csv,
    to_markdown,
    to_operating_csv,
    to_subgroup_csv,
)
from chestxray_vit.reporting.sections import comparison
from chestxray_vit.storage.atomic import PathLike, atomic_write_many
from chestxray_vit.storage.json_files import to_json

OUTPUTS = ("auc.json", "auc.csv", "operating_points.csv", "subgroups.csv", "auc.md", "auc.html")
REPLICATES = 1000
INTERVALS = {
    "wald": "95 %, by patient (Obuchowski 1997), Wald, clipped to [0, 1]",
    "logit": "95 %, by patient (Obuchowski 1997), on the logit scale",
    "bootstrap": f"95 %, percentiles of {REPLICATES:,} bootstrap replicates of patients",
}
CAUTION = "Research use; labels mined from report text; one hospital."
DRAWN = "Drawn X-rays: these numbers show that the software works, and say nothing of patients."
MISTAKES, NUM_MISTAKES = ("misses", "false_alarms"), 5  # of each kind, a finding


@dataclass(frozen=True)
class Options:
    """What a reader may choose.

    Attributes:
        interval: of AUCs, one of INTERVALS.
        prevalence: at which PPV and NPV are given besides; None for none.
    """

    interval: str = "wald"
    prevalence: Optional[float] = None


def build_report(
    predictions: Predictions,
    compare_with: Optional[Predictions] = None,
    source: Sequence[Source] = (),
    validation: Optional[Predictions] = None,
    provenance: Optional[Dict[str, Any]] = None,
    localisation: Optional[Dict[str, Any]] = None,
    options: Options = Options(),
) -> Dict[str, Any]:
    """Return the numbers of an evaluation: the content of auc.json, None where undefined.

    Args:
        predictions: of the run to report.
        compare_with: of another run on the same images, in any order.
        source: of `predictions`, then of `compare_with`.
        validation: of the same run on other patients; thresholds and recalibration come of them.
        provenance: of `provenance.read_provenance`; beside a phantom's no published value stands.
        localisation: of `explain --boxes`.
        options: the reader's.

    Raises:
        InputError: the two runs differ in images, targets or patients.
    """
    targets_NL = predictions.targets_NL
    patients_N = np.unique(np.asarray(predictions.patient_ids, dtype=str), return_inverse=True)[1]
    overall, estimates = _estimates(targets_NL, predictions.scores_NL, patients_N, options.interval)
    findings = [
        _finding(finding, targets_NL[:, place], predictions.scores_NL[:, place], patients_N, estimates[place])
        for place, finding in enumerate(FINDINGS)
    ]
    operating = None if validation is None else operating_table(predictions, validation, options.prevalence)
    drawn = provenance is not None and provenance["drawn"]
    return {
        "package_version": __version__,
        "source": [file._asdict() for file in source],
        "num_images": len(predictions.file_names),
        "num_patients": len(np.unique(patients_N)),
        "caution": DRAWN if drawn else CAUTION,
        "interval": INTERVALS[options.interval],
        "macro": _macro(overall, findings),
        "findings": findings,
        "published": {"macro": [], "findings": {}} if drawn else PUBLISHED,
        "comparison": None if compare_with is None else comparison(predictions, compare_with),
        "validation": None if validation is None else _validation(predictions, validation),
        "operating_points": operating,
        "calibration": calibration_table(predictions, validation),
        "subgroups": subgroup_table(predictions),
        "localisation": localisation,
        "mistakes": _mistakes(predictions),
        "curves": _curves(predictions, operating),
        "provenance": provenance,
    }


def _estimates(
    targets_NL: np.ndarray, scores_NL: np.ndarray, patients_N: np.ndarray, interval: str
) -> Tuple[Macro, List[Estimate]]:
    """Return the macro and each finding's AUC, with the interval that was asked for."""
    if interval == "bootstrap":
        result = bootstrap(targets_NL, scores_NL, patients_N, REPLICATES)
        return macro_interval(result), list(finding_intervals(result))
    overall = macro(targets_NL, scores_NL, patients_N)
    estimates = [obuchowski(targets_N, scores_N, patients_N) for targets_N, scores_N in zip(targets_NL.T, scores_NL.T)]
    if interval == "wald":
        return overall, estimates
    overall = Macro(overall.auc, overall.variance, *logit_interval(overall), overall.num_findings)
    return overall, [Estimate(found.auc, found.variance, *logit_interval(found)) for found in estimates]


def _finding(
    finding: str, targets_N: np.ndarray, scores_N: np.ndarray, patients_N: np.ndarray, estimate: Estimate
) -> Dict[str, Any]:
    num_images, num_positives = len(targets_N), int(targets_N.sum())
    num_positive_patients = len(np.unique(patients_N[targets_N == 1]))
    num_negative_patients = len(np.unique(patients_N[targets_N == 0]))
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
        "average_precision": _defined(average_precision(targets_N, scores_N)),
        "notes": notes,
    }


def _macro(estimate: Macro, findings: List[Dict[str, Any]]) -> Dict[str, Any]:
    without_interval = [row["finding"] for row in findings if row["auc"] is not None and row["low"] is None]
    undefined = math.isnan(estimate.low) and without_interval
    notes = [f"interval undefined: so is that of {', '.join(without_interval)}"] if undefined else []
    return {
        **_numbers(estimate),
        "num_findings": estimate.num_findings,
        "findings_left_out": [row["finding"] for row in findings if row["auc"] is None],
        "notes": notes if estimate.num_findings else ["undefined: so is every finding"],
    }


def _numbers(estimate: Estimate) -> Dict[str, Optional[float]]:
    return {name: _defined(getattr(estimate, name)) for name in ("auc", "variance", "low", "high")}


def _defined(number: float) -> Optional[float]:
    """Return None for NaN: JSON has none."""
    return None if math.isnan(number) else float(number)


def _validation(predictions: Predictions, validation: Predictions) -> Dict[str, int]:
    """Return the size of what was chosen on, and how many of its patients are in the report too."""
    return {
        "num_images": len(validation.file_names),
        "num_patients": len(set(validation.patient_ids)),
        "shared_patients": len(set(validation.patient_ids).intersection(predictions.patient_ids)),
    }


def _mistakes(predictions: Predictions) -> List[Dict[str, Any]]:
    """Return for each finding the positives with the lowest scores and the negatives with the highest."""
    rows = []
    for finding, targets_N, scores_N in zip(FINDINGS, predictions.targets_NL.T, predictions.scores_NL.T):
        order = np.argsort(scores_N, kind="stable")
        misses = order[targets_N[order] == 1][:NUM_MISTAKES]
        alarms = order[targets_N[order] == 0][::-1][:NUM_MISTAKES]
        listed = {
            kind: [{"file_name": predictions.file_names[row], "score": float(scores_N[row])} for row in places.tolist()]
            for kind, places in zip(MISTAKES, (misses, alarms))
        }
        rows.append({"finding": finding, **listed})
    return rows


def _curves(predictions: Predictions, operating: Optional[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Return each finding's counts by threshold, those of its operating points among them."""
    rows = []
    for place, finding in enumerate(FINDINGS):
        points = operating["findings"][place]["points"].values() if operating else ()
        thresholds = [point["threshold"] for point in points if point is not None]
        targets_N, scores_N = predictions.targets_NL[:, place], predictions.scores_NL[:, place]
        rows.append({"finding": finding, **curve(targets_N, scores_N, thresholds)})
    return rows


def mistaken_images(results: Dict[str, Any]) -> List[str]:
    """Return the file names of all mistakes that a report lists."""
    return [image["file_name"] for row in results["mistakes"] for kind in MISTAKES for image in row[kind]]


def texts(results: Dict[str, Any], pictures: Optional[Dict[str, str]] = None) -> Dict[str, str]:
    """Return auc.json and its renderers as text, by the names of OUTPUTS.

    Args:
        results: of `build_report`.
        pictures: of the mistakes' images, by file name, of `thumbnails.thumbnails`; None to show none.
    """
    renderers = (
        to_json(results),
        to_csv(results),
        to_operating_csv(results),
        to_subgroup_csv(results),
        to_markdown(results),
        to_html(results, pictures),
    )
    return dict(zip(OUTPUTS, renderers))


def write_results(
    results: Dict[str, Any], output_dir: PathLike, pictures: Optional[Dict[str, str]] = None
) -> List[Path]:
    """Write auc.json and its renderers, all or none, and return their paths.

    Args:
        results, pictures: as `texts` takes them.
        output_dir: made if it is not there.

    Raises:
        InputError: the folder cannot be written to.
    """
    paths = [Path(output_dir) / name for name in OUTPUTS]
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with atomic_write_many(paths) as asides:
            for aside, text in zip(asides, texts(results, pictures).values()):
                aside.write_bytes(text.encode("utf-8"))
    except OSError as err:
        raise InputError(f"{output_dir}: cannot be written to: {err}. Name another with --output_dir.") from err
    return paths
