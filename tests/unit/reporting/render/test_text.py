"""Text and Markdown: they show the numbers of auc.json, and claim no more."""

from __future__ import annotations

import re

import pytest

from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.reporting.render.text import to_markdown, to_text
from tests.unit.reporting.examples import edge_cases, every_result, random_predictions, report_of

FINDINGS = NIH_CHESTXRAY14.names


def shown(number, form=".3f"):
    return "undefined" if number is None else format(number, form)


def expected_cells(results):
    """Return the rows of numbers that text and Markdown should show, in reading order."""
    wang, chexnet = (values["auc"] for values in results["published"]["findings"].values())
    rows = []
    for row in results["findings"]:
        interval = "undefined" if row["low"] is None else f"{shown(row['low'])} to {shown(row['high'])}"
        few = ["*"] if row["num_positive_patients"] < 30 else []
        counts = [f"{row['num_positives']:,}", f"{row['num_positive_patients']:,}"]
        numbers = [shown(row["auc"]), interval, shown(row["average_precision"]), shown(row["prevalence"])]
        rows.append(
            [row["finding"], *few, *counts, *numbers, shown(wang[row["finding"]]), shown(chexnet[row["finding"]])]
        )
    overall = results["macro"]
    interval = "undefined" if overall["low"] is None else f"{shown(overall['low'])} to {shown(overall['high'])}"
    rows.append([f"macro over {overall['num_findings']} findings", shown(overall["auc"]), interval, "0.738", "0.841"])
    if results["comparison"]:
        for row in [*results["comparison"]["findings"], {**results["comparison"]["macro"], "finding": "macro"}]:
            numbers = [
                shown(row["auc_a"]),
                shown(row["auc_b"]),
                shown(row["difference"], "+.3f"),
                shown(row["se"], ".4f"),
            ]
            ps = [row[name] for name in ("p", "p_holm") if name in row]
            ps = ["<0.001" if p is not None and p < 0.001 else shown(p) for p in ps]
            rows.append([row["finding"], *numbers, shown(row["z"], "+.2f"), *ps])
    return [" ".join(row) for row in rows]


@pytest.mark.parametrize("results", every_result())
def test_text_shows_the_numbers_of_the_json(results):
    text = to_text(results)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    rows = [
        line for line in lines if re.match(rf"({'|'.join(FINDINGS)}|macro)( \*)?( over \d+ findings)? [+\-\d<u]", line)
    ]
    assert rows == expected_cells(results)
    assert max(map(len, text.splitlines())) <= 110
    assert lines[0] == (
        "AUC-ROC for 14 findings of NIH ChestX-ray14, "
        f"on {results['num_images']} images of {results['num_patients']} patients."
    )
    assert " ".join(lines[-2:]) == (
        "For research use only. The labels were mined from the text of radiology reports, and all images come from one "
        "hospital."
    )


@pytest.mark.parametrize("results", every_result())
def test_markdown_shows_the_numbers_of_the_json(results):
    text = to_markdown(results)
    rows = [" ".join(line.replace("|", " ").split()) for line in text.splitlines() if re.match(r"\| \w", line)]
    expected = expected_cells(results)
    assert [row for row in rows if row.startswith((*FINDINGS, "macro"))] == expected
    for row in results["published"]["macro"]:
        assert f"| {row['model']} | {row['split']} | {row['source']} | {row['auc']:.3f} |" in text
    tables = re.findall(r"(?:^\|.*\|$\n)+", text, re.MULTILINE)
    assert len(tables) == (3 if results["comparison"] else 2)
    assert all(len({line.count("|") for line in lines.splitlines()}) == 1 for lines in tables)


def test_texts_say_what_they_are_and_claim_no_more():
    for results in every_result():
        for text in (to_text(results), to_markdown(results)):
            words = " ".join(text.split())
            assert "(Wang 2017: its own split; CheXNet 2017: undisclosed random split)" in words
            assert "They are comparable only if the split is the same." in words
            assert "95 %, by patient (Obuchowski 1997)" in words
            assert "For research use only" in words
            assert not re.search("diagnos|validated|nan\\b|infinity", words, re.IGNORECASE)
    assert "Findings marked * have fewer than 30 positive patients" in to_text(report_of(edge_cases()))
    assert "*" not in to_text(report_of(random_predictions()))


def test_headline_example():
    lines = to_text(report_of(edge_cases())).splitlines()
    assert lines[2:8] == [
        "                                   positive                       95 %    average               Wang  CheXNet",
        "finding                 positives  patients        AUC        interval  precision  prevalence   2017     2017",
        "-------------------------------------------------------------------------------------------------------------",
        "Atelectasis *                   0         0  undefined       undefined  undefined       0.000  0.716    0.809",
        "Cardiomegaly *                  6         6  undefined       undefined      1.000       1.000  0.807    0.925",
        "Effusion *                      1         1      1.000       undefined      1.000       0.167  0.784    0.864",
    ]
