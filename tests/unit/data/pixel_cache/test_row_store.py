"""Rows are written whole, whatever a single write takes."""

from __future__ import annotations

import os

from chestxray_vit.data.pixel_cache import row_store


def test_short_writes_are_ended(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    with open(tmp_path / "a", "wb") as file:
        row_store._write_at(file.fileno(), b"12345678", 2)
    assert (tmp_path / "a").read_bytes() == b"\0\00012345678"
