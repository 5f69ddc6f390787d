"""Names that a reader of the field would not guess are gone: each once stood for what is named on its right."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("chestxray_vit", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES = [path for path in FILES if "double" not in path.parts]  # whose names are those of PopTorch
EVERYWHERE = {
    "place": "index",
    "at_a_time": "micro_batch_size",
    "Front": "GreyToPixelValues",
    "views_of": "model_inputs",
    "take_place": "init_stage_rank",
    "Share": "EpochSampler",
    "Shape": "ViTSize",
    "Mode": "PipelineMode",
    "faces": "renderers",
    "summarise": "build_report",
    "phantom": "synthetic",
    "claimed": "folder_lock",
    "written_together": "atomic_write_many",
}
IN_THE_PACKAGE = {"own": "args", "origin": "provenance", "drawn": "synthetic"}  # ordinary words in a test
IN_TRAINING = {  # ordinary words elsewhere
    "given": "a field of TrainingPlan",
    "passes": "gradient_accumulation_steps",
    "copies": "num_replicas",
    "total": "global_batch_size",
}
TRAINING = ("chestxray_vit/training/", "chestxray_vit/train.py", "chestxray_vit/evaluate.py")
PATTERNS = {"told_of_": "explain_"}
FOREIGN = {("hypothesis", "given")}


def identifiers(tree):
    """Yield each name that a module gives or takes, with its line; hypothesis' `given` is its own."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.name for alias in node.names if (node.module, alias.name) in FOREIGN}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name for alias in node.names]
        for name in names:
            if name and name not in imported:
                yield name, getattr(node, "lineno", 0)


def names_to_avoid(path):
    """Return the names that a file must not have, and what is said instead."""
    where = path.relative_to(ROOT).as_posix()
    in_package = IN_THE_PACKAGE if where.startswith("chestxray_vit/") else {}
    return {**EVERYWHERE, **in_package, **(IN_TRAINING if where.startswith(TRAINING) else {})}


def old_names(text, avoided):
    found = []
    for name, line in identifiers(ast.parse(text)):
        better = avoided.get(name) or next((new for old, new in PATTERNS.items() if name.startswith(old)), None)
        if better:
            found.append(f"line {line}: {name}, say {better}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_old_names_are_gone(path):
    assert old_names(path.read_text(encoding="utf-8"), names_to_avoid(path)) == []


def test_an_old_name_is_found_wherever_it_stands():
    avoided = names_to_avoid(ROOT / "chestxray_vit" / "train.py")
    text = (
        "class Share:\n    def given(self, own):\n        self.place = total = f(copies=2)\nfrom a import origin as b"
    )
    found = [re.search(r": (\w+),", line).group(1) for line in old_names(text, avoided)]
    assert sorted(found) == ["Share", "given", "own", "place", "total"]
    assert old_names("from hypothesis import given\n@given(1)\ndef f(): pass", avoided) == []
