"""Heat maps of a ViT: which patches its attention carried to the class token.

A ViT's attention is computed by fused kernels that never hold the matrix, so the plain form is
used here, and the model's own is restored afterwards. The maps are of patches; overlay and localisation enlarge them.

B batch, H heads, T tokens (the class token first), h x w grid of patches."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional, Sequence, Tuple

import numpy as np
import torch

from chestxray_vit.errors import InputError
from chestxray_vit.metrics.probability import probabilities
from chestxray_vit.models.label_config import label_set_of
from chestxray_vit.saliency.localisation import METHODS

BATCH = 4  # maps in one batch: every layer's attention and its gradient are held


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how much of each token reaches the class token by attention alone (Abnar & Zuidema, ACL 2020).

    Each layer's attention is its mean over heads, plus the identity for the residual path, its rows scaled to sum 1;
    layers are multiplied, the last on the left.

    Args:
        attentions: (B, H, T, T) of each layer, the first first; rows sum to 1.

    Returns:
        (B, T), of sum 1.
    """
    identity = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    total_BTT = identity.expand(len(attentions[0]), -1, -1)
    for attention_BHTT in attentions:
        mixed_BTT = attention_BHTT.mean(dim=1) + identity
        total_BTT = (mixed_BTT / mixed_BTT.sum(dim=-1, keepdim=True)) @ total_BTT
    return total_BTT[:, 0]


def gradient_weighted(attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return each token's relevance for a score, by attention and its gradient.

    Chefer, Gur & Wolf, ICCV 2021, equations 5 and 6 (the attention part of their CVPR 2021, without its LRP): R starts
    as the identity; each layer adds its mean over heads of max(gradient x attention, 0), times R.

    Args:
        attentions: (B, H, T, T) of each layer, the first first.
        gradients: of the score by each of them.

    Returns:
        (B, T), none below 0; what only lowers the score has none.
    """
    identity = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    total_BTT = identity.expand(len(attentions[0]), -1, -1)
    for attention_BHTT, gradient_BHTT in zip(attentions, gradients):
        total_BTT = total_BTT + (gradient_BHTT * attention_BHTT).clamp(min=0).mean(dim=1) @ total_BTT
    return total_BTT[:, 0]


def heat_maps(
    vit: Any, pixel_values_B3HW: torch.Tensor, finding_indices_B: Sequence[int], method: str = "gradient"
) -> torch.Tensor:
    """Return a heat map of each image's patches, for one finding each.

    Args:
        vit: a `ViTForImageClassification`; its mode and its kind of attention are restored afterwards.
        pixel_values_B3HW: normalised, on the model's device.
        finding_indices_B: the output that each map is for. Rollout has one map for all of them.
        method: `gradient` or `rollout`.

    Returns:
        (B, h, w), float32, none below 0.

    Raises:
        InputError: the model gives no attention, or not one class token before the patches.
        ValueError: no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected {' or '.join(METHODS)}")
    grid = _grid(vit.config, pixel_values_B3HW)
    by_gradient = method == "gradient"
    with _plain_attention(vit), torch.set_grad_enabled(by_gradient):
        # the pixels ask for gradients too: a model whose weights are frozen has else no graph
        pixels = pixel_values_B3HW.detach().requires_grad_(by_gradient)
        output = vit(pixel_values=pixels, output_attentions=True)
        attentions = _checked(output.attentions, vit.config.num_hidden_layers, grid)
        if not by_gradient:
            tokens_BT = rollout(attentions)
        else:
            rows = torch.arange(len(pixels), device=pixels.device)
            # the logit, not the probability: a sigmoid near 1 has no gradient left; images do not mix in the sum
            score = output.logits[rows, torch.as_tensor(finding_indices_B, device=pixels.device)].sum()
            gradients = torch.autograd.grad(score, attentions)
            tokens_BT = gradient_weighted([attention.detach() for attention in attentions], gradients)
    return tokens_BT[:, 1:].reshape(-1, *grid).float()


def maps_of_image(
    vit: Any, pixels_3HW: torch.Tensor, finding_indices: Optional[Sequence[int]], method: str = "gradient"
) -> Iterator[Tuple[int, float, np.ndarray]]:
    """Yield the finding's index, its score and its (h, w) map of one image, for each finding asked for.

    Args:
        vit, method: as `heat_maps`; the model is in evaluation.
        pixels_3HW: normalised, on the model's device.
        finding_indices: None for the finding of the highest score.
    """
    num_findings = len(label_set_of(vit.config).findings)
    with torch.inference_mode():
        logits_1L = vit(pixel_values=pixels_3HW[None]).logits.float().cpu().numpy()[:, :num_findings]
    scores_L = probabilities(logits_1L)[0].tolist()
    indices = [int(logits_1L[0].argmax())] if finding_indices is None else list(finding_indices)
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        maps_Bhw = heat_maps(vit, pixels_3HW.expand(len(some), -1, -1, -1), some, method).cpu().numpy()
        yield from ((index, scores_L[index], map_hw) for index, map_hw in zip(some, maps_Bhw))


def _grid(config: Any, pixel_values_B3HW: torch.Tensor) -> Tuple[int, int]:
    """Return the rows and columns of patches; both sizes may be a number or a pair."""
    patch = config.patch_size if isinstance(config.patch_size, (tuple, list)) else (config.patch_size,) * 2
    return pixel_values_B3HW.shape[2] // patch[0], pixel_values_B3HW.shape[3] // patch[1]


def _checked(attentions: Any, num_layers: int, grid: Tuple[int, int]) -> Tuple[torch.Tensor, ...]:
    """Return the attentions, if there is one a layer and they are over a class token and the patches."""
    if attentions is None or len(attentions) != num_layers or any(layer is None for layer in attentions):
        found = 0 if attentions is None else sum(layer is not None for layer in attentions)
        raise InputError(
            f"the model gave the attention of {found} of {num_layers} layers. "
            "Does its kind of attention hold the matrix? Expected 'eager'."
        )
    num_tokens, num_patches = attentions[0].shape[-1], grid[0] * grid[1]
    if num_tokens - num_patches != 1:
        raise InputError(
            f"the model has {num_tokens} tokens for {grid[0]} x {grid[1]} patches: {num_tokens - num_patches} before "
            "them, expected 1, the class token. Maps are made for a plain ViT only."
        )
    return attentions


@contextlib.contextmanager
def _plain_attention(vit: Any) -> Iterator[None]:
    """Put a model in evaluation with attention that holds its matrix; restore both afterwards."""
    was_training = vit.training
    # transformers 4.29 has no other attention than the plain one
    before = vit.config._attn_implementation if hasattr(vit, "set_attn_implementation") else None
    vit.eval()
    if before is not None:
        vit.set_attn_implementation("eager")
    try:
        yield
    finally:
        vit.train(was_training)
        if before is not None:
            vit.set_attn_implementation(before)
