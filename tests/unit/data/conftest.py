"""A release of three patients that was ingested."""

from __future__ import annotations

import pytest

from chestxray_vit.ingest import main as ingest


@pytest.fixture
def dataset(mini_release):
    """Return the mini release, ingested: patient 1 train, 2 validation, 3 test."""
    assert ingest([str(mini_release), "--val_fraction", "0.2"]) == 0
    return mini_release
