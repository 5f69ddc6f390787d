"""Number format, attention and optimizer: what is chosen where, and that neither weights nor logits are rounded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file

from chestxray_vit import evaluate
from chestxray_vit.artifacts.predictions import read_predictions
from chestxray_vit.errors import InputError
from chestxray_vit.models.vit import build_from_scratch, load_model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.training import precision
from chestxray_vit.training.arguments import CommandHelp, TrainArguments, parse
from chestxray_vit.training.engines.base import predict_logits
from chestxray_vit.training.engines.hf_trainer import HFEngine
from tests.helpers.engines import arguments_of, trainer_of
from tests.helpers.training import STEPS, history, losses, trained

CHOOSES_ATTENTION = hasattr(transformers.PreTrainedModel, "set_attn_implementation")
COPIES_ASIDE = int(transformers.__version__.split(".")[0]) >= 5
LEARNING = "--num_train_epochs 8 --learning_rate 5e-3 --hidden_size 32 --global_batch_size 16".split()
KEEP_ALL = [*STEPS, "--save_total_limit", "9"]
SMALL = ViTSize(32, 16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
ON_CUDA = {"bf16": False, "optim": "adamw_torch_fused"}
ON_CPU = {"bf16": False, "optim": "adamw_torch", "dataloader_pin_memory": False}


def parsed(argv):
    """Return the values of TrainingArguments' fields on a command line of `train`."""
    return parse((TrainArguments,), CommandHelp("train", "", ""), argv)[1]


@pytest.mark.parametrize(
    ("device", "has_it", "values", "expected"),
    [
        ("cpu", True, {}, ON_CPU),  # a resumed run is the same run, wherever it goes on
        ("cpu", True, {"bf16": "auto"}, {**ON_CPU, "bf16": True}),
        ("cpu", False, {"bf16": "auto"}, ON_CPU),
        ("cpu", False, {"bf16": True}, {**ON_CPU, "bf16": True}),
        ("cpu", True, {"optim": "sgd"}, {**ON_CPU, "optim": "sgd"}),
        ("cuda", True, {}, {**ON_CUDA, "bf16": True}),
        ("cuda", True, {"bf16": "auto"}, {**ON_CUDA, "bf16": True}),
        ("cuda", True, {"bf16": False}, ON_CUDA),
        ("cuda", False, {}, ON_CUDA),
        ("cuda", False, {"bf16": True}, {**ON_CUDA, "bf16": True}),
        ("cuda", True, {"fp16": True}, ON_CUDA),
        ("cuda", True, {"optim": "adamw_torch"}, {"bf16": True, "optim": "adamw_torch"}),
        ("ipu", True, {"bf16": "auto"}, {"bf16": False, "optim": "adamw_torch"}),
        ("ipu", True, {"bf16": True}, {"bf16": True, "optim": "adamw_torch"}),  # to be refused with the other flags
    ],
)
def test_open_choices_follow_from_the_device(device, has_it, values, expected, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda asked: has_it)
    resolved = precision.resolved({"bf16": None, "optim": None, **values}, device)
    resolved.pop("accelerator_config", None)
    assert resolved == {**values, **expected}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_pipeline_computes_in_float32(device, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda asked: True)
    for bf16 in (None, "auto", False):
        resolved = precision.resolved({"bf16": bf16, "optim": None}, device, pipelined=True)
        assert (resolved["bf16"], resolved["optim"]) == (False, "adamw_torch")
    assert precision.resolved({"bf16": True}, device, pipelined=True)["bf16"]  # the engine refuses it


def test_auto_beside_fp16_is_refused():
    with pytest.raises(InputError, match="--bf16 auto and --fp16: only one of them can be"):
        precision.resolved({"bf16": "auto", "fp16": True}, "cuda")


def test_cuda_copies_while_it_computes():
    resolved = precision.resolved({"bf16": False, "dataloader_pin_memory": True}, "cuda")
    assert resolved["dataloader_pin_memory"]
    assert resolved.get("accelerator_config") == ({"non_blocking": True} if COPIES_ASIDE else None)
    for values in ({"accelerator_config": {"even_batches": True}}, {"dataloader_pin_memory": False}):
        resolved = precision.resolved({"bf16": False, **values}, "cuda")
        assert resolved.get("accelerator_config") == values.get("accelerator_config")


@pytest.mark.skipif(not COPIES_ASIDE, reason="transformers 4.29 has no such setting")
def test_copies_aside_reach_the_loader(tmp_path, rows):
    vit, processor = build_from_scratch(SMALL)
    args = arguments_of(tmp_path, accelerator_config={"non_blocking": True})
    trainer = trainer_of(vit, processor, args, train=rows)
    assert trainer.accelerator.non_blocking
    assert trainer.get_train_dataloader()._non_blocking


@pytest.mark.parametrize("tokens", [["--bf16", "auto"], ["{yaml}"], ["{json}"], ["{json}", "--bf16", "AUTO"]])
def test_flag_takes_auto_from_wherever(tokens, tmp_path):
    files = {"yaml": tmp_path / "recipe.yaml", "json": tmp_path / "recipe.json"}
    files["yaml"].write_text("bf16: auto\n")
    files["json"].write_text('{"bf16": "auto"}')
    argv = [token.format(**files) for token in tokens]
    assert parsed(argv)["bf16"] == "auto"


def test_flag_takes_true_and_false_and_nothing_else(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("bf16: true\n")
    expected = {(): None, ("--bf16",): True, ("--bf16", "true"): True, ("--bf16=false",): False, ("--bf16", "0"): False}
    expected[(str(tmp_path / "recipe.yaml"),)] = True
    for argv, value in expected.items():
        assert parsed(argv)["bf16"] is value
    with pytest.raises(SystemExit):
        parsed(["--bf16", "maybe"])
    assert "expected true, false or auto, found maybe" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_cuda_has_bfloat16_from_ampere_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert precision.has_bf16("cuda") is expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_f": True, "amx_bf16": True}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "amx_fp16": True}, False),
        ({"architecture": "aarch64", "num_logical_cores": 4}, False),
    ],
)
def test_cpu_has_bfloat16_by_its_instructions(features, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert precision.has_bf16("cpu") is expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the processor's instructions there")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell them")
def test_torch_and_the_system_agree_on_the_instructions(monkeypatch):
    found = precision._cpu_features() & precision.BF16_OF_CPUS
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    features = precision._cpu_features()
    assert features & precision.BF16_OF_CPUS == found
    assert "fpu" in features or not Path("/proc/cpuinfo").read_text().count("flags")


def test_older_torch_asks_the_system(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "Path", lambda _: info)
    assert precision._cpu_features() == set()
    info.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n")
    assert precision.has_bf16("cpu")


def test_head_computes_in_float32_and_keeps_its_names():
    torch.manual_seed(0)
    linear, hidden_BD = torch.nn.Linear(48, 14), torch.randn(300, 48)
    state = torch.get_rng_state()
    head = precision.Float32Head(linear)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        expected = linear(hidden_BD)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(hidden_BD).dtype == torch.bfloat16
            assert torch.equal(head(hidden_BD), expected)
            rounded = hidden_BD.bfloat16()
            exact = rounded.double() @ linear.weight.double().T + linear.bias.double()
            torch.testing.assert_close(head(rounded).double(), exact, rtol=0, atol=1e-6)
    assert head.state_dict().keys() == linear.state_dict().keys()
    assert head.weight is linear.weight
    assert head.bias is linear.bias


@pytest.fixture
def rows():
    """Return images as a data set, none like another, and their labels."""
    torch.manual_seed(0)
    pixels_N3HW, labels_NL = torch.rand(200, 3, 32, 32), (torch.rand(200, 14) > 0.5).float()
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in zip(pixels_N3HW, labels_NL)]


def num_distinct(logits_NL):
    """Return how many different logits each finding has."""
    return [len(np.unique(logits_N)) for logits_N in np.asarray(logits_NL).T]


def test_evaluation_in_bfloat16_makes_no_ties(rows, tmp_path):
    targets_NL = torch.stack([row["labels"] for row in rows]).numpy()
    distinct, logits = {}, {}
    for bf16 in (False, True):
        torch.manual_seed(1)
        vit, processor = build_from_scratch(SMALL)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            pixels = torch.stack([row["pixel_values"] for row in rows])
            tied = vit.eval()(pixel_values=pixels).logits.float().numpy()
        trainer = trainer_of(vit, processor, arguments_of(tmp_path, bf16=bf16))
        logits[bf16] = predict_logits(trainer, rows, targets_NL)
        distinct[bf16] = num_distinct(logits[bf16])
    assert min(*distinct[True], *distinct[False]) >= 199  # two of 200 may be the same by chance, in float32 too
    assert np.mean(num_distinct(tied)) < 150  # what autocast alone makes of them
    assert 0 < np.abs(logits[True] - logits[False]).max() < 0.05  # else autocast was not on


@pytest.fixture(scope="module")
def runs(synthetic_dataset, tmp_path_factory):
    """Return the runs of one training in float32 and in bfloat16."""
    folder = tmp_path_factory.mktemp("precision")
    return {
        bf16: trained(synthetic_dataset, folder / bf16, *LEARNING, "--bf16", bf16, "--save_total_limit", "9")
        for bf16 in ("false", "true")
    }


def best_auc(run):
    """Return the AUC of a run's best epoch."""
    return max(entry["eval_roc_auc"] for entry in history(run) if "eval_roc_auc" in entry)


def test_bfloat16_learns_as_float32_does(runs):
    assert best_auc(runs["true"]) == pytest.approx(best_auc(runs["false"]), abs=0.02)
    assert best_auc(runs["false"]) > 0.65  # else nothing was learned that could be lost
    assert losses(runs["true"]) == pytest.approx(losses(runs["false"]), abs=0.01)
    assert losses(runs["true"]) != losses(runs["false"])


def test_checkpoints_of_bfloat16_are_float32(runs):
    for folder in (runs["true"], *runs["true"].glob("checkpoint-*")):
        tensors = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert tensors.keys() == load_file(runs["false"] / "model.safetensors").keys()
        assert load_model(folder)[0].dtype == torch.float32
    recorded = json.loads((runs["true"] / "train_config.json").read_text())["training_arguments"]
    assert recorded["bf16"] is True
    assert recorded["optim"] == "adamw_torch"


def test_run_in_bfloat16_resumes_as_if_undisturbed(synthetic_dataset, tmp_path):
    undisturbed = trained(synthetic_dataset, tmp_path / "run", *KEEP_ALL, "--bf16", "true")
    weights, log = (undisturbed / "model.safetensors").read_bytes(), history(undisturbed)
    (undisturbed / "train_config.json").unlink()
    resumed = ["--bf16", "true", "--resume_from_checkpoint", str(undisturbed / "checkpoint-3")]
    trained(synthetic_dataset, undisturbed, *KEEP_ALL, *resumed)
    assert (undisturbed / "model.safetensors").read_bytes() == weights
    assert history(undisturbed) == log


def test_log_says_once_how_is_computed(synthetic_dataset, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    short = ["--num_train_epochs", "1", "--eval_strategy", "no"]
    trained(synthetic_dataset, tmp_path / "run", *short, "--bf16", "true")
    attention = "sdpa" if CHOOSES_ATTENTION else "eager"
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count(f"cpu: bfloat16 autocast, {attention} attention") == 1
    assert any("this processor has no bfloat16 and emulates it" in message for message in messages)
    caplog.clear()
    trained(synthetic_dataset, tmp_path / "run", "--overwrite", *short, "--bf16", "auto")
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count(f"cpu: float32, {attention} attention") == 1
    assert not any("bfloat16" in message for message in messages)


def fitted(asked=None, has_it=True, **half):
    """Return the attention that a ViT gets on the CPU, and the line about it."""
    torch.manual_seed(0)
    vit, _ = build_from_scratch(SMALL)
    if asked:
        vit.set_attn_implementation(asked)
    device = SimpleNamespace(type="cpu")
    found = precision.fit(
        vit, SimpleNamespace(**{"bf16": False, "fp16": False, "torch_compile": False, **half, "device": device})
    )
    return vit, found


@pytest.mark.skipif(not CHOOSES_ATTENTION, reason="transformers 4 has one attention")
def test_attention_is_the_faster_one_unless_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert fitted()[1] == "cpu: float32, sdpa attention"
    assert fitted(asked="eager")[1] == "cpu: float32, eager attention"
    vit, found = fitted(bf16=True)
    assert found == "cpu: bfloat16 autocast, eager attention"
    vit.save_pretrained(tmp_path)
    assert "attn" not in (tmp_path / "config.json").read_text()  # a choice for this device, not for the next
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert fitted(bf16=True)[1] == "cpu: bfloat16 autocast, sdpa attention"


def test_compiled_is_told():
    assert fitted(torch_compile=True)[1].endswith("attention, compiled")


def test_evaluate_scores_in_float32_unless_asked(runs, synthetic_dataset, tmp_path, monkeypatch):
    asked = []
    arguments = HFEngine.arguments

    def watched(engine, values, *more):
        asked.append(values["bf16"])
        return arguments(engine, values, *more)

    monkeypatch.setattr(HFEngine, "arguments", watched)
    where = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path), "--device", "cpu"]
    for more in ([], ["--bf16", "true"], ["--bf16", "auto"]):
        assert evaluate.main([str(runs["true"]), *where, *more]) == 0
    assert asked == [False, True, "auto"]


# aot_eager traces and differentiates as inductor does, and compiles nothing: no compiler is needed, and less time
COMPILED = ["--torch_compile_backend", "aot_eager"]
BF16 = ["--bf16", "true", "--augment"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compile_flags", "more", "tolerance"),
    [(COMPILED, BF16, 2e-3), (["--torch_compile", "true"], [], 1e-5)],
    ids=["traced", "inductor"],
)
def test_compiled_training_is_the_plain_one(compile_flags, more, tolerance, synthetic_dataset, tmp_path):
    plain = trained(synthetic_dataset, tmp_path / "plain", *KEEP_ALL, *more)
    compiled = trained(synthetic_dataset, tmp_path / "compiled", *KEEP_ALL, *more, *compile_flags)
    assert losses(compiled) == pytest.approx(losses(plain), abs=tolerance)
    names = load_file(plain / "model.safetensors").keys()
    for folder in (compiled, *compiled.glob("checkpoint-*")):
        assert load_file(folder / "model.safetensors").keys() == names
    weights = (compiled / "model.safetensors").read_bytes()
    (compiled / "train_config.json").unlink()
    resumed = ["--resume_from_checkpoint", str(compiled / "checkpoint-3")]
    trained(synthetic_dataset, compiled, *KEEP_ALL, *more, *compile_flags, *resumed)
    assert (compiled / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_compiled_evaluation_scores_every_row(runs, synthetic_dataset, tmp_path):
    where = ["--dataset_dir", str(synthetic_dataset), "--device", "cpu", "--per_device_eval_batch_size", "16"]
    scores = []
    for name, more in (("plain", []), ("compiled", COMPILED)):
        assert evaluate.main([str(runs["false"]), *where, "--output_dir", str(tmp_path / name), *more]) == 0
        scores.append(read_predictions(tmp_path / name / "predictions.csv").scores_NL)
    assert scores[0].shape == scores[1].shape
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-6)
