"""The notebooks run as they stand: on synthetic data, and on the user's where the environment names them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from chestxray_vit.data.synthetic.release import draw_release
from chestxray_vit.labels import NIH_CHESTXRAY14

FINDINGS = NIH_CHESTXRAY14.names

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = ("grid", "counts", "loss", "forest", "predict")  # ids of the cells that show one


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Make `python3` this interpreter, offline, whatever kernels the machine has; return its working directory."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests, two threads of a tiny model only wait
    monkeypatch.delenv("DATASETS_DIR", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    return work


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def execute(notebook, directory):
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )
    client.execute()
    return {cell["id"]: cell.get("outputs", []) for cell in notebook.cells}


def printed(outputs) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def num_pictures(outputs) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_and_holds_no_outputs(path):
    notebook = read(path.stem)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert len(notebook.cells) <= 25
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert "\n# %pip install -r ../requirements.txt" in code[0]["source"]
    assert "def " not in "".join(cell["source"] for cell in code)  # what deserves a function belongs into the package


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_claims_no_clinical_use(path):
    text = "".join(cell["source"] for cell in read(path.stem).cells).lower()
    assert re.search(r"not:\*\* a medical device", text)
    assert "diagnos" not in text
    assert "validated" not in text


EPOCHS = "--num_train_epochs 24"


@pytest.mark.parametrize("epochs", [1, pytest.param(24, marks=pytest.mark.slow)])
def test_walkthrough_runs_on_synthetic_xrays(kernel, epochs):
    """As it stands where tests may take minutes, else with one epoch."""
    notebook = read("walkthrough")
    assert EPOCHS in notebook.cells[[cell["id"] for cell in notebook.cells].index("train")]["source"]
    for cell in notebook.cells:
        cell["source"] = cell["source"].replace(EPOCHS, f"--num_train_epochs {epochs}")
    outputs = execute(notebook, kernel)
    made = kernel / "walkthrough"
    assert [path.name for path in kernel.iterdir()] == ["walkthrough"]

    assert {name: num_pictures(outputs[name]) for name in PICTURES} == dict.fromkeys(PICTURES, 1)
    table = pd.read_csv(made / "test" / "auc.csv", index_col="finding")
    assert list(table.index) == [*FINDINGS, "macro"]
    report = json.loads((made / "test" / "auc.json").read_text())
    assert table.loc["macro", "auc"] == report["macro"]["auc"]
    assert epochs == 1 or 0.6 < report["macro"]["auc"] < 1  # it learned something: 0.5 is chance
    assert report["macro"]["num_findings"] == 14
    assert f"{table.loc['Edema', 'auc']:.3f}" in outputs["auc"][0]["data"]["text/plain"]
    scores = pd.read_csv(made / "scores.csv", index_col="file_name").filter(regex="^score_")
    assert scores.shape == (4, 14)
    assert ((scores > 0) & (scores < 1)).all(axis=None)
    assert (made / "run" / "model.safetensors").is_file()
    for name, cell in outputs.items():
        assert printed(cell).count("\n") < 45, f"{name} floods the page"
        assert "Traceback" not in printed(cell)


def test_walkthrough_opens_the_release_that_datasets_dir_names(kernel, monkeypatch, tmp_path):
    draw_release(tmp_path / "data" / "chest-xray-nihcc", num_patients=60, seed=7)
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "data"))
    notebook = read("walkthrough")
    ids = [cell["id"] for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index("train")]  # it would fetch a checkpoint from the Hub
    outputs = execute(notebook, kernel)
    assert "synthetic" not in printed(outputs["settings"])
    assert (tmp_path / "data" / "chest-xray-nihcc" / "images" / "metadata.jsonl").is_file()
    assert num_pictures(outputs["grid"]) == 1
    assert not (kernel / "walkthrough" / "release").exists()


def test_auc_report_runs_on_synthetic_predictions_and_reads_those_of_the_environment(kernel, monkeypatch):
    outputs = execute(read("auc_report"), kernel)
    check_auc_report(outputs, kernel)
    monkeypatch.setenv("PREDICTIONS", str(kernel / "auc_report" / "predictions.csv"))
    again = execute(read("auc_report"), kernel)
    assert again["numbers"][1]["data"] == outputs["numbers"][1]["data"]
    assert again["points"] == [] and again["comparison"] == []


def check_auc_report(outputs, kernel):
    results = json.loads((kernel / "auc_report" / "report" / "auc.json").read_text())
    assert f"macro AUC {results['macro']['auc']:.3f}" in printed(outputs["numbers"])
    edema = results["findings"][FINDINGS.index("Edema")]
    assert f"{edema['auc']:.3f}" in outputs["numbers"][1]["data"]["text/plain"]
    pictures = [output for name in ("forest", "curve") for output in outputs[name] if "image/svg+xml" in output["data"]]
    assert len(pictures) == 3
    point = results["operating_points"]["findings"][0]["points"]["youden"]
    assert f"{point['threshold']:.3f}" in outputs["points"][0]["data"]["text/plain"]
    assert results["comparison"]["macro"]["difference"] > 0  # the other run's scores are noisier
    assert (kernel / "auc_report" / "report" / "auc.html").is_file()
