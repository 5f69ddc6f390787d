"""What a ViT reads of an X-ray: pixel values of an image (Preprocess), or of cached grey planes (GreyToPixelValues).

Both are bit-identical, or equal to float32's rounding, to the checkpoint's own image processor: it is asked once for
its answer to each of the 256 grey levels.

B batch, H height, W width."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import torch
from PIL import Image

from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey


class Preprocess:
    """Grey to RGB, resize to the checkpoint's size, normalise with its mean and std: its image processor's output.

    A class, not a closure: PopTorch's asynchronous loader pickles it.

    Attributes:
        size: (width, height) in pixels.
        levels_3x256: the processor's answer to each grey level, by channel.
    """

    def __init__(self, processor: Any, dtype: Any = np.float32):
        """Args: processor: an image processor of `transformers`; dtype: float16 for an IPU in half precision."""
        if not {"height", "width"} <= set(dict(processor.size)):
            raise InputError(f"preprocessor_config.json: size is {processor.size}, expected height and width.")
        self.size = (processor.size["width"], processor.size["height"])
        self.resample = processor.resample
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        levels = processor(ramp, do_resize=False, return_tensors="np")["pixel_values"][0]
        self.levels_3x256 = np.asarray(levels, dtype=np.float32).reshape(3, 256).astype(dtype)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the (3, H, W) pixel values of a grey image."""
        if image.size != self.size:
            image = image.resize(self.size, self.resample)
        return torch.from_numpy(self.levels_3x256[:, np.asarray(image)])

    def __call__(self, rows: Dict[str, List]) -> Dict[str, List]:
        """Turn a batch of a dataset's columns `image` (undecoded) and, where there, `labels` into tensors."""
        result: Dict[str, List] = {
            "pixel_values": [self.pixels(read_grey(image["bytes"] or image["path"])) for image in rows["image"]]
        }
        if "labels" in rows:
            result["labels"] = [torch.tensor(labels, dtype=torch.float32) for labels in rows["labels"]]
        return result


class GreyToPixelValues:
    """Makes a ViT's pixel values of grey planes, as the image processor would: grey to RGB, rescaled, normalised.

    Attributes:
        scale_3, bias_3: a channel's value is grey x scale + bias.
        alike: whether the channels are; then one is computed, and the others are views of it.
    """

    def __init__(self, preprocess: Preprocess):
        """Args: preprocess: whose answer to the 256 grey levels is a straight line for every channel."""
        levels_3x256 = preprocess.levels_3x256.astype(np.float64)
        scale_3 = (levels_3x256[:, 255] - levels_3x256[:, 0]) / 255
        line = levels_3x256[:, :1] + scale_3[:, None] * np.arange(256)
        if np.abs(line - levels_3x256).max() > 1e-2:  # float16 levels are rounded
            raise InputError("preprocessor_config.json: not a scale and a shift. Train with --cache_dir none.")
        self.scale_3 = torch.from_numpy(scale_3).float()
        self.bias_3 = torch.from_numpy(levels_3x256[:, 0]).float()
        self.alike = bool((self.scale_3 == self.scale_3[0]).all() and (self.bias_3 == self.bias_3[0]).all())

    def __call__(self, planes_BHW: torch.Tensor) -> torch.Tensor:
        """Return pixel values (B, 3, H, W), float32, on the planes' device."""
        return self.channels(planes_BHW).expand(-1, 3, -1, -1)

    def channels(self, planes_BHW: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, H, W) where the channels are alike, else (B, 3, H, W)."""
        count = 1 if self.alike else 3
        pixels_BCHW = planes_BHW.float().unsqueeze(1)
        if count > 1:
            pixels_BCHW = pixels_BCHW.repeat(1, count, 1, 1)
        for channel in range(count):  # in place, by numbers: broadcast tensors take three times as long
            pixels_BCHW[:, channel].mul_(self.scale_3[channel].item()).add_(self.bias_3[channel].item())
        return pixels_BCHW
