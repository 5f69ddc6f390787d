from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file

from chestxray_vit.errors import InputError
from chestxray_vit.models import vit as model
from chestxray_vit.models.checkpoint import quiet_transformers
from tests.unit.models.conftest import as_foreign, edit_config, edit_weights


def test_missing_head_of_a_run_is_refused(run_dir):
    edit_weights(run_dir, lambda tensors: tensors.pop("classifier.weight"))
    with pytest.raises(InputError, match="1 tensors are missing"):
        model.load_model(run_dir)


def test_missing_body_is_refused(run_dir):
    as_foreign(run_dir)
    edit_weights(run_dir, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layer.1." in name])
    with pytest.raises(InputError, match=r"\d+ tensors are missing"):
        model.build_model(str(run_dir))


def test_body_of_another_size_is_refused(run_dir):
    as_foreign(run_dir)
    edit_config(run_dir, intermediate_size=48)
    with pytest.raises(InputError, match="of another size|cannot be loaded"):
        model.build_model(str(run_dir))


def test_nan_weights_are_refused(run_dir):
    edit_weights(run_dir, lambda tensors: tensors["vit.layernorm.bias"].fill_(float("nan")))
    with pytest.raises(InputError, match="1 tensors hold NaN or infinity"):
        model.load_model(run_dir)


def test_a_pickle_is_not_opened(run_dir):
    torch.save(load_file(run_dir / "model.safetensors"), run_dir / "pytorch_model.bin")
    (run_dir / "model.safetensors").unlink()
    with pytest.raises(InputError, match="Weights must be safetensors"):
        model.load_model(run_dir)


def test_damaged_weights_are_refused(run_dir):
    weights = run_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        model.load_model(run_dir)


def test_no_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no ViT checkpoint could be read"):
        model.build_model(str(tmp_path / "nowhere"))


def test_missing_preprocessor_is_refused(run_dir):
    (run_dir / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        model.load_model(run_dir)


def test_another_architecture_is_refused(run_dir):
    edit_config(run_dir, model_type="deit")
    with pytest.raises(InputError, match="architecture is 'deit', expected a ViT"):
        model.build_model(str(run_dir))


def test_loading_leaves_transformers_own_settings(run_dir):
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with quiet_transformers():
        assert theirs.get_verbosity() == theirs.ERROR
        assert not theirs.is_progress_bar_enabled()
        model.load_model(run_dir)
        assert theirs.get_verbosity() == theirs.ERROR
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before
