"""Stand-in for `popdist.poptorch`: PopTorch's options, already told which process this is."""

from __future__ import annotations

from poptorch.options import Options as PlainOptions

import popdist


class Options(PlainOptions):
    """Options with the process and its replicas set from PopRun.

    Args:
        ipus_per_replica: IPUs that one copy of the model takes.
    """

    __slots__ = ("ipus_per_replica",)

    def __init__(self, ipus_per_replica: int = 1):
        super().__init__()
        self.ipus_per_replica = ipus_per_replica
        self.replicationFactor(popdist.getNumLocalReplicas())
        self.Distributed.configureProcessId(popdist.getInstanceIndex(), popdist.getNumInstances())
