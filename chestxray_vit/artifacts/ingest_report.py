"""Read ingest_report.json, which lies beside metadata.jsonl and says what its rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet

REPORT = "ingest_report.json"


def read_label_set(metadata_path: Path) -> Optional[LabelSet]:
    """Return the label set of a metadata.jsonl as the report beside it names it.

    Releases up to 0.5.0 wrote the names alone, as `findings`.

    Returns:
        None where there is no report, or one that names no labels.

    Raises:
        InputError: the report cannot be read, or holds no label set.
    """
    path = metadata_path.with_name(REPORT)
    try:
        report: Any = json.loads(path.read_bytes())
        if not isinstance(report, dict):
            raise ValueError("no JSON object")
        if "label_set" in report:
            return LabelSet.from_dict(report["label_set"])
        names = report.get("findings", [])
        if not isinstance(names, list):
            raise ValueError("findings is no list")
        return LabelSet.of_names(names) if names else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}. Ingest the release again.") from error
