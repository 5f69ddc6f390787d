"""Checkpoints that are not whole are passed over, and the modes of those that are."""

from __future__ import annotations

import os
import subprocess

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from chestxray_vit.errors import InputError
from chestxray_vit.training import run_folder
from tests.helpers.training import trained

EPOCHS = "--logging_steps 1 --per_device_train_batch_size 8".split()


@pytest.fixture(scope="module")
def run(synthetic_dataset, tmp_path_factory):
    """Return a trained run, made under a umask of its own. Shared."""
    before = os.umask(0o027)
    try:
        return trained(synthetic_dataset, tmp_path_factory.mktemp("checkpoints") / "run", *EPOCHS)
    finally:
        os.umask(before)


@pytest.fixture
def two_checkpoints(run, tmp_path):
    whole = sorted(run.glob("checkpoint-*"))[0]
    for number in (1, 2):
        subprocess.run(["cp", "-r", str(whole), str(tmp_path / f"checkpoint-{number}")], check=True)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_checkpoint_cut_short_is_passed_over(name, two_checkpoints, caplog):
    path = two_checkpoints / "checkpoint-2" / name
    content = path.read_bytes()
    assert run_folder.last_checkpoint(str(two_checkpoints)) == str(path.parent)
    lengths = sorted({0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1})
    for length in [length for length in lengths if length < len(content)]:
        path.write_bytes(content[:length])
        if name == "trainer_state.json" and length == len(content) - 1:
            continue  # but for the last line's end it is whole
        caplog.clear()
        assert run_folder.last_checkpoint(str(two_checkpoints)) == str(two_checkpoints / "checkpoint-1"), length
        assert f"checkpoint-2 is not whole, and passed over: {name} cut short" in caplog.text
    path.unlink()
    last = name in ("rng_state.pth", "trainer_state.json")
    assert run_folder.last_checkpoint(str(two_checkpoints)).endswith("1" if last else "2")


def test_no_whole_checkpoint(two_checkpoints):
    for number in (1, 2):
        (two_checkpoints / f"checkpoint-{number}" / "rng_state.pth").write_bytes(b"")
    with pytest.raises(InputError, match="checkpoint-2 cannot be loaded: rng_state.pth cut short; checkpoint-1 cannot"):
        run_folder.last_checkpoint(str(two_checkpoints))


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(3), "b": torch.zeros(2, 5)}, {}])
def test_weights_are_whole_at_the_length_that_their_header_says(tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    content = path.read_bytes()
    assert run_folder._is_whole(path)
    for wrong in (content[:-1], content + b"x", b""):
        path.write_bytes(wrong)
        assert not run_folder._is_whole(path)


def test_checkpoints_have_the_mode_of_the_umask(run):
    modes = {path.relative_to(run).as_posix(): path.stat().st_mode & 0o777 for path in run.rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o777 not in (0o640, 0o750)} == {}
    assert load_file(run / "model.safetensors")
