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
SOURCES = {  # of formulas: in the docstring of the function
    "average_precision": "Davis and Goadrich",
    "brier": "Brier, Monthly Weather Review 1950",
    "choose": "Youden, Cancer 1950",
    "delong": "Biometrics 1988",
    "effective_number": "Rao and Scott, Biometrics 1992",
    "expected_calibration_error": "Naeini et al., AAAI 2015",
    "finding_intervals": "Efron and Tibshirani 1993",
    "holm": "Holm, Scandinavian Journal of Statistics 1979",
    "intercept_at_slope_1": "Cox, Biometrika 1958",
    "logit_interval": "Pepe 2003",
    "obuchowski": "Obuchowski, Biometrics 1997",
    "slope_and_intercept": "Cox, Biometrika 1958",
    "wilson": "Wilson, JASA 1927",
}
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


def test_formulas_name_their_source():
    docstrings = {parameter.values[0].name: ast.get_docstring(parameter.values[0]) or "" for parameter in statistics()}
    assert SOURCES.keys() <= docstrings.keys()
    assert [name for name, source in SOURCES.items() if source not in " ".join(docstrings[name].split())] == []


@pytest.mark.parametrize("path", [path for path in METRICS if path.stem != "__init__"], ids=lambda path: path.stem)
def test_modules_of_metrics_explain_their_shapes(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text and "\nShapes: " in text
