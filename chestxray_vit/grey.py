"""Decode an X-ray as 8-bit grey, whatever form its file has.

Apart from the data set, so that what only decodes (the pixel cache) loads neither torch nor `datasets`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from chestxray_vit.problems import InputError

FORMATS = ("PNG", "JPEG")  # no other decoder of Pillow sees a file from outside


def read_grey(source: str | Path | bytes) -> Image.Image:
    """Decode an X-ray as 8-bit grey.

    Colour with equal channels (NIH's RGBA files) gives the same grey exactly; 16-bit grey is scaled, not clipped;
    transparency is laid over black.

    Raises:
        InputError: not a PNG or JPEG, or damaged.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            image.load()
            return _to_grey(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}. Fetch it again, or leave it out.") from error


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L")
