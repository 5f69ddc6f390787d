"""A saved tiny run, and how it is spoilt."""

from __future__ import annotations

import json

import pytest

from chestxray_vit.models.vit_size import ViTSize

TINY = ViTSize(
    image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)


@pytest.fixture
def run_dir(tmp_path):
    """A saved model of ours."""
    import torch

    from chestxray_vit.models.vit import build_from_scratch

    torch.manual_seed(0)
    return save_run(tmp_path / "run", *build_from_scratch(TINY))


def save_run(folder, vit, processor):
    """Save a model and its image processor as a run, and return its folder."""
    vit.save_pretrained(folder, safe_serialization=True)  # transformers 4 makes a pickle by default
    processor.save_pretrained(folder)
    return folder


def edit_config(folder, **changes):
    """Set entries of config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    """Change the tensors of model.safetensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_foreign(folder):
    """Make a run of ours look like a checkpoint of another task with three classes."""
    edit_config(folder, problem_type=None, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})

    def cut(tensors):
        tensors["classifier.weight"] = tensors["classifier.weight"][:3].clone()
        tensors["classifier.bias"] = tensors["classifier.bias"][:3].clone()

    edit_weights(folder, cut)
