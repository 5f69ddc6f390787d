"""The Graphcore tutorial's recipe as defaults of TrainingArguments, under the names of the installed version."""

from __future__ import annotations

from typing import Any, Dict, Mapping

from transformers import TrainingArguments

# Under transformers 5's names.
RECIPE: Dict[str, Any] = {
    "output_dir": None,
    "num_train_epochs": 3.0,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,  # below 1: a share of all updates
    "optim": None,  # this and the next follow from the device
    "bf16": None,
    "seed": 1337,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "roc_auc",
    "greater_is_better": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # a loss that is NaN must be seen
    "report_to": "none",
    "disable_tqdm": False,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "per_device_train_batch_size": None,  # these follow from the global batch and the engine
    "gradient_accumulation_steps": None,
    "per_device_eval_batch_size": None,
    "save_safetensors": True,
}

# transformers 5's names of fields, and the older ones.
RENAMED = (("eval_strategy", "evaluation_strategy"), ("use_cpu", "no_cuda"), ("warmup_steps", "warmup_ratio"))
FIELDS = frozenset(TrainingArguments.__dataclass_fields__)


def installed_name(name: str) -> str:
    """Return a TrainingArguments field's name in the installed transformers, for its newer or older one."""
    for new, old in RENAMED:
        if name in (new, old) and name not in FIELDS:
            return old if name == new else new
    return name


def recipe() -> Dict[str, Any]:
    """Return the recipe's defaults under the names of the installed transformers."""
    defaults = {installed_name(name): value for name, value in RECIPE.items()}
    if "warmup_ratio" in FIELDS:  # there, warmup_steps counts updates
        defaults["warmup_ratio"] = defaults.pop("warmup_steps")
        defaults["warmup_steps"] = 0
    return {name: value for name, value in defaults.items() if name in FIELDS}


def evaluates(values: Mapping[str, Any]) -> bool:
    """Return whether these values of TrainingArguments' fields evaluate during training."""
    strategy = values[installed_name("eval_strategy")]
    return bool(getattr(strategy, "value", strategy) != "no")


def without_training() -> Dict[str, Any]:
    """Return the values of TrainingArguments' fields that leave out all of training, for inference alone."""
    return {
        installed_name("eval_strategy"): "no",
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
    }
