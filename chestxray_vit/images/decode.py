"""Decode an X-ray as 8-bit grey, whatever form its file has.

Apart from the data set, so that what only decodes (the pixel cache) loads neither torch nor `datasets`."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from chestxray_vit.errors import InputError
from chestxray_vit.images import png

DAMAGED = (OSError, SyntaxError, ValueError, IndexError, EOFError, UnidentifiedImageError)  # what Pillow raises
FORMATS = ("PNG", "JPEG")  # no other decoder of Pillow sees a file from outside
ORIENTATION = 0x0112  # EXIF's tag


def read_grey(source: str | Path | bytes) -> Image.Image:
    """Decode an X-ray as 8-bit grey.

    Colour with equal channels (NIH's RGBA files) gives the same grey exactly; 16-bit grey is scaled, not clipped;
    transparency is laid over black. It is turned as its EXIF says, as viewers, `datasets` and transformers do.

    Raises:
        InputError: not a PNG or JPEG, or damaged.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            grey = png.decode_at_once(image) if png.is_plain(image) else None
            if grey is None:
                image.load()
                grey = _to_grey(_upright(image))
            return grey
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}. Fetch it again, or leave it out.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except (*DAMAGED, struct.error):
        return image  # EXIF that cannot be read says nothing


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L")
