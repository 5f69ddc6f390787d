"""Importing a module of ours changes nothing of other packages: callbacks, verbosity, warnings, the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
# Both programs import every module of ours that can be; the second, after what these load of other packages.
COMMON = """
import importlib, json, logging, os, sys, warnings
from pathlib import Path

def import_ours():
    for path in sorted(Path("chestxray_vit").rglob("*.py")):
        name = ".".join(path.with_suffix("").parts)
        if path.stem in ("__init__", "__main__") or path.stem.startswith("ipu_") and path.parent.name == "engines":
            continue  # the latter need the IPU stack
        importlib.import_module(name)
"""
LISTED = f"""{COMMON}
import_ours()
print(json.dumps([name for name in sys.modules if not name.startswith(("chestxray_vit", "__"))]))
"""
COMPARED = f"""{COMMON}
for name in json.loads(sys.stdin.read()):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # made by its package while it loads

import datasets, numpy, torch, transformers
from transformers.utils import logging as transformers_logging

def state():
    return {{
        "environment": dict(os.environ),
        "callbacks": [str(kind) for kind in transformers.trainer.DEFAULT_CALLBACKS],
        "progress callback": str(transformers.trainer.DEFAULT_PROGRESS_CALLBACK),
        "verbosity": transformers_logging.get_verbosity(),
        "progress bars": [transformers_logging.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()],
        "root logger": [logging.root.level, [str(handler) for handler in logging.root.handlers]],
        "warnings": [str(entry) for entry in warnings.filters],
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads()],
        "seed": torch.initial_seed(),
        "numpy": str(numpy.geterr()),
        "path": sys.path[:],
    }}

before = state()
import_ours()
after = state()
print(json.dumps({{name: [before[name], after[name]] for name in before if before[name] != after[name]}}))
"""


def run(code, stdin=""):
    done = subprocess.run([sys.executable, "-c", code], input=stdin, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_imports_change_no_global_state():
    others = run(LISTED)
    assert "transformers.trainer" in json.loads(others)
    assert json.loads(run(COMPARED, others)) == {}
