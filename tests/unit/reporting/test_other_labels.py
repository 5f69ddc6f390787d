"""Reports for label sets other than NIH's: every renderer shows their names, as text, and nothing of NIH's."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import re

import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.reporting.render.html import label_of
from chestxray_vit.reporting.render.tables import markdown
from chestxray_vit.reporting.render.text import to_text
from chestxray_vit.reporting.schema import read_results, schema_text
from chestxray_vit.reporting.summary import Options
from chestxray_vit.reporting.write import texts
from chestxray_vit.storage.json_schema import mismatches
from tests.unit.reporting.examples import (
    OTHER_LABELS,
    other_labels,
    random_predictions,
    report_of,
    with_labels,
)

NAMES = list(OTHER_LABELS.names)


@pytest.fixture(scope="module")
def results():
    test, validation = other_labels(), other_labels(500)
    return report_of(test, compare_with=test, validation=validation, options=Options(prevalence=0.1))


@pytest.fixture(scope="module")
def files(results):
    return texts(results)


def test_every_section_has_the_labels_in_their_order(results):
    assert results["label_set"] == OTHER_LABELS.to_dict()
    sections = [results[name] for name in ("findings", "mistakes", "curves")]
    sections += [results[name]["findings"] for name in ("comparison", "operating_points", "calibration")]
    sections += [group["findings"] for part in results["subgroups"]["groupings"] for group in part["groups"]]
    assert all([row["finding"] for row in rows] == NAMES for rows in sections)
    assert results["macro"]["num_findings"] == 3
    assert results["published"] == {"macro": [], "findings": {}}
    assert mismatches(json.loads(json.dumps(results)), json.loads(schema_text())) == []


def test_text_shows_the_labels(results):
    text = to_text(results)
    lines = text.splitlines()
    assert lines[0] == "AUC-ROC for 3 findings of Ward <7> & co, on 400 images of 100 patients."
    for row in results["findings"]:
        assert any(line.startswith(row["finding"]) and f"{row['auc']:.3f}" in line for line in lines)
    assert "the number of findings, 3." in " ".join(text.split())


def test_markdown_shows_the_labels_as_text(files):
    for name in NAMES:
        assert f"\n| {markdown(name)} | " in files["auc.md"]
    assert r"\<b\>a\|b\</b\> \*x\* \_y\_" in files["auc.md"]
    tables = re.findall(r"(?:^\|.*\|$\n)+", files["auc.md"], re.MULTILINE)
    unescaped = [[len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()] for table in tables]
    assert len(tables) == 2 and all(len(set(counts)) == 1 for counts in unescaped)


def test_csv_files_hold_the_labels(files):
    assert [row["finding"] for row in csv.DictReader(files["auc.csv"].splitlines())] == [*NAMES, "macro"]
    rules = list(csv.DictReader(files["operating_points.csv"].splitlines()))
    assert [row["finding"] for row in rules] == [name for name in NAMES for _ in range(5)]
    groups = {row["finding"] for row in csv.DictReader(files["subgroups.csv"].splitlines())}
    assert groups == {*NAMES, "macro"}


def test_page_shows_the_labels_as_text(files):
    page = files["auc.html"]
    assert "<title>AUC report: 3 findings of Ward &lt;7&gt; &amp; co, 400 chest X-rays</title>" in page
    assert "<b>a|b</b>" not in page
    for name in NAMES:
        assert f'<th scope="row">{html.escape(label_of(name))}</th>' in page
        assert f"<figcaption><b>{html.escape(label_of(name))}</b>" in page
    assert page.count('<svg role="img"') == 2 + 2 * 3
    assert "$5$" in page  # matplotlib takes it for no formula


def test_nothing_is_said_of_nih_or_fourteen(files):
    for name, text in files.items():
        if name != "auc.schema.json":
            assert not re.search(r"NIH|Wang|CheXNet|ospital|14 (findings|labels)|ourteen|Hernia", text), name


def test_an_auc_json_of_other_labels_is_rendered_again(files, tmp_path):
    (tmp_path / "auc.json").write_text(files["auc.json"], encoding="utf-8")
    assert texts(read_results(tmp_path / "auc.json")) == files


def test_columns_are_matched_by_name():
    nih = random_predictions()
    order = [13, 0, 5, *range(1, 5), *range(6, 13)]
    names = LabelSet("shuffled", [NIH_CHESTXRAY14.names[index] for index in order])
    columns = {name: getattr(nih, name)[:, order] for name in ("targets_NL", "scores_NL")}
    shuffled = dataclasses.replace(nih, label_set=names, **columns)
    a, b = report_of(nih, compare_with=shuffled, validation=shuffled), report_of(nih, compare_with=nih, validation=nih)
    assert a == b
    first = report_of(shuffled)
    assert [row["finding"] for row in first["findings"]] == list(shuffled.label_set.names)
    assert {row["finding"]: row["auc"] for row in first["findings"]} == {
        row["finding"]: row["auc"] for row in b["findings"]
    }
    for model, published in b["published"]["findings"].items():
        assert first["published"]["findings"][model]["auc"] == published["auc"]


def test_the_column_of_the_negative_is_no_finding():
    with_negative = with_labels(random_predictions(), LabelSet("two", ("Mass", "Normal"), negative="Normal"))
    results = report_of(with_negative, validation=with_negative, compare_with=with_negative)
    assert results["label_set"] == {"name": "two", "names": ["Mass"], "kind": "multi_label", "negative": "Normal"}
    assert [row["finding"] for row in results["findings"]] == ["Mass"]
    assert results["macro"]["auc"] == results["findings"][0]["auc"]
    assert "1 finding of two, on" in to_text(results)


@pytest.mark.parametrize("what", ["validation", "compare_with"])
def test_predictions_of_other_labels_are_refused(what):
    with pytest.raises(
        InputError, match=r"predictions.* are of other labels. Expected Atelectasis.*; found Rib fracture"
    ):
        report_of(random_predictions(), **{what: other_labels()})
