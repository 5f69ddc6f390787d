from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import TrainingArguments

from chestxray_vit import evaluate, ingest, predict, report
from chestxray_vit.artifacts import predictions, thresholds
from chestxray_vit.data import dataset as xrays
from chestxray_vit.images.preprocess import Preprocess
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models import vit as model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.reporting.write import OUTPUTS
from chestxray_vit.training.engines.base import predict_logits
from tests.helpers.engines import arguments_of, trainer_of
from tests.helpers.fork_server import contents
from tests.helpers.opens import count_opens

FINDINGS = NIH_CHESTXRAY14.names

TINY = ViTSize(
    image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)


def saved_model(folder, label_set=NIH_CHESTXRAY14):
    """Save a ViT whose head is drawn wide, so that its scores are far apart."""
    torch.manual_seed(3)
    vit, processor = model.build_from_scratch(TINY, label_set)
    torch.nn.init.normal_(vit.classifier.weight, std=0.5)
    vit.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("evaluate") / "run")


def logits_one_by_one(run, dataset):
    """Score a data set the slow way: one image at a time, through the checkpoint's own image processor."""
    from transformers import AutoImageProcessor

    vit, _ = model.load_model(run)
    processor = AutoImageProcessor.from_pretrained(run)
    rows = []
    for image in dataset["image"]:
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            rows.append(vit.eval()(pixel_values=pixels).logits[0].double().numpy())
    return np.array(rows)


def test_every_image_is_scored_once_in_order(run, synthetic_dataset, tmp_path):
    command = [str(run), "--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([*command, "--per_device_eval_batch_size", "7"]) == 0
    table = predictions.read_predictions(tmp_path / "predictions.csv")
    dataset = xrays.load_xrays(synthetic_dataset, "test")
    assert list(table.file_names) == dataset["file_name"][:]
    assert np.array_equal(table.targets_NL, xrays.targets_of(dataset))
    assert list(table.patient_ids) == [str(patient) for patient in dataset["patient_id"]]
    expected = 1 / (1 + np.exp(-logits_one_by_one(run, dataset)))
    assert np.abs(table.scores_NL - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 0.1  # else any order would have passed


@pytest.mark.parametrize("num_images", [1, 6, 7, 8, 13, 14, 15])
def test_no_row_is_lost_at_the_edges_of_a_batch(run, synthetic_dataset, tmp_path, num_images):
    vit, processor = model.load_model(run)
    dataset = xrays.load_xrays(synthetic_dataset).select(range(num_images))
    trainer = trainer_of(vit, processor, arguments_of(tmp_path, per_device_eval_batch_size=7))
    view = xrays.preprocessed(dataset, Preprocess(processor))
    logits = predict_logits(trainer, view, xrays.targets_of(dataset))
    assert logits.shape == (num_images, 14)
    assert np.abs(logits - logits_one_by_one(run, dataset)).max() < 1e-4


def test_rows_in_another_order_are_a_defect_not_an_auc(run, synthetic_dataset, tmp_path):
    vit, processor = model.load_model(run)
    dataset = xrays.load_xrays(synthetic_dataset, "test")
    trainer = trainer_of(vit, processor, arguments_of(tmp_path))
    view = xrays.preprocessed(dataset, Preprocess(processor))
    with pytest.raises(RuntimeError, match="in another order"):
        predict_logits(trainer, view, xrays.targets_of(dataset)[::-1])


def test_report_is_that_of_the_predictions(run, synthetic_dataset, tmp_path, capsys):
    assert evaluate.main([str(run), "--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"predictions.csv", "predictions_validation.csv", "evaluation.json", *OUTPUTS}
    macro = json.loads((tmp_path / "auc.json").read_text())["macro"]
    line = next(line for line in printed.splitlines() if line.startswith("macro"))
    assert f"{macro['auc']:.3f}" in line
    assert "Synthetic X-rays" in printed  # and no published value beside theirs
    assert "Wang" not in printed


def test_report_makes_the_same_page_of_what_evaluate_left(run, synthetic_dataset, tmp_path):
    assert evaluate.main([str(run), "--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "a")]) == 0
    assert report.main([str(tmp_path / "a" / "predictions.csv"), "--output_dir", str(tmp_path / "b")]) == 0
    for name in OUTPUTS:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    page = (tmp_path / "a" / "auc.html").read_text()
    assert "<img" not in page  # images are patients' data
    assert str(synthetic_dataset) not in page and str(tmp_path) not in page
    counts = json.loads((synthetic_dataset / "images" / "ingest_report.json").read_text())
    assert f"Of {counts['num_rows']:,} rows of the release" in page
    where = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "c"), "--thumbnails", "true"]
    assert evaluate.main([str(run), *where]) == 0
    assert (tmp_path / "c" / "auc.html").read_text().count('<img src="data:image/jpeg') > 14


def test_validation_images_are_scored_beside_and_thresholds_chosen_on_them(run, synthetic_dataset, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main([str(copy), "--dataset_dir", str(synthetic_dataset)]) == 0
    table = predictions.read_predictions(copy / "test" / "predictions_validation.csv")
    assert list(table.file_names) == xrays.load_xrays(synthetic_dataset, "validation")["file_name"][:]
    found = thresholds.read_thresholds(copy / "thresholds.json")
    assert found.table == thresholds.choose_all(table)
    assert found.chosen_on.num_images == len(table.file_names)


def test_predict_decides_by_the_thresholds_of_the_run(run, synthetic_dataset, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main([str(copy), "--dataset_dir", str(synthetic_dataset)]) == 0
    images = sorted((synthetic_dataset / "images").glob("*.png"))[:5]
    for rule in ("youden", "sensitivity_95"):
        where = ["--output", str(tmp_path / "scores.csv"), "--rule", rule]
        assert predict.main([str(copy), *map(str, images), *where]) == 0
        header, *lines = (tmp_path / "scores.csv").read_text().splitlines()
        assert header.endswith(f",called_positive_{rule}")
        table = thresholds.read_thresholds(copy / "thresholds.json").table
        for line in lines:
            _, *scores, called = line.split(",")
            limits = [table[finding][rule] for finding in FINDINGS]
            expected = [
                finding
                for finding, score, limit in zip(FINDINGS, scores, limits)
                if limit is not None and float(score) >= limit
            ]
            assert called.split("|") == (expected or [""])


def test_a_split_without_validation_is_evaluated_without_choices(mini_release, tmp_path):
    assert ingest.main([str(mini_release), "--val_fraction", "0"]) == 0
    copy = saved_model(tmp_path / "run")
    assert evaluate.main([str(copy), "--dataset_dir", str(mini_release)]) == 0
    assert not (copy / "thresholds.json").exists()
    assert json.loads((copy / "test" / "auc.json").read_text())["operating_points"] is None


def test_what_an_earlier_evaluation_left_goes_with_it(run, mini_release, tmp_path):
    """Else `report` would choose thresholds on another run's validation images."""
    assert ingest.main([str(mini_release), "--val_fraction", "0"]) == 0
    left = tmp_path / "predictions_validation.csv"
    left.write_text("of another run")
    evaluating = ["--dataset_dir", str(mini_release), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([str(run), *evaluating]) == 0
    assert not left.exists()


def test_no_memory_is_told_and_earlier_scores_stay(run, synthetic_dataset, tmp_path, capsys, monkeypatch):
    output = tmp_path / "scores"
    evaluating = [str(run), "--dataset_dir", str(synthetic_dataset), "--output_dir", str(output), "--device", "cpu"]
    assert evaluate.main(evaluating) == 0
    before = contents(output)
    monkeypatch.setattr("chestxray_vit.images.preprocess.GreyToPixelValues.channels", lambda *_: torch.empty(1 << 60))
    assert evaluate.main([*evaluating, "--per_device_eval_batch_size", "7"]) == 2
    told = capsys.readouterr().err
    assert "error: no memory for 7 images at once: lower --per_device_eval_batch_size." in told
    assert contents(output) == before


def test_default_output_is_the_splits_folder_in_the_run(run, synthetic_dataset, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main([str(copy), "--dataset_dir", str(synthetic_dataset), "--split", "validation"]) == 0
    assert (copy / "validation" / "predictions.csv").is_file()


def test_fifteenth_label_never_enters_the_table(mini_release, tmp_path):
    assert ingest.main([str(mini_release), "--include_no_finding"]) == 0
    run = saved_model(tmp_path / "run", NIH_CHESTXRAY14.with_negative_column())
    assert evaluate.main([str(run), "--dataset_dir", str(mini_release)]) == 0
    header = (run / "test" / "predictions.csv").read_text().splitlines()[0]
    assert header.count("score_") == 14
    assert "No Finding" not in header


def test_other_number_of_labels_is_refused(run, mini_release, capsys):
    assert ingest.main([str(mini_release), "--include_no_finding"]) == 0
    assert evaluate.main([str(run), "--dataset_dir", str(mini_release)]) == 2
    assert "scores 14 labels" in capsys.readouterr().err


def test_missing_data_set_is_refused(run, capsys):
    assert evaluate.main([str(run)]) == 2
    assert "--dataset_dir is missing" in capsys.readouterr().err


def test_predict_gives_the_scores_of_evaluate(synthetic_dataset, tmp_path):
    run = saved_model(tmp_path / "run")
    where = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path)]
    assert evaluate.main([str(run), *where, "--device", "cpu"]) == 0
    table = predictions.read_predictions(tmp_path / "predictions.csv")
    (run / "thresholds.json").unlink()
    images = [str(synthetic_dataset / "images" / name) for name in table.file_names]
    assert predict.main([str(run), *images, "--output", str(tmp_path / "scores.csv"), "--device", "cpu"]) == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == ",".join(["file_name", *(f"score_{finding}" for finding in FINDINGS)])
    scores = np.array([[float(value) for value in line.split(",")[1:]] for line in lines[1:]])
    assert np.abs(scores - table.scores_NL).max() < 1e-5


def test_predict_names_what_it_cannot_read(run, synthetic_release, tmp_path, capsys):
    good = next((synthetic_release / "images").iterdir())
    shutil.copy(good, tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("not an image, and not named like one")
    assert predict.main([str(run), str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert [line.split(",")[0].rpartition("/")[2] for line in printed.out.splitlines()] == ["file_name", "b.png"]
    assert "a.png: cannot be decoded" in printed.err
    assert "1 of 2 images have no score" in printed.err


def test_predict_refuses_a_folder_without_images(run, tmp_path, capsys):
    assert predict.main([str(run), str(tmp_path)]) == 2
    assert "no PNG or JPEG in this folder" in capsys.readouterr().err
    assert predict.main([str(run), str(tmp_path / "nowhere.png")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_two_processes_score_every_image_once(commands, run, synthetic_dataset, tmp_path):
    if not hasattr(TrainingArguments, "parallelism_config"):
        pytest.skip("needs transformers 5")
    words = [run, "--dataset_dir", synthetic_dataset, "--device", "cpu", "--output_dir", tmp_path]
    answer = commands.run("evaluate", *words, "--per_device_eval_batch_size", 7, processes=2)
    assert answer.code == 0, answer.printed[-2000:]
    table = predictions.read_predictions(tmp_path / "predictions.csv")
    dataset = xrays.load_xrays(synthetic_dataset, "test")
    assert list(table.file_names) == dataset["file_name"][:]
    expected = 1 / (1 + np.exp(-logits_one_by_one(run, dataset)))
    assert np.abs(table.scores_NL - expected).max() < 1e-5


def test_the_data_set_is_opened_once(run, synthetic_dataset, tmp_path):
    where = ["--dataset_dir", synthetic_dataset, "--output_dir", tmp_path / "out", "--device", "cpu"]
    for cache in ("first", "again"):  # built, then found
        opens, done = count_opens(
            "metadata.jsonl", ["chestxray_vit.evaluate", run, *where, "--cache_dir", tmp_path / "cache"]
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert opens == 1, cache
