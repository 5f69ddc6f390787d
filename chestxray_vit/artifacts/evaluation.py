"""The provenance of predictions: `evaluation.json` beside them says which run scored which data.

`evaluate` writes it; `report` reads it where the sha256 in it is that of the predictions. Paths are reduced to names,
since a report is sent to others."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence

from chestxray_vit.artifacts.train_config import read_train_config
from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.storage.atomic import PathLike, sha256
from chestxray_vit.storage.json_files import read_json, write_json
from chestxray_vit.storage.json_schema import conforms, list_of, object_of

logger = logging.getLogger(__name__)

FILE = "evaluation.json"
SCHEMA_VERSION = "1.0"  # 0.5.0 wrote none
OBJECT, STRING, INTEGER = {"type": "object"}, {"type": "string"}, {"type": "integer"}
COUNTS = object_of({"images": INTEGER, "patients": INTEGER, "positives": OBJECT})
INGESTED: Dict[str, Any] = {
    "package_version": STRING,
    "num_rows": INTEGER,
    "num_images": INTEGER,
    "left_out": OBJECT,
    "split": object_of({"method": STRING, "leaked_patients": INTEGER}),
    "splits": object_of({"train": COUNTS, "validation": COUNTS, "test": COUNTS}),
    "notices": list_of(STRING),
}
INGESTED_SCHEMA = object_of(INGESTED)
KEYS_OF_0_5_0 = {"drawn": "synthetic", "images an update": "global_batch_size", "learning rate": "learning_rate"}
SCHEMA = object_of(
    {
        "predictions_sha256": STRING,
        "split": STRING,
        "synthetic": {"type": "boolean"},
        "command": STRING,
        "versions": OBJECT,
        "checkpoint": OBJECT,
        "training": OBJECT,
        "data": OBJECT,
    }
)


class Source(NamedTuple):
    """A file of predictions, as a report names it: by its base name and what is in it."""

    file_name: str
    sha256: str


def source_of(path: PathLike) -> Source:
    """Return what a report says of a file of predictions."""
    return Source(Path(path).name, sha256(path))


class IngestedData(NamedTuple):
    """The data set that was scored: its metadata.jsonl, that file's sha256, its labels, whether it is synthetic."""

    metadata_path: Path
    sha256: str
    label_set: LabelSet
    is_synthetic: bool


def provenance(
    predictions_path: PathLike,
    split: str,
    command: Sequence[str],
    versions: Dict[str, str],
    run_dir: PathLike,
    data: IngestedData,
) -> Dict[str, Any]:
    """Return the content of evaluation.json.

    Args:
        predictions_path: the predictions, written.
        split: that they are of.
        command: the words of the command line.
        versions: of Python and the packages, by name.
        run_dir: holds the checkpoint and, if it is a run of ours, train_config.json.
        data: the data set; ingest_report.json lies beside its metadata.jsonl.
    """
    run_dir = Path(run_dir)
    config = _train_config(run_dir)
    return {
        "schema_version": SCHEMA_VERSION,
        "predictions_sha256": sha256(predictions_path),
        "split": split,
        "label_set": data.label_set.to_dict(),
        "synthetic": data.is_synthetic,
        "command": shlex.join([_name(word) for word in command]),
        "versions": versions,
        "checkpoint": _checkpoint(run_dir),
        "training": _training(config),
        "data": {
            "metadata_sha256": data.sha256,
            "trained_on_sha256": config.get("data", {}).get("metadata.jsonl"),
            **_ingested(data.metadata_path),
        },
    }


def _checkpoint(run_dir: Path) -> Dict[str, Optional[str]]:
    weights, ipu_config = run_dir / "model.safetensors", run_dir / "ipu_config.json"
    return {
        "run": run_dir.resolve().name,
        "sha256": sha256(weights) if weights.is_file() else None,
        "ipu_config_sha256": sha256(ipu_config) if ipu_config.is_file() else None,
    }


def _ingested(metadata_path: Path) -> Dict[str, Any]:
    """Return what of the data set's ingest_report.json a report shows; nothing if there is no such file of ours."""
    report = _read(metadata_path.with_name("ingest_report.json"))
    if report is None or not conforms(report, INGESTED_SCHEMA):
        return {}
    return {name: report[name] for name in INGESTED}


def write_provenance(path: PathLike, content: Dict[str, Any]) -> None:
    """Write evaluation.json, whole or not at all."""
    write_json(path, content)


def read_provenance(predictions_path: PathLike) -> Optional[Dict[str, Any]]:
    """Return what lies beside predictions, or None if there is nothing, or of other predictions (with a warning).

    Raises:
        InputError: the file is of another major schema_version.
    """
    path = Path(predictions_path).with_name(FILE)
    content = _read(path)
    if content is None:
        return None
    content = _with_current_names(content)
    major = str(content.get("schema_version", SCHEMA_VERSION)).partition(".")[0]
    if major != SCHEMA_VERSION.partition(".")[0]:
        raise InputError(
            f"{path}: schema_version is {content['schema_version']!r}, expected {SCHEMA_VERSION} or another of its "
            "major version. Report it with the version of chestxray_vit that wrote it, or evaluate again."
        )
    whole = conforms(content, SCHEMA) and (
        "splits" not in content["data"] or conforms(content["data"], INGESTED_SCHEMA)
    )
    if not whole or content["predictions_sha256"] != sha256(predictions_path):
        logger.warning("%s is not of %s, and left out of the report", path, Path(predictions_path).name)
        return None
    return content


def _with_current_names(content: Dict[str, Any]) -> Dict[str, Any]:
    """Return an evaluation.json with the names of 0.5.0's keys replaced by the current ones."""
    content = {KEYS_OF_0_5_0.get(name, name): value for name, value in content.items()}
    training = content.get("training")
    if isinstance(training, dict):
        content["training"] = {KEYS_OF_0_5_0.get(name, name): value for name, value in training.items()}
    return content


def _train_config(run_dir: Path) -> Dict[str, Any]:
    try:
        return read_train_config(run_dir) or {}
    except InputError:
        return {}


def _training(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return what of train_config.json a reader asks for first."""
    flags, arguments = config.get("flags", {}), config.get("training_arguments", {})
    if not config:
        return {}
    return {
        "start": "random weights" if flags.get("from_scratch") else _name(str(flags.get("model_name_or_path"))),
        "device": config.get("device"),
        "updates": config.get("updates"),
        "global_batch_size": config.get("global_batch", {}).get("global_batch_size"),
        "epochs": arguments.get("num_train_epochs"),
        "learning_rate": arguments.get("learning_rate"),
        "seed": arguments.get("seed"),
        "images": config.get("data", {}).get("images"),
        "versions": config.get("versions"),
    }


def _name(word: str) -> str:
    """Return a word of a command line, an absolute path as its last name."""
    head, equals, value = word.partition("=")
    if equals and head.startswith("--"):
        return f"{head}={_name(value)}"
    return os.path.basename(word.rstrip("/")) if os.path.isabs(word) else word


def _read(path: Path) -> Optional[Dict[str, Any]]:
    try:
        return read_json(path)
    except InputError:
        return None
