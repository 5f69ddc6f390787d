"""Run `ingest` on a release and read what it wrote."""

from __future__ import annotations

import json

from chestxray_vit.ingest import main
from chestxray_vit.labels import NIH_CHESTXRAY14

CSV = "Data_Entry_2017_v2020.csv"


# With --val_fraction 0.2 and seed 1337: patient 1 train, patient 2 validation, patient 3 test.
MINI_METADATA = [
    '{"file_name": "00000001_000.png", '
    '"labels": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "split": "train", '
    '"patient_id": "1", "age": 57, "sex": "M", "view": "PA", "follow_up": 0}',
    '{"file_name": "00000001_001.png", '
    '"labels": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], "split": "train", '
    '"patient_id": "1", "age": 58, "sex": "M", "view": "PA", "follow_up": 1}',
    '{"file_name": "00000003_000.png", '
    '"labels": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "split": "test", '
    '"patient_id": "3", "age": 80, "sex": "F", "view": "AP", "follow_up": 0}',
    '{"file_name": "00000002_000.png", '
    '"labels": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "split": "validation", '
    '"patient_id": "2", "age": 80, "sex": "M", "view": "PA", "follow_up": 0}',
    '{"file_name": "00000003_001.png", '
    '"labels": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0], "split": "test", '
    '"patient_id": "3", "age": 81, "sex": "F", "view": "PA", "follow_up": 1}',
]


def ingest(folder, *flags):
    return main([str(folder), "--val_fraction", "0.2", *map(str, flags)])


def written(folder, name):
    """Return the one file of a name that lies in a release or beside its images."""
    (path,) = (path for path in (folder / name, folder / "images" / name) if path.is_file())
    return path


def rows_of(folder):
    return [json.loads(line) for line in written(folder, "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def report_of(folder):
    path = written(folder, "ingest_report.json")
    assert path.parent == written(folder, "metadata.jsonl").parent
    return json.loads(path.read_text())


def splits_of(folder):
    return {row["file_name"].rpartition("/")[2]: row["split"] for row in rows_of(folder)}


def refusal(capsys, folder, *flags):
    """Return what is told of a release that is refused; an earlier run's files stay as they are."""
    earlier = [
        index / name for index in (folder, folder / "images") for name in ("metadata.jsonl", "ingest_report.json")
    ]
    for path in earlier:
        path.write_text("earlier")
    paths = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert ingest(folder, *flags) == 2
    assert [path.read_text() for path in earlier] == ["earlier"] * 4
    assert sorted(folder.rglob("*")) == paths
    for path in earlier:
        path.unlink()
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("error: ")
    return told


def positives(**counts):
    return {**dict.fromkeys(NIH_CHESTXRAY14.findings, 0), **counts}
