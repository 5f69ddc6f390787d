"""Images that tests make, and what an image processor of transformers makes of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def random_HW(seed=0, size=(50, 70), high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, size).astype(dtype)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_rgba(alpha=255):
    grey_HW = random_HW()
    return Image.fromarray(np.dstack([grey_HW, grey_HW, grey_HW, np.full_like(grey_HW, alpha)]))


def reference(processor, image):
    """Return what the checkpoint's own image processor makes of an image."""
    return processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
