"""The numbers of one evaluation, computed once as the dict that is auc.json; every renderer shows them.

What is chosen or fitted (thresholds, recalibration) is chosen on the validation predictions and applied to those that
the report is of: chosen on the same images, it would be too optimistic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Union

from chestxray_vit import __version__
from chestxray_vit.artifacts.evaluation import Source
from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.reporting.columns import findings_only, with_columns_of
from chestxray_vit.reporting.published_aucs import caution, published_aucs
from chestxray_vit.reporting.schema import SCHEMA_VERSION
from chestxray_vit.reporting.sections.auc_table import INTERVALS, auc_table
from chestxray_vit.reporting.sections.calibration import calibration_table
from chestxray_vit.reporting.sections.comparison import comparison
from chestxray_vit.reporting.sections.curves import curves, mistakes
from chestxray_vit.reporting.sections.operating_points import operating_table
from chestxray_vit.reporting.sections.subgroups import subgroup_table


@dataclass(frozen=True, eq=False)  # predictions hold arrays, which have no single truth value
class ReportInputs:
    """What a report is made from.

    Attributes:
        predictions: of the run to report.
        validation: of the same run on other patients, to choose thresholds and fit recalibrations on.
        compare_with: of another run on the same images, in any order.
        sources: of `predictions`, then of `compare_with`.
        provenance: of `read_provenance`; no published value is shown beside synthetic images.
        localisation: of `read_localisation`.
    """

    predictions: Predictions
    validation: Optional[Predictions] = None
    compare_with: Optional[Predictions] = None
    sources: Sequence[Source] = ()
    provenance: Optional[Dict[str, Any]] = None
    localisation: Optional[Dict[str, Any]] = None


@dataclass(frozen=True)
class Options:
    """What a reader may choose.

    Attributes:
        interval: of AUCs, a key of INTERVALS.
        prevalence: at which PPV and NPV are given as well; None for none.
    """

    interval: str = "wald"
    prevalence: Optional[float] = None


def build_report(inputs: Union[ReportInputs, Predictions], options: Options = Options()) -> Dict[str, Any]:
    """Return the numbers of an evaluation: the content of auc.json, None where undefined.

    Args:
        inputs: what the report is made from; predictions alone are enough.
        options: the reader's.

    Raises:
        InputError: the predictions differ in labels, or the two runs in images, targets or patients.
    """
    inputs = _aligned(ReportInputs(inputs) if isinstance(inputs, Predictions) else inputs)
    predictions, validation, other = inputs.predictions, inputs.validation, inputs.compare_with
    is_synthetic = inputs.provenance is not None and bool(inputs.provenance["synthetic"])
    operating_points = None if validation is None else operating_table(predictions, validation, options.prevalence)
    label_set = predictions.label_set
    overall, rows = auc_table(predictions, options.interval)
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "sources": [source._asdict() for source in inputs.sources],
        "label_set": label_set.to_dict(),
        "num_images": len(predictions.file_names),
        "num_patients": len(set(predictions.patient_ids)),
        "caution": caution(label_set, is_synthetic),
        "interval": INTERVALS[options.interval],
        "macro": overall,
        "findings": rows,
        "published": published_aucs(label_set, is_synthetic),
        "comparison": None if other is None else comparison(predictions, other),
        "validation": None if validation is None else _validation(predictions, validation),
        "operating_points": operating_points,
        "calibration": calibration_table(predictions, validation),
        "subgroups": subgroup_table(predictions),
        "localisation": inputs.localisation,
        "mistakes": mistakes(predictions),
        "curves": curves(predictions, operating_points),
        "provenance": inputs.provenance,
    }


def _aligned(inputs: ReportInputs) -> ReportInputs:
    """Return inputs whose predictions all have the columns of the findings, in one order."""
    predictions, validation, other = findings_only(inputs.predictions), inputs.validation, inputs.compare_with
    if validation is not None:
        validation = with_columns_of(predictions, validation, "the validation predictions")
    if other is not None:
        other = with_columns_of(predictions, other, "the predictions to compare with")
    return dataclasses.replace(inputs, predictions=predictions, validation=validation, compare_with=other)


def _validation(predictions: Predictions, validation: Predictions) -> Dict[str, int]:
    """Return the size of what was chosen on, and how many of its patients are in the report too."""
    return {
        "num_images": len(validation.file_names),
        "num_patients": len(set(validation.patient_ids)),
        "shared_patients": len(set(validation.patient_ids).intersection(predictions.patient_ids)),
    }
