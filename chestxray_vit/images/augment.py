"""Small random changes of training X-rays, made on batches on their device: no image is decoded again for them.

Nothing is flipped: the heart has a side, and a mirrored chest is another finding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Augment:
    """How much an image may change, by an amount that is uniform between both directions.

    Attributes:
        rotation: degrees; a patient leans.
        shift: share of the width and of the height; the beam is not centred.
        scale: share of the size; patients and distances differ.
        contrast: share of the pixel values' spread; exposures differ.
        brightness: of normalised pixel values, which span about 2.
    """

    rotation: float = 7.0
    shift: float = 0.05
    scale: float = 0.1
    contrast: float = 0.1
    brightness: float = 0.1

    def __call__(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return changed pixel values; what comes in from outside the image repeats its border."""
        count, device = len(pixels_BCHW), pixels_BCHW.device
        angle_B, scale_B = self._uniform(count, math.radians(self.rotation)), 1 + self._uniform(count, self.scale)
        cosine_B, sine_B = angle_B.cos() / scale_B, angle_B.sin() / scale_B
        across_B, along_B = (
            2 * self._uniform(count, self.shift),
            2 * self._uniform(count, self.shift),
        )  # of a grid of 2
        rows = [torch.stack([cosine_B, -sine_B, across_B], -1), torch.stack([sine_B, cosine_B, along_B], -1)]
        theta_B23 = torch.stack(rows, 1).to(device)
        grid = torch.nn.functional.affine_grid(theta_B23, list(pixels_BCHW.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)
        contrast_B111 = (1 + self._uniform(count, self.contrast)).to(device)[:, None, None, None]
        brightness_B111 = self._uniform(count, self.brightness).to(device)[:, None, None, None]
        return moved * contrast_B111 + brightness_B111

    @staticmethod
    def _uniform(count: int, most: float) -> torch.Tensor:
        """Draw on the CPU, whose random state checkpoints hold for every engine."""
        return (2 * torch.rand(count) - 1) * most
