"""The public names of the package: which they are, where they come from, and that they are loaded only when used."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import chestxray_vit

ROOT = Path(__file__).parents[2]
NAMES = {
    "NIH_CHESTXRAY14",
    "LabelSet",
    "build_report",
    "draw_release",
    "load_model",
    "load_xrays",
    "read_predictions",
    "roc_auc",
}
NEED_TORCH = {"load_model", "load_xrays"}
HEAVY = ("numpy", "torch", "transformers", "datasets", "pandas", "pyarrow", "sklearn", "matplotlib")


def loaded_after(code: str) -> set:
    """Return which heavy packages a fresh interpreter has loaded after `code`."""
    code += f"; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_public_names_are_frozen():
    assert set(chestxray_vit.__all__) == NAMES
    assert set(dir(chestxray_vit)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_is_that_of_its_module(name):
    if name in NEED_TORCH:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    module, attribute = chestxray_vit._HOMES[name]
    value = getattr(chestxray_vit, name)
    assert value is getattr(importlib.import_module(module), attribute)
    assert name == attribute or name == "roc_auc"  # today `auc`
    assert value.__doc__


def test_type_checkers_see_the_names_of_run_time():
    tree = ast.parse(Path(chestxray_vit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(line.module, name.name) for line in block.body for name in line.names}
    assert seen == set(chestxray_vit._HOMES.values())


def test_importing_the_package_loads_no_heavy_module():
    assert loaded_after("import chestxray_vit") == set()
    assert loaded_after("import chestxray_vit; dir(chestxray_vit); chestxray_vit.LabelSet") == set()


def test_numbers_need_no_torch():
    loaded = loaded_after("from chestxray_vit import build_report, draw_release, read_predictions, roc_auc")
    assert "numpy" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets"})


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'chestxray_vit' has no attribute 'diagnose'"):
        chestxray_vit.diagnose  # noqa: B018
    with pytest.raises(ImportError, match="diagnose"):
        from chestxray_vit import diagnose  # noqa: F401


def test_example_of_the_package_runs():
    results = doctest.testmod(chestxray_vit)
    assert results.attempted == 2
    assert results.failed == 0


def test_wheel_holds_types_templates_and_configurations(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    wheel = next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert Path(wheel).name.startswith(f"chestxray_vit-{chestxray_vit.__version__}-")
    assert {"chestxray_vit/py.typed", "chestxray_vit/reporting/auc.schema.json"} <= names
    assert {
        f"chestxray_vit/ipu_configs/{path.parent.name}/ipu_config.json" for path in ROOT.glob("ipu_configs/*/*.json")
    } <= names
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("chestxray_vit/**/templates/*")} <= names
    assert not [name for name in names if name.startswith("tests/")]
