"""The enumerations of PopTorch that optimum-graphcore names."""

from __future__ import annotations

import enum


class OutputMode(enum.IntEnum):
    """Which micro-batches' outputs come back from a call."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4  # All for inference, Final for training


class ReductionType(enum.IntEnum):
    """How gradients of micro-batches and replicas are put together."""

    Sum = 0
    Mean = 1


class DataLoaderMode(enum.IntEnum):
    """Whether batches are made in this process, in another, or piecewise in several others."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class AutoStage(enum.IntEnum):
    """How blocks become stages."""

    SameAsIpu = 0
    AutoIncrement = 1


class MatMulSerializationMode(enum.Enum):
    """Along which dimension a product is cut."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"
