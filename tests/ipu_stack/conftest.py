"""Put the double of Graphcore's closed modules in their place, where the real optimum-graphcore is installed.

Elsewhere the double stays out of `sys.path`: another package that asks "is there a poptorch?" must hear the truth."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOUBLE = HERE / "double"


def _has_optimum_graphcore() -> bool:
    found = importlib.util.find_spec("optimum")  # its submodule cannot be asked for: importing it needs poptorch
    folders = found.submodule_search_locations if found is not None else None
    return any((Path(folder) / "graphcore" / "__init__.py").is_file() for folder in folders or ())


INSTALLED = _has_optimum_graphcore()

if INSTALLED:
    sys.path.insert(0, str(DOUBLE))
    # for the processes that tests start
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(DOUBLE), os.environ.get("PYTHONPATH"))))


def pytest_collection_modifyitems(items):
    """Skip this folder's tests, aloud, where the IPU stack is not installed."""
    if INSTALLED:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs the environment of the ipu extra"))


@pytest.fixture
def poptorch():
    """Return the double, with no executors and all IPUs free."""
    import poptorch

    poptorch.reset()
    yield poptorch
    poptorch.reset()
