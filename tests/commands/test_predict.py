"""The commands `predict` and `explain` with a run of another label set than NIH's."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit import explain, ingest, predict
from chestxray_vit.images.decode import read_grey
from chestxray_vit.labels import LabelSet
from chestxray_vit.metrics.operating_points import RULE_NAMES, RULES
from chestxray_vit.models.inference import open_run
from chestxray_vit.models.vit import build_from_scratch
from chestxray_vit.models.vit_size import ViTSize
from tests.conftest import write_release
from tests.unit.models.conftest import save_run

TINY = ViTSize(
    image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
THREE = LabelSet("three", ("Mass", "Pleural other/../edge", "No Finding"), negative="No Finding")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two findings and the negative."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("three") / "run"
    return save_run(folder, *build_from_scratch(TINY, THREE))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_scores_are_of_the_runs_own_findings(run, images, tmp_path):
    output = tmp_path / "scores.csv"
    assert predict.main([str(run), str(images), "--output", str(output), "--device", "cpu"]) == 0
    rows = list(csv.reader(output.read_text().splitlines()))
    assert rows[0] == ["file_name", "score_Mass", "score_Pleural other/../edge"]  # the negative is no finding
    opened = open_run(run, "cpu")
    for row in rows[1:]:
        pixels = opened.preprocess.pixels(read_grey(row[0]))
        with torch.no_grad():
            expected = torch.sigmoid(opened.vit(pixel_values=pixels[None]).logits[0, :2])
        assert [float(value) for value in row[1:]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_overlays_are_named_after_the_runs_own_findings(run, images, tmp_path, capsys):
    names = ["--finding", "Mass", "Pleural other/../edge"]
    out = tmp_path / "out"
    assert explain.main([str(run), str(images / "a.png"), "--output_dir", str(out), "--device", "cpu", *names]) == 0
    assert {path.name for path in out.iterdir()} == {"a.Mass.png", "a.Pleural other%2F..%2Fedge.png"}
    assert explain.main([str(run), str(images / "a.png"), "--finding", "Hernia"]) == 2
    assert "unknown: 'Hernia'. Known: Mass, Pleural other/../edge." in capsys.readouterr().err


def test_boxes_of_other_findings_are_left_out(run, tmp_path, capsys):
    release = write_release(tmp_path / "release")
    assert ingest.main([str(release), "--split", "official", "--val_fraction", "0.2"]) == 0
    header, boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,", tmp_path / "boxes.csv"
    rows = [f"00000003_000.png,{finding},1,2,300,400" for finding in ("Mass", "Effusion", "Nodule")]
    boxes.write_text("\n".join([header, *rows, ""]))
    arguments = [str(run), "--boxes", str(boxes), "--dataset_dir", str(release), "--device", "cpu"]
    assert explain.main([*arguments, "--output_dir", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "localisation.json").read_text())
    assert [row["finding"] for row in about["findings"]] == ["Mass"]
    assert about["boxes"]["findings_not_scored"] == ["Effusion", "Nodule"]
    assert (about["boxes"]["num_boxes"], about["all"]["num_cases"]) == (1, 1)
    assert "left out: boxes of findings that the run does not score: Effusion, Nodule" in capsys.readouterr().out
    boxes.write_text("\n".join([header, *rows[1:], ""]))
    assert explain.main(arguments) == 2
    assert "is of a finding that the run scores: Mass, Pleural other/../edge." in capsys.readouterr().err


def test_thresholds_of_other_findings_are_refused(run, images, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    names = ("Mass", "Pleural other/../edge")
    table = {name: dict.fromkeys(RULE_NAMES, 0.0) for name in names}
    content = {
        "chosen_on": {"file_name": "v.csv", "sha256": "0" * 64, "num_images": 1, "num_patients": 1},
        "call_positive_if": "score >= threshold",
        "rules": {rule.name: rule.title for rule in RULES},
    }
    arguments = [str(copy), str(images / "a.png"), "--output", str(tmp_path / "scores.csv"), "--device", "cpu"]
    (copy / "thresholds.json").write_text(json.dumps({**content, "thresholds": table}))
    assert predict.main(arguments) == 0
    header, row = csv.reader((tmp_path / "scores.csv").read_text().splitlines())
    assert (header[-1], row[-1]) == (f"called_positive_{RULE_NAMES[0]}", "Mass|Pleural other/../edge")
    del table["Mass"]
    (copy / "thresholds.json").write_text(json.dumps({**content, "thresholds": {**table, "Hernia": table[names[1]]}}))
    assert predict.main(arguments) == 2
    printed = capsys.readouterr().err
    assert "thresholds.json" in printed
    assert "Hernia" in printed
