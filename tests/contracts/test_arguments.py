"""The flags of our own are frozen: a change of them is a change of what users' commands mean."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from tests.helpers.commands import OWN_FLAGS


@pytest.mark.parametrize(("module", "kind"), OWN_FLAGS)
def test_own_flags_are_frozen(module, kind):
    pytest.importorskip("transformers")
    flags = getattr(importlib.import_module(f"chestxray_vit.{module}"), kind)
    assert tuple(field.name for field in dataclasses.fields(flags)) == OWN_FLAGS[module, kind]
