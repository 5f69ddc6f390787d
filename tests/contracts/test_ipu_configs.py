"""Every IPU configuration in the repository holds a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "ipu_configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/ipu_config.json")), ids=lambda path: path.parent.name)
def test_ipu_configs_hold_a_plan(path):
    config = json.loads(path.read_text())
    assert len(config["layers_per_ipu"]) == config["ipus_per_replica"]
    assert 0 < config["matmul_proportion"] <= 1


def test_vit_base_pod4_is_the_hubs():
    config = json.loads((CONFIGS / "vit-base-pod4" / "ipu_config.json").read_text())
    assert config["gradient_accumulation_steps"] == 128
    assert config["layers_per_ipu"] == [3, 3, 3, 3]
