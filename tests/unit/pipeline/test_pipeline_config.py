from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.ipu_config import read_ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig, PipelineMode

POD4 = read_ipu_config("vit-base-pod4")


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        ([-1, -1], 2, (6, 6)),
        ([-1], 5, (2, 2, 2, 2, 4)),  # the last takes what does not divide
        ([1, -1, -1, 2], 4, (1, 4, 5, 2)),
        ([0, 12], 2, (0, 12)),
        ([9, 9], 1, (12,)),  # one IPU takes all, whatever is written
    ],
)
def test_wildcards_are_filled_in(layers, stages, expected):
    mode = PipelineMode(tuple(layers), stages, 1, 1, 1, (0.3,) * stages)
    assert mode.layers_by_ipu(12) == expected


@pytest.mark.parametrize("layers", [[3, 3, 3, 4], [3, 3, 3, 2], [12, -1, 1, 1]])
def test_layers_that_do_not_sum_up_are_refused(layers):
    config = POD4.with_values(layers_per_ipu=layers)
    with pytest.raises(InputError, match=r"layers do not fit in training: .* the model has 12; a -1 takes what is"):
        config.check_layers(12)


def test_inference_may_have_a_pipeline_of_its_own():
    config = POD4.with_values(inference_layers_per_ipu=[12], matmul_proportion=[0.1, 0.2, 0.3, 0.4])
    mode = config.inference
    assert (mode.ipus_per_replica, mode.layers_by_ipu(12), mode.matmul_proportion) == (1, (12,), (0.2,))
    assert (mode.gradient_accumulation_steps, mode.device_iterations, mode.batch_size_factor) == (1, 4, 4)
    config.check_layers(12)


@pytest.mark.parametrize(
    ("micro_batch", "accumulation", "total", "expected"),
    [(1, None, None, 128), (1, 32, None, 32), (2, None, 64, 32), (2, 32, 64, 32)],
)
def test_accumulation_is_the_flag_or_makes_up_the_global_batch(micro_batch, accumulation, total, expected):
    config = POD4.with_batch(micro_batch, accumulation, total)
    assert config.training.gradient_accumulation_steps == expected
    assert config.to_dict() == {**POD4.to_dict(), "gradient_accumulation_steps": expected}


@pytest.mark.parametrize(("accumulation", "total"), [(None, 63), (16, 64)])
def test_global_batch_that_contradicts_is_refused(accumulation, total):
    with pytest.raises(InputError, match=f"global batch {total} is not per_device_train_batch_size 2 x replicas 1"):
        POD4.with_batch(2, accumulation, total)


def test_configuration_is_frozen_and_what_was_written(tmp_path):
    values = {"layers_per_ipu": [1, -1], "seed": 3, "gradient_accumulation_steps": 2}
    config = PipelineConfig.from_dict(values)
    assert list(config.to_dict().items()) == list(values.items())  # the order of an ipu_config.json, too
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training = config.inference
    for content in (values, config.to_dict()):
        content["layers_per_ipu"].append(7)
    assert config.to_dict()["layers_per_ipu"] == [1, -1]


def test_configuration_travels_to_another_process_and_back():
    assert pickle.loads(pickle.dumps(POD4)) == POD4
    assert PipelineConfig.from_dict(json.loads(json.dumps(POD4.to_dict()))) == POD4
    assert POD4.with_values(seed=1) != POD4


def test_switches_are_off_unless_written():
    names = ("recompute_checkpoint_every_layer", "optimizer_state_offchip", "replicated_tensor_sharding")
    assert [getattr(POD4, name) for name in names] == [True, True, True]
    assert [getattr(PipelineConfig.from_dict({}), name) for name in names] == [False, False, False]


def test_values_without_a_file_are_checked_too():
    with pytest.raises(InputError, match="IPU configuration: .*replication_factor is 0"):
        PipelineConfig.from_dict({"replication_factor": 0})
