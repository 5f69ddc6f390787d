"""What an IPU cannot do is refused before minutes of compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ipu_stack
torch = pytest.importorskip("torch")


from chestxray_vit import train
from chestxray_vit.models.device import pick_device
from tests.helpers.engines import engine_of
from tests.helpers.training import TINY_VIT

ON_IPUS = [*TINY_VIT, "--device", "ipu", "--ipu_config_name", "vit-tiny-2ipu"]
ROOT = Path(__file__).parents[2]

REFUSED = {
    "3 entries, ipus_per_replica is 2": ["--ipu_config_overrides", "layers_per_ipu=[1 1 1]"],
    "layers_per_ipu [3, 3] places 6 layers, the model has 2": ["--ipu_config_overrides", "layers_per_ipu=[3 3]"],
    "outside (0, 1]: matmul_proportion is 3.0": ["--ipu_config_overrides", "matmul_proportion=3.0"],
    "133 training images are fewer than the 1,024 of one combined batch": ["--gradient_accumulation_steps", "1024"],
    "not a multiple of ipus_per_replica 2": ["--n_ipu", "1"],
    "gradient_accumulation_steps 2 is below 2 x 2 IPUs - 1: PopART refuses such a pipeline": [
        "--gradient_accumulation_steps",
        "2",
    ],
    "--dataloader_mode async_rebatched needs --dataloader_num_workers 2": ["--dataloader_mode", "async_rebatched"],
    "--bf16, --optim: IPUs have no such flag": ["--bf16", "true", "--optim", "sgd"],
    "global batch 7 is not per_device_train_batch_size 1 x replicas 2": ["--n_ipu", "4", "--global_batch_size", "7"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_come_before_compiling(text, synthetic_dataset, poptorch, tmp_path, capsys):
    command = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "new"), *ON_IPUS]
    assert train.main([*command, *REFUSED[text]]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not poptorch.executors
    assert not (tmp_path / "new").exists()


def test_ipus_that_are_not_there_or_not_free_are_told_apart(synthetic_dataset, poptorch, tmp_path, capsys):
    command = ["--dataset_dir", str(synthetic_dataset), "--output_dir", str(tmp_path / "new"), *ON_IPUS]
    poptorch.hardware.present = 0
    assert train.main(command) == 2
    assert "no IPU is there (gc-info --list-devices)" in capsys.readouterr().err
    poptorch.hardware.present = 4
    assert train.main([*command, "--n_ipu", "8"]) == 2
    assert "8 IPUs are needed, and this system has no such number" in capsys.readouterr().err
    poptorch.hardware.free = 1
    assert train.main(command) == 2
    assert "POPTORCH_WAIT_FOR_IPU=1 waits for them" in capsys.readouterr().err


def test_auto_takes_the_ipu_where_there_is_one(poptorch, caplog):
    assert engine_of("auto").device == "ipu"
    assert pick_device("auto") == "cpu"
    poptorch.hardware.present = 0
    assert engine_of("auto").device == "cpu"
    assert "no IPU: no IPU is there" in caplog.text


def test_other_torch_than_the_sdks_is_refused(tmp_path):
    (tmp_path / "poptorch.py").write_text("assert False, 'This version of PopTorch only works with torch==2.0.1'\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "chestxray_vit.train",
        "--dataset_dir",
        "d",
        "--output_dir",
        "o",
        "--device",
        "ipu",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "PopTorch cannot be loaded by Python" in done.stderr
    assert "only works with torch==2.0.1. Poplar SDK 3.3 and 3.4 go with Python 3.8 and torch 2.0.1" in done.stderr
    assert "Traceback" not in done.stderr
