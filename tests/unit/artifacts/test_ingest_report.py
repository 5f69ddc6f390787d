"""The report of an ingested release: what it holds, how it prints, and that the label set is read again."""

from __future__ import annotations

import json

from chestxray_vit.artifacts.ingest_report import build_report, read_label_set, table_text, write_with_metadata
from chestxray_vit.labels import LabelSet

TWO = LabelSet("two", ("Mass", "Nodule"), negative="Nothing")


def test_the_report_names_the_label_set(tmp_path):
    counts = {
        "train": {"images": 90, "patients": 30, "positives": {"Mass": 60, "Nodule": 30}},
        "validation": {"images": 1063, "patients": 21, "positives": {"Mass": 42, "Nodule": 21}},
        "test": {"images": 0, "patients": 0, "positives": {"Mass": 0, "Nodule": 0}},
    }
    facts = {
        "split": {"method": "patient", "leaked_patients": 0},
        "num_rows": 1160,
        "num_images": 1153,
        "left_out": {"image missing": 7},
        "notices": ["a notice"],
        "splits": counts,
    }
    (tmp_path / "source").write_bytes(b"abc")
    report = build_report(TWO, [tmp_path / "source"], {"metadata.jsonl": memoryview(b"abc")}, facts)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert report["label_set"] == {
        "name": "two",
        "names": ["Mass", "Nodule"],
        "kind": "multi_label",
        "negative": "Nothing",
    }
    assert (report["findings"], report["sources"], report["metadata"]) == (
        ["Mass", "Nodule"],
        {"source": sha256},
        {"metadata.jsonl": sha256},
    )
    assert table_text(report).splitlines() == [
        "                           train  validation        test",
        "images                        90       1,063           0",
        "patients                      30          21           0",
        "Mass                          60          42           0",
        "Nodule                        30          21           0",
        "",
        "1,160 rows, 1,153 images kept; 7 image missing",
        "notice: a notice",
        "notice: the test set is empty",
        "split: patient; patients in more than one set: 0",
    ]
    assert read_label_set(tmp_path / "metadata.jsonl") is None
    write_with_metadata(tmp_path / "metadata.jsonl", memoryview(b"abc"), report)
    assert (tmp_path / "metadata.jsonl").read_bytes() == b"abc"
    assert json.loads((tmp_path / "ingest_report.json").read_text()) == report
    assert read_label_set(tmp_path / "metadata.jsonl") == TWO
