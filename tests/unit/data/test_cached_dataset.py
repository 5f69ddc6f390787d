from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, ViTImageProcessor

from chestxray_vit import evaluate, train
from chestxray_vit.artifacts.predictions import read_predictions
from chestxray_vit.data import cached_dataset as pixels
from chestxray_vit.data.cached_dataset import CachedXrays, open_cache
from chestxray_vit.data.dataset import collate, load_xrays, open_dataset, preprocessed, targets_of
from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
from chestxray_vit.models.vit import build_model
from chestxray_vit.training.engines.base import predict_logits
from tests.helpers.engines import arguments_of, trainer_of
from tests.helpers.training import TINY, losses, trained

HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def processor(mean, std, size=64):
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std, resample=2)


def test_cached_rows_are_those_of_the_data_set(synthetic_dataset, tmp_path):
    preprocess = Preprocess(processor(*IMAGENET))
    xrays = load_xrays(synthetic_dataset, "train")
    cached = CachedXrays(xrays, open_cache(open_dataset(synthetic_dataset), preprocess, str(tmp_path), False))
    plain = preprocessed(xrays, preprocess)
    to_pixel_values = GreyToPixelValues(preprocess)
    indices = [7, 0, 100, 7]
    expected = collate([plain[index] for index in indices])
    for batch in (cached.__getitems__(indices), collate([cached[index] for index in indices])):
        assert batch["pixel_values"].dtype == torch.uint8
        assert torch.allclose(to_pixel_values(batch["pixel_values"]), expected["pixel_values"], rtol=0, atol=1e-6)
        assert torch.equal(batch["labels"], expected["labels"])
    assert len(cached) == len(xrays)
    again = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) < 100_000  # where the planes are, not what they are
    assert torch.equal(again[3]["pixel_values"], cached[3]["pixel_values"])


def test_the_metadata_is_not_read_again(synthetic_dataset, tmp_path, monkeypatch):
    dataset = open_dataset(synthetic_dataset)
    monkeypatch.setattr("chestxray_vit.artifacts.metadata.open_metadata", None)
    monkeypatch.setattr("chestxray_vit.data.dataset.open_metadata", None)
    cache = open_cache(dataset, Preprocess(processor(*HALF)), str(tmp_path), False)
    assert cache.file_names == sorted(dataset.file_names)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_takes_whole_batches(synthetic_dataset, tmp_path, workers):
    xrays = load_xrays(synthetic_dataset, "test")
    cached = CachedXrays(
        xrays, open_cache(open_dataset(synthetic_dataset), Preprocess(processor(*HALF)), str(tmp_path), False)
    )
    batches = list(DataLoader(cached, batch_size=8, collate_fn=collate, num_workers=workers))
    assert np.array_equal(torch.cat([batch["labels"] for batch in batches]), targets_of(xrays))
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches])[9], cached[9]["pixel_values"])


def test_training_by_the_cache_is_training_without(synthetic_dataset, tmp_path):
    steps = ["--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
    without = trained(synthetic_dataset, tmp_path / "without", *steps, "--cache_dir", "none")
    cached = trained(synthetic_dataset, tmp_path / "cached", *steps, "--cache_dir", str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert losses(cached) == pytest.approx(losses(without), abs=1e-5)


def test_augmented_training_differs_and_evaluation_does_not_change_images(synthetic_dataset, tmp_path):
    steps = ["--logging_steps", "1", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    steps += ["--cache_dir", str(tmp_path / "cache")]
    plain = trained(synthetic_dataset, tmp_path / "plain", *steps)
    augmented = trained(synthetic_dataset, tmp_path / "augmented", *steps, "--augment")
    assert losses(augmented)[0] != losses(plain)[0]
    assert losses(augmented)[0] == pytest.approx(losses(plain)[0], abs=0.05)
    macros = []
    for name in ("first", "second"):
        where = ["--dataset_dir", str(synthetic_dataset), "--device", "cpu", "--output_dir", str(tmp_path / name)]
        assert evaluate.main([str(augmented), *where, "--cache_dir", str(tmp_path / "cache")]) == 0
        macros.append(json.loads((tmp_path / name / "auc.json").read_text())["macro"])
    assert macros[0] == macros[1]


def test_real_logits_are_the_same_by_the_cache(real_release, deit_tiny, tmp_path):
    dataset = tmp_path / "release"
    (dataset / "images").mkdir(parents=True)
    from chestxray_vit import ingest

    for path in sorted((real_release / "images").glob("*.png"))[:24]:
        shutil.copy(path, dataset / "images")
    arguments = ["--csv", str(real_release / "Data_Entry_2017_v2020.csv.gz"), "--split", "patient", "--allow_missing"]
    assert ingest.main([str(dataset), *arguments]) == 0
    torch.manual_seed(0)
    vit, image_processor = build_model(str(deit_tiny))
    preprocess = Preprocess(image_processor)
    xrays = load_xrays(dataset)
    cache = open_cache(open_dataset(dataset), preprocess, str(tmp_path / "cache"), False)
    logits = []
    for view, to_pixel_values in (
        (preprocessed(xrays, preprocess), None),
        (CachedXrays(xrays, cache), GreyToPixelValues(preprocess)),
    ):
        trainer = trainer_of(vit, image_processor, arguments_of(tmp_path / "out"), to_pixel_values=to_pixel_values)
        logits.append(predict_logits(trainer, view, targets_of(xrays)))
    assert logits[0].std() > 0.01
    assert np.abs(logits[0] - logits[1]).max() < 1e-5
    assert isinstance(image_processor, type(AutoImageProcessor.from_pretrained(deit_tiny)))


def test_unreadable_images_stop_the_training_or_are_left_out(synthetic_dataset, tmp_path, capsys, caplog):
    dataset = tmp_path / "dataset"
    shutil.copytree(synthetic_dataset, dataset, ignore=shutil.ignore_patterns("pixel_cache"))
    names = load_xrays(dataset, "train")["file_name"][:2]
    names += [load_xrays(dataset, "test")["file_name"][0]]
    for name in names:
        path = dataset / "images" / name
        path.write_bytes(path.read_bytes()[:200])
    command = ["--dataset_dir", str(dataset), "--output_dir", str(tmp_path / "run"), *TINY]
    assert train.main(command) == 2
    error = capsys.readouterr().err
    assert "--allow_unreadable" in error
    assert names[0] in error
    run = trained(dataset, tmp_path / "run", "--allow_unreadable")
    facts = json.loads((run / "train_config.json").read_text())["data"]["images"]
    assert facts["train"] == len(load_xrays(dataset, "train")) - 2
    assert all(f"left out: {name}" in caplog.text for name in names)
    where = ["--dataset_dir", str(dataset), "--device", "cpu", "--output_dir", str(tmp_path / "test")]
    assert evaluate.main([str(run), *where, "--allow_unreadable"]) == 0
    scored = read_predictions(tmp_path / "test" / "predictions.csv").file_names
    assert list(scored) == load_xrays(dataset, "test")["file_name"][1:]


def test_no_cache_and_allow_unreadable_contradict(synthetic_dataset):
    with pytest.raises(pixels.InputError, match="--allow_unreadable goes with a pixel cache"):
        open_cache(open_dataset(synthetic_dataset), Preprocess(processor(*HALF)), "none", True)


def test_ingest_builds_the_cache_that_training_opens(tmp_path, caplog, capsys):
    from chestxray_vit import ingest
    from chestxray_vit.data.synthetic.release import draw_release

    dataset = draw_release(tmp_path / "release", num_patients=30, image_size=64, seed=1)
    assert ingest.main([str(dataset), "--cache_size", "64"]) == 0
    folder = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
    assert [str(path) for path in (dataset / "images" / "pixel_cache").iterdir()] == [folder]
    cache = open_cache(open_dataset(dataset), Preprocess(processor(*HALF)), None, False)
    assert str(cache.folder) == folder
    assert len(cache.pixels_NHW) == len(load_xrays(dataset))
