"""train_config.json: how a run was trained, on what, and how well; written last, it says that the run is whole.

`train` writes it; the model card and evaluation.json quote it. This is the one place that knows how earlier versions
named its fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from chestxray_vit.storage.atomic import PathLike
from chestxray_vit.storage.json_files import read_json, write_json

FILE = "train_config.json"
# Names until 0.5.0, by section -> today's.
RENAMED = {
    "global_batch": {
        "at_a_time": "micro_batch_size",
        "passes": "gradient_accumulation_steps",
        "copies": "num_replicas",
        "total": "global_batch_size",
    },
    "data": {"drawn": "synthetic"},
}


def read_train_config(run_dir: PathLike) -> Optional[Dict[str, Any]]:
    """Return the content of a run's train_config.json under today's names, or None where there is none.

    Raises:
        InputError: the file is no JSON object.
    """
    path = Path(run_dir, FILE)
    return with_current_names(read_json(path)) if path.is_file() else None


def with_current_names(content: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the content with the fields of version 0.5.0 renamed; other fields stay.

    >>> with_current_names({"data": {"drawn": True}, "updates": 8})
    {'data': {'synthetic': True}, 'updates': 8}
    """
    current = dict(content)
    for section, names in RENAMED.items():
        fields = current.get(section)
        if isinstance(fields, Mapping):
            current[section] = {names.get(name, name): value for name, value in fields.items()}
    return current


def write_train_config(run_dir: PathLike, content: Mapping[str, Any]) -> None:
    """Write train_config.json, whole or not at all; what JSON does not know is written as text."""
    write_json(Path(run_dir, FILE), json.loads(json.dumps(content, default=str)))
