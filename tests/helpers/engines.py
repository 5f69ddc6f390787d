"""Engines and trainers for tests and benchmarks, without a command around them."""

from __future__ import annotations

from typing import Any, Dict, Optional

from chestxray_vit.training import recipe
from chestxray_vit.training.arguments import PipelineArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines.base import Engine, TrainerInputs
from chestxray_vit.training.engines.choose import choose


def engine_of(device: str = "cpu", options: Optional[PipelineArguments] = None) -> Engine:
    """Return the engine of a single process."""
    return choose(device, PipelineArguments() if options is None else options, Ranks())


def values_of(output_dir: Any, **values: Any) -> Dict[str, Any]:
    """Return the recipe's values of TrainingArguments' fields without evaluation, and those given in their place."""
    return {**recipe.recipe(), **recipe.without_training(), "output_dir": str(output_dir), **values}


def arguments_of(output_dir: Any, device: str = "cpu", **values: Any) -> Any:
    """Return the TrainingArguments of a single process."""
    return engine_of(device).arguments(values_of(output_dir, **values))


def trainer_of(vit: Any, processor: Any, args: Any, device: str = "cpu", **inputs: Any) -> Any:
    """Return the trainer of a single process; `inputs` are fields of TrainerInputs."""
    return engine_of(device).trainer(vit, processor, args, TrainerInputs(**inputs))
