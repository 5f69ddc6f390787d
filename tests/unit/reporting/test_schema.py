"""auc.json and its JSON Schema: every kind of report conforms, a typo does not, and a report is rendered again."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from chestxray_vit.artifacts.evaluation import Source
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.reporting.schema import SCHEMA_VERSION, read_results, schema_text
from chestxray_vit.reporting.summary import Options
from chestxray_vit.reporting.write import texts
from chestxray_vit.saliency.localisation import Case, localisation_report, score_map
from chestxray_vit.storage.json_schema import mismatches
from tests.unit.reporting.examples import edge_cases, random_predictions, report_of

FINDINGS = NIH_CHESTXRAY14.names

SCHEMA = json.loads(schema_text())
SOURCE = Source("predictions.csv", "0" * 64)
COUNTS = {"images": 3, "patients": 2, "positives": {"Mass": 1}}
PROVENANCE = {
    "predictions_sha256": "0" * 64,
    "split": "test",
    "synthetic": True,
    "command": "python -m chestxray_vit.evaluate run",
    "versions": {"torch": "2"},
    "checkpoint": {"run": "run", "sha256": None, "ipu_config_sha256": None},
    "training": {},
    "data": {
        "metadata_sha256": "0" * 64,
        "trained_on_sha256": None,
        "package_version": "0.5.0",
        "num_rows": 9,
        "num_images": 9,
        "left_out": {"unreadable": 1},
        "split": {"method": "official", "leaked_patients": 0, "seed": 1},
        "splits": dict.fromkeys(("train", "validation", "test"), COUNTS),
        "notices": ["one image is square"],
    },
}


def localisation():
    hit = score_map(np.eye(8)[:1].repeat(8, axis=0), np.array([[0.0, 0, 128, 1024]]))
    report = localisation_report([Case("Mass", "a.png", "1", 1, hit)], ["Mass", "Nodule"], "gradient")
    return json.loads(json.dumps(report))


def one_class():
    """Return predictions on which no threshold can be chosen and no recalibration fitted."""
    predictions = edge_cases()
    predictions.targets_NL[:] = 0
    return predictions


def everything():
    test = random_predictions(seed=1)
    inputs = {"validation": random_predictions(seed=2), "localisation": localisation(), "provenance": PROVENANCE}
    return report_of(test, test, Options(prevalence=0.01), sources=[SOURCE, SOURCE], **inputs)


def undefined():
    return report_of(edge_cases(), compare_with=edge_cases(), validation=edge_cases())


def nothing_to_choose():
    return report_of(random_predictions(), validation=one_class(), options=Options(prevalence=0.5))


KINDS = {
    "bare": lambda: report_of(random_predictions(), sources=[SOURCE]),
    "validation": lambda: report_of(random_predictions(), validation=random_predictions(seed=2)),
    "comparison": lambda: report_of(random_predictions(), compare_with=random_predictions()),
    "localisation": lambda: report_of(random_predictions(), localisation=localisation()),
    "everything": everything,
    "undefined": undefined,
    "nothing to choose": nothing_to_choose,
    "bootstrap": lambda: report_of(edge_cases(), options=Options("bootstrap")),
    "logit": lambda: report_of(edge_cases(), options=Options("logit")),
    "synthetic": lambda: report_of(edge_cases(), provenance=PROVENANCE),
    "sparse provenance": lambda: report_of(edge_cases(), provenance={**PROVENANCE, "synthetic": False, "data": {}}),
}


@functools.lru_cache(maxsize=None)
def report_text(kind):
    """Return the auc.json of a kind of report."""
    return json.dumps(KINDS[kind](), allow_nan=False)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("kind", KINDS)
def test_every_report_conforms_to_the_schema(validator, kind):
    content = json.loads(report_text(kind))
    assert content["schema_version"] == SCHEMA_VERSION
    assert [error.message for error in validator.iter_errors(content)] == []
    assert mismatches(content, SCHEMA) == []  # by our own reader too


def changed(path, value=None):
    """Return a report with one value changed, or removed where it is `...`."""
    content = json.loads(report_text("validation"))
    *parents, last = path
    inner = content
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


POINT = ("operating_points", "findings", 0, "points", "youden")
TYPOS = [
    (("num_image",), 1),
    (("macro", "acu"), 0.5),
    (("findings", 0, "num_positive"), 1),
    (("label_set", "name_"), "x"),
    (("published", "finding"), {}),
    (("operating_points", "rules", "sensitivity_80"), "x"),
    ((*POINT, "ppvat"), 0.5),
    ((*POINT, "sensitivity", "n"), 1),
    (("calibration", "findings", 0, "bins", 0, "n"), 1),
    (("calibration", "findings", 0, "platt", "n"), 1),
    (("subgroups", "groupings", 0, "groups", 0, "findings", 0, "n"), 1),
    (("mistakes", 0, "misses", 0, "n"), 1),
    (("curves", 0, "threshold"), []),
    (("validation", "n"), 1),
]
WRONG = [
    (("num_images",), -1),
    (("num_images",), "9"),
    (("macro", "auc"), 1.5),
    (("findings", 0, "auc"), "0.5"),
    (("findings", 0, "auc"), ...),
    (("label_set", "kind"), "many"),
    (("label_set", "names"), []),
    (("schema_version",), "2.0"),
    (("schema_version",), ...),
    (("subgroups",), None),
    (("curves", 0, "true_positives", 0), 0.5),
]


@pytest.mark.parametrize(("path", "value"), [*TYPOS, *WRONG])
def test_the_schema_refuses_typos_and_wrong_values(validator, path, value):
    assert not validator.is_valid(changed(path, value))
    assert mismatches(changed(path, value), SCHEMA)


def test_every_field_has_a_description():
    def check(schema, path):
        for name, part in schema.get("properties", {}).items():
            assert part.get("description"), (*path, name)
            check(part, (*path, name))
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                check(schema[key], (*path, key))

    check(SCHEMA, ())
    for name, part in SCHEMA["$defs"].items():
        check(part, (name,))


# An auc.json is rendered again


@pytest.mark.parametrize("kind", ["bare", "everything", "undefined", "sparse provenance"])
def test_a_report_read_again_renders_to_the_same_bytes(tmp_path, kind):
    written = texts(KINDS[kind]())
    (tmp_path / "auc.json").write_text(written["auc.json"], encoding="utf-8")
    assert texts(read_results(tmp_path / "auc.json")) == written


def refused(tmp_path, content):
    path = tmp_path / "auc.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("version", "found"), [("2.0", "'2.0'"), ("0.9", "'0.9'"), (None, "none"), (1, "1"), ("", "''")]
)
def test_other_major_versions_are_refused_with_a_remedy(tmp_path, version, found):
    content = changed(("schema_version",), version)
    message = refused(tmp_path, content)
    assert f"schema_version: found {found}, expected 1.x. Make the report again from its predictions.csv" in message


def test_an_auc_json_of_0_5_0_is_refused_with_a_remedy(tmp_path):
    content = changed(("schema_version",), ...)
    assert "schema_version: found none, expected 1.x" in refused(tmp_path, content)


def test_a_later_minor_version_may_hold_more(tmp_path):
    content = {**json.loads(report_text("bare")), "schema_version": "1.7", "net_benefit": []}
    (tmp_path / "auc.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "auc.json") == content
    assert "num_images: found -1, expected a whole number >= 0" in refused(tmp_path, {**content, "num_images": -1})


@pytest.mark.parametrize(("path", "value"), [case for case in [*TYPOS, *WRONG] if case[0] != ("schema_version",)])
def test_a_report_that_does_not_conform_is_refused(tmp_path, path, value):
    assert "not as auc.schema.json describes it: " in refused(tmp_path, changed(path, value))


def test_sections_of_other_findings_are_refused(tmp_path):
    content = changed(("curves", 1, "finding"), "Fracture")
    assert "the findings are not those of label_set: curves: Atelectasis, Fracture" in refused(tmp_path, content)
    content = changed(("label_set", "names"), [*FINDINGS[:-1], FINDINGS[0]])
    assert "label_set holds no label set: label 'Atelectasis' is named twice" in refused(tmp_path, content)
    content = changed(("mistakes",), json.loads(report_text("bare"))["mistakes"][:-1])
    assert "mistakes: Atelectasis" in refused(tmp_path, content)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema_version": NaN}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "auc.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"Give an auc.json as chestxray_vit.report writes it"):
        read_results(path)
