"""The commands of the package, and the flags that each takes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Dict, Set, Tuple

from chestxray_vit import __main__

COMMANDS = ("demo", "ingest", "plan", "train", "evaluate", "report", "predict", "explain")
LISTED = getattr(__main__, "COMMANDS", None) or __main__.STAGES
# The flags of our own that `train` and `evaluate` add to TrainingArguments', by module and class.
OWN_FLAGS: Dict[Tuple[str, str], Tuple[str, ...]] = {
    ("training.arguments", name): tuple(flags.split())
    for name, flags in {
        "DatasetArguments": "dataset_dir cache_dir allow_unreadable device",
        "TrainArguments": "dataset_dir cache_dir allow_unreadable device "
        "model_name_or_path global_batch_size pos_weight augment overwrite from_scratch",
        "ViTSizeArguments": "image_size patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size",
        "IPUArguments": "ipu_config_name n_ipu ipu_config_overrides fp32",
        "PipelineArguments": "ipu_config_name n_ipu ipu_config_overrides fp32 "
        "loss_scaling dataloader_mode pipeline pipeline_schedule",
        "EvaluateArguments": "dataset_dir cache_dir allow_unreadable device split thumbnails",
    }.items()
}


def known_flags() -> Set[str]:
    """Return every flag that some command takes. Needs transformers."""
    from transformers import TrainingArguments

    known = {f"--{name}" for names in OWN_FLAGS.values() for name in names}
    known |= {f"--{field.name}" for field in dataclasses.fields(TrainingArguments) if field.init}
    known |= {"--help", "--help_all"}
    for command in ("demo", "explain", "ingest", "plan", "predict", "report"):
        known |= set(importlib.import_module(f"chestxray_vit.{command}").parser()._option_string_actions)
    return known
