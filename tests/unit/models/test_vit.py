from __future__ import annotations

import logging
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file

from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models import vit as model
from chestxray_vit.models.label_config import label_set_of
from chestxray_vit.models.vit_size import ViTSize
from tests.unit.models.conftest import TINY, as_foreign, edit_config, edit_weights

FINDINGS = NIH_CHESTXRAY14.names


def test_scratch_has_the_size_and_names_its_outputs():
    vit, processor = model.build_from_scratch(TINY)
    assert vit.config.num_labels == 14
    assert label_set_of(vit.config) == NIH_CHESTXRAY14
    assert vit.config.problem_type == "multi_label_classification"
    assert vit(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape == (2, 14)
    assert dict(processor.size) == {"height": 32, "width": 32}


def test_scratch_is_vit_base_by_default():
    # counted by hand for 12 layers of width 768, patch 16 at 224, and 14 outputs:
    # patches 3*16*16*768 + 768 = 590,592; class token 768; positions 197*768 = 151,296
    # a layer: 4 * (768*768 + 768) + 2 * 2*768 + 768*3072 + 3072 + 3072*768 + 768 = 7,087,872
    # last norm 1,536; head 768*14 + 14 = 10,766
    vit, _ = model.build_from_scratch(ViTSize())
    expected = 590_592 + 768 + 151_296 + 12 * 7_087_872 + 1_536 + 10_766
    assert sum(parameter.numel() for parameter in vit.parameters()) == expected


def test_scratch_draws_narrow_weights_wider():
    # 0.02 at width 768; 0.02 * sqrt(768 / 48) = 0.08 at width 48
    vit, _ = model.build_from_scratch(ViTSize(hidden_size=48, num_hidden_layers=1, num_attention_heads=3))
    assert vit.config.initializer_range == pytest.approx(0.08)
    intermediate = next(tensor for name, tensor in vit.state_dict().items() if tensor.shape == (3072, 48))
    assert intermediate.std().item() == pytest.approx(0.08, rel=0.01)


def test_scratch_refuses_sizes_that_do_not_divide():
    with pytest.raises(InputError, match="image_size 30 must be a multiple of patch_size 16"):
        model.build_from_scratch(ViTSize(image_size=30))


def test_run_reloads_every_tensor(run_dir):
    vit, _ = model.load_model(run_dir)
    torch.manual_seed(0)
    original, _ = model.build_from_scratch(TINY)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, vit.state_dict()[name]), name


def test_run_reloads_in_float32(run_dir):
    edit_weights(run_dir, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    edit_config(run_dir, torch_dtype="float16", dtype="float16")
    vit, _ = model.load_model(run_dir)
    assert {tensor.dtype for tensor in vit.state_dict().values()} == {torch.float32}


def test_a_run_of_ours_keeps_its_head(run_dir):
    vit, _ = model.build_model(str(run_dir))
    assert torch.equal(vit.classifier.weight, load_file(run_dir / "model.safetensors")["classifier.weight"])


def test_a_new_head_is_announced_and_the_body_kept(run_dir, caplog):
    as_foreign(run_dir)
    with caplog.at_level(logging.INFO, logger="chestxray_vit"):
        vit, _ = model.build_model(str(run_dir))
    assert "new head: 14 outputs" in caplog.text
    assert vit.classifier.weight.shape == (14, 16)
    assert vit.classifier.bias.abs().max() == 0
    assert vit.classifier.weight.std().item() == pytest.approx(vit.config.initializer_range, rel=0.2)
    saved = load_file(run_dir / "model.safetensors")
    assert torch.equal(vit.state_dict()["vit.layernorm.weight"], saved["vit.layernorm.weight"])


def test_fifteen_labels_have_fifteen_outputs(run_dir):
    as_foreign(run_dir)
    vit, _ = model.build_model(str(run_dir), NIH_CHESTXRAY14.with_negative_column())
    assert label_set_of(vit.config).names[-1] == "No Finding"
    assert label_set_of(vit.config).has_negative_column
    assert vit.classifier.bias.shape == (15,)


def test_other_order_of_findings_is_refused(run_dir):
    swapped = [FINDINGS[1], FINDINGS[0], *FINDINGS[2:]]
    edit_config(run_dir, id2label={str(index): name for index, name in enumerate(swapped)})
    for load in (model.load_model, lambda folder: model.build_model(str(folder))):
        with pytest.raises(InputError, match="its outputs are Cardiomegaly, Atelectasis"):
            load(run_dir)


def test_a_checkpoint_that_is_not_ours_cannot_be_evaluated(run_dir):
    as_foreign(run_dir)
    with pytest.raises(InputError, match="not a trained run of this package"):
        model.load_model(run_dir)


def test_folder_is_not_written_to(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    model.load_model(run_dir)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in run_dir.iterdir()
    }
