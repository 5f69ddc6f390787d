"""The plan stage: what it prints, as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.plan import main

DEIT = Path(__file__).parents[3] / "shared" / "models" / "deit-tiny-patch16-224"


@pytest.fixture(autouse=True)
def no_ipus(monkeypatch):
    monkeypatch.delenv("NUM_AVAILABLE_IPU", raising=False)


def planned(capsys, *flags):
    """Run the stage with --json."""
    assert main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_pod4_by_default(capsys):
    assert main(["vit-base-pod4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "vit-base-pod4 for a ViT of 85.8 M parameters, 12 layers x 768: 4 IPUs, 1 replica of 4 stages, float16"
    )
    rows = [line.split() for line in lines if line.strip()[:1] in tuple("0123")]
    assert rows[0] == "0 embedding, 0-2 22.0 8.95 7 44.0 44.0 0.0 14.2 102.3 132.0 fits".split()
    assert rows[3] == "3 9-11, norm, head 21.3 8.72 1 42.6 42.6 0.0 7.0 92.1 127.7 fits".split()
    assert "update      128 images = micro batch 1 x 128 micro-batches x 1 replica" in lines
    assert "bubble      2.3 % of the time an IPU waits: (4 - 1) / (128 + 4 - 1)" in lines
    assert "imbalance   1.020: FLOPs of the slowest IPU over their mean" in lines
    assert any(line.startswith("inference   1 replica, the same stages, one at a time") for line in lines)
    assert lines[-1] == (
        "Memory is an estimate: what Poplar adds (code, exchange buffers, temporaries) cannot be known here."
    )


@pytest.mark.parametrize("name", ipu_config.known_names())
def test_every_configuration_of_ours_is_planned_narrowly_and_fits(name, capsys):
    assert main([name]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 110
    assert (
        len(re.findall(r" fits$", printed, flags=re.M))
        == ipu_config.read_ipu_config(name).training.ipus_per_replica + 2
    )


def test_json_has_both_modes(capsys):
    result = planned(capsys, "vit-base-pod4", "--micro_batch_size", "2", "--fp32")
    assert (result["config"], result["model"]) == ("vit-base-pod4", None)
    assert result["training"]["parameters"] == result["inference"]["parameters"] == 85_809_422
    assert result["training"]["pipeline"]["global_batch_size"] == 256
    assert result["training"]["stages"][0]["weights"] == 4 * 22_006_272
    assert (result["training"]["float"], result["inference"]["inference"]) == (32, True)


def test_pod4_has_the_parameters_of_the_instantiated_vit_base(capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=14))
    assert planned(capsys, "vit-base-pod4")["training"]["parameters"] == model.num_parameters()


def test_number_of_ipus_and_overrides(capsys, monkeypatch):
    result = planned(capsys, "vit-base-pod4", "--n_ipu", "16", "--ipu_config_overrides", "layers_per_ipu=[2 4 4 2]")
    assert result["training"]["replication_factor"] == 4
    assert result["training"]["layers_per_ipu"] == result["inference"]["layers_per_ipu"] == [2, 4, 4, 2]
    monkeypatch.setenv("NUM_AVAILABLE_IPU", "8")
    assert planned(capsys, "vit-base-pod4")["training"]["replication_factor"] == 2


def test_sizes_change_the_model(capsys):
    sizes = "--image_size 96 --patch_size 8 --hidden_size 96 --num_hidden_layers 6 --num_attention_heads 3"
    result = planned(capsys, "vit-tiny-2ipu", *sizes.split(), "--intermediate_size", "384")
    assert result["training"]["shape"] == asdict(
        ViTSize(
            image_size=96,
            patch_size=8,
            hidden_size=96,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=384,
        )
    )
    assert result["training"]["layers_per_ipu"] == [3, 3]


def test_inference_of_another_pipeline_has_a_table_of_its_own(capsys):
    assert main(["vit-base-pod4", "--ipu_config_overrides", "inference_layers_per_ipu=[6 6]"]) == 0
    printed = capsys.readouterr().out
    assert "inference   1 replica, other stages, one at a time" in printed
    assert printed.count("IPU  layers") == 2
    assert "1  6-11, norm, head" in printed


def test_what_popart_refuses_is_said(capsys):
    assert main(["vit-base-pod4", "--ipu_config_overrides", "gradient_accumulation_steps=4"]) == 0
    assert "\nrefused     gradient_accumulation_steps 4 is below 2 x 4 IPUs - 1: PopART" in capsys.readouterr().out


def test_what_does_not_fit_names_the_knobs(capsys):
    size = "--num_hidden_layers 24 --hidden_size 1024 --num_attention_heads 16 --intermediate_size 4096"
    assert main(["vit-tiny-2ipu", *size.split(), "--micro_batch_size", "8"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 110
    assert "(matmul_proportion): does not fit\n            optimizer_state_offchip=true helps: " in printed


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_a_checkpoint_gets_14_outputs_unless_it_is_ours(problem_type, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig(num_labels=15, problem_type=problem_type, qkv_bias=False).save_pretrained(tmp_path)
    shape = planned(capsys, "vit-base-pod4", "--model_name_or_path", str(tmp_path))["training"]["shape"]
    assert shape == asdict(ViTSize(num_labels=15 if problem_type else 14, qkv_bias=False))


@pytest.mark.skipif(not DEIT.is_dir(), reason="no real checkpoint here")
def test_a_real_checkpoint(capsys):
    pytest.importorskip("transformers")
    result = planned(capsys, "vit-base-pod4", "--model_name_or_path", str(DEIT))
    assert result["training"]["parameters"] == 5_717_416 - 193 * (1000 - 14)  # DeiT-Ti with a head of 14


def test_balance_prints_a_fragment_of_json(capsys):
    assert main(["vit-base-pod4", "--balance", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 layers on 6 IPUs: 2 2 2 2 2 2"
    assert re.fullmatch(r"imbalance, slowest IPU over mean: 1.020 now on 4 IPUs, 1.\d{3} then", lines[1])
    assert json.loads(lines[2]) == {"ipus_per_replica": 6, "layers_per_ipu": [2] * 6}
    result = planned(capsys, "vit-base-pod4", "--balance", "6")
    assert (result["ipus_per_replica"], result["layers_per_ipu"]) == (6, [2] * 6)
    assert result["imbalance_before"] == 4 * 8_954_938_368 / 35_126_141_952  # FLOPs of IPU 0, of all


def test_balance_mends_layers_of_another_model(capsys):
    assert main(["vit-base-pod4", "--balance", "4", "--num_hidden_layers", "16"]) == 0
    printed = capsys.readouterr().out
    assert "not of this model now" in printed
    assert json.loads(printed.splitlines()[2])["layers_per_ipu"] == [4, 4, 4, 4]
    assert (
        main(["vit-base-pod4", "--num_hidden_layers", "16", "--ipu_config_overrides", "layers_per_ipu=[4 4 4 4]"]) == 0
    )


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_plot(schedule, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["vit-base-pod64", "--plot", str(tmp_path / "schedule.png"), "--schedule", schedule]) == 0
    assert (tmp_path / "schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'schedule.png'}\n")
    assert main(["vit-base-pod64", "--plot", str(tmp_path / "none" / "schedule.png")]) == 2
    assert "none/schedule.png: cannot be written" in capsys.readouterr().err


REFUSED = {
    "layers do not fit in training: layers_per_ipu [3, 3, 3, 3] places 12 layers, the model has 10": (
        "vit-base-pod4 --num_hidden_layers 10"
    ),
    "no ipu_config.json there. Known names: vit-base-pod16": "vit-base-pod5",
    "micro_batch_size is 0": "vit-base-pod4 --micro_batch_size 0",
    "image_size 200 must be a multiple of patch_size 16": "vit-base-pod4 --image_size 200",
    "2 IPUs (--n_ipu or $NUM_AVAILABLE_IPU) are not a multiple": "vit-base-pod4 --n_ipu 2",
    "99 stages for 12 layers: expected 1 to 14": "vit-base-pod4 --balance 99",
    "x has a size of its own: leave out --hidden_size": "vit-base-pod4 --model_name_or_path x --hidden_size 96",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_makes_no_sense_is_refused(text, capsys):
    assert main(REFUSED[text].split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error


@pytest.mark.parametrize(("kind", "text"), [(None, "no ViT checkpoint could be read"), ("bert", "expected a ViT")])
def test_a_checkpoint_that_is_none_is_refused(kind, text, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    if kind:
        transformers.BertConfig().save_pretrained(tmp_path)
    assert main(["vit-base-pod4", "--model_name_or_path", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_plan_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from chestxray_vit.plan import main; main(['vit-base-pod4']);"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
