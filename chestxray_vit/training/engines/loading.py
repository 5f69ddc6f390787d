"""What the engines' loaders share: an epoch's order, whole batches, and the form in which images are sent.

B batch, H height, W width, L labels."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Sequence, Sized

import torch
from torch.utils.data import Dataset, DistributedSampler

from chestxray_vit.data.cached_dataset import CachedXrays
from chestxray_vit.data.dataset import collate, targets_of
from chestxray_vit.images.preprocess import GreyToPixelValues


class EpochSampler(DistributedSampler):
    """One process's share of an epoch of whole global batches: an update of fewer images would weigh them more.

    An epoch's order follows from the seed and its number alone, and is that of accelerate's seeded sampler, so that
    engines, versions and resumed runs see the same images; all processes' shares together make up the batches."""

    def __init__(self, dataset: Sized, global_batch_size: int, seed: int, num_processes: int = 1, process: int = 0):
        """Args: dataset: to draw from; num_processes, process: how many there are, and which one this is."""
        super().__init__(dataset, num_replicas=num_processes, rank=process, seed=seed)  # type: ignore[arg-type]
        self.num_images = len(dataset)
        self.whole = self.num_images // global_batch_size * global_batch_size
        self.num_samples = self.whole // num_processes

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of an epoch: of the one that `set_epoch` named, else the next (in an asynchronous loader)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(self.num_images, generator=generator)[: self.whole]
        return iter(order[self.rank :: self.num_replicas].tolist())


class PaddedDataset(Dataset):
    """A data set whose last row is repeated up to whole batches; `num_rows` says how many rows are not padding."""

    def __init__(self, rows: Any, batch_size: int):
        """Args: rows: of `cached_dataset.model_inputs`; batch_size: of which the length becomes a multiple."""
        self.rows = rows
        self.num_rows = len(rows)
        self.length = -(-self.num_rows // batch_size) * batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        return self.rows[min(index, self.num_rows - 1)]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return rows, or a batch where the data set makes one."""
        real = [min(index, self.num_rows - 1) for index in indices]
        whole = getattr(self.rows, "__getitems__", None)
        return [self.rows[index] for index in real] if whole is None else whole(real)


class LabelsOnly(Dataset):
    """The labels of a data set, for stages that see no pixels: no image is decoded for them."""

    def __init__(self, targets_NL: torch.Tensor):
        """Args: targets_NL: all labels, in the data set's order."""
        self.targets_NL = targets_NL

    @classmethod
    def of(cls, rows: Any) -> Optional[LabelsOnly]:
        """Return the labels of a data set of `model_inputs`, None of None."""
        if rows is None:
            return None
        return cls(rows.targets_NL if isinstance(rows, CachedXrays) else torch.from_numpy(targets_of(rows)))

    def __len__(self) -> int:
        return len(self.targets_NL)

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        return {"labels": self.targets_NL[index]}


def collate_labels(rows: Sequence[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    """Stack the labels (B, L)."""
    return {"labels": torch.stack([row["labels"] for row in rows])}


class IPUCollate:
    """Collates for IPUs: normalised on the host, one channel where all are alike, of the model's number format.

    A class, not a closure: PopTorch's asynchronous loader pickles it."""

    def __init__(self, to_pixel_values: Optional[GreyToPixelValues], dtype: torch.dtype):
        """Args: to_pixel_values: for cached planes, None for pixel values; dtype: float16 for a half model."""
        self.to_pixel_values, self.dtype = to_pixel_values, dtype

    def __call__(self, rows: Any) -> Dict[str, torch.Tensor]:
        """Return `pixel_values` (B, 1 or 3, H, W) and `labels` (B, L)."""
        batch = collate(rows)
        if self.to_pixel_values is not None:
            batch["pixel_values"] = self.to_pixel_values.channels(batch["pixel_values"]).to(self.dtype)
        return batch
