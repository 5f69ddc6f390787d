"""Small pictures of X-rays for the report page, as data URIs: the page has no file beside it."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Dict, Iterable

from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey
from chestxray_vit.storage.atomic import PathLike

logger = logging.getLogger(__name__)

SIDE = 150  # pixels


def thumbnails(images_dir: PathLike, file_names: Iterable[str]) -> Dict[str, str]:
    """Return a JPEG of each image as a data URI, by file name; a warning names the first that could not be made.

    Args:
        images_dir: what the names are relative to; a name that leads out of it is not followed.
        file_names: in any order; a name given twice counts once.
    """
    root, pictures, lost = Path(images_dir).resolve(), {}, []
    for name in dict.fromkeys(file_names):
        path = (root / name).resolve()
        try:
            if root not in path.parents:
                raise InputError(f"{name}: outside {images_dir}.")
            pictures[name] = _data_uri(path)
        except InputError as error:
            lost.append(str(error))
    if lost:
        logger.warning("%d images have no thumbnail (first: %s)", len(lost), lost[0])
    return pictures


def _data_uri(path: Path) -> str:
    image = read_grey(path)
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
