"""The contents of an ipu_config.json: which layers each IPU holds, and how many images make one update.

The fields are those of optimum-graphcore 0.7.1's IPUConfig. They are parsed here without that package, because CUDA
and CPU train by the same file, and checked here, because IPUConfig accepts values that fail only after minutes of
compiling."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from chestxray_vit.errors import InputError, Problems

NUMS_IPU = (1, 2, 4, 8, 16, 32, 64)  # what optimum-graphcore accepts
MAX_COUNT = 1_000_000  # of any count: a million micro-batches of one update

COUNTS = (
    "replication_factor inference_replication_factor gradient_accumulation_steps device_iterations "
    "inference_device_iterations ipus_per_replica inference_ipus_per_replica"
).split()
STAGES = ("ipus_per_replica", "inference_ipus_per_replica")
LAYERS = ("layers_per_ipu", "inference_layers_per_ipu")
PROPORTIONS = ("matmul_proportion", "inference_matmul_proportion")
OPTIONAL = (*STAGES, "inference_layers_per_ipu", "inference_matmul_proportion")  # may be null, IPUConfig's default
SWITCHES = (
    "optimizer_state_offchip replicated_tensor_sharding enable_half_partials recompute_checkpoint_every_layer "
    "auto_loss_scaling explicit_ir_inference"
).split()
OTHERS = (  # passed on unchanged; the serialized layers are those of language models
    "output_mode seed executable_cache_dir parallelize_kwargs inference_parallelize_kwargs "
    "embedding_serialization_factor inference_embedding_serialization_factor serialized_embedding_splits_per_ipu "
    "inference_serialized_embedding_splits_per_ipu projection_serialization_factor "
    "inference_projection_serialization_factor serialized_projection_splits_per_ipu "
    "inference_serialized_projection_splits_per_ipu"
).split()
FIELDS = (*COUNTS, *LAYERS, *PROPORTIONS, *SWITCHES, *OTHERS)
MATMUL_PROPORTION = 0.2  # IPUConfig's default


@dataclass(frozen=True)
class PipelineMode:
    """One mode of a configuration, training or inference, with IPUConfig's defaults filled in.

    Attributes:
        layers_per_ipu: as written; -1 is a wildcard.
        ipus_per_replica: stages of the pipeline.
        replication_factor: replicas of the pipeline.
        gradient_accumulation_steps: micro-batches of one update in each replica; 1 in inference.
        device_iterations: iterations before control returns to the host.
        matmul_proportion: share of each IPU's memory available to temporaries of a matrix product, in (0, 1].
    """

    layers_per_ipu: Tuple[int, ...]
    ipus_per_replica: int
    replication_factor: int
    gradient_accumulation_steps: int
    device_iterations: int
    matmul_proportion: Tuple[float, ...]

    @property
    def batch_size_factor(self) -> int:
        """Micro-batches in one combined batch, which is what the host sends in one transfer."""
        return self.replication_factor * self.gradient_accumulation_steps * self.device_iterations

    @property
    def num_ipus(self) -> int:
        """IPUs of all replicas."""
        return self.ipus_per_replica * self.replication_factor

    def layers_by_ipu(self, num_layers: int) -> Tuple[int, ...]:
        """Return the number of encoder layers on each IPU of a replica, wildcards filled in as IPUConfig does.

        Raises:
            ValueError: lengths or sums do not fit; the text says how.
        """
        layers, stages = list(self.layers_per_ipu), self.ipus_per_replica
        if stages == 1:
            return (num_layers,)
        if layers == [-1]:
            layers = [-1] * stages
        if len(layers) != stages:
            raise ValueError(f"layers_per_ipu {layers} has {len(layers)} entries, ipus_per_replica is {stages}")
        wild = [index for index, count in enumerate(layers) if count == -1]
        rest = num_layers - sum(count for count in layers if count != -1)
        if rest < 0 or (rest and not wild):
            raise ValueError(
                f"layers_per_ipu {layers} places {num_layers - rest} layers, the model has {num_layers}; "
                "a -1 takes what is left"
            )
        for index in wild:
            layers[index] = rest // len(wild)
        if wild:
            layers[wild[-1]] += rest % len(wild)
        return tuple(layers)


@dataclass(frozen=True)
class PipelineConfig:
    """A parsed and checked ipu_config.json.

    Attributes:
        values: the fields as written; `to_dict` returns a copy of them.
        training, inference: the two modes, with defaults filled in.
    """

    values: Mapping[str, Any] = field(hash=False)
    training: PipelineMode
    inference: PipelineMode

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "IPU configuration") -> PipelineConfig:
        """Parse and check the fields of an ipu_config.json.

        Args:
            values: fields of an IPUConfig.
            source: the file, for the error.

        Raises:
            InputError: an unknown field, or a value that cannot run; all problems at once.
        """
        check_values(values, source)
        config = cls.of(values)
        problems = Problems(source)
        _add_mode_problems(config, problems)
        problems.raise_if_any()
        return config

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PipelineConfig:
        """Parse fields whose values were checked before (`check_values`)."""
        training = _training_mode(values)
        return cls(copy.deepcopy(dict(values)), training, _inference_mode(values, training))

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as they are written to ipu_config.json."""
        return copy.deepcopy(dict(self.values))

    def with_values(self, **changes: Any) -> PipelineConfig:
        """Return the configuration with some fields replaced; the values must be of the right types."""
        return self.of({**self.values, **changes})

    def with_batch(
        self,
        micro_batch_size: int,
        gradient_accumulation_steps: Optional[int] = None,
        global_batch_size: Optional[int] = None,
    ) -> PipelineConfig:
        """Return the configuration with this gradient accumulation, or the one that makes up a global batch.

        Raises:
            InputError: the global batch is no multiple, or contradicts the accumulation.
        """
        accumulation, unit = gradient_accumulation_steps, micro_batch_size * self.training.replication_factor
        if global_batch_size is not None:
            steps, rest = divmod(global_batch_size, unit)
            if rest or not steps or accumulation not in (None, steps):
                raise InputError(
                    f"global batch {global_batch_size} is not per_device_train_batch_size {micro_batch_size} x "
                    f"replicas {self.training.replication_factor} x gradient_accumulation_steps "
                    f"{accumulation or '(a whole number)'}. Leave out the accumulation, or choose a multiple."
                )
            accumulation = steps
        return self if accumulation is None else self.with_values(gradient_accumulation_steps=accumulation)

    @property
    def recompute_checkpoint_every_layer(self) -> bool:
        """Whether the backward pass recomputes each layer from its stored input."""
        return bool(self.values.get("recompute_checkpoint_every_layer", False))

    @property
    def optimizer_state_offchip(self) -> bool:
        """Whether the optimizer's moments are in the machine's DRAM."""
        return bool(self.values.get("optimizer_state_offchip", False))

    @property
    def replicated_tensor_sharding(self) -> bool:
        """Whether the replicas share the optimizer's moments among them."""
        return bool(self.values.get("replicated_tensor_sharding", False))

    def check_layers(self, num_layers: int) -> None:
        """Refuse a configuration whose layers are not the model's.

        Raises:
            InputError: in training or in inference.
        """
        problems = Problems("IPU configuration")
        for name, mode in (("training", self.training), ("inference", self.inference)):
            try:
                mode.layers_by_ipu(num_layers)
            except ValueError as error:
                problems.add(f"layers do not fit in {name}", str(error), "Change them by --ipu_config_overrides")
        problems.raise_if_any()


def _training_mode(values: Mapping[str, Any]) -> PipelineMode:
    layers = tuple(values.get("layers_per_ipu", (-1,)))
    stages = values.get("ipus_per_replica") or len(layers)
    return PipelineMode(
        layers,
        stages,
        values.get("replication_factor", 1),
        values.get("gradient_accumulation_steps", 1),
        values.get("device_iterations", 1),
        _by_ipu(values.get("matmul_proportion", MATMUL_PROPORTION), stages),
    )


def _inference_mode(values: Mapping[str, Any], training: PipelineMode) -> PipelineMode:
    """Return the inference mode; what the file leaves out is as in training."""
    layers = tuple(values.get("inference_layers_per_ipu") or training.layers_per_ipu)
    stages = training.ipus_per_replica
    if stages == len(training.layers_per_ipu) or layers != (-1,):
        stages = len(layers)
    stages = values.get("inference_ipus_per_replica") or stages
    proportion = values.get("inference_matmul_proportion")
    if not proportion:
        proportion = values.get("matmul_proportion", MATMUL_PROPORTION)
        if isinstance(proportion, list) and len(proportion) != stages:
            proportion = MATMUL_PROPORTION
    return PipelineMode(
        layers,
        stages,
        values.get("inference_replication_factor", 1),
        1,
        values.get("inference_device_iterations", 1),
        _by_ipu(proportion, stages),
    )


def _by_ipu(proportion: Any, stages: int) -> Tuple[float, ...]:
    return tuple(proportion) if isinstance(proportion, list) else (proportion,) * stages


def check_values(values: Mapping[str, Any], source: str) -> None:
    """Refuse fields that IPUConfig does not have, and values of another type or range.

    Raises:
        InputError: all problems at once.
    """
    problems = Problems(source)
    for name, value in values.items():
        shown = f"{name} is {value!r}"
        if name not in FIELDS:
            problems.add("unknown field", repr(name), "Is it misspelt? See ipu_configs/ in the README")
        elif value is None and name in OPTIONAL:
            continue
        elif name in COUNTS and not (_is_int(value) and value > 0):
            problems.add("not a whole number above 0", shown)
        elif name in STAGES and value > NUMS_IPU[-1]:
            problems.add(f"more than the {NUMS_IPU[-1]} IPUs that there may be", shown)
        elif name in COUNTS and value > MAX_COUNT:
            problems.add(f"more than {MAX_COUNT:,}", shown)
        elif name in SWITCHES and not isinstance(value, bool):
            problems.add("neither true nor false", shown)
        elif name in LAYERS and not _are_layers(value):
            problems.add(f"not a list of whole numbers from -1, of {NUMS_IPU[-1]} IPUs at most", shown)
        elif name in PROPORTIONS and not _are_proportions(value):
            problems.add("outside (0, 1]", shown, "It is a share of an IPU's memory")
    problems.raise_if_any()


def _add_mode_problems(config: PipelineConfig, problems: Problems) -> None:
    """Note lengths that contradict each other, and device iterations in training."""
    for prefix, mode in (("", config.training), ("inference_", config.inference)):
        stages = mode.ipus_per_replica
        if mode.layers_per_ipu != (-1,) and len(mode.layers_per_ipu) != stages:
            problems.add(
                "lengths disagree",
                f"{prefix}layers_per_ipu {list(mode.layers_per_ipu)} has {len(mode.layers_per_ipu)} entries, "
                f"{prefix}ipus_per_replica is {stages}",
            )
        if len(mode.matmul_proportion) != stages:
            problems.add(
                "lengths disagree",
                f"{prefix}matmul_proportion has {len(mode.matmul_proportion)} entries, "
                f"{prefix}ipus_per_replica is {stages}",
            )
    if config.training.device_iterations != 1:
        problems.add(
            "device_iterations above 1 in training",
            f"{config.training.device_iterations} updates would be made at one learning rate and counted as one",
            "Set it to 1; inference_device_iterations may be more",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_layers(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= NUMS_IPU[-1]:
        return False
    return all(_is_int(count) and -1 <= count <= MAX_COUNT for count in value)


def _are_proportions(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(one) in (int, float) and 0 < one <= 1 for one in values)
