"""`poptorch.DataLoader`: combined batches, one for each call of an executor.

A combined batch is micro batch x gradient accumulation x replicas x device iterations. The asynchronous modes of
PopTorch start a process by the spawn method and send it the whole loader; here the same things must pickle, but no
process is started. With torch 2.0 a sampler that holds a `torch.Generator` does not pickle."""

from __future__ import annotations

import pickle
from typing import Callable, Optional

import torch

from poptorch._impl import Error
from poptorch.enums import DataLoaderMode
from poptorch.options import Options


def combined_batch_size(options: Options, batch_size: int) -> int:
    """Return the rows of one call, given those of one micro-batch."""
    factor = options.Training.gradient_accumulation * options.replication_factor * options.device_iterations
    return batch_size * factor


class Share(torch.utils.data.Dataset):
    """One process's part of a data set: a contiguous range, of whole combined batches if the rest is dropped.

    PopTorch cuts the data set whether or not there is a sampler; one that counts on the whole data set then reads
    other rows than it means. Here it is an error.
    """

    def __init__(self, dataset, options: Options, batch_size: int, drop_last: bool, shuffle: bool):
        process, num_processes = options.Distributed.processId, options.Distributed.numProcesses
        if shuffle and options.random_seed is None:
            raise Error("DataLoader: shuffling for several processes needs Options.randomSeed(), the same for all")
        if drop_last:
            shares = [len(dataset) // (batch_size * num_processes) * batch_size] * num_processes
        else:
            quotient, rest = divmod(len(dataset), num_processes)
            shares = [quotient + (rest > place) for place in range(num_processes)]
        self._dataset = dataset
        self._first, self._length = sum(shares[:process]), shares[process]
        self._order = range(len(dataset))
        self._generator_state = torch.Generator().manual_seed(options.random_seed).get_state() if shuffle else None

    def shuffle(self) -> None:
        """Draw a new order of the whole data set, the same in all processes."""
        if self._generator_state is not None:
            generator = torch.Generator()
            generator.set_state(self._generator_state)
            self._order = torch.randperm(len(self._dataset), generator=generator).tolist()
            self._generator_state = generator.get_state()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int):
        if not 0 <= index < self._length:
            raise Error(
                f"row {index} of a process's share of {self._length}: auto_distributed_partitioning has cut the data "
                "set, and the sampler counts on the whole. Pass auto_distributed_partitioning=False."
            )
        return self._dataset[self._order[self._first + index]]


def _check_pickles(**parts) -> None:
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
            raise Error(f"DataLoader: {name} must pickle in the asynchronous modes: {error}") from error


class DataLoader(torch.utils.data.DataLoader):
    """A torch DataLoader of combined batches.

    Args:
        options: those of the executor that the batches are for.
        dataset, shuffle, num_workers, collate_fn, sampler, worker_init_fn: as torch's.
        batch_size: rows of one micro-batch.
        drop_last: leave out the last, partial combined batch.
        mode: asynchronous ones only check what PopTorch would need.
        auto_distributed_partitioning: give each of several processes its part of the data set, see `Share`.
        rebatched_worker_size: rows that a worker hands over at once; without effect.
    """

    def __init__(
        self,
        options: Options,
        dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[dict] = None,
        rebatched_worker_size: Optional[int] = None,
        worker_init_fn: Optional[Callable] = None,
        collate_fn: Optional[Callable] = None,
        sampler=None,
        pin_memory: bool = False,
        **kwargs,
    ):
        mode = DataLoaderMode(mode)
        combined = None if batch_size is None else combined_batch_size(options, batch_size)
        if mode is DataLoaderMode.AsyncRebatched and num_workers < 2:
            raise Error(f"DataLoaderMode.AsyncRebatched needs at least 2 workers, found num_workers={num_workers}")
        if mode is DataLoaderMode.Async and not drop_last and (combined or 1) > 1:
            raise Error("DataLoaderMode.Async cannot return a partial batch: pass drop_last=True")
        if mode is not DataLoaderMode.Sync:
            _check_pickles(dataset=dataset, collate_fn=collate_fn, sampler=sampler, worker_init_fn=worker_init_fn)
        if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
            dataset = Share(dataset, options, combined, drop_last, shuffle)
            shuffle = False
        super().__init__(
            dataset,
            batch_size=combined,
            shuffle=shuffle,
            num_workers=num_workers,
            drop_last=drop_last and batch_size is not None,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            worker_init_fn=worker_init_fn,
            collate_fn=collate_fn,
            sampler=sampler,
            pin_memory=False,  # there is no IPU to copy to
            **kwargs,
        )
        self.mode = mode
        self._options = options
        self.rebatched_worker_size = rebatched_worker_size

    @property
    def options(self) -> Options:
        """The options that the batches are cut by."""
        return self._options

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Rows of one combined batch."""
        return self.batch_size

    def __iter__(self):
        if isinstance(self.dataset, Share):
            self.dataset.shuffle()
        return super().__iter__()

    def terminate(self) -> None:
        """Stop the loading process; here there is none."""
