"""What the tests of kills, full disks and commands at once share."""

from __future__ import annotations

import shutil

import pytest

from chestxray_vit import ingest
from chestxray_vit.data.synthetic.release import draw_release
from tests.robustness.command_lines import evaluating, training


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """Return a small release, not ingested. Shared: copy it."""
    return draw_release(tmp_path_factory.mktemp("small") / "release", num_patients=40, image_size=64, seed=7)


@pytest.fixture(scope="session")
def dataset(release, tmp_path_factory):
    """Return a small ingested release. Shared."""
    folder = shutil.copytree(release, tmp_path_factory.mktemp("small") / "dataset")
    assert ingest.main([str(folder), "--val_fraction", "0.3"]) == 0
    return folder


@pytest.fixture(scope="session")
def runs(commands, dataset, tmp_path_factory):
    """Return two trained runs that nothing disturbed: an earlier and a later one. Shared."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        answer = commands.run("train", *training(dataset, folder / str(seed), seed))
        assert answer.code == 0, answer.printed
    return folder / "1", folder / "2"


@pytest.fixture(scope="session")
def scored(commands, dataset, runs, tmp_path_factory):
    """Return the folders that the evaluations of both runs wrote. Shared."""
    folder = tmp_path_factory.mktemp("scored")
    for run in runs:  # copies: an evaluation leaves its thresholds there
        copy = shutil.copytree(run, folder / "runs" / run.name)
        answer = commands.run(*evaluating(copy, dataset, folder / run.name))
        assert answer.code == 0, answer.printed
    return folder / "1", folder / "2"
