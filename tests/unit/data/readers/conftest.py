"""What the tests of NIH's readers share: a path of a CSV, and small blocks."""

from __future__ import annotations

import pyarrow
import pyarrow.csv
import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Data_Entry_2017.csv"


@pytest.fixture
def small_blocks(monkeypatch):
    """Make Arrow read 512 bytes at a time, as it reads 64 MiB of a longer file."""
    read_options = pyarrow.csv.ReadOptions
    monkeypatch.setattr(pyarrow.csv, "ReadOptions", lambda **options: read_options(**{**options, "block_size": 512}))
