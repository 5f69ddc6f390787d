"""train_config.json of this version and of 0.5.0."""

from __future__ import annotations

import json

import pytest

from chestxray_vit.artifacts.train_config import FILE, read_train_config, write_train_config
from chestxray_vit.errors import InputError

OF_0_5_0 = {
    "global_batch": {"at_a_time": 2, "passes": 8, "copies": 4, "total": 64},
    "data": {"name": "d", "drawn": True, "images": {"train": 5}},
    "updates": 3,
}
TODAYS = {
    "global_batch": {
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "num_replicas": 4,
        "global_batch_size": 64,
    },
    "data": {"name": "d", "synthetic": True, "images": {"train": 5}},
    "updates": 3,
}


@pytest.mark.parametrize("content", [OF_0_5_0, TODAYS], ids=["0.5.0", "today"])
def test_both_versions_are_read_under_todays_names(content, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(content))
    assert read_train_config(tmp_path) == TODAYS


def test_what_is_written_is_read(tmp_path):
    write_train_config(tmp_path, {**TODAYS, "folder": tmp_path})
    assert read_train_config(tmp_path) == {**TODAYS, "folder": str(tmp_path)}


def test_a_folder_without_one_and_a_damaged_one(tmp_path):
    assert read_train_config(tmp_path) is None
    (tmp_path / FILE).write_text('{"updates": 3')
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_train_config(tmp_path)
