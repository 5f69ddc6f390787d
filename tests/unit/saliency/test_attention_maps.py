"""Heat maps of attention: both formulas against slow versions and by hand, and a ViT of which the map is known.

The known ViT has one layer of uniform attention. A patch's features are (m, -m, 0, ...), m being its mean pixel; the
class token gathers them; Cardiomegaly is scored by the first feature less the second, Mass by the opposite. So a
bright patch speaks for Cardiomegaly and a dark one for Mass, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import ViTConfig, ViTForImageClassification

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models import vit as model
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.saliency import attention_maps as attention

FINDINGS = NIH_CHESTXRAY14.names

BRIGHT, DARK = FINDINGS.index("Cardiomegaly"), FINDINGS.index("Mass")
WIDTH = 8


def make_known(vit):
    """Give a ViT of one layer, width 8 and two heads the weights of the module's docstring."""
    for name, parameter in vit.named_parameters():
        torch.nn.init.zeros_(parameter)
        if "layernorm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        if name.endswith(("value.weight", "v_proj.weight", "attention.output.dense.weight", "o_proj.weight")):
            torch.nn.init.eye_(parameter)
        if name.endswith("projection.weight"):
            mean = 1 / parameter[0].numel()
            torch.nn.init.constant_(parameter[0], mean)
            torch.nn.init.constant_(parameter[1], -mean)
        if name == "classifier.weight":
            torch.nn.init.constant_(parameter[BRIGHT, 0], 1.0)
            torch.nn.init.constant_(parameter[BRIGHT, 1], -1.0)
            torch.nn.init.constant_(parameter[DARK, 0], -1.0)
            torch.nn.init.constant_(parameter[DARK, 1], 1.0)
    vit.config.layer_norm_eps = 1.0  # a small one would make every patch as loud as another
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.0
    return vit


def known_vit():
    """Return the known ViT of 64 pixels and 4 x 4 patches, and its image processor."""
    shape = ViTSize(
        image_size=64, patch_size=16, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    vit, processor = model.build_from_scratch(shape)
    return make_known(vit), processor


def random_vit(num_layers=3):
    torch.manual_seed(5)
    shape = ViTSize(
        image_size=64,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=32,
    )
    vit, _ = model.build_from_scratch(shape)
    for name, parameter in vit.named_parameters():
        if "layernorm" not in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return vit


def pixels_with(bright=None, dark=None, size=(64, 64), patch=(16, 16)):
    """Return grey pixels with a bright and a dark patch at (row, column)."""
    pixels_13HW = torch.zeros(1, 3, *size)
    for position, value in ((bright, 1.0), (dark, -1.0)):
        if position is not None:
            rows, columns = (slice(at * side, (at + 1) * side) for at, side in zip(position, patch))
            pixels_13HW[..., rows, columns] = value
    return pixels_13HW


def random_attentions(num_layers, images=2, heads=3, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, heads, tokens, tokens)
    attentions = [torch.rand(shape, generator=generator).softmax(dim=-1) for _ in range(num_layers)]
    gradients = [torch.randn(shape, generator=generator) for _ in range(num_layers)]
    return attentions, gradients


def matmul(a, b):
    """Multiply two square matrices, number by number."""
    size = range(len(a))
    return [[sum(a[i][k] * b[k][j] for k in size) for j in size] for i in size]


def slow_rollout(layers_HTT):
    size = range(len(layers_HTT[0][0]))
    total = [[float(i == j) for j in size] for i in size]
    for heads in layers_HTT:
        mixed = [[sum(head[i][j] for head in heads) / len(heads) + (i == j) for j in size] for i in size]
        mixed = [[value / sum(row) for value in row] for row in mixed]
        total = matmul(mixed, total)
    return total[0]


def slow_gradient_weighted(layers_HTT, gradients_HTT):
    size = range(len(layers_HTT[0][0]))
    total = [[float(i == j) for j in size] for i in size]
    for heads, slopes in zip(layers_HTT, gradients_HTT):
        kept = [
            [sum(max(h[i][j] * g[i][j], 0) for h, g in zip(heads, slopes)) / len(heads) for j in size] for i in size
        ]
        added = matmul(kept, total)
        total = [[total[i][j] + added[i][j] for j in size] for i in size]
    return total[0]


def of_image(layers, position):
    return [layer[position].double().tolist() for layer in layers]


def test_formulas_against_slow_versions():
    attentions, gradients = random_attentions(num_layers=4)
    rolled, weighted = attention.rollout(attentions), attention.gradient_weighted(attentions, gradients)
    assert rolled.shape == weighted.shape == (2, 5)
    for position in range(2):
        layers, slopes = of_image(attentions, position), of_image(gradients, position)
        assert rolled[position].tolist() == pytest.approx(slow_rollout(layers), rel=1e-5)
        assert weighted[position].tolist() == pytest.approx(slow_gradient_weighted(layers, slopes), rel=1e-4)
    assert rolled.sum(dim=1).tolist() == pytest.approx([1, 1])


def test_rollout_by_hand():
    layer = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    # with the identity and halved: [[.75, .25], [0, 1]]; its square's first row: .75 * .75, .75 * .25 + .25 * 1
    assert attention.rollout([layer]).tolist() == [[0.75, 0.25]]
    assert attention.rollout([layer, layer]).tolist() == [[0.5625, 0.4375]]


def test_gradient_weighted_by_hand():
    layer = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    gradient = torch.tensor([[[[-1.0, 2.0], [0.0, 4.0]]]])
    # products [[-.5, 1], [0, 4]], kept [[0, 1], [0, 4]]; R = I + kept = [[1, 1], [0, 5]]
    assert attention.gradient_weighted([layer], [gradient]).tolist() == [[1.0, 1.0]]
    # again: R + kept R, whose first row is [1, 1] + [0, 5]
    assert attention.gradient_weighted([layer] * 2, [gradient] * 2).tolist() == [[1.0, 6.0]]


def test_heads_are_cut_at_zero_before_their_mean():
    layer = torch.full((1, 2, 2, 2), 0.5)
    gradient = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    # products 0.5 and -0.5: the mean of 0.5 and 0 is 0.25, that of both would be 0
    assert attention.gradient_weighted([layer], [gradient]).tolist() == [[1.25, 0.25]]


def test_order_of_the_layers_counts():
    attentions, gradients = random_attentions(num_layers=2)
    assert not torch.allclose(attention.rollout(attentions), attention.rollout(attentions[::-1]), atol=1e-4)
    weighted = attention.gradient_weighted(attentions, gradients)
    assert not torch.allclose(weighted, attention.gradient_weighted(attentions[::-1], gradients[::-1]), atol=1e-4)


def known_map(pixels_HW, finding):
    """Return the gradient map of the known ViT, worked out on paper in float64.

    With uniform attention a = 1 / T the class token becomes x = a * sum of v, v = LN(patch), and the score
    s * (y0 - y1), y = LN(x). The slope of a patch's attention is v . dx, with dx LN's own gradient; the second head
    sees zeros alone, so the mean over heads is half.
    """
    means = np.asarray(pixels_HW, dtype=float).reshape(4, 16, 4, 16).mean(axis=(1, 3)).ravel()
    features = np.zeros((16, WIDTH))
    features[:, 0], features[:, 1] = means, -means
    values = features / np.sqrt(features.var(axis=1, keepdims=True) + 1)
    share = 1 / 17
    x = share * values.sum(axis=0)
    scale = np.sqrt(x.var() + 1)
    y, weights = x / scale, np.zeros(WIDTH)
    weights[:2] = (1, -1) if finding == BRIGHT else (-1, 1)
    slope = (weights - weights.mean() - y * (weights * y).mean()) / scale
    return (np.maximum(values @ slope * share, 0) / 2).reshape(4, 4)


@pytest.mark.parametrize("finding", [BRIGHT, DARK])
def test_map_of_the_known_vit_is_that_on_paper(finding):
    vit, _ = known_vit()
    rng = np.random.default_rng(0)
    pixels_HW = np.kron(rng.uniform(-1, 1, (4, 4)), np.ones((16, 16)))
    pixels_13HW = torch.tensor(pixels_HW, dtype=torch.float32).expand(1, 3, -1, -1)
    found = attention.heat_maps(vit, pixels_13HW, [finding])[0].numpy()
    expected = known_map(pixels_HW, finding)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected.max() > 0.01
    assert (expected == 0).any()  # what speaks against the finding has no warmth


def test_each_finding_has_its_own_patch():
    vit, _ = known_vit()
    pixels_13HW = pixels_with(bright=(1, 2), dark=(3, 0))
    maps = attention.heat_maps(vit, pixels_13HW.expand(2, -1, -1, -1), [BRIGHT, DARK])
    for map_hw, position in zip(maps, [(1, 2), (3, 0)]):
        assert map_hw[position] > 0.01
        assert map_hw.sum() == map_hw[position]  # all of it


def test_rollout_is_of_no_finding():
    vit, _ = known_vit()
    pixels_23HW = pixels_with(bright=(1, 2), dark=(3, 0)).expand(2, -1, -1, -1)
    maps = attention.heat_maps(vit, pixels_23HW, [BRIGHT, DARK], "rollout")
    assert torch.equal(maps[0], maps[1])
    assert maps.numpy() == pytest.approx(np.full((2, 4, 4), 1 / 34))  # half of uniform attention over 17 tokens


@pytest.mark.parametrize("method", attention.METHODS)
def test_maps_of_several_layers_are_the_formulas(method):
    vit = random_vit().eval()
    pixels_33HW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    places = [0, 13, 5]
    found = attention.heat_maps(vit, pixels_33HW, places, method)
    if hasattr(vit, "set_attn_implementation"):
        vit.set_attn_implementation("eager")
    for row, position in enumerate(places):  # one image at a time, by a backward pass
        output = vit(pixel_values=pixels_33HW[row : row + 1], output_attentions=True)
        for layer in output.attentions:
            layer.retain_grad()
        output.logits[0, position].backward()
        layers = of_image([layer.detach() for layer in output.attentions], 0)
        slopes = of_image([layer.grad for layer in output.attentions], 0)
        expected = slow_rollout(layers) if method == "rollout" else slow_gradient_weighted(layers, slopes)
        assert found[row].ravel().tolist() == pytest.approx(expected[1:], rel=1e-3, abs=1e-6)
        assert np.ptp(expected[1:]) > 1e-3


@pytest.mark.parametrize("method", attention.METHODS)
def test_map_is_the_same_alone_and_in_a_batch(method):
    vit = random_vit()
    pixels_53HW = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    together = attention.heat_maps(vit, pixels_53HW, [1, 2, 3, 4, 5], method)
    alone = [attention.heat_maps(vit, pixels_53HW[row : row + 1], [row + 1], method)[0] for row in range(5)]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together[0], together[1], rtol=1e-2)


@pytest.mark.parametrize(("bright", "patch", "grid"), [((1, 4), (16, 8), (2, 6)), ((4, 1), (8, 16), (6, 2))])
def test_grid_and_patches_need_not_be_square(bright, patch, grid):
    size = (grid[0] * patch[0], grid[1] * patch[1])
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=14,
    )
    vit = make_known(ViTForImageClassification(config))
    map_hw = attention.heat_maps(vit, pixels_with(bright, size=size, patch=patch), [BRIGHT])[0]
    assert map_hw.shape == grid
    assert map_hw.sum() == map_hw[bright] > 0


def test_model_is_put_back():
    vit = random_vit()
    before = getattr(vit.config, "_attn_implementation", None)
    pixels_13HW = torch.randn(1, 3, 64, 64)
    for training in (True, False):
        vit.train(training)
        attention.heat_maps(vit, pixels_13HW, [0])
        with pytest.raises(IndexError):
            attention.heat_maps(vit, pixels_13HW, [99])
        assert vit.training is training
        assert getattr(vit.config, "_attn_implementation", None) == before
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert not pixels_13HW.requires_grad


def test_maps_are_there_without_gradients_around_and_with_frozen_weights():
    vit = random_vit()
    pixels_13HW = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    expected = attention.heat_maps(vit, pixels_13HW, [2])
    with torch.no_grad():
        assert torch.equal(attention.heat_maps(vit, pixels_13HW, [2]), expected)
    vit.requires_grad_(False)
    assert torch.allclose(attention.heat_maps(vit, pixels_13HW, [2]), expected, rtol=1e-5)
    assert expected.dtype == torch.float32
    assert not expected.requires_grad


def test_tokens_that_are_not_a_class_token_and_patches_are_refused():
    vit = random_vit(num_layers=1)
    vit.config.patch_size = 32  # 2 x 2 patches, and 17 tokens
    with pytest.raises(InputError, match="17 tokens for 2 x 2 patches: 13 before them, expected 1"):
        attention.heat_maps(vit, torch.zeros(1, 3, 64, 64), [0])


def test_model_without_attention_is_refused(monkeypatch):
    vit = random_vit(num_layers=2)
    forward = vit.forward

    def fused(*args, output_attentions=False, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(vit, "forward", fused)
    with pytest.raises(InputError, match="the attention of 0 of 2 layers"):
        attention.heat_maps(vit, torch.zeros(1, 3, 64, 64), [0])


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is 'saliency', expected gradient or rollout"):
        attention.heat_maps(known_vit()[0], torch.zeros(1, 3, 64, 64), [0], "saliency")


def test_maps_of_image_are_of_the_highest_score_or_those_asked_for():
    vit = random_vit().eval()
    pixels_3HW = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        scores_L = torch.sigmoid(vit(pixel_values=pixels_3HW[None]).logits[0].double())
    [(position, score, map_hw)] = attention.maps_of_image(vit, pixels_3HW, None)
    assert position == int(scores_L.argmax())
    assert score == pytest.approx(float(scores_L[position]), abs=1e-6)
    everything = list(attention.maps_of_image(vit, pixels_3HW, range(14)))  # more than a batch
    assert [position for position, _, _ in everything] == list(range(14))
    assert [score for _, score, _ in everything] == pytest.approx(scores_L.tolist(), abs=1e-6)
    assert everything[position][2] == pytest.approx(map_hw, rel=1e-4, abs=1e-6)


def test_fifteenth_output_is_never_the_finding_of_the_highest_score():
    torch.manual_seed(0)
    shape = ViTSize(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=15,
    )
    vit, _ = model.build_from_scratch(shape, NIH_CHESTXRAY14.with_negative_column())
    torch.nn.init.constant_(vit.classifier.bias[14:], 9.0)
    [(position, _, _)] = attention.maps_of_image(vit.eval(), torch.zeros(3, 32, 32), None)
    assert position < 14
