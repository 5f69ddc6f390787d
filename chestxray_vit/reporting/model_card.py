"""A run's model card, its README.md: what it is, what it is not, its AUCs, and the same for the Hub's index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from chestxray_vit.labels import FINDINGS
from chestxray_vit.reporting.render.text import headline, headline_table, notes, shown
from chestxray_vit.reporting.summary import CAUTION
from chestxray_vit.storage.atomic import PathLike, write_text

CARD, CONFIG = "README.md", "train_config.json"


def model_card(name: str, config: Dict[str, Any], results: Optional[Dict[str, Any]] = None) -> str:
    """Return the text of a model card.

    Args:
        name: of the run.
        config: the content of train_config.json.
        results: of `results.build_report` on test patients; None where they are not scored yet.
    """
    flags = config["flags"]
    images = ", ".join(f"{count:,} {split}" for split, count in config["data"]["images"].items())
    of_what = "It learned drawn X-rays." if config["data"]["drawn"] else CAUTION
    start = "random weights" if flags["from_scratch"] else Path(flags["model_name_or_path"]).name
    parts = [
        f"---\n{_metadata(name, config, results)}\n---",
        f"# {name}",
        "A Vision Transformer that scores 14 findings on frontal chest X-rays, each by itself, trained with "
        f"chestxray_vit {config['versions']['chestxray-vit']}.",
        f"Research use only; not a medical device. {of_what}",
        f"- start: {start}\n"
        f"- data: `{config['data']['name']}`, {images} images, split as its ingest_report.json says\n"
        f"- how: every argument and version is in `{CONFIG}`; loss and learning rate in `loss.png`",
    ]
    if results is not None:
        parts += ["## AUC on the test patients", headline(results), headline_table(results)]
        parts.append("\n".join(f"- {note}" for note in notes(results)))
    return "\n\n".join([*parts, "## AUC on the validation patients", _validation(config["validation_auc"])]) + "\n"


def write_card(run_dir: PathLike, results: Dict[str, Any]) -> bool:
    """Write the card of a finished run anew, with its AUCs on test patients; False if this is no run of ours.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(run_dir, CONFIG)
    if not path.is_file():
        return False
    config = json.loads(path.read_text(encoding="utf-8"))
    write_text(Path(run_dir, CARD), model_card(Path(run_dir).resolve().name, config, results))
    return True


def _metadata(name: str, config: Dict[str, Any], results: Optional[Dict[str, Any]]) -> str:
    from huggingface_hub import ModelCardData

    base = config["flags"]["model_name_or_path"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "multi-label", "vit"],
        base_model=None if config["flags"]["from_scratch"] or os.path.isdir(base) else base,
        model_name=name if results else None,
        eval_results=_index(config["data"], results) if results else None,
    ).to_yaml()


def _index(data: Dict[str, Any], results: Dict[str, Any]) -> List[Any]:
    """Return the AUCs for `model-index`: the macro, then each finding's where it is defined."""
    from huggingface_hub import EvalResult

    overall = {**results["macro"], "finding": f"macro over {results['macro']['num_findings']} findings"}
    dataset = "drawn X-rays" if data["drawn"] else "NIH ChestX-ray14"
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="chestxray14",
            dataset_name=dataset,
            dataset_split="test",
            metric_type="roc_auc",
            metric_name=f"AUC-ROC, {row['finding']}",
            metric_value=row["auc"],
        )
        for row in [overall, *results["findings"]]
        if row["auc"] is not None
    ]


def _validation(aucs: Dict[str, Optional[float]]) -> str:
    if "roc_auc" not in aucs:
        return "Not evaluated in training."
    rows = [f"| {finding} | {shown(aucs[f'roc_auc_{finding}'])} |" for finding in FINDINGS]
    rows.append(f"| **mean over {aucs['num_findings']:.0f} findings** | **{shown(aucs['roc_auc'])}** |")
    table = "\n".join(["| finding | AUC |", "|---|---|", *rows])
    return f"The best checkpoint was chosen by this AUC: on other patients expect less.\n\n{table}"
