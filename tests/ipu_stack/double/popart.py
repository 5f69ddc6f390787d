"""Stand-in for Graphcore's `popart`: the two enumerations that optimum-graphcore turns into numbers.

The compiler behind them is not imitated; which number stands for which schedule matters to nobody here."""

from __future__ import annotations

import enum


class AccumulateOuterFragmentSchedule(enum.IntEnum):
    """In which order the optimizer's work on several IPUs is put on the schedule."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class SubgraphCopyingStrategy(enum.IntEnum):
    """When the inputs and outputs of a shared subgraph are copied."""

    OnEnterAndExit = 0
    JustInTime = 1
