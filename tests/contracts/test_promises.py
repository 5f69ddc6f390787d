"""What the README and the plan promise: the import rule, our own flags, the stages, every IPU configuration."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chestxray_vit import __main__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "chestxray_vit"
STAGES = ("demo", "ingest", "plan", "train", "evaluate", "report", "predict", "explain")
# Modules that load neither torch nor transformers: folders whole, but for what EXCEPT names.
LIGHT_FOLDERS = ("artifacts", "metrics", "reporting", "storage", "images", "data", "pipeline")
EXCEPT = ("augment", "preprocess", "dataset", "cached_dataset", "stages", "equivalence")
LIGHT_COMMANDS = (
    "ingest",
    "report",
    "plan",
    "explain",
    "predict",
    "labels",
    "errors",
    "entry_point",
    "models.vit_size",
)
LIGHT = [
    *LIGHT_COMMANDS,
    *(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for folder in LIGHT_FOLDERS
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        if path.stem not in EXCEPT
    ),
]
OWN_FLAGS = {
    ("train", "TrainFlags"): (
        "dataset_dir model_name_or_path device global_batch_size pos_weight cache_dir allow_unreadable augment "
        "overwrite from_scratch "
        "image_size patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
    ).split(),
    ("train", "TrainIPUFlags"): (
        "ipu_config_name n_ipu ipu_config_overrides fp32 loss_scaling dataloader_mode pipeline pipeline_schedule"
    ).split(),
    ("evaluate", "EvaluateFlags"): "dataset_dir split device cache_dir allow_unreadable thumbnails".split(),
    ("training.arguments", "IPUFlags"): "ipu_config_name n_ipu ipu_config_overrides fp32".split(),
}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_neither_torch_nor_transformers(module):
    code = f"import sys, chestxray_vit.{module}; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("stage", STAGES)
def test_help_answers_without_torch(stage):
    code = (
        f"import sys, chestxray_vit.{stage} as stage\n"
        "try: stage.main(['--help'])\n"
        "except SystemExit as end: print('exit', end.code, 'torch' in sys.modules)"
    )
    if stage in ("train", "evaluate"):
        pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m chestxray_vit." + stage)
    assert done.stdout.rstrip().endswith("exit 0 False")


@pytest.mark.parametrize(("module", "kind"), OWN_FLAGS)
def test_own_flags_are_frozen(module, kind):
    pytest.importorskip("transformers")
    flags = getattr(importlib.import_module(f"chestxray_vit.{module}"), kind)
    assert [field.name for field in dataclasses.fields(flags)] == OWN_FLAGS[module, kind]


def test_help_all_adds_those_of_training_arguments(capsys):
    pytest.importorskip("transformers")
    from chestxray_vit import train

    with pytest.raises(SystemExit):
        train.main(["--help_all"])
    printed = capsys.readouterr().out
    assert printed.index("--dataset_dir") < printed.index("--learning_rate") < printed.index("--adam_beta1")
    assert re.search(r"--learning_rate .*\(default: 0\.0002\)", " ".join(printed.split()))


def test_main_lists_the_stages(capsys):
    assert __main__.main([]) == 0
    printed = capsys.readouterr().out
    assert tuple(__main__.STAGES) == STAGES
    assert all(f"\n  {stage} " in printed for stage in STAGES)
    assert __main__.main(["diagnose"]) == 2


def test_main_runs_a_stage(capsys, tmp_path):
    assert __main__.main(["ingest", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(ROOT.glob("ipu_configs/*/ipu_config.json")), ids=lambda path: path.parent.name)
def test_ipu_configs_hold_a_plan(path):
    config = json.loads(path.read_text())
    assert len(config["layers_per_ipu"]) == config["ipus_per_replica"]
    assert 0 < config["matmul_proportion"] <= 1


def test_vit_base_pod4_is_the_hubs():
    config = json.loads((ROOT / "ipu_configs" / "vit-base-pod4" / "ipu_config.json").read_text())
    assert config["gradient_accumulation_steps"] == 128
    assert config["layers_per_ipu"] == [3, 3, 3, 3]


def test_readme_first_screen():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    install, test = "pip install -e . && python -m chestxray_vit.demo", "pip install -e '.[test]' && pytest"
    places = [next(place for place, line in enumerate(lines) if command in line) for command in (install, test)]
    assert places == sorted(places)
    assert places[-1] < 45


def test_readme_tells_of_flags_that_exist():
    pytest.importorskip("transformers")
    from chestxray_vit import explain, ingest, plan, predict, report
    from chestxray_vit.training.engines import choose as backend

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {f"--{name}" for names in OWN_FLAGS.values() for name in names}
    known |= {f"--{name}" for name in backend.FIELDS} | {"--help", "--help_all", "--nproc-per-node"}
    known |= {"--no-deps", "--num-instances", "--num-replicas", "--ipus-per-replica"}  # pip's and poprun's
    known |= {"--scale"}  # the benchmarks'
    for stage in (explain, ingest, plan, predict, report):
        known |= set(stage.parser()._option_string_actions)
    assert set(re.findall(r"--[a-z][a-z0-9_-]+", text)) <= known


def test_no_medical_claims():
    for path in (*PACKAGE.rglob("*.[phcj][yts]*"), ROOT / "README.md", *ROOT.glob("notebooks/*.ipynb")):
        text = path.read_text(encoding="utf-8").lower()
        assert not re.search(r"\bdiagnos(is|es|tic)\b|\bvalidated\b", text), path.name
