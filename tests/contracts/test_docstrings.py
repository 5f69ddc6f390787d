"""Docstrings: every example runs, and every public statistic has one."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "chestxray_vit"
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).replace(".__init__", "")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
METRICS = sorted((PACKAGE / "metrics").glob("*.py"))
WITHOUT_STATISTIC = {"checked", "patient_codes", "num_different", "finite_logits", "measure_codes", "ranked_subgroups"}


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:  # torch or transformers, where they are not installed
        pytest.skip(str(error))
    failed, attempted = doctest.testmod(loaded)
    assert failed == 0
    assert attempted > 0


def statistics():
    """Give each public function of metrics: module, name, docstring."""
    for path in METRICS:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(node, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize("function", list(statistics()))
def test_public_statistics_say_what_they_take_and_show_an_example(function):
    text = ast.get_docstring(function)
    assert text
    if function.name not in WITHOUT_STATISTIC:
        assert ">>> " in text
    statistic = function.name not in WITHOUT_STATISTIC and len(function.args.args) > 1
    assert not statistic or "Args:" in text or len(text.splitlines()) < 8  # or one line says all
