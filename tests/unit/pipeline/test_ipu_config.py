from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline import ipu_config

POD4 = ipu_config.read_ipu_config("vit-base-pod4")


def written(folder, **changes):
    """Write vit-base-pod4 with changes, and return its folder's name."""
    (folder / "ipu_config.json").write_text(json.dumps({**POD4.to_dict(), **changes}))
    return str(folder)


def test_pod4_is_the_hubs_vit_base_ipu_field_by_field():
    assert POD4.to_dict() == {
        "recompute_checkpoint_every_layer": True,
        "optimizer_state_offchip": True,
        "replicated_tensor_sharding": True,
        "enable_half_partials": True,
        "replication_factor": 1,
        "inference_replication_factor": 1,
        "gradient_accumulation_steps": 128,
        "device_iterations": 1,
        "inference_device_iterations": 4,
        "ipus_per_replica": 4,
        "layers_per_ipu": [3, 3, 3, 3],
        "matmul_proportion": 0.3,
        "executable_cache_dir": "./exe_cache",
    }


@pytest.mark.parametrize(
    ("name", "replicas", "accumulation", "num_ipus"),
    [("vit-base-pod4", 1, 128, 4), ("vit-base-pod16", 4, 32, 16), ("vit-base-pod64", 16, 8, 64)],
)
def test_pods_share_a_global_batch_of_128(name, replicas, accumulation, num_ipus):
    mode = ipu_config.read_ipu_config(name).training
    assert (mode.replication_factor, mode.gradient_accumulation_steps, mode.num_ipus) == (
        replicas,
        accumulation,
        num_ipus,
    )
    assert mode.batch_size_factor == 128
    assert mode.layers_by_ipu(12) == (3, 3, 3, 3)


REFUSED = {
    "matmul_proportion is 3.0. It is a share": {"matmul_proportion": 3.0},
    "matmul_proportion is [0.3, 0.3, 0.3, 0]": {"matmul_proportion": [0.3, 0.3, 0.3, 0]},
    "matmul_proportion has 2 entries, ipus_per_replica is 4": {"matmul_proportion": [0.3, 0.3]},
    "layers_per_ipu [6, 6] has 2 entries, ipus_per_replica is 4": {"layers_per_ipu": [6, 6]},
    "layers_per_ipu is [3, 3, 3, -2]": {"layers_per_ipu": [3, 3, 3, -2]},
    "unknown field: 'gradient_acumulation_steps'": {"gradient_acumulation_steps": 4},
    "replication_factor is 0": {"replication_factor": 0},
    "gradient_accumulation_steps is True": {"gradient_accumulation_steps": True},
    "neither true nor false: enable_half_partials is 'yes'": {"enable_half_partials": "yes"},
    "2 updates would be made at one learning rate": {"device_iterations": 2},
}


@pytest.mark.parametrize("text", REFUSED)
def test_values_that_cannot_run_are_refused(text, tmp_path):
    with pytest.raises(InputError) as caught:
        ipu_config.read_ipu_config(written(tmp_path, **REFUSED[text]))
    assert text in str(caught.value)
    assert str(tmp_path / "ipu_config.json") in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        ipu_config.read_ipu_config(written(tmp_path, replication_factor=0, matmul_proportion=2, colour="red"))
    assert all(text in str(caught.value) for text in ("3 kinds of problems", "replication_factor", "2", "'colour'"))


@pytest.mark.parametrize("text", ["[1, 2]", "{", ""])
def test_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "ipu_config.json").write_text(text)
    with pytest.raises(InputError, match=r"ipu_config.json: (expected an object, found list|not JSON)"):
        ipu_config.read_ipu_config(str(tmp_path))


@pytest.mark.parametrize(("n_ipu", "replicas"), [(4, 1), (16, 4), (64, 16)])
def test_number_of_ipus_sets_the_replicas_of_both_modes(n_ipu, replicas):
    config = ipu_config.read_ipu_config("vit-base-pod16", n_ipu)
    assert config.training.replication_factor == replicas
    assert config.inference.replication_factor == replicas


def test_number_of_ipus_must_hold_whole_pipelines():
    with pytest.raises(InputError, match=r"2 IPUs .* are not a multiple of ipus_per_replica 4"):
        ipu_config.read_ipu_config("vit-base-pod4", 2)


def test_number_of_ipus_comes_from_the_flag_or_the_environment(monkeypatch):
    monkeypatch.delenv("NUM_AVAILABLE_IPU", raising=False)
    assert ipu_config.num_ipus(None) is None
    monkeypatch.setenv("NUM_AVAILABLE_IPU", "16")
    assert ipu_config.num_ipus(None) == 16
    assert ipu_config.num_ipus(4) == 4
    monkeypatch.setenv("NUM_AVAILABLE_IPU", "many")
    with pytest.raises(InputError, match=r"\$NUM_AVAILABLE_IPU is many, expected one of 1, 2, 4, 8"):
        ipu_config.num_ipus(None)
    with pytest.raises(InputError, match="--n_ipu is 3, expected one of"):
        ipu_config.num_ipus(3)


def test_overrides_have_the_last_word():
    text = "gradient_accumulation_steps=64, layers_per_ipu=[2 4 4 2],enable_half_partials=False,replication_factor=2"
    config = ipu_config.read_ipu_config("vit-base-pod4", 4, text).to_dict()
    assert config["gradient_accumulation_steps"] == 64
    assert config["layers_per_ipu"] == [2, 4, 4, 2]
    assert config["enable_half_partials"] is False
    assert config["replication_factor"] == 2
    assert ipu_config.read_ipu_config("vit-base-pod4", None, "output_mode=sum").to_dict()["output_mode"] == "sum"


@pytest.mark.parametrize("text", ["gradient_accumulation_steps", "colour=red", "=3"])
def test_overrides_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="is not `name=value` of an IPUConfig"):
        ipu_config.read_ipu_config("vit-base-pod4", None, text)


def test_overridden_values_are_checked_too():
    with pytest.raises(InputError, match=r"with --ipu_config_overrides matmul_proportion=2: outside \(0, 1\]"):
        ipu_config.read_ipu_config("vit-base-pod4", None, "matmul_proportion=2")


OLDER = {
    "replication_factor": {"pod4": 1, "pod16": 4, "default": 1},
    "gradient_accumulation_steps": {"pod4": 128, "pod16": 32},
    "sharded_execution_for_inference": True,
    "transformers_version": "4.20.0",
}


@pytest.mark.parametrize(("n_ipu", "expected"), [(16, (4, 32)), (4, (1, 128)), (None, (1, 128))])
def test_older_files_are_resolved_by_the_number_of_ipus(tmp_path, n_ipu, expected, caplog):
    caplog.set_level("INFO")
    config = ipu_config.read_ipu_config(written(tmp_path, **OLDER), n_ipu).to_dict()
    assert (config["replication_factor"], config["gradient_accumulation_steps"]) == expected
    assert not {"sharded_execution_for_inference", "transformers_version"} & set(config)
    assert "an older form, with values by pod. Taken: replication_factor" in caplog.text


def test_older_file_without_that_pod_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gradient_accumulation_steps has no value for pod64, only for pod4, pod16"):
        ipu_config.read_ipu_config(written(tmp_path, **OLDER), 64)


def read_offline(name, cache):
    """Read a configuration in a process of its own, where the Hub is not reached; return what it printed."""
    pytest.importorskip("huggingface_hub")
    code = (
        "from chestxray_vit.pipeline import ipu_config\n"
        f"print(ipu_config.read_ipu_config({name!r}, 16).training.replication_factor)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_hub_name_is_read_from_the_cache_without_a_network(tmp_path):
    snapshot = tmp_path / "models--Graphcore--vit-base-ipu" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "ipu_config.json").write_text(json.dumps(POD4.to_dict()))
    assert read_offline("Graphcore/vit-base-ipu", tmp_path) == "4\n"


def test_hub_name_without_network_or_cache_tells_of_the_same_values_here(tmp_path):
    text = read_offline("Graphcore/vit-base-ipu", tmp_path)
    assert "InputError: IPU configuration Graphcore/vit-base-ipu: no such folder, and it could not be fetched" in text
    assert "vit-base-pod4 has the same values." in text


def test_unknown_name_lists_ours():
    with pytest.raises(InputError, match="Known names: vit-base-pod16, vit-base-pod4, vit-base-pod64, vit-tiny-2ipu"):
        ipu_config.read_ipu_config("vit-base-pod8")
