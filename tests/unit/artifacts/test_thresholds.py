from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from chestxray_vit.artifacts.predictions import Predictions
from chestxray_vit.artifacts.thresholds import (
    choose_all,
    measure_all,
    read_thresholds,
    write_thresholds,
)
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.metrics.operating_points import (
    RULES,
    choose_each,
    measure,
)
from chestxray_vit.storage.atomic import sha256
from tests.unit.artifacts.test_predictions import random_predictions

FINDINGS = NIH_CHESTXRAY14.names
RULE = {rule.name: rule for rule in RULES}


@pytest.fixture
def path(tmp_path):
    """Return where a good thresholds.json is, written of predictions with one finding without positives."""
    source = tmp_path / "validation" / "predictions.csv"
    source.parent.mkdir()
    source.write_text("any bytes")
    predictions = random_predictions(40)
    predictions.targets_NL[:, 13] = 0
    predictions.scores_NL[:, 0] = np.random.default_rng(3).random(40) * 1e-300  # tiny, with all their digits
    write_thresholds(tmp_path / "thresholds.json", predictions, source)
    return tmp_path / "thresholds.json"


def changed(path, change):
    """Write the file again after `change` of its content, NaN and all."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_thresholds_come_back_to_the_last_bit(path):
    predictions = random_predictions(40)
    predictions.targets_NL[:, 13] = 0
    predictions.scores_NL[:, 0] = np.random.default_rng(3).random(40) * 1e-300
    read, expected = read_thresholds(path, FINDINGS), choose_all(predictions)
    assert read.table == expected
    assert (read.chosen_on.file_name, read.chosen_on.num_images) == ("predictions.csv", 40)
    assert read == write_thresholds(path, predictions, path.parent / "validation" / "predictions.csv")
    assert [list(row) for row in read.table.values()] == [list(RULE)] * 14
    assert 0 < read.table["Atelectasis"]["sensitivity_90"] < 1e-300
    assert read.table["Hernia"] == dict.fromkeys(RULE)


def test_the_file_has_the_documented_content(path):
    content = json.loads(path.read_text())
    assert list(content) == ["chosen_on", "call_positive_if", "rules", "thresholds"]
    digest = sha256(path.parent / "validation" / "predictions.csv")
    assert content["chosen_on"] == {
        "file_name": "predictions.csv",
        "sha256": digest,
        "num_images": 40,
        "num_patients": 20,
    }
    assert content["call_positive_if"] == "score >= threshold"
    assert content["rules"] == {rule.name: rule.title for rule in RULES}
    assert list(content["thresholds"]) == list(FINDINGS)
    assert content["thresholds"]["Hernia"]["youden"] is None
    assert path.stat().st_size < 6_000
    assert "NaN" not in path.read_text()


def test_order_byte_order_mark_and_whole_numbers_do_not_matter(path):
    expected = read_thresholds(path, FINDINGS)
    content = json.loads(path.read_text())
    content["thresholds"] = {finding: content["thresholds"][finding] for finding in reversed(FINDINGS)}
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    read = read_thresholds(path, FINDINGS)
    assert read == expected
    assert list(read.table) == list(FINDINGS)
    changed_to_1 = content["thresholds"]["Mass"]
    changed_to_1["youden"] = 1
    path.write_text(json.dumps(content))
    assert read_thresholds(path, FINDINGS).table["Mass"]["youden"] == 1


def threshold(value):
    def change(content):
        content["thresholds"]["Mass"]["youden"] = value

    return change


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


NOT_A_THRESHOLD = r"an entry is not a number in \[0, 1\] or null: thresholds.Mass.youden: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (threshold(1.5), NOT_A_THRESHOLD + r"1.5\. Give a thresholds.json as"),
        (threshold(-0.1), NOT_A_THRESHOLD + "-0.1"),
        (threshold(math.nan), NOT_A_THRESHOLD + "NaN"),
        (threshold(math.inf), NOT_A_THRESHOLD + "Infinity"),
        (threshold(True), NOT_A_THRESHOLD + "true"),
        (threshold("0.5"), NOT_A_THRESHOLD + '"0.5"'),
        (threshold([0.5]), NOT_A_THRESHOLD + "a list"),
        (threshold({"a": {"b": []}}), NOT_A_THRESHOLD + "an object"),
        (threshold(10**300), NOT_A_THRESHOLD + r"10{36}\.\.\."),
        (threshold("x" * 1000), NOT_A_THRESHOLD + r'"x{36}\.\.\.'),
        (drop("thresholds", "Mass"), "an entry is missing: thresholds.Mass"),
        (drop("thresholds", "Mass", "youden"), "an entry is missing: thresholds.Mass.youden"),
        (drop("thresholds"), "an entry is missing: thresholds"),
        (put("thresholds", value=[]), "an entry is not an object: thresholds: a list"),
        (put("thresholds", "Mass", value=None), "an entry is not an object: thresholds.Mass: null"),
        (
            put("thresholds", "No Finding", value={}),
            "an unknown entry: thresholds.No Finding. Expected only Atelectasis, ",
        ),
        (
            put("thresholds", "Mass", "f1", value=0.5),
            "an unknown entry: thresholds.Mass.f1. Expected only youden, sens",
        ),
        (drop("rules", "youden"), "an entry is missing: rules.youden"),
        (put("rules", "f1", value="best F1"), "an unknown entry: rules.f1"),
        (put("rules", "youden", value=3), "an entry is not a text: rules.youden: 3"),
        (put("rules", value=None), "an entry is not an object: rules: null"),
        (
            put("call_positive_if", value="score > threshold"),
            'an entry is not "score >= threshold": call_positive_if: "score > threshold"',
        ),
        (drop("call_positive_if"), "an entry is missing: call_positive_if"),
        (drop("chosen_on", "sha256"), "an entry is missing: chosen_on.sha256"),
        (put("chosen_on", "sha256", value="A" * 64), "an entry is not 64 hex digits: chosen_on.sha256"),
        (put("chosen_on", "sha256", value=10**63), "an entry is not 64 hex digits: chosen_on.sha256"),
        (put("chosen_on", "file_name", value=7), "an entry is not a text: chosen_on.file_name: 7"),
        (put("chosen_on", "num_images", value=True), "an entry is not a count: chosen_on.num_images: true"),
        (put("chosen_on", "num_images", value=2.0), "an entry is not a count: chosen_on.num_images: 2.0"),
        (put("chosen_on", "num_patients", value=-1), "an entry is not a count: chosen_on.num_patients: -1"),
    ],
)
def test_wrong_entries_are_refused_with_their_place(path, change, message):
    changed(path, change)
    with pytest.raises(InputError, match=message) as error:
        read_thresholds(path, FINDINGS)
    assert str(error.value).startswith(f"{path}: ")
    assert "kinds of problems" not in str(error.value)  # one change, one problem


def test_all_problems_come_at_once(path):
    changed(path, put("call_positive_if", value=None))
    changed(path, drop("thresholds", "Edema"))
    changed(path, put("thresholds", "Oedema", value={}))
    for finding in FINDINGS[:4]:
        changed(path, put("thresholds", finding, "youden", value=2))
    with pytest.raises(InputError) as error:
        read_thresholds(path, FINDINGS)
    message = str(error.value)
    assert "4 kinds of problems" in message
    assert 'an entry is not "score >= threshold": call_positive_if: null' in message
    assert "an entry is missing: thresholds.Edema" in message
    assert "an unknown entry: thresholds.Oedema" in message
    assert "null (4 times; the first 3: thresholds.Atelectasis.youden: 2; thresholds.Cardiomegaly.youden" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON in UTF-8: Expecting value"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{", "cannot be read as JSON in UTF-8: 'utf-8' codec"),
        (b"[" * 60_000, "cannot be read as JSON in UTF-8: maximum recursion depth"),
        (b"9" * 60_000, "expected an object, found 9999|cannot be read as JSON in UTF-8: Exceeds the limit"),
        (b"[1, 2]", "expected an object, found a list"),
        (b"null", "expected an object, found null"),
        (b'{"rules": 1, "rules": 2}', "a name stands twice in one object"),
        (b" " * 1_100_000, "it has more than 1,048,576 bytes. Give a thresholds.json"),
    ],
)
def test_other_files_are_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_thresholds(path, FINDINGS)
    assert str(error.value).count(str(path)) == 1


def test_no_file_is_refused(path):
    with pytest.raises(InputError, match="nowhere.json: there is no such file. Give a thresholds.json"):
        read_thresholds(path.parent / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_thresholds(path.parent)


def test_writing_refuses_what_it_cannot_reach(path):
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"cannot be made from .*nowhere.csv: .*Check both paths"):
        write_thresholds(path, random_predictions(), path.parent / "nowhere.csv")
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot be made from"):
        write_thresholds(path.parent / "nowhere" / "thresholds.json", random_predictions(), path)


# All findings


def test_all_findings_are_chosen_and_measured():
    validation, test = random_predictions(60, seed=1), random_predictions(40, seed=2)
    table = choose_all(validation)
    assert list(table) == list(FINDINGS)
    points = measure_all(test, table)
    for index, finding in enumerate(FINDINGS):
        chosen = choose_each(validation.targets_NL[:, index], validation.scores_NL[:, index])
        assert list(table[finding]) == list(chosen) == list(points[finding])
        for name, threshold in chosen.items():
            assert table[finding][name] == (None if math.isnan(threshold) else threshold)
            if not math.isnan(threshold):
                columns = test.targets_NL[:, index], test.scores_NL[:, index]
                assert points[finding][name] == measure(*columns, threshold, test.patient_ids)


def with_column(index, targets, scores):
    predictions = random_predictions(len(targets))
    predictions.targets_NL[:, index], predictions.scores_NL[:, index] = targets, scores
    return predictions


def test_what_is_undefined_is_none_in_a_table():
    one_class = with_column(4, [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])
    assert choose_all(one_class)["Mass"] == dict.fromkeys(RULE)
    assert measure_all(random_predictions(), choose_all(one_class))["Mass"] == dict.fromkeys(RULE)
    # the highest score of a negative is 1, and no probability is above
    saturated = choose_all(with_column(4, [1, 1, 0, 0], [0.1, 0.2, 0.3, 1.0]))["Mass"]
    assert saturated == {**dict.fromkeys(RULE), "sensitivity_90": 0.1, "sensitivity_95": 0.1}
    below = choose_all(with_column(4, [1, 1, 0, 0], [0.1, 0.2, 0.3, np.nextafter(1, 0)]))["Mass"]
    assert below["specificity_90"] == 1.0


def test_patients_of_predictions_are_told_apart_by_their_whole_id():
    predictions = random_predictions(6)
    long = dataclasses.replace(predictions, patient_ids=[f"{'0' * 40}{patient}" for patient in predictions.patient_ids])
    table = choose_all(predictions)
    assert measure_all(long, table) == measure_all(predictions, table)


def test_thresholds_of_other_labels(tmp_path):
    (tmp_path / "predictions.csv").write_text("any bytes")
    labels = LabelSet("two", ("Fracture", "Airspace opacity"))
    predictions = Predictions(
        ["a.png", "b.png"], ["1", "2"], [1, 2], ["F", "M"], ["PA"] * 2, np.eye(2), np.eye(2) * 0.5 + 0.1, labels
    )
    written = write_thresholds(tmp_path / "thresholds.json", predictions, tmp_path / "predictions.csv")
    assert read_thresholds(tmp_path / "thresholds.json") == written
    assert list(read_thresholds(tmp_path / "thresholds.json", labels.names[::-1]).table) == list(labels.names[::-1])
    assert written.table["Fracture"]["youden"] == 0.6
    with pytest.raises(InputError, match="an entry is missing: thresholds.Mass"):
        read_thresholds(tmp_path / "thresholds.json", [*labels.names, "Mass"])
    with pytest.raises(InputError, match="an unknown entry: thresholds.Fracture. Expected only Airspace opacity."):
        read_thresholds(tmp_path / "thresholds.json", labels.names[1:])
