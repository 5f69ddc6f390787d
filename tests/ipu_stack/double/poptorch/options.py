"""`poptorch.Options`: takes and keeps what it is told, for the executor to obey and for tests to read.

`__slots__` everywhere: an option that PopTorch does not know, or this double does not, is an AttributeError on
reading and on writing, never a value that nobody looks at."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch

from poptorch.enums import AutoStage, OutputMode, ReductionType


def _whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return value


class PipelinedExecution:
    """All IPUs of a replica work at once, on different micro-batches."""

    __slots__ = ("auto_stage",)

    def __init__(self, auto_stage: AutoStage = AutoStage.SameAsIpu):
        self.auto_stage = AutoStage(auto_stage)


class ShardedExecution(PipelinedExecution):
    """The IPUs of a replica work one after the other."""

    __slots__ = ()


class TensorLocationSettings:
    """Where a kind of tensors is stored."""

    __slots__ = ("on_chip", "replicated_tensor_sharding")

    def __init__(self):
        self.on_chip: Optional[bool] = None
        self.replicated_tensor_sharding: Optional[bool] = None

    def useOnChipStorage(self, use: bool) -> TensorLocationSettings:
        """Store on the chip, or in the host's memory."""
        self.on_chip = bool(use)
        return self

    def useReplicatedTensorSharding(self, use: bool) -> TensorLocationSettings:
        """Give each replica a share instead of a copy."""
        self.replicated_tensor_sharding = bool(use)
        return self


class _Section:
    __slots__ = ("_options",)

    def __init__(self, options: Options):
        self._options = options


class _Training(_Section):
    __slots__ = ("auto_loss_scaling", "gradient_accumulation", "reduction_type")

    def __init__(self, options: Options):
        super().__init__(options)
        self.gradient_accumulation = 1
        self.reduction_type = ReductionType.Mean
        self.auto_loss_scaling = False

    def gradientAccumulation(self, steps: int) -> Options:
        self.gradient_accumulation = _whole_number("gradientAccumulation", steps, 1)
        return self._options

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> Options:
        self.reduction_type = ReductionType(reduction_type)
        return self._options

    def setAutomaticLossScaling(self, enabled: bool) -> Options:
        self.auto_loss_scaling = bool(enabled)
        return self._options


class _Precision(_Section):
    __slots__ = ("partials_type", "stochastic_rounding")

    def __init__(self, options: Options):
        super().__init__(options)
        self.stochastic_rounding = False
        self.partials_type = torch.float32

    def enableStochasticRounding(self, enabled: bool) -> Options:
        self.stochastic_rounding = bool(enabled)
        return self._options

    def setPartialsType(self, dtype: torch.dtype) -> Options:
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"partials are {dtype}, expected torch.float16 or torch.float32")
        self.partials_type = dtype
        return self._options


class _TensorLocations(_Section):
    __slots__ = ("optimizer",)

    def __init__(self, options: Options):
        super().__init__(options)
        self.optimizer = TensorLocationSettings()

    def setOptimizerLocation(self, location: TensorLocationSettings) -> Options:
        if not isinstance(location, TensorLocationSettings):
            raise TypeError(f"location is {type(location).__name__}, expected TensorLocationSettings")
        self.optimizer = location
        return self._options


class _Distributed(_Section):
    __slots__ = ("numProcesses", "processId")

    def __init__(self, options: Options):
        super().__init__(options)
        self.processId = 0
        self.numProcesses = 1

    def configureProcessId(self, process_id: int, num_processes: int) -> Options:
        if not 0 <= process_id < num_processes:
            raise ValueError(f"process {process_id} of {num_processes}, expected 0 to {num_processes - 1}")
        self.processId, self.numProcesses = process_id, num_processes
        return self._options


class _Popart(_Section):
    """Settings for the compiler: kept, without effect."""

    __slots__ = ("options", "patterns")

    def __init__(self, options: Options):
        super().__init__(options)
        self.options: Dict[str, Any] = {}
        self.patterns: Dict[str, bool] = {}

    def set(self, key: str, value: Any) -> Options:
        self.options[key] = value
        return self._options

    def setPatterns(self, patterns: Dict[str, bool]) -> Options:
        self.patterns = dict(patterns)
        return self._options


class Options:
    """What a `PoplarExecutor` is told. Setters return the options, so that they chain."""

    __slots__ = (
        "Distributed",
        "Precision",
        "TensorLocations",
        "Training",
        "_popart",
        "auto_round_num_ipus",
        "available_memory_proportion",
        "device_iterations",
        "executable_cache_dir",
        "execution_strategy",
        "offline_ipu_version",
        "output_mode",
        "random_seed",
        "replication_factor",
        "show_compilation_progress_bar",
    )

    def __init__(self):
        self.Training = _Training(self)
        self.Precision = _Precision(self)
        self.TensorLocations = _TensorLocations(self)
        self.Distributed = _Distributed(self)
        self._popart = _Popart(self)  # optimum-graphcore writes this name as well as `_Popart`
        self.auto_round_num_ipus = False
        self.available_memory_proportion: Dict[str, float] = {}
        self.device_iterations = 1
        self.executable_cache_dir: Optional[str] = None
        self.execution_strategy = PipelinedExecution()
        self.offline_ipu_version: Optional[int] = None
        self.output_mode = OutputMode.Default
        self.random_seed: Optional[int] = None
        self.replication_factor = 1
        self.show_compilation_progress_bar = True

    @property
    def _Popart(self) -> _Popart:
        return self._popart

    def autoRoundNumIPUs(self, enabled: bool) -> Options:
        """Take the next power of two of IPUs, as IPUs are lent."""
        self.auto_round_num_ipus = bool(enabled)
        return self

    def replicationFactor(self, replicas: int) -> Options:
        """Set how many copies of the model run side by side."""
        self.replication_factor = _whole_number("replicationFactor", replicas, 1)
        return self

    def deviceIterations(self, iterations: int) -> Options:
        """Set how many times the device loops in one call."""
        self.device_iterations = _whole_number("deviceIterations", iterations, 1)
        return self

    def outputMode(self, mode: OutputMode) -> Options:
        """Set which micro-batches' outputs come back."""
        if OutputMode(mode) is OutputMode.EveryN:
            raise ValueError("OutputMode.EveryN is not in this double")
        self.output_mode = OutputMode(mode)
        return self

    def randomSeed(self, seed: int) -> Options:
        """Seed the device."""
        self.random_seed = _whole_number("randomSeed", seed, 0)
        return self

    def setExecutionStrategy(self, strategy: PipelinedExecution) -> Options:
        """Set whether the IPUs of a replica work at once or in turn."""
        if not isinstance(strategy, PipelinedExecution):
            raise TypeError(f"strategy is {strategy!r}, expected PipelinedExecution(...) or ShardedExecution(...)")
        self.execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, proportions: Dict[str, float]) -> Options:
        """Set the share of an IPU's memory for products; what is out of range fails at compilation."""
        wrong = [name for name in proportions if not (name.startswith("IPU") and name[3:].isdigit())]
        if wrong:
            raise ValueError(f"setAvailableMemoryProportion: {wrong[0]!r} is not the name of an IPU, as 'IPU0' is")
        self.available_memory_proportion = dict(proportions)
        return self

    def enableExecutableCaching(self, path: str) -> Options:
        """Keep compiled programs in a folder."""
        self.executable_cache_dir = path
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile only; no IPU is taken and none runs."""
        self.offline_ipu_version = ipu_version
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Show a bar while compiling."""
        self.show_compilation_progress_bar = bool(show)
        return self
