from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file

from chestxray_vit import evaluate, train
from chestxray_vit.data import dataset as xrays
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models.vit import build_from_scratch, load_model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.training import run_folder
from chestxray_vit.training.engines.base import pos_weights
from chestxray_vit.training.global_batch import GlobalBatch
from tests.helpers.engines import arguments_of, engine_of, trainer_of
from tests.helpers.opens import count_opens
from tests.helpers.training import STEPS, TINY, history, losses, trained

FINDINGS = NIH_CHESTXRAY14.names

TINY_SIZE = ViTSize(
    64, 16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
)  # of tests.helpers.training.TINY


@pytest.fixture(scope="module")
def run(synthetic_dataset, tmp_path_factory):
    return trained(synthetic_dataset, tmp_path_factory.mktemp("train") / "run")


def test_run_folder_holds_what_the_plan_says(run):
    names = {path.name for path in run.iterdir() if path.is_file()}
    assert names == {
        "README.md",
        "config.json",
        "loss.png",
        "model.safetensors",
        "preprocessor_config.json",
        "train_config.json",
        "trainer_state.json",
    }
    config = json.loads((run / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == list(FINDINGS)
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_train_config_tells_data_versions_and_arguments(run, synthetic_dataset):
    config = json.loads((run / "train_config.json").read_text())
    report = json.loads((synthetic_dataset / "images" / "ingest_report.json").read_text())
    assert config["data"]["metadata.jsonl"] == report["metadata"]["metadata.jsonl"]
    assert config["data"]["images"] == {name: report["splits"][name]["images"] for name in ("train", "validation")}
    assert config["training_arguments"]["learning_rate"] == 1e-2
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert config["updates"] == 2 * (report["splits"]["train"]["images"] // 32)


def test_log_is_json_without_nan(run):
    json.loads((run / "trainer_state.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_best_checkpoint_is_restored_tensor_by_tensor(run):
    best = Path(json.loads((run / "trainer_state.json").read_text())["best_model_checkpoint"])
    saved, final = load_file(best / "model.safetensors"), load_file(run / "model.safetensors")
    assert saved.keys() == final.keys()
    assert all(torch.equal(saved[name], final[name]) for name in saved)


def test_validation_auc_is_that_of_an_evaluation(run, synthetic_dataset, tmp_path):
    logged = max(entry["eval_roc_auc"] for entry in history(run) if "eval_roc_auc" in entry)
    where = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([str(run), *where, "--split", "validation"]) == 0
    macro = json.loads((tmp_path / "auc.json").read_text())["macro"]
    assert macro["auc"] == pytest.approx(logged, abs=1e-12)
    assert f"**{macro['auc']:.3f}**" in (run / "README.md").read_text()


def test_learning_rate_warms_up_over_a_quarter(run):
    total = json.loads((run / "train_config.json").read_text())["updates"]
    rates = {entry["step"]: entry["learning_rate"] for entry in history(run) if "learning_rate" in entry}
    warm = -(-total // 4)  # updates of warm-up, rounded up
    for step, rate in rates.items():
        expected = {step / warm, (step - 1) / warm}  # versions differ in which of two neighbours they log
        if step > warm:
            expected = {0.5 * (1 + np.cos(np.pi * (at - warm) / (total - warm))) for at in (step, step - 1)}
        assert any(rate == pytest.approx(1e-2 * share, abs=1e-9) for share in expected), (step, rate)


def test_accumulation_does_not_change_the_updates(synthetic_dataset, tmp_path):
    steps = ["--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
    whole = trained(synthetic_dataset, tmp_path / "whole", "--per_device_train_batch_size", "32", *steps)
    parts = trained(synthetic_dataset, tmp_path / "parts", "--per_device_train_batch_size", "8", *steps)
    assert len(losses(whole)) == json.loads((whole / "train_config.json").read_text())["updates"]
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    # not the weights: a key's bias has no gradient but rounding, and AdamW makes steps of whatever size of it
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (load_model(run)[0](pixel_values=pixels).logits for run in (whole, parts))
    assert torch.allclose(first, second, atol=1e-3)
    assert first.std(dim=0).max() > 0.01  # else constant models would pass


def test_killed_and_resumed_run_equals_the_undisturbed(synthetic_dataset, tmp_path):
    undisturbed = trained(synthetic_dataset, tmp_path / "undisturbed", *STEPS)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "chestxray_vit.train", "--dataset_dir", str(synthetic_dataset)]
    command += ["--output_dir", str(killed), *TINY, *STEPS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = killed / "checkpoint-3"
    deadline = time.monotonic() + 120
    while not (first / "trainer_state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "train_config.json").exists()  # the marker of a whole run
    assert trained(synthetic_dataset, killed, *STEPS, "--resume_from_checkpoint", str(first))
    assert (killed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert history(killed) == history(undisturbed)


def test_epochs_are_drawn_in_the_same_order_by_every_engine(synthetic_dataset, tmp_path):
    dataset = xrays.load_xrays(synthetic_dataset, "train")
    vit, processor = build_from_scratch(
        ViTSize(16, 8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    trainer = trainer_of(vit, processor, arguments_of(tmp_path, gradient_accumulation_steps=4), train=dataset)
    trainer.data_collator = lambda rows: {"file_name": [row["file_name"] for row in rows]}
    loader = trainer.get_train_dataloader()
    for epoch in (0, 1, 2):
        for part in (loader, getattr(loader, "sampler", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        drawn = [name for batch in loader for name in batch["file_name"]]
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1337 + epoch)).tolist()
        names = dataset["file_name"]
        assert drawn == [names[index] for index in order[: len(dataset) // 4 * 4]]


def test_resuming_restores_every_tensor_and_leaves_the_random_state(run, synthetic_dataset):
    dataset = xrays.load_xrays(synthetic_dataset, "train")
    vit, processor = build_from_scratch(TINY_SIZE)
    trainer = trainer_of(vit, processor, arguments_of(run), train=dataset)
    checkpoint = sorted(run.glob("checkpoint-*"))[0]
    before = torch.random.get_rng_state()
    trainer._load_from_checkpoint(str(checkpoint))
    assert torch.equal(before, torch.random.get_rng_state())
    from transformers import ViTForImageClassification

    expected = ViTForImageClassification.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vit.state_dict().items())


def test_checkpoint_that_is_not_whole_is_passed_over(tmp_path, caplog):
    for name, files in {"9": ("trainer_state.json", "rng_state.pth"), "10": ("trainer_state.json",), "11": ()}.items():
        (tmp_path / f"checkpoint-{name}").mkdir()
        for file in files:
            (tmp_path / f"checkpoint-{name}" / file).touch()
    assert run_folder.last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-9")
    assert [record.getMessage().split(" ")[0][-2:] for record in caplog.records] == ["11", "10"]


def test_damaged_checkpoint_does_not_resume(run, synthetic_dataset, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-1"
    subprocess.run(["cp", "-r", str(sorted(run.glob("checkpoint-*"))[0]), str(checkpoint)], check=True)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    command = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path), *TINY]
    assert train.main([*command, "--resume_from_checkpoint", "last"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_two_processes_make_the_updates_of_one(commands, synthetic_dataset, tmp_path):
    steps = ["--logging_steps", "1", "--per_device_train_batch_size", "8"]
    one = trained(synthetic_dataset, tmp_path / "one", *steps)
    words = ["--dataset_dir", synthetic_dataset, "--output_dir", tmp_path / "two", *TINY, *steps]
    answer = commands.run("train", *words, processes=2)
    assert answer.code == 0, answer.printed[-2000:]
    assert answer.printed.count("validation AUC") == 1  # one process speaks
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=1e-5)
    rates = [[entry["learning_rate"] for entry in history(run) if "loss" in entry] for run in (one, tmp_path / "two")]
    assert rates[0] == rates[1]
    config = json.loads((tmp_path / "two" / "train_config.json").read_text())
    assert config["processes"] == 2
    assert config["training_arguments"]["gradient_accumulation_steps"] == 2
    logged = [
        [entry["eval_roc_auc"] for entry in history(run) if "eval_roc_auc" in entry] for run in (one, tmp_path / "two")
    ]
    assert logged[1] == pytest.approx(logged[0], abs=0.02)


def test_loss_is_the_mean_over_images_and_findings(run):
    vit = load_model(run)[0]
    args = arguments_of(run)
    weights = torch.full((14,), 2.0)
    pixels, labels = torch.rand(3, 3, 64, 64), (torch.rand(3, 14) > 0.5).float()
    with torch.no_grad():
        logits = vit(pixel_values=pixels).logits.double().numpy()
    probability = 1 / (1 + np.exp(-logits))
    target = labels.numpy()
    for pos_weight, factor in ((None, 1.0), (weights, 2.0)):
        trainer = trainer_of(vit, None, args, pos_weight_L=pos_weight)
        expected = -np.mean(factor * target * np.log(probability) + (1 - target) * np.log(1 - probability))
        loss = trainer.compute_loss(vit, {"pixel_values": pixels, "labels": labels})
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_pos_weight_is_negatives_by_positives():
    targets = np.zeros((8, 14), dtype=np.float32)
    targets[:2, 0] = 1  # 6 negatives, 2 positives
    assert pos_weights(targets)[:2] == [3.0, 1.0]  # without a positive: 1


def test_pos_weight_auto_trains(synthetic_dataset, tmp_path, run):
    weighted = trained(synthetic_dataset, tmp_path / "weighted", "--pos_weight", "auto")
    assert losses(weighted)[0] > losses(run)[0]  # positives are rarer than negatives: their weights are above 1


def test_without_evaluation_no_validation_images_are_needed(synthetic_dataset, tmp_path):
    run = trained(synthetic_dataset, tmp_path / "run", "--eval_strategy", "no", "--num_train_epochs", "1")
    assert "The model was not evaluated during training." in (run / "README.md").read_text()


def test_yaml_gives_flags_and_the_command_line_wins(synthetic_dataset, tmp_path):
    flags = tmp_path / "recipe.yaml"
    flags.write_text(
        f"dataset_dir: {synthetic_dataset}\nfrom_scratch: true\nimage_size: 64\npatch_size: 32\nhidden_size: 16\n"
        "num_hidden_layers: 1\nnum_attention_heads: 2\nintermediate_size: 32\nglobal_batch_size: 64\n"
        "num_train_epochs: 3\nlearning_rate: 1.0e-3\ndevice: cpu\neval_strategy: epoch\n"
    )
    assert train.main([str(flags), "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"]) == 0
    arguments = json.loads((tmp_path / "run" / "train_config.json").read_text())["training_arguments"]
    assert arguments["num_train_epochs"] == 1
    assert arguments["learning_rate"] == 1e-3


REFUSALS = {
    "dataset_dir is missing": [],
    "output_dir is missing": ["--dataset_dir", "{data}"],
    "--patch_size goes with --from_scratch": ["--dataset_dir", "{data}", "--output_dir", "{new}", "--patch_size", "8"],
    "PopTorch is not installed. Enable the Poplar SDK": [
        "--dataset_dir",
        "{data}",
        "--output_dir",
        "{new}",
        "--device",
        "ipu",
    ],
    "no such file. First: python -m chestxray_vit.ingest": ["--dataset_dir", "{new}", "--output_dir", "{new}"],
    "holds an earlier run": ["--dataset_dir", "{data}", "--output_dir", "{run}"],
    "no checkpoint in": ["--dataset_dir", "{data}", "--output_dir", "{new}", "--resume_from_checkpoint", "last"],
    "fewer than one global batch of 4096": ["--global_batch_size", "4096"],
    "global batch 32 is not per_device_train_batch_size 5": ["--per_device_train_batch_size", "5"],
    "no ipu_config.json there. Known names: vit-base-pod16, vit-base-pod4, vit-base-pod64, vit-tiny-2ipu": [
        "--ipu_config_name",
        "pod99",
    ],
    "must be a multiple of patch_size": ["--image_size", "65"],
    "--bf16 auto and --fp16: only one of them can be": ["--bf16", "auto", "--fp16", "true"],
}


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_say_what_and_how(text, run, synthetic_dataset, tmp_path, capsys):
    tokens = REFUSALS[text]
    if tokens and "{" not in "".join(tokens):
        tokens = ["--dataset_dir", "{data}", "--output_dir", "{new}", *TINY, *tokens]
    names = {"data": synthetic_dataset, "run": run, "new": tmp_path / "new"}
    assert train.main([token.format(**names) for token in tokens]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_unknown_flag_in_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text('{"learning_rat": 1}')
    assert train.main([str(tmp_path / "recipe.json")]) == 2
    assert "unknown flags: learning_rat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "global_batch_size", "ipu_config", "expected"),
    [
        ((None, None), None, None, (32, 4)),  # the tutorial's 128 images per update, micro-batches of 32
        ((None, None), 100, None, (25, 4)),
        ((16, None), 128, None, (16, 8)),
        ((None, 8), 128, None, (16, 8)),
        ((4, 3), None, None, (4, 3)),
        ((None, None), None, {"gradient_accumulation_steps": 128, "replication_factor": 4}, (32, 16)),
        ((2, None), None, {"gradient_accumulation_steps": 128, "replication_factor": 1}, (2, 128)),
    ],
)
def test_global_batch_is_resolved(named, global_batch_size, ipu_config, expected):
    values = dict(zip(("per_device_train_batch_size", "gradient_accumulation_steps"), named))
    ipu_config = ipu_config and PipelineConfig.from_dict(ipu_config)
    assert engine_of().global_batch(values, global_batch_size, ipu_config) == GlobalBatch(*expected, num_replicas=1)


def test_contradicting_batch_is_refused():
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    with pytest.raises(InputError, match="global batch 17 is not per_device_train_batch_size 4 x"):
        engine_of().global_batch(values, 17, None)


def test_overwrite_replaces_an_earlier_run(synthetic_dataset, tmp_path):
    trained(synthetic_dataset, tmp_path / "run", *STEPS)
    run = trained(synthetic_dataset, tmp_path / "run", "--overwrite", "--num_train_epochs", "1")
    assert len(list(run.glob("checkpoint-*"))) == 1


def test_ipu_config_travels_with_the_run(synthetic_dataset, tmp_path):
    tiny = [token for token in TINY if token not in ("--global_batch_size", "32")]
    command = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "run"), *tiny]
    assert train.main([*command, "--ipu_config_name", "vit-base-pod4"]) == 0
    config = json.loads((tmp_path / "run" / "ipu_config.json").read_text())
    assert config["layers_per_ipu"] == [3, 3, 3, 3]
    arguments = json.loads((tmp_path / "run" / "train_config.json").read_text())["training_arguments"]
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 128


def test_the_data_set_is_opened_once(synthetic_dataset, tmp_path):
    short = [*TINY, "--num_train_epochs", "1", "--cache_dir", tmp_path / "cache"]
    opens, done = count_opens(
        "metadata.jsonl",
        ["chestxray_vit.train", "--dataset_dir", synthetic_dataset, "--output_dir", tmp_path / "run", *short],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert opens == 1
