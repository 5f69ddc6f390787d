from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import ViTConfig, ViTForImageClassification

from chestxray_vit.pipeline.stages import Stage, StageRank, parts_of


def drawn_vit(**sizes):
    """Return a small ViT with random weights."""
    torch.manual_seed(0)
    config = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "num_labels": 14,
    }
    return ViTForImageClassification(ViTConfig(**{**config, **sizes}))


def cut(vit, layers_by_ipu, recompute=False):
    """Return all stages of copies of a ViT, in this one process."""
    count = len(layers_by_ipu)
    ranks = [StageRank(stage, count, 0, 1, torch.device("cpu"), None, None) for stage in range(count)]
    return [Stage(copy.deepcopy(vit), rank, layers_by_ipu, recompute) for rank in ranks]


@pytest.mark.parametrize("layers_by_ipu", [(5,), (2, 3), (1, 1, 1, 1, 1), (0, 5), (3, 0, 2)])
def test_stages_one_after_another_are_the_model(layers_by_ipu):
    vit = drawn_vit()
    pixels = torch.rand(3, 3, 32, 32)
    hidden = pixels
    for stage in cut(vit, layers_by_ipu):
        hidden = stage(hidden)
    assert torch.equal(hidden, vit(pixel_values=pixels).logits)


@pytest.mark.parametrize("sizes", [{"num_labels": 15}, {"image_size": 48}, {"hidden_size": 36}, {"qkv_bias": False}])
def test_other_sizes_need_nothing_else(sizes):
    vit = drawn_vit(**sizes)
    pixels = torch.rand(2, 3, vit.config.image_size, vit.config.image_size)
    first, second = cut(vit, (2, 3))
    assert torch.equal(second(first(pixels)), vit(pixel_values=pixels).logits)


def test_every_tensor_is_on_one_stage_under_its_own_name():
    vit = drawn_vit()
    held = [set(stage.vit.state_dict()) for stage in cut(vit, (1, 2, 2))]
    assert set.union(*held) == set(vit.state_dict())
    assert sum(map(len, held)) == len(vit.state_dict())
    assert [sum(parameter.numel() for parameter in stage.parameters()) for stage in cut(vit, (5,))] == [
        vit.num_parameters()
    ]


def test_parts_are_found_by_structure():
    vit = drawn_vit()
    embeddings, layers, norm, head = parts_of(vit)
    assert len(layers) == 5
    assert sum(parameter.numel() for part in (embeddings, layers, norm, head) for parameter in part.parameters()) == (
        vit.num_parameters()
    )


def kept_bytes(stage, inputs):
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.data_ptr() for parameter in stage.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = stage(inputs.requires_grad_())
    assert output.requires_grad
    return sum(kept.values())


def test_recomputation_keeps_less_and_changes_no_gradient():
    vit = drawn_vit()
    kept, gradients = [], []
    for recompute in (False, True):
        middle = cut(vit, (1, 3, 1), recompute)[1]
        inputs = torch.rand(4, 17, 24, generator=torch.Generator().manual_seed(1))
        kept.append(kept_bytes(middle, inputs.clone()))
        middle(inputs).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in middle.named_parameters()})
    assert kept[1] < kept[0] / 5  # each layer's input alone, against all that it computes
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
