"""Stand-in for Graphcore's `popdist`: which of several processes this one is, as PopRun would tell.

PopRun is closed, so three environment variables stand for it: DOUBLE_POPDIST_INSTANCE (this process, from 0),
DOUBLE_POPDIST_INSTANCES (how many there are) and DOUBLE_POPDIST_REPLICAS (replicas of each). The real processes
average their gradients over the IPUs' links; these do not, each trains alone."""

from __future__ import annotations

import os

initialised = False


def isPopdistEnvSet() -> bool:
    """Tell whether PopRun started this process."""
    return "DOUBLE_POPDIST_INSTANCES" in os.environ


def init() -> None:
    """Join the other processes; here, note that it was asked for."""
    global initialised
    initialised = True


def getInstanceIndex() -> int:
    """Return this process's place, from 0."""
    return int(os.environ.get("DOUBLE_POPDIST_INSTANCE", "0"))


def getNumInstances() -> int:
    """Return the number of processes."""
    return int(os.environ.get("DOUBLE_POPDIST_INSTANCES", "1"))


def getNumLocalReplicas() -> int:
    """Return the replicas that this process drives."""
    return int(os.environ.get("DOUBLE_POPDIST_REPLICAS", "1"))


def getNumTotalReplicas() -> int:
    """Return the replicas of all processes together."""
    return getNumLocalReplicas() * getNumInstances()
