"""The pipeline's update against the whole model's, by `plan --check`."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("pipelines on CUDA and CPU need transformers 5", allow_module_level=True)

from chestxray_vit import plan
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.equivalence import Comparison, compare, compare_with_whole_model

SMALL = ViTSize(image_size=16, patch_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32)
SIZES = "--image_size 16 --patch_size 8 --hidden_size 16 --num_attention_heads 2 --intermediate_size 32".split()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ipu_config.known_names()])
def test_check_passes_for_every_configuration(name, capfd):
    assert plan.main([name, "--check", *SIZES]) == 0
    printed = capfd.readouterr().out
    assert "the pipeline is the model" in printed
    assert printed.count(": same") == 3
    config = ipu_config.read_ipu_config(name).training
    assert len(re.findall(r"^stage \d", printed, re.M)) == config.ipus_per_replica


def test_check_fails_on_a_difference(capfd):
    config = ipu_config.read_ipu_config("vit-tiny-2ipu")
    assert compare_with_whole_model(Comparison(config, SMALL, schedule="gpipe", tolerance=-1.0)) == 1
    assert "MISMATCH: the pipeline is not the model" in capfd.readouterr().out


def test_differences_are_found_where_they_are():
    lines = []
    expected = {"a": torch.tensor([1.0, 100.0]), "b": torch.tensor([2.0])}
    assert compare(lines, "weight", {"a": torch.tensor([1.0, 100.0009]), "b": torch.tensor([2.0])}, expected)
    assert not compare(lines, "weight", {"a": expected["a"], "b": torch.tensor([2.01])}, expected)
    assert not compare(lines, "weight", {"a": expected["a"]}, expected)
    assert "greatest difference 1.0e-02 in b, of values up to 100: MISMATCH, allowed 1.0e-03" in lines[1]
    assert "other tensors: ['b']" in lines[2]
