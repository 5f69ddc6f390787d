"""An ipu_config.json: which layers stand on which IPU, and how many images make one update.

The file is optimum-graphcore 0.7.1's. It is read here without that package, since CUDA and CPU train by the same
file, and checked here, since `IPUConfig` takes much that fails only after minutes of compiling."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from chestxray_vit.errors import InputError, Problems

logger = logging.getLogger(__name__)

FILE = "ipu_config.json"
DEFAULT = "vit-base-pod4"
HUB = "Graphcore/vit-base-ipu"  # the same values as `vit-base-pod4`
NUMS_IPU = (1, 2, 4, 8, 16, 32, 64)  # what optimum-graphcore takes
MOST = 1_000_000  # of any count: a million micro-batches of one update

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
OTHERS = (  # passed on as they are; the serialized layers are those of language models
    "output_mode seed executable_cache_dir parallelize_kwargs inference_parallelize_kwargs "
    "embedding_serialization_factor inference_embedding_serialization_factor serialized_embedding_splits_per_ipu "
    "inference_serialized_embedding_splits_per_ipu projection_serialization_factor "
    "inference_projection_serialization_factor serialized_projection_splits_per_ipu "
    "inference_serialized_projection_splits_per_ipu"
).split()
POD = re.compile(r"default|pod(\d{1,4})", re.ASCII)
# Of older versions, or of whoever saved the file: without effect in 0.7.1.
LEFT_OUT = (
    "sharded_execution_for_inference enable_half_first_order_momentum execute_encoder_on_cpu_for_generation "
    "use_popdist profile_dir optimum_version transformers_version"
).split()


@dataclass(frozen=True)
class PipelineMode:
    """One mode of a configuration, training or inference, with IPUConfig's defaults filled in.

    Attributes:
        layers_per_ipu: as written; -1 is a wildcard.
        ipus_per_replica: stages of the pipeline.
        replication_factor: copies of the pipeline.
        gradient_accumulation_steps: micro-batches of one update, by replica; 1 in inference.
        device_iterations: rounds before the host is asked again.
        matmul_proportion: share of an IPU's memory that a matrix product may take for a while, in (0, 1], by IPU.
    """

    layers_per_ipu: Tuple[int, ...]
    ipus_per_replica: int
    replication_factor: int
    gradient_accumulation_steps: int
    device_iterations: int
    matmul_proportion: Tuple[float, ...]

    @property
    def batch_size_factor(self) -> int:
        """Micro-batches in one combined batch, which is what the host sends at a time."""
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
        wild = [place for place, count in enumerate(layers) if count == -1]
        rest = num_layers - sum(count for count in layers if count != -1)
        if rest < 0 or (rest and not wild):
            raise ValueError(
                f"layers_per_ipu {layers} places {num_layers - rest} layers, the model has {num_layers}; "
                "a -1 takes what is left"
            )
        for place in wild:
            layers[place] = rest // len(wild)
        if wild:
            layers[wild[-1]] += rest % len(wild)
        return tuple(layers)


def training(config: Dict[str, Any]) -> PipelineMode:
    """Return the training mode of a configuration."""
    layers = tuple(config.get("layers_per_ipu", (-1,)))
    stages = config.get("ipus_per_replica") or len(layers)
    return PipelineMode(
        layers,
        stages,
        config.get("replication_factor", 1),
        config.get("gradient_accumulation_steps", 1),
        config.get("device_iterations", 1),
        _by_ipu(config.get("matmul_proportion", 0.2), stages),
    )


def inference(config: Dict[str, Any]) -> PipelineMode:
    """Return the inference mode of a configuration; what it does not say is as in training."""
    trained = training(config)
    layers = tuple(config.get("inference_layers_per_ipu") or trained.layers_per_ipu)
    stages = trained.ipus_per_replica
    if stages == len(trained.layers_per_ipu) or layers != (-1,):
        stages = len(layers)
    stages = config.get("inference_ipus_per_replica") or stages
    proportion = config.get("inference_matmul_proportion")
    if not proportion:
        proportion = config.get("matmul_proportion", 0.2)
        if isinstance(proportion, list) and len(proportion) != stages:
            proportion = 0.2
    return PipelineMode(
        layers,
        stages,
        config.get("inference_replication_factor", 1),
        1,
        config.get("inference_device_iterations", 1),
        _by_ipu(proportion, stages),
    )


def _by_ipu(proportion: Any, stages: int) -> Tuple[float, ...]:
    return tuple(proportion) if isinstance(proportion, list) else (proportion,) * stages


def read_ipu_config(name: str, n_ipu: Optional[int] = None, overrides: Optional[str] = None) -> Dict[str, Any]:
    """Read a configuration, and make it that of `n_ipu` IPUs.

    Args:
        name: a folder with ipu_config.json, such a file, a bare name of one of ours, or a name on the Hub.
        n_ipu: IPUs to use, which sets the replicas; by default the file's own.
        overrides: `gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]`, the last word.

    Raises:
        InputError: there is none, or it cannot run; all problems of its values at once.
    """
    path = _find(name)
    config = _parse(path)
    config = _without_pods(config, n_ipu, path)
    problems = Problems(str(path))
    _check_values(config, problems)
    problems.raise_if_any()
    if n_ipu is not None:
        config = _replicate(config, n_ipu, path)
    if overrides:
        config.update(_parse_overrides(overrides, config))
        problems = Problems(f"{path} with --ipu_config_overrides {overrides}")
        _check_values(config, problems)
    _check_modes(config, problems)
    problems.raise_if_any()
    return config


def check_model(config: Dict[str, Any], num_layers: int) -> None:
    """Refuse a configuration whose layers are not the model's.

    Raises:
        InputError: in training or in inference.
    """
    problems = Problems("IPU configuration")
    for name, mode in (("training", training(config)), ("inference", inference(config))):
        try:
            mode.layers_by_ipu(num_layers)
        except ValueError as error:
            problems.add(f"layers do not fit in {name}", str(error), "Change them by --ipu_config_overrides")
    problems.raise_if_any()


def with_batch(
    config: Dict[str, Any], micro_batch: int, accumulation: Optional[int], global_batch_size: Optional[int]
) -> Dict[str, Any]:
    """Return a configuration whose accumulation is the one given, or the one that makes up a global batch.

    Raises:
        InputError: the global batch is no multiple, or contradicts the accumulation.
    """
    unit = micro_batch * training(config).replication_factor
    if global_batch_size is not None:
        steps, rest = divmod(global_batch_size, unit)
        if rest or not steps or accumulation not in (None, steps):
            raise InputError(
                f"global batch {global_batch_size} is not per_device_train_batch_size {micro_batch} x replicas "
                f"{unit // micro_batch} x gradient_accumulation_steps {accumulation or '(a whole number)'}. "
                "Leave out the accumulation, or choose a multiple."
            )
        accumulation = steps
    return config if accumulation is None else {**config, "gradient_accumulation_steps": accumulation}


def num_ipus(given: Optional[int]) -> Optional[int]:
    """Return the number of IPUs that a flag gave, else that of $NUM_AVAILABLE_IPU, else None."""
    found = os.environ.get("NUM_AVAILABLE_IPU", "") if given is None else given
    where = "$NUM_AVAILABLE_IPU" if given is None else "--n_ipu"
    if found == "":
        return None
    if str(found) not in map(str, NUMS_IPU):
        raise InputError(f"{where} is {found}, expected one of {', '.join(map(str, NUMS_IPU))}.")
    return int(found)


def known_names() -> List[str]:
    """Return the bare names of the configurations that come with the package."""
    return sorted(path.parent.name for path in _own_folder().glob(f"*/{FILE}"))


def _own_folder() -> Path:
    """Return where ours are: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "ipu_configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "ipu_configs"


def _find(name: str) -> Path:
    for path in (Path(name), Path(name) / FILE, _own_folder() / name / FILE):
        if path.is_file():
            return path
    if name.count("/") == 1 and not Path(name).exists():
        return _fetch(name)
    raise InputError(f"IPU configuration {name}: no {FILE} there. Known names: {', '.join(known_names())}.")


def _fetch(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        same = f" {DEFAULT} has the same values." if name == HUB else ""
        raise InputError(
            f"IPU configuration {name}: no such folder, and it could not be fetched from the Hub: "
            f"{str(error).splitlines()[0]} Known names: {', '.join(known_names())}.{same}"
        ) from error


def _parse(path: Path) -> Dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected an object, found {type(config).__name__}.")
    return {name: value for name, value in config.items() if name not in LEFT_OUT and not name.startswith("_")}


def _without_pods(config: Dict[str, Any], n_ipu: Optional[int], path: Path) -> Dict[str, Any]:
    """Take one value of each `{"pod4": ..., "pod16": ...}` of older files, which 0.7.1 refuses."""
    taken: Dict[str, Any] = {}
    for name, value in config.items():
        if not (isinstance(value, dict) and value and all(POD.fullmatch(key) for key in value)):
            continue
        wanted = "default" if n_ipu is None else f"pod{n_ipu}"
        key = next((key for key in (wanted, "default") if key in value), None)
        if key is None and n_ipu is not None:
            raise InputError(f"{path}: {name} has no value for pod{n_ipu}, only for {', '.join(value)}. Set --n_ipu.")
        taken[name] = value[key or min(value, key=lambda pod: int(pod[3:]))]
    if taken:
        values = ", ".join(f"{name} {value}" for name, value in taken.items())
        logger.info(
            "%s: an older form, with values by pod. Taken: %s. The run's %s has the new form", path, values, FILE
        )
    return {**config, **taken}


def _replicate(config: Dict[str, Any], n_ipu: int, path: Path) -> Dict[str, Any]:
    factors = {}
    for prefix, mode in (("", training(config)), ("inference_", inference(config))):
        factors[f"{prefix}replication_factor"], rest = divmod(n_ipu, mode.ipus_per_replica)
        if rest:
            raise InputError(
                f"{path}: {n_ipu} IPUs (--n_ipu or $NUM_AVAILABLE_IPU) are not a multiple of "
                f"{prefix}ipus_per_replica {mode.ipus_per_replica}. Give a multiple, or a pipeline of another length."
            )
    if factors["replication_factor"] != config.get("replication_factor", 1):
        logger.info("%d IPUs: %d replicas of the pipeline", n_ipu, factors["replication_factor"])
    return {**config, **factors}


def _parse_overrides(text: str, config: Dict[str, Any]) -> Dict[str, Any]:
    """Read optimum-graphcore's form: commas between settings, spaces between the entries of a list."""
    result: Dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _known():
            raise InputError(
                f"--ipu_config_overrides: {part.strip()!r} is not `name=value` of an IPUConfig. "
                "Example: gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]"
            )
        try:
            lower = value.lower()
            result[name] = json.loads(lower if lower in ("true", "false") else ",".join(value.split()))
        except (ValueError, RecursionError):
            result[name] = value  # a word, such as an output mode
    return result


def _known() -> Tuple[str, ...]:
    return (*COUNTS, *LAYERS, *PROPORTIONS, *SWITCHES, *OTHERS)


def _check_values(config: Dict[str, Any], problems: Problems) -> None:
    """Note every value of another kind than IPUConfig's, and every name that it does not know."""
    for name, value in config.items():
        shown = f"{name} is {value!r}"
        if name not in _known():
            problems.add("unknown field", repr(name), "Is it misspelt? See ipu_configs/ in the README")
        elif value is None and name in OPTIONAL:
            continue
        elif name in COUNTS and not (_is_int(value) and value > 0):
            problems.add("not a whole number above 0", shown)
        elif name in STAGES and value > NUMS_IPU[-1]:
            problems.add(f"more than the {NUMS_IPU[-1]} IPUs that there may be", shown)
        elif name in COUNTS and value > MOST:
            problems.add(f"more than {MOST:,}", shown)
        elif name in SWITCHES and not isinstance(value, bool):
            problems.add("neither true nor false", shown)
        elif name in LAYERS and not _are_layers(value):
            problems.add(f"not a list of whole numbers from -1, of {NUMS_IPU[-1]} IPUs at most", shown)
        elif name in PROPORTIONS and not _are_proportions(value):
            problems.add("outside (0, 1]", shown, "It is a share of an IPU's memory")


def _check_modes(config: Dict[str, Any], problems: Problems) -> None:
    """Note lengths that contradict each other."""
    if problems:
        return
    for prefix, mode in (("", training(config)), ("inference_", inference(config))):
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
    if training(config).device_iterations != 1:
        problems.add(
            "device_iterations above 1 in training",
            f"{training(config).device_iterations} updates would be made at one learning rate and counted as one",
            "Set it to 1; inference_device_iterations may be more",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_layers(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= NUMS_IPU[-1]:
        return False
    return all(_is_int(count) and -1 <= count <= MOST for count in value)


def _are_proportions(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(one) in (int, float) and 0 < one <= 1 for one in values)
