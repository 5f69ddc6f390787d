"""The report command: table on stdout, its files beside, no torch, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from chestxray_vit import ingest
from chestxray_vit.artifacts.predictions import Predictions, write_predictions
from chestxray_vit.report import main
from chestxray_vit.reporting.write import OUTPUTS
from chestxray_vit.saliency.localisation import Case, localisation_report, score_map
from tests.conftest import MINI_ROWS


def write_run(path, seed, num_images=60):
    random = np.random.default_rng(0)
    targets_NL = (random.random((num_images, 14)) < 0.4).astype(int)
    scores_NL = np.clip(0.3 * targets_NL + 0.7 * np.random.default_rng(seed).random((num_images, 14)), 0, 1)
    names = [f"{image:04d}.png" for image in range(num_images)]
    patients = [str(image // 2) for image in range(num_images)]
    write_predictions(
        path,
        Predictions(names, patients, [50] * num_images, ["F"] * num_images, ["PA"] * num_images, targets_NL, scores_NL),
    )
    return path


def test_report_writes_beside_the_predictions(tmp_path, capsys):
    path = write_run(tmp_path / "predictions.csv", seed=1)
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "auc.json").read_text())
    line = next(line for line in printed.splitlines() if line.startswith("macro over 14 findings"))
    assert line.split()[4] == f"{results['macro']['auc']:.3f}"
    assert [line for line in printed.splitlines() if line.startswith("wrote ")] == [
        f"wrote {tmp_path / name}" for name in OUTPUTS
    ]
    assert results["sources"][0]["file_name"] == "predictions.csv"
    assert results["comparison"] is None
    assert results["num_patients"] == 30


def test_report_compares_two_runs(tmp_path, capsys):
    a, b = write_run(tmp_path / "a.csv", seed=1), write_run(tmp_path / "b.csv", seed=2)
    assert main([str(a), "--compare", str(b), "--output_dir", str(tmp_path / "report")]) == 0
    results = json.loads((tmp_path / "report" / "auc.json").read_text())
    assert results["comparison"]["macro"]["auc_a"] == results["macro"]["auc"]
    assert [source["file_name"] for source in results["sources"]] == ["a.csv", "b.csv"]
    assert f"{results['comparison']['macro']['difference']:+.3f}" in capsys.readouterr().out


def test_the_page_takes_the_score_on_boxes_in(tmp_path):
    hit = score_map(np.eye(8)[:1].repeat(8, axis=0), np.array([[0.0, 0, 128, 1024]]))
    score = localisation_report([Case("Mass", "a.png", "1", 1, hit)], ["Mass", "Nodule"], "gradient")
    (tmp_path / "localisation.json").write_text(json.dumps(score))
    path = write_run(tmp_path / "predictions.csv", seed=1)
    assert main([str(path), "--localisation", str(tmp_path / "localisation.json")]) == 0
    page = (tmp_path / "auc.html").read_text()
    body = page[page.index('id="localisation"') :].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = body.split("</tr>")[:-1]
    cells = [[re.sub("<.*?>", " ", cell).strip() for cell in re.findall("<td.*?</td>", row)] for row in rows]
    assert cells[0][:3] == ["1", "1", "100.0 %  20.7 % to 100.0 %"]  # Wilson of 1 of 1
    assert cells[1] == ["0", "0", "no image with a box"]
    assert cells[2] == cells[0]


def test_thumbnails_are_found_in_a_release_and_in_a_folder(mini_release, tmp_path):
    path = write_run(tmp_path / "predictions.csv", seed=1, num_images=4)
    lines = path.read_text().splitlines()
    names = [row.partition(",")[0] for row in MINI_ROWS[:4]]
    path.write_text("\n".join([lines[0], *(name + line[8:] for name, line in zip(names, lines[1:]))]) + "\n")
    assert ingest.main([str(mini_release)]) == 0
    pages = []
    for folder in (mini_release, mini_release / "images"):
        assert main([str(path), "--thumbnails", str(folder)]) == 0
        pages.append((tmp_path / "auc.html").read_text())
    assert pages[0] == pages[1]
    assert pages[0].count('<img src="data:image/jpeg') > 4


def test_an_auc_json_is_rendered_again_to_the_same_bytes(tmp_path, capsys):
    a, b = write_run(tmp_path / "predictions.csv", seed=1), write_run(tmp_path / "b.csv", seed=2)
    write_run(tmp_path / "predictions_validation.csv", seed=3)
    assert main([str(a), "--compare", str(b)]) == 0
    first = capsys.readouterr().out
    assert main([str(tmp_path / "auc.json"), "--output_dir", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == first.replace(f"wrote {tmp_path}", f"wrote {tmp_path / 'again'}")
    for name in OUTPUTS:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_auc_json_is_not_overwritten_nor_changed(tmp_path, capsys):
    assert main([str(write_run(tmp_path / "predictions.csv", seed=1))]) == 0
    path = tmp_path / "auc.json"
    before = path.read_bytes()
    assert main([str(path)]) == 2
    assert "auc.json: the report would overwrite it. Name another folder with --output_dir" in capsys.readouterr().err
    assert main([str(path), "--output_dir", str(tmp_path / "x"), "--prevalence", "0.1", "--interval", "wald"]) == 2
    message = "the numbers of an auc.json cannot be changed by --interval, --prevalence. Name the predictions.csv"
    assert message in capsys.readouterr().err
    path.write_text(path.read_text().replace('"schema_version": "1.0"', '"schema_version": "2.0"'))
    assert main([str(path), "--output_dir", str(tmp_path / "x")]) == 2
    assert "schema_version: found '2.0', expected 1.x" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    path.write_bytes(before)


def test_wrong_input_is_told_without_a_traceback(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.csv: there is no such file.")
    a, b = write_run(tmp_path / "a.csv", seed=1), write_run(tmp_path / "b.csv", seed=1, num_images=59)
    assert main([str(a), "--compare", str(b)]) == 2
    assert "an image is in the first file only: 0059.png" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv"]


@pytest.mark.parametrize("arguments", [["auc.csv"], ["other.csv", "--compare", "auc.csv"]])
def test_report_never_overwrites_its_input(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    path, _ = write_run(tmp_path / "auc.csv", seed=1), write_run(tmp_path / "other.csv", seed=1)
    before = path.read_bytes()
    assert main(arguments) == 2
    assert "auc.csv: the report would overwrite it" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_report_runs_without_torch(tmp_path):
    path = write_run(tmp_path / "predictions.csv", seed=1)
    script = (
        "import sys; from chestxray_vit.report import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], stdout=subprocess.DEVNULL).returncode == 0


def test_help_is_light():
    script = (
        "import runpy, sys; sys.argv = ['report', '--help']\n"
        "try: runpy.run_module('chestxray_vit.report', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'pandas', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode()
    for word in ("--compare", "--output_dir", "auc.json", "example: python -m chestxray_vit.report"):
        assert word in answer
