"""Batches of cached grey planes, and what makes a ViT's pixel values of them where the model is.

A plane is a byte a pixel; as three channels of float32 it would be twelve. So planes are read and sent as they are,
whole batches at once, and repeated and normalised on the device.

B batch, N images, H height, W width, L labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import datasets
import numpy as np
import torch

from chestxray_vit.data.dataset import XrayDataset, names_of, preprocessed, targets_of
from chestxray_vit.data.pixel_cache.build import build_cache
from chestxray_vit.data.pixel_cache.cache import PixelCache, default_cache_dir
from chestxray_vit.data.pixel_cache.key import Resize
from chestxray_vit.errors import InputError
from chestxray_vit.images.preprocess import Preprocess

logger = logging.getLogger(__name__)

NO_CACHE = "none"


def open_cache(
    dataset: XrayDataset, preprocess: Preprocess, cache_dir: Optional[str], allow_unreadable: bool
) -> Optional[PixelCache]:
    """Open the pixel cache of a data set, building what is lacking, or return None where none is wanted.

    Args:
        dataset: of `open_dataset`; its metadata.jsonl is not read again.
        preprocess: for the size and the filter of the resize.
        cache_dir: as named by the user; None for the default folder, `none` for no cache.
        allow_unreadable: leave out images that cannot be read, instead of an error.
    """
    if cache_dir == NO_CACHE:
        if allow_unreadable:
            raise InputError("--allow_unreadable goes with a pixel cache: leave out --cache_dir none.")
        return None
    folder = default_cache_dir(dataset.root) if cache_dir is None else Path(cache_dir)
    resize = Resize(preprocess.size, preprocess.resample)
    cache = build_cache(dataset.root, dataset.file_names, resize, folder, allow_unreadable=allow_unreadable)
    for name, reason in cache.unreadable.items():
        logger.warning("left out: %s: %s", name, reason)
    return cache


def readable(xrays: datasets.Dataset, cache: Optional[PixelCache]) -> datasets.Dataset:
    """Return the rows of a split whose images the cache could read."""
    if cache is None or not cache.unreadable:
        return xrays
    return xrays.select([index for index, name in enumerate(names_of(xrays)) if name not in cache.unreadable])


class CachedXrays(torch.utils.data.Dataset):
    """Rows of a split with the cache's planes: `pixel_values` (H, W) uint8 and `labels` (L)."""

    def __init__(self, xrays: datasets.Dataset, cache: PixelCache):
        """Args: xrays: a split of `open_dataset`, readable rows only; cache: of `open_cache`."""
        self.rows_N = cache.rows_of(names_of(xrays))
        self.targets_NL = torch.from_numpy(targets_of(xrays))
        self.planes = cache.pixels_NHW

    def __getstate__(self) -> Dict[str, Any]:
        """Pickle where the planes are, not what they are: a worker of PopTorch's is a new process."""
        return {**vars(self), "planes": (self.planes.filename, self.planes.shape)}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Open the planes again."""
        filename, shape = state["planes"]
        vars(self).update(state, planes=np.memmap(filename, np.uint8, "r", shape=shape))

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        plane = np.array(self.planes[self.rows_N[index]])  # a copy: torch does not take what cannot be written
        return {"pixel_values": torch.from_numpy(plane), "labels": self.targets_NL[index]}

    def __getitems__(self, indices: Sequence[int]) -> Dict[str, torch.Tensor]:
        """Return a whole batch: `pixel_values` (B, H, W) and `labels` (B, L)."""
        indices_B = np.asarray(indices)
        planes = torch.from_numpy(np.asarray(self.planes)[self.rows_N[indices_B]])
        return {"pixel_values": planes, "labels": self.targets_NL[torch.from_numpy(indices_B)]}


def model_inputs(
    splits: Dict[str, datasets.Dataset], preprocess: Preprocess, cache: Optional[PixelCache]
) -> Dict[str, Any]:
    """Return what the Trainer reads of each split: cached planes, or pixel values decoded each time."""
    if cache is None:
        return {name: preprocessed(xrays, preprocess) for name, xrays in splits.items()}
    return {name: CachedXrays(xrays, cache) for name, xrays in splits.items()}
