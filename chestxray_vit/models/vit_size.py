"""The size of a ViT, and what follows from it on paper: parameters, FLOPs, and what a layer keeps to learn.

T tokens, d hidden_size, f intermediate_size. Parameters are those of `ViTForImageClassification`, to the last one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, List, Sequence

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14


@dataclass(frozen=True)
class ViTSize:
    """The sizes of a ViT under ViTConfig's names; the defaults are ViT-B/16's, with NIH's findings."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_labels: int = len(NIH_CHESTXRAY14)
    qkv_bias: bool = True

    def __post_init__(self):
        sizes = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "qkv_bias"]
        wrong = [f"{name} is {size!r}" for name, size in sizes if not isinstance(size, int) or size < 1]
        if wrong:
            raise InputError(f"ViT: {', '.join(wrong)}; expected a whole number above 0.")
        if self.image_size % self.patch_size or self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"ViT: image_size {self.image_size} must be a multiple of patch_size {self.patch_size}, and "
                f"hidden_size {self.hidden_size} of num_attention_heads {self.num_attention_heads}."
            )

    @classmethod
    def of(cls, config: Any) -> ViTSize:
        """Return the size of a ViTConfig, or of anything with its attributes."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """T, the patches and the class token."""
        return self.num_patches + 1

    @property
    def embedding_parameters(self) -> int:
        """The convolution of the patches with its bias, the class token, and a position a token."""
        patch = self.num_channels * self.patch_size**2
        return self.hidden_size * (patch + 1 + 1 + self.num_tokens)

    @property
    def layer_parameters(self) -> int:
        """Query, key, value and output; the two of the MLP; two norms; biases (qkv_bias may lack three)."""
        d, f = self.hidden_size, self.intermediate_size
        return 4 * d * d + (4 if self.qkv_bias else 1) * d + 2 * d * f + f + d + 4 * d

    @property
    def head_parameters(self) -> int:
        """The final norm and the classifier."""
        return 2 * self.hidden_size + (self.hidden_size + 1) * self.num_labels

    @property
    def embedding_flops(self) -> int:
        """Forward FLOPs an image, 2 a multiply-add: the convolution of the patches. Additions are not counted."""
        return 2 * self.num_patches * self.num_channels * self.patch_size**2 * self.hidden_size

    @property
    def layer_flops(self) -> int:
        """Forward FLOPs an image, 2 a multiply-add: matrix products alone, no norm, softmax, GELU or bias.

        Query, key, value and output 8 T d^2, scores and their use 4 T^2 d, MLP 4 T d f.
        """
        tokens, d = self.num_tokens, self.hidden_size
        return 8 * tokens * d * d + 4 * tokens * tokens * d + 4 * tokens * d * self.intermediate_size

    @property
    def head_flops(self) -> int:
        """Forward FLOPs an image, 2 a multiply-add: the classifier, which sees the class token alone."""
        return 2 * self.hidden_size * self.num_labels

    @property
    def layer_saved(self) -> int:
        """Numbers that one layer keeps of one image for its backward pass: T (8 d + 2 f) + heads T^2.

        Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1, without
        the dropout masks: inputs of both norms, of query-key-value, of the output product and of both of the MLP's,
        query, key, value, the GELU's input, and the attention probabilities.
        """
        per_token = 8 * self.hidden_size + 2 * self.intermediate_size
        return self.num_tokens * per_token + self.num_attention_heads * self.num_tokens**2

    def stage_parameters(self, layers: Sequence[int]) -> List[int]:
        """Return the parameters of each stage that holds so many layers; the ends are on the first and the last."""
        return self._by_stage(layers, self.embedding_parameters, self.layer_parameters, self.head_parameters)

    def stage_flops(self, layers: Sequence[int]) -> List[int]:
        """Return the forward FLOPs an image of each stage that holds so many layers."""
        return self._by_stage(layers, self.embedding_flops, self.layer_flops, self.head_flops)

    @staticmethod
    def _by_stage(layers: Sequence[int], embedding: int, layer: int, head: int) -> List[int]:
        sums = [count * layer for count in layers]
        sums[0] += embedding
        sums[-1] += head
        return sums
