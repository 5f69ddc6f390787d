"""A run's model card, its README.md: what the model is, what it is not, its AUCs, and the same for the Hub's index."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from chestxray_vit.artifacts.train_config import FILE as CONFIG
from chestxray_vit.artifacts.train_config import read_train_config, with_current_names
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.reporting.published_aucs import RESEARCH_USE, SYNTHETIC, caution
from chestxray_vit.reporting.render.tables import markdown, piped, shown
from chestxray_vit.reporting.render.text import counted, headline, headline_table, notes, title_of
from chestxray_vit.storage.atomic import PathLike, write_text

CARD = "README.md"
Config = Dict[str, Any]


def model_card(name: str, config: Config, results: Optional[Dict[str, Any]] = None) -> str:
    """Return the text of a model card.

    Args:
        name: of the run.
        config: the content of train_config.json, of this version or of 0.5.0.
        results: of `build_report` on test patients; None if they have not been scored yet.
    """
    config = with_current_names(config)
    label_set = _label_set(config, results)
    version = config["versions"]["chestxray-vit"]
    parts = [
        f"---\n{_metadata(name, config, label_set, results)}\n---",
        f"# {name}",
        f"A Vision Transformer that scores frontal chest X-rays for {markdown(title_of(label_set))}, each "
        f"independently of the others, trained with chestxray_vit {version}.",
        f"This model is for research use only and is not a medical device. {_about_data(config, label_set)}",
        _facts(config),
    ]
    if results is not None:
        parts += ["## AUC on the test patients", headline(results, markdown), headline_table(results)]
        parts.append("\n".join(f"- {note}" for note in notes(results, markdown)))
    parts += ["## AUC on the validation patients", _validation(config["validation_auc"], label_set)]
    return "\n\n".join(parts) + "\n"


def write_card(run_dir: PathLike, results: Dict[str, Any]) -> bool:
    """Write the card of a finished run again, with its AUCs on test patients; return False if this is no run of ours.

    Raises:
        InputError: train_config.json cannot be read.
        OSError: the folder cannot be written to.
    """
    config = read_train_config(run_dir)
    if config is None:
        return False
    write_text(Path(run_dir, CARD), model_card(Path(run_dir).resolve().name, config, results))
    return True


def _label_set(config: Config, results: Optional[Dict[str, Any]]) -> LabelSet:
    """Return the labels of a run; a train_config.json of 0.5.0 does not name them."""
    content = results["label_set"] if results is not None else config["data"].get("label_set")
    return NIH_CHESTXRAY14 if content is None else LabelSet.from_dict(content)


def _about_data(config: Config, label_set: LabelSet) -> str:
    if config["data"]["synthetic"]:
        return f"It was trained on {SYNTHETIC[0].lower()}{SYNTHETIC[1:]}"
    return caution(label_set, is_synthetic=False)[len(RESEARCH_USE) :].strip()  # the sentence before says it


def _facts(config: Config) -> str:
    flags, data = config["flags"], config["data"]
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    start = "random" if flags["from_scratch"] else Path(flags["model_name_or_path"]).name
    return "\n".join(
        [
            f"- Initial weights: {start}",
            f"- Data: `{data['name']}`, {images} images, split as described in its ingest_report.json",
            f"- Training: all arguments and versions are in `{CONFIG}`, loss and learning rate in `loss.png`",
        ]
    )


def _metadata(name: str, config: Config, label_set: LabelSet, results: Optional[Dict[str, Any]]) -> str:
    from huggingface_hub import ModelCardData

    base = config["flags"]["model_name_or_path"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", label_set.kind.replace("_", "-"), "vit"],
        base_model=None if config["flags"]["from_scratch"] or os.path.isdir(base) else base,
        model_name=name if results else None,
        eval_results=_index(config["data"], results) if results else None,
    ).to_yaml()


def _index(data: Dict[str, Any], results: Dict[str, Any]) -> List[Any]:
    """Return the AUCs for `model-index`: the macro, then each finding's where it is defined."""
    from huggingface_hub import EvalResult

    overall = {**results["macro"], "finding": f"macro over {counted(results['macro']['num_findings'])}"}
    name = results["label_set"]["name"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
            dataset_name="synthetic X-rays" if data["synthetic"] else name,
            dataset_split="test",
            metric_type="roc_auc",
            metric_name=f"AUC-ROC, {row['finding']}",
            metric_value=row["auc"],
        )
        for row in [overall, *results["findings"]]
        if row["auc"] is not None
    ]


def _validation(aucs: Dict[str, Optional[float]], label_set: LabelSet) -> str:
    num_findings = aucs.get("num_findings")
    if "roc_auc" not in aucs or num_findings is None:
        return "The model was not evaluated during training."
    rows = [["finding", "AUC"]]
    for label in label_set.findings:
        rows.append([markdown(label), shown(aucs[f"roc_auc_{label.replace(' ', '_')}"])])
    rows.append([f"**mean over {counted(round(num_findings))}**", f"**{shown(aucs['roc_auc'])}**"])
    return f"The best checkpoint was chosen by this mean AUC: expect lower values on other patients.\n\n{piped(rows)}"
