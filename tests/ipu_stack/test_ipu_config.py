"""Our reading of ipu_config.json, against the real IPUConfig."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.ipu_stack

from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ipu_config.known_names())
def test_every_folder_is_an_ipu_config(name, poptorch):
    from optimum.graphcore import IPUConfig

    theirs = IPUConfig.from_pretrained(ROOT / "ipu_configs" / name)
    ours = ipu_config.read_ipu_config(name)
    assert {key: getattr(theirs, key) for key in ours.to_dict()} == ours.to_dict()
    assert theirs.batch_size_factor() == ours.training.batch_size_factor
    assert theirs.batch_size_factor(for_inference=True) == ours.inference.batch_size_factor


CONFIGS = (
    {"layers_per_ipu": [-1], "ipus_per_replica": 4},
    {"layers_per_ipu": [3, 3, 3, 3], "inference_layers_per_ipu": [6, 6], "matmul_proportion": [0.1, 0.2, 0.3, 0.4]},
    {"layers_per_ipu": [1, -1, -1, 2], "inference_layers_per_ipu": [-1], "inference_ipus_per_replica": 2},
    {"layers_per_ipu": [5, 7], "inference_matmul_proportion": [0.6, 0.7], "inference_device_iterations": 5},
    {"layers_per_ipu": [-1, -1, -1], "inference_replication_factor": 3, "inference_layers_per_ipu": [12]},
)


@pytest.mark.parametrize("config", CONFIGS)
def test_modes_are_those_of_the_real_ipu_config(config, poptorch):
    from optimum.graphcore import IPUConfig
    from optimum.graphcore.modeling_utils import get_layer_ipu

    theirs = IPUConfig(**config)
    ours = PipelineConfig.from_dict(config)
    for mode, switch in ((ours.training, theirs.train), (ours.inference, theirs.eval)):
        switch()
        assert mode.ipus_per_replica == theirs._ipus_per_replica
        assert list(mode.layers_per_ipu) == theirs._layers_per_ipu
        proportion = theirs._matmul_proportion
        expected = proportion if isinstance(proportion, list) else [proportion] * mode.ipus_per_replica
        assert list(mode.matmul_proportion) == expected
        by_ipu = mode.layers_by_ipu(12)
        assert [ipu for ipu, count in enumerate(by_ipu) for _ in range(count)] == get_layer_ipu(theirs, 12)


def test_overrides_are_read_as_the_real_ipu_config_reads_them(poptorch):
    from optimum.graphcore import IPUConfig

    text = "gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2],enable_half_partials=False,matmul_proportion=0.5"
    theirs = IPUConfig.from_pretrained(ROOT / "ipu_configs" / "vit-base-pod4")
    theirs.update_from_string(text)
    ours = ipu_config.read_ipu_config("vit-base-pod4", None, text)
    assert {key: getattr(theirs, key) for key in ours.to_dict()} == ours.to_dict()
