"""The layers of chestxray_vit/README.md: import-linter's contracts hold, and what is light loads neither torch nor
transformers. pyproject.toml says where what may be imported; nothing is listed here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")  # pytest's own, before Python 3.11

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "chestxray_vit"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
HEAVY = ("torch", "transformers")
WATCHED = """
import importlib, json, sys
heavy, found = set(json.loads(sys.argv[1])), {}
for name in sys.argv[2:]:
    before = heavy & set(sys.modules)
    importlib.import_module(name)
    found[name] = sorted(heavy & set(sys.modules) - before)
print(json.dumps(found))
"""


def modules_of(source):
    """Return a module, or all below a package, by dotted names."""
    folder = ROOT.joinpath(*source.split("."))
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


def light_modules():
    """Return what the contract "light" names, less what it excepts, and all that "light-at-import" names."""
    light, at_import = (next(found for found in CONTRACTS if found.get("id") == name) for name in IDS)
    excepted = {line.split(" -> ")[0] for line in light["ignore_imports"]}
    names = [name for source in light["source_modules"] for name in modules_of(source) if name not in excepted]
    return [*names, *at_import["source_modules"]]


IDS = ("light", "light-at-import")
LIGHT = light_modules()


def test_the_contracts_hold():
    pytest.importorskip("importlinter")
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken." in done.stdout


def test_every_module_is_in_a_layer_and_the_light_ones_are_many():
    assert all((PACKAGE.parent / name.replace(".", "/")).with_suffix(".py").is_file() for name in LIGHT)
    assert len(LIGHT) > len(list(PACKAGE.rglob("*.py"))) // 2


@pytest.fixture(scope="module")
def loaded():
    """Return for every light module what its import, after that of those before it, was the first to load."""
    words = [sys.executable, "-c", WATCHED, json.dumps(HEAVY), *LIGHT]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_neither_torch_nor_transformers(module, loaded):
    assert loaded[module] == []
