"""The whole way on IPUs: the real IPUTrainer, on the double of PopTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.ipu_stack
torch = pytest.importorskip("torch")

from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from chestxray_vit import evaluate, train
from chestxray_vit.artifacts.predictions import read_predictions
from chestxray_vit.data import dataset as xrays
from chestxray_vit.models.vit import build_from_scratch, load_model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.training.arguments import PipelineArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import TrainerInputs, predict_logits
from tests.helpers.engines import arguments_of, engine_of, trainer_of, values_of
from tests.helpers.training import TINY_VIT, history, losses, trained

ON_IPUS = [*TINY_VIT, "--device", "ipu", "--ipu_config_name", "vit-tiny-2ipu"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(synthetic_dataset, tmp_path_factory):
    """Return a run of the tiny ViT on two IPUs, in half precision."""
    return trained(synthetic_dataset, tmp_path_factory.mktemp("ipu") / "run", tiny=ON_IPUS)


def scored(run, dataset, output_dir, *more):
    """Score the test images, and return the table and the macro AUC."""
    where = ["--dataset_dir", str(dataset), "--output_dir", str(output_dir)]
    assert evaluate.main([str(run), *where, *more]) == 0
    report = json.loads((Path(output_dir) / "auc.json").read_text())
    return read_predictions(Path(output_dir) / "predictions.csv"), report["macro"]["auc"]


def small_trainer(tmp_path, config, rows=None, eval_rows=None, metrics=None, fp32=True, layers=2, **values):
    """Return an IPU trainer of a ViT of 16 x 16 pixels in patches of 8."""
    size = ViTSize(16, 8, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16)
    torch.manual_seed(0)
    vit, processor = build_from_scratch(size)
    engine = engine_of("ipu", PipelineArguments(fp32=fp32))
    args = engine.arguments(values_of(tmp_path, **values), config)
    return engine.trainer(vit, processor, args, TrainerInputs(rows, eval_rows, metrics), config)


def random_rows(count, dtype=torch.float32):
    """Return rows of random pixels and labels."""
    generator = torch.Generator().manual_seed(count)
    return [
        {
            "pixel_values": torch.rand(3, 16, 16, generator=generator).to(dtype),
            "labels": (torch.rand(14, generator=generator) > 0.5).float(),
        }
        for _ in range(count)
    ]


# Options


def test_pod4_places_a_model_of_twelve_layers(poptorch, tmp_path):
    config = ipu_config.read_ipu_config("vit-base-pod4", 16, "gradient_accumulation_steps=7")
    values = {"max_steps": 1, "gradient_accumulation_steps": 7}
    trainer = small_trainer(tmp_path, config, random_rows(28), layers=12, **values)
    trainer.train()
    training = next(executor for executor in poptorch.executors if executor.training)
    assert training.options.replication_factor == 4
    for name, ipu in training.placement.items():
        part, *rest = name.split(".")[1:] if name.startswith("vit.") else [name]
        if part == "encoder":
            assert ipu == int(rest[1]) // 3, name
        else:
            assert ipu == {"embeddings": 0, "layernorm": 3, "classifier": 3}[part], name
    assert {name.split(".")[3] for name in training.placement if "encoder" in name} == set(map(str, range(12)))
    assert training.num_recomputation_checkpoints == 12


def test_options_say_what_the_configuration_says(run, poptorch, tmp_path, monkeypatch):
    monkeypatch.setenv("POPLAR_EXECUTABLE_CACHE_DIR", str(tmp_path / "cache"))
    config = ipu_config.read_ipu_config("vit-base-pod16", 8)
    config = config.with_values(layers_per_ipu=[1, 0, 0, 1])
    options = small_trainer(tmp_path, config, fp32=False, gradient_accumulation_steps=32).opts
    assert options.replication_factor == 2
    assert options.Training.gradient_accumulation == 32
    assert options.output_mode == poptorch.OutputMode.All  # the logged loss is the update's, not an image's
    assert options.available_memory_proportion == {f"IPU{ipu}": 0.3 for ipu in range(4)}
    assert options.executable_cache_dir == str(tmp_path / "cache")
    assert options.random_seed == 1337


# Training


def test_run_folder_is_a_plain_float32_vit_and_pickles_stay_in_checkpoints(run):
    config = json.loads((run / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    assert config["torch_dtype"] == "float32"
    for folder in (run, *run.glob("checkpoint-*")):
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}
    pickles = {path.parent.name.split("-")[0] for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pth")}
    assert pickles == {"checkpoint"}
    assert json.loads((run / "ipu_config.json").read_text()) == ipu_config.read_ipu_config("vit-tiny-2ipu").to_dict()
    facts = json.loads((run / "train_config.json").read_text())
    assert facts["device"] == "ipu"
    assert facts["global_batch"] == {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_replicas": 1,
        "global_batch_size": 8,
    }
    assert facts["versions"]["optimum-graphcore"] == "0.7.1"


def test_best_checkpoint_is_restored_tensor_by_tensor(run):
    best = Path(json.loads((run / "trainer_state.json").read_text())["best_model_checkpoint"])
    saved, final = load_file(best / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(saved[name], final[name]) for name in saved)
    others = [load_file(folder / "model.safetensors") for folder in run.glob("checkpoint-*") if folder != best]
    assert any(not torch.equal(other[name], final[name]) for other in others for name in final)


def test_images_reach_the_device_in_half_precision_unless_told(synthetic_dataset, poptorch, tmp_path):
    for more, dtype in (((), torch.float16), (("--fp32",), torch.float32)):
        poptorch.reset()
        trained(synthetic_dataset, tmp_path / dtype.__str__(), "--max_steps", "1", *more, tiny=ON_IPUS)
        assert {executor.compiled_dtypes["pixel_values"] for executor in poptorch.executors} == {dtype}
        assert {executor.compiled_dtypes["labels"] for executor in poptorch.executors} == {torch.float32}


EVERY_STEP = ["--logging_steps", "1", "--ipu_config_name", "vit-tiny-2ipu", "--per_device_train_batch_size", "2"]


def trace(run):
    """Return a run's learning rate at each update, and the images of an update."""
    rates = {entry["step"]: entry["learning_rate"] for entry in history(run) if "loss" in entry}
    facts = json.loads((run / "train_config.json").read_text())
    assert list(rates) == list(range(1, facts["updates"] + 1))
    return list(rates.values()), facts["global_batch"]["global_batch_size"]


def test_ipu_cpu_and_two_processes_make_the_same_updates(synthetic_dataset, poptorch, tmp_path):
    more = [*EVERY_STEP, "--n_ipu", "4"]  # two replicas of two IPUs: 2 x 8 x 2 images per update
    ipu = trained(synthetic_dataset, tmp_path / "ipu", *more, "--fp32", tiny=[*TINY_VIT, "--device", "ipu"])
    training = next(executor for executor in poptorch.executors if executor.training)
    cpu = trained(synthetic_dataset, tmp_path / "cpu", *more, tiny=[*TINY_VIT, "--device", "cpu"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "chestxray_vit.train", "--dataset_dir", str(synthetic_dataset), *TINY_VIT, *more]
    command += ["--output_dir", str(tmp_path / "two"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    rates, images = trace(ipu)
    assert images == 32
    assert len(rates) == training.num_optimizer_steps == 8
    assert [call["images"] for call in training.calls] == [32] * 8
    assert trace(cpu) == (pytest.approx(rates, abs=1e-12), images)
    assert trace(tmp_path / "two") == (pytest.approx(rates, abs=1e-12), images)
    # the first update's loss is that of the same images and weights; later the optimizers differ
    assert losses(cpu)[0] == pytest.approx(losses(ipu)[0], abs=1e-4)
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(ipu)[0], abs=1e-4)
    # what the device is told: the warm-up from its first update on; the log names each update's next rate
    assert [call["learning_rates"][0][0] for call in training.calls] == pytest.approx([0.0, *rates[:-1]], abs=1e-9)


def test_loss_in_the_model_is_the_loss_elsewhere(poptorch, tmp_path):
    from chestxray_vit.training.engines.ipu_model import PipelinedViT

    config = ipu_config.read_ipu_config("vit-tiny-2ipu")
    weights = torch.arange(1.0, 15.0)
    trainer = small_trainer(tmp_path, config)
    pipelined = PipelinedViT.of(trainer.model.plain(), trainer.ipu_config, weights)
    rows = xrays.collate(random_rows(3))
    loss, logits_BL = pipelined(**rows)
    plain = trainer.model.plain()
    expected = trainer_of(plain, None, arguments_of(tmp_path), pos_weight_L=weights).compute_loss(plain, rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(logits_BL, plain(rows["pixel_values"]).logits, atol=1e-6)


@pytest.mark.parametrize("precision", [[], ["--fp32"]], ids=["half", "float"])
def test_resumed_run_equals_the_undisturbed(synthetic_dataset, tmp_path, precision):
    steps = "--save_strategy steps --save_steps 7 --eval_strategy steps --eval_steps 7 --logging_steps 2".split()
    steps += ["--save_total_limit", "9", *precision]
    run = trained(synthetic_dataset, tmp_path / "run", *steps, tiny=ON_IPUS)
    weights, log = (run / "model.safetensors").read_bytes(), history(run)
    for path in run.iterdir():  # as if it had been killed after update 21, in the midst of the second epoch
        if path.is_file():
            path.unlink()
        elif path.name not in ("checkpoint-7", "checkpoint-14", "checkpoint-21"):
            shutil.rmtree(path)
    trained(synthetic_dataset, run, *steps, "--resume_from_checkpoint", "last", tiny=ON_IPUS)
    assert (run / "model.safetensors").read_bytes() == weights
    assert history(run) == log


@pytest.mark.parametrize("mode", ["async", "async_rebatched"])
def test_asynchronous_loaders_train(synthetic_dataset, tmp_path, mode):
    more = ["--dataloader_mode", mode, "--dataloader_num_workers", "2", "--max_steps", "2"]
    run = trained(synthetic_dataset, tmp_path / "run", *more, tiny=ON_IPUS)
    assert json.loads((run / "train_config.json").read_text())["updates"] == 2


# Evaluation


@pytest.mark.parametrize("count", range(1, 14))
def test_every_row_is_scored_once_and_in_order(poptorch, tmp_path, count):
    config = ipu_config.read_ipu_config("vit-tiny-2ipu", None, "inference_device_iterations=3")
    rows, seen = random_rows(count), []

    def metrics(output):
        seen.append(output)
        return {"num_rows": len(output.predictions)}

    values = {"per_device_eval_batch_size": 2}  # a combined batch is 2 x 3 images: 13 is two of them and one more
    trainer = small_trainer(tmp_path, config, eval_rows=rows, metrics=metrics, **values)
    targets_NL = np.stack([row["labels"].numpy() for row in rows])
    with torch.no_grad():
        logits_NL = trainer.model.plain()(torch.stack([row["pixel_values"] for row in rows])).logits
    logged = trainer.evaluate()
    assert logged["eval_num_rows"] == count
    assert np.array_equal(seen[0].label_ids, targets_NL)
    assert np.allclose(seen[0].predictions, logits_NL, atol=1e-5)
    assert logged["eval_loss"] == pytest.approx(
        binary_cross_entropy_with_logits(logits_NL, torch.from_numpy(targets_NL)).item(), abs=1e-5
    )
    assert np.allclose(predict_logits(trainer, rows, targets_NL), logits_NL, atol=1e-5)
    executor = poptorch.executors[-1]
    assert sum(executor.micro_batches) % 6 == 0
    assert sum(executor.micro_batches) == 2 * (-(-count // 6) * 6)  # evaluated, then predicted


def test_predictions_have_every_row_in_order_on_every_engine(run, synthetic_dataset, tmp_path):
    on_ipu, macro = scored(run, synthetic_dataset, tmp_path / "ipu", "--device", "ipu")
    on_cpu, expected = scored(run, synthetic_dataset, tmp_path / "cpu", "--device", "cpu")
    names = xrays.load_xrays(synthetic_dataset, "test").remove_columns(["image", "labels"])["file_name"]
    assert list(on_ipu.file_names) == list(on_cpu.file_names) == list(names)
    assert np.array_equal(on_ipu.targets_NL, on_cpu.targets_NL)
    assert np.abs(on_ipu.scores_NL - on_cpu.scores_NL).max() < 2e-3  # float16 has 11 bits
    assert macro == pytest.approx(expected, abs=0.01)
    exactly, same = scored(run, synthetic_dataset, tmp_path / "fp32", "--device", "ipu", "--fp32")
    assert np.abs(exactly.scores_NL - on_cpu.scores_NL).max() < 1e-6
    assert same == pytest.approx(expected, abs=1e-9)


def test_run_of_the_ipu_scores_the_same_under_the_plain_environment(run, synthetic_dataset, tmp_path):
    plain = os.environ.get("PLAIN_PYTHON")
    if not plain:
        pytest.skip("PLAIN_PYTHON does not name the plain environment's interpreter; .ci/run does")
    _, expected = scored(run, synthetic_dataset, tmp_path / "here", "--device", "cpu")
    command = [plain, "-m", "chestxray_vit.evaluate", str(run), "--dataset_dir", str(synthetic_dataset)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command += ["--output_dir", str(tmp_path / "there"), "--device", "cpu"]
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    there = json.loads((tmp_path / "there" / "auc.json").read_text())["macro"]["auc"]
    assert there == pytest.approx(expected, abs=5e-4)
    ours, theirs = (read_predictions(tmp_path / where / "predictions.csv") for where in ("here", "there"))
    assert np.abs(ours.scores_NL - theirs.scores_NL).max() < 1e-5


def test_differences_are_said_once(synthetic_dataset, tmp_path, caplog):
    caplog.set_level("INFO")
    trained(synthetic_dataset, tmp_path / "run", tiny=ON_IPUS)
    assert caplog.text.count("AdamW without bias correction, gradients not clipped") == 1
    assert caplog.text.count("layers by IPU: embedding, 0 | 1, norm, head") == 1
    assert caplog.text.count("memory, estimated: IPU 0 is the fullest: 0 of 900 MB") == 1


# poprun


def test_only_the_first_instance_of_poprun_writes(synthetic_dataset, poptorch, tmp_path, monkeypatch):
    monkeypatch.setenv("DOUBLE_POPDIST_INSTANCES", "2")
    monkeypatch.setenv("DOUBLE_POPDIST_REPLICAS", "2")
    more = ["--n_ipu", "8", "--fp32"]
    for index in (0, 1):
        poptorch.reset()
        monkeypatch.setenv("DOUBLE_POPDIST_INSTANCE", str(index))
        ranks = Ranks.from_environment()
        assert (ranks.instance, ranks.num_instances, ranks.is_main) == (index, 2, index == 0)
        command = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / str(index)), *ON_IPUS, *more]
        assert train.main(command) == 0
        training = next(executor for executor in poptorch.executors if executor.training)
        assert training.options.replication_factor == 2  # four replicas, two an instance
        assert training.options.Distributed.numProcesses == 2
        assert [call["images"] for call in training.calls] == [16] * 8  # half of an update's 32
    assert (tmp_path / "0" / "train_config.json").is_file()
    assert not (tmp_path / "1").exists()
    assert json.loads((tmp_path / "0" / "train_config.json").read_text())["global_batch"]["global_batch_size"] == 32


def test_a_run_without_an_ipu_config_is_scored_by_the_default_one(synthetic_dataset, poptorch, tmp_path):
    tiny = [*TINY_VIT[:-4], "--num_train_epochs", "1", "--device", "cpu", "--global_batch_size", "32"]
    run = trained(synthetic_dataset, tmp_path / "run", tiny=tiny)
    assert evaluate.main([str(run), "--dataset_dir", str(synthetic_dataset), "--device", "ipu"]) == 2  # 12 layers
    more = ["--ipu_config_name", "vit-tiny-2ipu", "--fp32"]
    on_ipu, _ = scored(run, synthetic_dataset, tmp_path / "ipu", "--device", "ipu", *more)
    on_cpu, _ = scored(run, synthetic_dataset, tmp_path / "cpu", "--device", "cpu")
    assert np.abs(on_ipu.scores_NL - on_cpu.scores_NL).max() < 1e-6
    assert load_model(run)[0].config.num_hidden_layers == 2
