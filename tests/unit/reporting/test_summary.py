"""The AUC table: its numbers by slow versions, every face showing the same, nothing but numbers in the JSON."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from chestxray_vit import __version__
from chestxray_vit.artifacts.evaluation import source_of
from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.errors import InputError
from chestxray_vit.labels import FINDINGS
from chestxray_vit.metrics.roc_auc import compare, compare_macro, macro, obuchowski
from chestxray_vit.reporting.render.text import to_csv, to_markdown, to_text
from chestxray_vit.reporting.summary import OUTPUTS, Options, build_report, write_results
from chestxray_vit.storage.atomic import sha256


def drawn(seed=0, num_images=400, num_patients=100):
    random = np.random.default_rng(seed)
    patients = np.append(np.arange(num_patients), random.integers(0, num_patients, num_images - num_patients))
    targets_NL = (random.random((num_images, 14)) < 0.3).astype(int)
    scores_NL = np.round(np.clip(0.2 * targets_NL + 0.8 * random.random((num_images, 14)), 0, 1), 2)
    return table(targets_NL, scores_NL, patients)


def table(targets_NL, scores_NL, patients):
    num_images = len(targets_NL)
    names = [f"{image:04d}.png" for image in range(num_images)]
    unknown = [""] * num_images
    return Predictions(
        names, [str(patient) for patient in patients], [None] * num_images, unknown, unknown, targets_NL, scores_NL
    )


def edge_cases():
    """Six images of six patients: the first findings are one of each kind of trouble, the others are plain."""
    targets_NL = np.tile([[1, 1, 1, 0, 0, 0]], (14, 1)).T
    scores_NL = np.tile([[0.9, 0.8, 0.3, 0.4, 0.2, 0.1]], (14, 1)).T
    targets_NL[:, 0] = 0  # Atelectasis: no positive
    targets_NL[:, 1] = 1  # Cardiomegaly: no negative
    targets_NL[:, 2] = [1, 0, 0, 0, 0, 0]  # Effusion: one positive patient
    targets_NL[:, 3] = [0, 1, 1, 1, 1, 1]  # Infiltration: one negative patient
    scores_NL[:, 4] = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]  # Mass: perfect
    return table(targets_NL, scores_NL, range(6))


def shuffled(predictions, order):
    return Predictions(
        *([getattr(predictions, name)[row] for row in order] for name in ("file_names", "patient_ids")),
        *([getattr(predictions, name)[row] for row in order] for name in ("ages", "sexes", "views")),
        predictions.targets_NL[order],
        predictions.scores_NL[order],
    )


def slow_average_precision(targets, scores):
    """Sum over the distinct thresholds, from high to low, of (gain in recall) x precision."""
    total, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [target for target, score in zip(targets, scores) if score >= threshold]
        recall = sum(called) / sum(targets)
        total += (recall - last_recall) * sum(called) / len(called)
        last_recall = recall
    return total


def test_numbers_of_a_finding():
    predictions = drawn()
    results = build_report(predictions)
    assert (results["package_version"], results["num_images"], results["num_patients"]) == (__version__, 400, 100)
    assert [row["finding"] for row in results["findings"]] == list(FINDINGS)
    for row, targets_N, scores_N in zip(results["findings"], predictions.targets_NL.T, predictions.scores_NL.T):
        positive_patients = {patient for patient, target in zip(predictions.patient_ids, targets_N) if target}
        assert (row["num_images"], row["num_positives"]) == (400, sum(targets_N))
        assert row["num_positive_patients"] == len(positive_patients)
        assert row["prevalence"] == sum(targets_N) / 400
        assert row["auc"] == pytest.approx(roc_auc_score(targets_N, scores_N), abs=1e-12)
        assert row["average_precision"] == pytest.approx(slow_average_precision(targets_N, scores_N), abs=1e-12)
        estimate = obuchowski(targets_N, scores_N, predictions.patient_ids)
        assert (row["variance"], row["low"], row["high"]) == (estimate.variance, estimate.low, estimate.high)
        assert row["notes"] == []


def test_average_precision_by_hand():
    # ranked: positive, negative, positive: precision 1 at recall 1/2, 2/3 at recall 1; AP = 1/2 + 1/2 * 2/3 = 5/6
    predictions = table(np.tile([[1, 0, 1]], (14, 1)).T, np.tile([[0.9, 0.5, 0.1]], (14, 1)).T, range(3))
    row = build_report(predictions)["findings"][0]
    assert row["average_precision"] == pytest.approx(5 / 6)
    assert row["auc"] == 0.5


def test_macro_and_interval():
    predictions = drawn()
    results = build_report(predictions)
    estimate = macro(predictions.targets_NL, predictions.scores_NL, predictions.patient_ids)
    assert results["macro"] == {
        "auc": estimate.auc,
        "variance": estimate.variance,
        "low": estimate.low,
        "high": estimate.high,
        "num_findings": 14,
        "findings_left_out": [],
        "notes": [],
    }
    assert results["interval"] == "95 %, by patient (Obuchowski 1997), Wald, clipped to [0, 1]"


def test_trouble_is_told_in_plain_words():
    results = build_report(edge_cases())
    few = "fewer than 30 positive patients"
    rows = {row["finding"]: row for row in results["findings"]}
    assert rows["Atelectasis"]["notes"] == [few, "undefined: no positive"]
    assert rows["Cardiomegaly"]["notes"] == [few, "undefined: no negative"]
    assert rows["Effusion"]["notes"] == [few, "interval undefined: one positive patient"]
    assert rows["Infiltration"]["notes"] == [few, "interval undefined: one negative patient"]
    assert rows["Mass"]["notes"] == [few, "zero-width interval: not informative"]
    assert rows["Nodule"]["notes"] == [few]
    assert [rows[name]["auc"] for name in FINDINGS[:5]] == [None, None, 1.0, 0.0, 1.0]
    assert rows["Atelectasis"]["average_precision"] is None
    assert rows["Effusion"]["low"] is None
    assert results["macro"]["num_findings"] == 12
    assert results["macro"]["findings_left_out"] == ["Atelectasis", "Cardiomegaly"]
    assert results["macro"]["auc"] == pytest.approx((1 + 0 + 1 + 9 * 8 / 9) / 12)  # the plain ones: 8 of 9 pairs
    assert results["macro"]["low"] is None
    assert results["macro"]["notes"] == ["interval undefined: so is that of Effusion, Infiltration"]


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_all_undefined(num_images):
    predictions = table(np.zeros((num_images, 14), int), np.full((num_images, 14), 0.5), range(num_images))
    results = build_report(predictions, compare_with=predictions)
    assert results["macro"]["auc"] is None
    assert results["macro"]["notes"] == ["undefined: so is every finding"]
    assert results["comparison"]["macro"]["p"] is None
    text = to_text(results)
    assert re.search(r"^macro over 0 findings +undefined +undefined +0.738 +0.841$", text, re.MULTILINE)
    assert "nan" not in (text + to_markdown(results) + to_csv(results)).lower()
    json.dumps(results, allow_nan=False)


def test_published_values():
    published = build_report(drawn())["published"]
    wang, chexnet = published["findings"]["Wang 2017"], published["findings"]["CheXNet 2017"]
    assert (wang["split"], chexnet["split"]) == ("its own split", "undisclosed random split")
    assert (wang["auc"]["Atelectasis"], wang["auc"]["Infiltration"], wang["auc"]["Hernia"]) == (0.716, 0.609, 0.767)
    assert (chexnet["auc"]["Atelectasis"], chexnet["auc"]["Pneumothorax"]) == (0.8094, 0.8887)
    assert chexnet["auc"]["Hernia"] == 0.9164
    assert list(wang["auc"]) == list(chexnet["auc"]) == list(FINDINGS)
    aucs = {row["model"]: row["auc"] for row in published["macro"]}
    assert np.mean(list(wang["auc"].values())) == pytest.approx(aucs["Wang 2017"], abs=5e-4)
    assert np.mean(list(chexnet["auc"].values())) == pytest.approx(aucs["CheXNet 2017"], abs=5e-4)
    assert aucs["EVA-X B"] == 0.835
    assert len(published["macro"]) == 14
    assert all(row["split"] and row["source"] for row in published["macro"])


# Comparison


def test_comparison_matches_images_by_name():
    a, b = drawn(), drawn()
    scores_NL = np.round(0.7 * b.scores_NL + 0.3 * np.random.default_rng(1).random(b.scores_NL.shape), 3)
    b = table(b.targets_NL, scores_NL, b.patient_ids)
    results = build_report(a, compare_with=shuffled(b, np.random.default_rng(2).permutation(400)))
    for place, row in enumerate(results["comparison"]["findings"]):
        expected = compare(a.targets_NL[:, place], a.scores_NL[:, place], scores_NL[:, place], a.patient_ids)
        assert row["finding"] == FINDINGS[place]
        assert row["difference"] == pytest.approx(row["auc_a"] - row["auc_b"], abs=1e-12)
        assert row["auc_a"] == results["findings"][place]["auc"]
        assert row["auc_b"] == pytest.approx(roc_auc_score(b.targets_NL[:, place], scores_NL[:, place]), abs=1e-12)
        assert row["se"] == pytest.approx(math.sqrt(expected.variance))
        assert (row["z"], row["p"]) == (pytest.approx(expected.z), pytest.approx(expected.p))
    overall = results["comparison"]["macro"]
    expected = compare_macro(a.targets_NL, a.scores_NL, scores_NL, a.patient_ids)
    assert overall["auc_a"] == results["macro"]["auc"]
    assert overall["difference"] == pytest.approx(overall["auc_a"] - overall["auc_b"], abs=1e-12)
    assert (overall["z"], overall["p"]) == (pytest.approx(expected.z), pytest.approx(expected.p))


def test_comparison_of_a_run_with_itself():
    predictions = drawn()
    results = build_report(predictions, compare_with=shuffled(predictions, np.arange(400)[::-1]))
    for row in [*results["comparison"]["findings"], results["comparison"]["macro"]]:
        assert (row["difference"], row["se"], row["z"], row["p"]) == (0, 0, 0, 1)


def test_comparison_of_other_images_is_refused():
    a = drawn()
    b = drawn()
    b.targets_NL[3, 2] = 1 - b.targets_NL[3, 2]
    patients = [f"{patient}0" if row == 5 else patient for row, patient in enumerate(b.patient_ids)]
    names = ["other.png" if row == 7 else name for row, name in enumerate(b.file_names)]
    b = Predictions(names, patients, b.ages, b.sexes, b.views, b.targets_NL, b.scores_NL)
    with pytest.raises(InputError) as error:
        build_report(a, compare_with=b)
    for part in (
        "the two predictions files cannot be compared: 4 kinds of problems",
        "an image is in the first file only: 0007.png",
        "an image is in the second file only: other.png",
        "the targets of an image differ: 0003.png. Were both runs evaluated on one metadata.jsonl?",
        "the patient_id of an image differs: 0005.png: '5' and '50'",
    ):
        assert part in str(error.value)


# Faces


def every_result():
    other = drawn()
    other = table(other.targets_NL, np.round(other.scores_NL**2, 2), other.patient_ids)  # nearly the same ranking
    return [
        build_report(drawn()),
        build_report(drawn(), other),
        build_report(edge_cases()),
        build_report(edge_cases(), edge_cases()),
    ]


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


def test_p_values_are_adjusted_for_fourteen_findings():
    rows = every_result()[1]["comparison"]["findings"]
    ordered = sorted(row["p"] for row in rows)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 14 * ordered[0]))
    assert all(row["p_holm"] >= row["p"] for row in rows)


def test_interval_is_the_one_asked_for():
    table = drawn()
    wald, logit, drawn_again = (build_report(table, options=Options(kind)) for kind in ("wald", "logit", "bootstrap"))
    patients_N = np.array(table.patient_ids)
    for place in range(14):
        estimate = obuchowski(table.targets_NL[:, place], table.scores_NL[:, place], patients_N)
        odds = math.log(estimate.auc / (1 - estimate.auc))
        half = 1.959964 * math.sqrt(estimate.variance) / (estimate.auc * (1 - estimate.auc))
        expected = [1 / (1 + math.exp(-value)) for value in (odds - half, odds + half)]
        rows = [results["findings"][place] for results in (wald, logit, drawn_again)]
        assert [rows[0]["low"], rows[0]["high"]] == [estimate.low, estimate.high]
        assert [rows[1]["low"], rows[1]["high"]] == pytest.approx(expected, abs=1e-6)
        assert rows[2]["low"] == pytest.approx(estimate.low, abs=0.02) and rows[2]["low"] != rows[0]["low"]
        assert len({row["auc"] for row in rows}) == 1
    assert "logit" in logit["interval"] and "bootstrap" in drawn_again["interval"]


def test_operating_points_come_of_the_validation_predictions():
    test, validation = drawn(seed=1), drawn(seed=2)
    results = build_report(test, validation=validation, options=Options(prevalence=0.01))
    for place, row in enumerate(results["operating_points"]["findings"]):
        fpr, tpr, thresholds = roc_curve(validation.targets_NL[:, place], validation.scores_NL[:, place])
        point = row["points"]["youden"]
        assert point["threshold"] in thresholds[np.isclose(tpr - fpr, (tpr - fpr).max())]
        called = test.scores_NL[:, place] >= point["threshold"]
        targets = test.targets_NL[:, place] == 1
        assert point["true_positives"] == (called & targets).sum()
        sensitivity = (called & targets).sum() / targets.sum()
        specificity = (~called & ~targets).sum() / (~targets).sum()
        assert point["ppv_at"] == pytest.approx(
            sensitivity * 0.01 / (sensitivity * 0.01 + (1 - specificity) * 0.99), abs=1e-12
        )
        assert point["threshold"] in results["curves"][place]["thresholds"]
    assert results["validation"] == {"num_images": 400, "num_patients": 100, "shared_patients": 100}
    assert build_report(test)["operating_points"] is None


def test_mistakes_are_the_most_confident_ones():
    table = drawn(num_images=400)
    for place, row in enumerate(build_report(table)["mistakes"]):
        scores = dict(zip(table.file_names, table.scores_NL[:, place]))
        positives = {name for name, target in zip(table.file_names, table.targets_NL[:, place]) if target}
        missed = [image["score"] for image in row["misses"]]
        alarmed = [image["score"] for image in row["false_alarms"]]
        assert missed == sorted(scores[name] for name in positives)[:5]
        assert alarmed == sorted((scores[name] for name in set(scores) - positives), reverse=True)[:5]
        assert all(image["file_name"] in positives for image in row["misses"])


@pytest.mark.parametrize("results", every_result())
def test_text_shows_the_numbers_of_the_json(results):
    text = to_text(results)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    rows = [
        line for line in lines if re.match(rf"({'|'.join(FINDINGS)}|macro)( \*)?( over \d+ findings)? [+\-\d<u]", line)
    ]
    assert rows == expected_cells(results)
    assert max(map(len, text.splitlines())) <= 110
    assert lines[0] == f"AUC-ROC on {results['num_images']} images of {results['num_patients']} patients."
    assert lines[-1] == "Research use; labels mined from report text; one hospital."


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


@pytest.mark.parametrize("results", every_result())
def test_csv_holds_every_digit_of_the_json(results):
    rows = list(csv.DictReader(to_csv(results).splitlines()))
    assert [row["finding"] for row in rows] == [*FINDINGS, "macro"]
    compared = results["comparison"] or {"findings": [{}] * 14, "macro": {}}
    published = results["published"]["findings"]
    for cells, numbers, difference in zip(
        rows, [*results["findings"], results["macro"]], [*compared["findings"], compared["macro"]]
    ):
        expected = {**numbers, **difference}
        for name in ("num_positives", "num_positive_patients", "prevalence", "auc", "variance", "low", "high"):
            assert cells[name] == ("" if expected.get(name) is None else str(expected[name]))
        for name in ("auc_a", "auc_b", "difference", "se", "z", "p"):
            assert cells.get(name) == (
                None if name not in difference else str(expected[name] if expected[name] is not None else "")
            )
        assert cells["notes"] == "; ".join(expected["notes"])
        assert cells["Wang 2017"] == str(published["Wang 2017"]["auc"].get(cells["finding"], ""))


def test_faces_say_what_they_are_and_claim_no_more():
    for results in every_result():
        for face in (to_text(results), to_markdown(results)):
            words = " ".join(face.split())
            assert "Wang 2017: its own split; CheXNet 2017: undisclosed random split." in words
            assert "Not comparable unless the split is the same." in words
            assert "95 %, by patient (Obuchowski 1997)" in words
            assert "Research use" in words
            assert not re.search("diagnos|validated|nan\\b|infinity", words, re.IGNORECASE)
    assert "Findings marked * have fewer than 30 positive patients" in to_text(build_report(edge_cases()))
    assert "*" not in to_text(build_report(drawn()))


def test_headline_example():
    lines = to_text(build_report(edge_cases())).splitlines()
    assert lines[2:8] == [
        "                                   positive                       95 %    average               Wang  CheXNet",
        "finding                 positives  patients        AUC        interval  precision  prevalence   2017     2017",
        "-------------------------------------------------------------------------------------------------------------",
        "Atelectasis *                   0         0  undefined       undefined  undefined       0.000  0.716    0.809",
        "Cardiomegaly *                  6         6  undefined       undefined      1.000       1.000  0.807    0.925",
        "Effusion *                      1         1      1.000       undefined      1.000       0.167  0.784    0.864",
    ]


def test_written_files_hold_the_table_and_no_nan(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    source = tmp_path / "a`b|<script>.csv"
    source.write_text("bytes")
    results = build_report(edge_cases(), edge_cases(), source=[source_of(source)] * 2)
    paths = write_results(results, tmp_path / "new" / "report")
    assert [path.name for path in paths] == list(OUTPUTS)
    assert json.loads(paths[0].read_text(encoding="utf-8"), parse_constant=refuse) == results
    assert paths[1].read_text(encoding="utf-8") == to_csv(results)
    assert paths[4].read_text(encoding="utf-8") == to_markdown(results)
    assert results["source"] == [{"file_name": source.name, "sha256": sha256(source)}] * 2
    assert str(tmp_path) not in paths[0].read_text(encoding="utf-8")
    assert f"Source a: `a'b|<script>.csv`, sha256 {sha256(source)[:16]}." in to_markdown(results)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(OUTPUTS)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to: .* Name another with --output_dir"):
        write_results(build_report(edge_cases()), tmp_path / "file")


def test_no_published_value_stands_beside_drawn_xrays():
    results = build_report(drawn(), provenance={"drawn": True})
    assert results["published"] == {"macro": [], "findings": {}}
    for text in (to_text(results), to_markdown(results), to_csv(results)):
        assert "Wang" not in text
        assert "ublished" not in text
    for text in (to_text(results), to_markdown(results)):
        assert "say nothing of patients" in text
        assert "one hospital" not in text
