"""What a run folder holds beside the weights: how it was trained, on what, and how well.

The checkpoint is written aside and moved in; train_config.json comes last and says that the run is whole. A process
killed while it moves leaves no config.json, so that none reads weights of one run with another's settings."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from safetensors import SafetensorError, safe_open

from chestxray_vit.artifacts.metadata import METADATA
from chestxray_vit.artifacts.thresholds import FILE as THRESHOLDS
from chestxray_vit.artifacts.train_config import FILE as CONFIG
from chestxray_vit.artifacts.train_config import write_train_config
from chestxray_vit.data.dataset import XrayDataset
from chestxray_vit.errors import InputError
from chestxray_vit.pipeline.ipu_config import FILE as IPU_CONFIG
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.reporting.model_card import CARD, model_card
from chestxray_vit.reporting.render.loss_curve import draw_loss_curve
from chestxray_vit.storage.atomic import ASIDE_RUN, write_text
from chestxray_vit.storage.json_files import write_json

logger = logging.getLogger(__name__)

NAMES = (CONFIG, CARD, THRESHOLDS)  # of what is written aside by itself
STATE, WEIGHTS, MODEL = "trainer_state.json", "*.safetensors", "config.json"


def check_free(output_dir: str, overwrite: bool) -> None:
    """Refuse a folder that holds an earlier run, which training would mix with the new one."""
    earlier = [path.name for path in Path(output_dir).glob("*") if path.name == CONFIG or "checkpoint-" in path.name]
    if earlier and not overwrite:
        raise InputError(
            f"{output_dir}: holds an earlier run ({', '.join(sorted(earlier)[:3])}). "
            "Go on with it (--resume_from_checkpoint last), replace it (--overwrite), or name another --output_dir."
        )


def last_checkpoint(output_dir: str) -> str:
    """Return the newest whole checkpoint of a run; one that was being written when its process ended is passed over.

    Raises:
        InputError: there is none.
    """
    found = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name[len("checkpoint-") :].isdigit()]
    folders = sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))
    flaws: List[str] = []
    while folders:
        folder = folders.pop()
        flaw = _flaw(folder)
        if flaw is None:
            return str(folder)
        flaws.append(f"{folder.name} cannot be loaded: {flaw}")
        logger.warning("%s is not whole, and passed over: %s", folder, flaw)
    what = "; ".join(flaws) or f"no checkpoint in {output_dir}"
    raise InputError(f"--resume_from_checkpoint: {what}. Start without this flag.")


def _flaw(folder: Path) -> Optional[str]:
    """Return what a checkpoint lacks whose process may have ended while it was written; None if it is whole."""
    states = list(folder.glob("rng_state*.pth"))
    if not (folder / STATE).is_file() or not states:  # both come last
        return f"no {STATE if states else 'rng_state.pth'}"
    weights = list(folder.glob(WEIGHTS))
    pickles = [*states, *folder.glob("optimizer.pt"), *folder.glob("scheduler.pt")] if weights else []
    short = [path.name for path in weights if not _is_whole(path)]
    short += [path.name for path in pickles if not zipfile.is_zipfile(path)]  # which looks for the end
    if weights and not _is_json(folder / STATE):
        short.append(STATE)
    return f"{', '.join(short)} cut short" if short else None


def _is_whole(path: Path) -> bool:
    """Return whether a safetensors file is as long as its header says; no tensor is read."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def clear_run(output_dir: str) -> None:
    """Remove an earlier run's checkpoints, so that none of them is taken for this run's."""
    for folder in Path(output_dir).glob("checkpoint-*"):
        (folder / STATE).unlink(missing_ok=True)  # first: half a folder must not look whole
        shutil.rmtree(folder)


def data_facts(dataset: XrayDataset, num_images: Mapping[str, int]) -> Dict[str, Any]:
    """Return what a run was trained on: the fingerprint of the metadata and the images of each split."""
    return {
        "name": dataset.dataset_dir.resolve().name,
        "synthetic": dataset.is_synthetic,
        "label_set": dataset.label_set.to_dict(),
        METADATA: dataset.fingerprint,
        "images": dict(num_images),
    }


def versions() -> Dict[str, str]:
    """Return the versions that a run depends on; those of the IPU stack where they are installed."""
    names = ["chestxray-vit", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow"]
    found = {name: version(name) for name in names}
    for name in ("optimum-graphcore", "poptorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_run(
    output_dir: str,
    model: Any,
    processor: Any,
    state: Any,
    facts: Mapping[str, Any],
    pipeline_config: Optional[PipelineConfig],
) -> None:
    """Write a finished run.

    Args:
        output_dir: of the run; its checkpoints may lie in it.
        model, processor: the best ones, saved in float32 as safetensors.
        state: the Trainer's, with its log.
        facts: `flags`, `training_arguments`, `versions`, `data`, `validation_auc`, for train_config.json.
        pipeline_config: that gave the global batch, if one was named.
    """
    target = Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ASIDE_RUN, dir=target) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        processor.save_pretrained(aside)
        state.save_to_json(os.path.join(aside, STATE))
        if pipeline_config is not None:
            write_json(Path(aside, IPU_CONFIG), pipeline_config.to_dict())
        draw_loss_curve(state.log_history, Path(aside, "loss.png"))
        write_text(Path(aside, CARD), model_card(target.resolve().name, dict(facts)))
        mode = Path(aside, CARD).stat().st_mode  # as umask says; safetensors writes for its owner alone
        for name in (CONFIG, MODEL, THRESHOLDS):  # without the second no earlier weights are read for these
            (target / name).unlink(missing_ok=True)
        for path in sorted(Path(aside).iterdir(), key=lambda path: path.name == MODEL):
            path.chmod(mode)
            os.replace(path, target / path.name)
    write_train_config(target, facts)


def validation_auc(metrics: Mapping[str, float]) -> Dict[str, Optional[float]]:
    """Return the AUCs among the metrics of a validation (`eval_roc_auc` and so on), None where undefined."""
    aucs = {name[len("eval_") :]: value for name, value in metrics.items()}
    aucs = {name: value for name, value in aucs.items() if name.startswith(("roc_auc", "num_findings"))}
    return {name: None if value != value else value for name, value in aucs.items()}
