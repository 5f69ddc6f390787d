"""ingest_report.json, which lies beside metadata.jsonl and says what its rows are and where they come from."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from chestxray_vit import __version__
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.storage.atomic import atomic_write_many, sha256, write_bytes
from chestxray_vit.storage.json_files import read_json, write_json

REPORT = "ingest_report.json"
REMEDY = "Ingest the release again."


def build_report(
    label_set: LabelSet, sources: Sequence[Path], metadata: Mapping[str, memoryview], facts: Mapping[str, Any]
) -> Dict[str, Any]:
    """Return what ingest_report.json holds.

    Args:
        label_set: of the labels' columns.
        sources: the files that were read.
        metadata: the bytes of the metadata, by its name.
        facts: `split` (method, fraction, seed, leaked patients), `num_rows`, `num_images`, `left_out`, `notices` and
            `splits` (images, patients and positives of each set).
    """
    return {
        "package_version": __version__,
        "label_set": label_set.to_dict(),
        "findings": list(label_set.names),  # where releases up to 0.5.0 look for them
        "sources": {path.name: sha256(path) for path in sources},
        "metadata": {name: hashlib.sha256(content).hexdigest() for name, content in metadata.items()},
        **facts,
    }


def write_with_metadata(metadata_path: Path, content: memoryview, report: Mapping[str, Any]) -> None:
    """Write metadata and its report: killed at any moment, this leaves no report of other metadata.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        with atomic_write_many((metadata_path, metadata_path.parent / REPORT)) as (metadata_aside, report_aside):
            write_bytes(metadata_aside, content)
            write_json(report_aside, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = "Make it writable, or name --output."
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}. {remedy}") from error


def read_label_set(metadata_path: Path) -> Optional[LabelSet]:
    """Return the label set of a metadata.jsonl as the report beside it names it.

    Releases up to 0.5.0 wrote the names alone, as `findings`.

    Returns:
        None where there is no report, or one that names no labels.

    Raises:
        InputError: the report cannot be read, or holds no label set.
    """
    path = metadata_path.with_name(REPORT)
    if not path.exists():
        return None
    report = read_json(path, REMEDY)
    try:
        if "label_set" in report:
            return LabelSet.from_dict(report["label_set"])
        names = report.get("findings", [])
        if not isinstance(names, list):
            raise ValueError("findings is no list")
        return LabelSet.of_names(names) if names else None
    except ValueError as error:
        raise InputError(f"{path}: {error}. {REMEDY}") from error


def table_text(report: Mapping[str, Any]) -> str:
    """Return the counts of a report as a table for a terminal."""
    splits = report["splits"]
    lines = [f"{'':<20}" + "".join(f"{name:>12}" for name in splits)]
    for what in ("images", "patients"):
        lines.append(f"{what:<20}" + "".join(f"{counts[what]:>12,}" for counts in splits.values()))
    for name in report["findings"]:
        lines.append(f"{name:<20}" + "".join(f"{counts['positives'][name]:>12,}" for counts in splits.values()))
    lines.append("")
    left_out = left_out_text(report["left_out"])
    lines.append(f"{report['num_rows']:,} rows, {report['num_images']:,} images kept; {left_out}")
    lines.extend(f"notice: {notice}" for notice in report["notices"])
    lines.extend(f"notice: the {name} set is empty" for name, counts in splits.items() if not counts["images"])
    leaked = report["split"]["leaked_patients"]
    lines.append(f"split: {report['split']['method']}; patients in more than one set: {leaked:,}")
    return "\n".join(lines)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return in words how many images were left out, and why."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "nothing was left out"
