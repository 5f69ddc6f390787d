"""Read an ipu_config.json: a file, its folder, one of this package's configurations, or a name on the Hub.

Older files hold several values by pod size, of which one is taken; a number of IPUs sets the replicas; overrides have
the last word. The result is a checked `PipelineConfig`."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.pipeline_config import FIELDS, NUMS_IPU, PipelineConfig, check_values

logger = logging.getLogger(__name__)

FILE = "ipu_config.json"
DEFAULT = "vit-base-pod4"
HUB = "Graphcore/vit-base-ipu"  # the same values as `vit-base-pod4`
POD = re.compile(r"default|pod(\d{1,4})", re.ASCII)
# Written by older versions, or by whoever saved the file: without effect in 0.7.1.
LEFT_OUT = (
    "sharded_execution_for_inference enable_half_first_order_momentum execute_encoder_on_cpu_for_generation "
    "use_popdist profile_dir optimum_version transformers_version"
).split()


def read_ipu_config(name: str, n_ipu: Optional[int] = None, overrides: Optional[str] = None) -> PipelineConfig:
    """Read a configuration, and adapt it to `n_ipu` IPUs.

    Args:
        name: a folder with ipu_config.json, such a file, a bare name of one of ours, or a name on the Hub.
        n_ipu: IPUs to use, which sets the replicas; by default the file's own.
        overrides: `gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]`, the last word.

    Raises:
        InputError: there is none, or it cannot run; all problems of its values at once.
    """
    path = _find(name)
    values = _without_pods(_parse(path), n_ipu, path)
    source = str(path)
    check_values(values, source)
    if n_ipu is not None:
        values = _replicate(values, n_ipu, path)
    if overrides:
        values = {**values, **_parse_overrides(overrides)}
        source = f"{path} with --ipu_config_overrides {overrides}"
    return PipelineConfig.from_dict(values, source)


def num_ipus(n_ipu: Optional[int]) -> Optional[int]:
    """Return the number of IPUs of --n_ipu, else that of $NUM_AVAILABLE_IPU, else None."""
    found = os.environ.get("NUM_AVAILABLE_IPU", "") if n_ipu is None else n_ipu
    where = "$NUM_AVAILABLE_IPU" if n_ipu is None else "--n_ipu"
    if found == "":
        return None
    if str(found) not in map(str, NUMS_IPU):
        raise InputError(f"{where} is {found}, expected one of {', '.join(map(str, NUMS_IPU))}.")
    return int(found)


def known_names() -> List[str]:
    """Return the bare names of the configurations that come with the package."""
    return sorted(path.parent.name for path in _packaged_folder().glob(f"*/{FILE}"))


def _packaged_folder() -> Path:
    """Return where ours are: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "ipu_configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "ipu_configs"


def _find(name: str) -> Path:
    for path in (Path(name), Path(name) / FILE, _packaged_folder() / name / FILE):
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
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object, found {type(values).__name__}.")
    return {name: value for name, value in values.items() if name not in LEFT_OUT and not name.startswith("_")}


def _without_pods(values: Dict[str, Any], n_ipu: Optional[int], path: Path) -> Dict[str, Any]:
    """Take one value of each `{"pod4": ..., "pod16": ...}` of older files, which 0.7.1 refuses."""
    taken: Dict[str, Any] = {}
    for name, value in values.items():
        if not (isinstance(value, dict) and value and all(POD.fullmatch(key) for key in value)):
            continue
        wanted = "default" if n_ipu is None else f"pod{n_ipu}"
        key = next((key for key in (wanted, "default") if key in value), None)
        if key is None and n_ipu is not None:
            raise InputError(f"{path}: {name} has no value for pod{n_ipu}, only for {', '.join(value)}. Set --n_ipu.")
        taken[name] = value[key or min(value, key=lambda pod: int(pod[3:]))]
    if taken:
        shown = ", ".join(f"{name} {value}" for name, value in taken.items())
        logger.info(
            "%s: an older form, with values by pod. Taken: %s. The run's %s has the new form", path, shown, FILE
        )
    return {**values, **taken}


def _replicate(values: Dict[str, Any], n_ipu: int, path: Path) -> Dict[str, Any]:
    factors, config = {}, PipelineConfig.of(values)
    for prefix, mode in (("", config.training), ("inference_", config.inference)):
        factors[f"{prefix}replication_factor"], rest = divmod(n_ipu, mode.ipus_per_replica)
        if rest:
            raise InputError(
                f"{path}: {n_ipu} IPUs (--n_ipu or $NUM_AVAILABLE_IPU) are not a multiple of "
                f"{prefix}ipus_per_replica {mode.ipus_per_replica}. Give a multiple, or a pipeline of another length."
            )
    if factors["replication_factor"] != config.training.replication_factor:
        logger.info("%d IPUs: %d replicas of the pipeline", n_ipu, factors["replication_factor"])
    return {**values, **factors}


def _parse_overrides(text: str) -> Dict[str, Any]:
    """Read optimum-graphcore's form: commas between settings, spaces between the entries of a list."""
    result: Dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in FIELDS:
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
