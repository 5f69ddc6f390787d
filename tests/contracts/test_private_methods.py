"""What we override or patch of other packages and is private there exists in the installed version.

A private method may be renamed in any release; ours would then never be called, and no error would say so."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from chestxray_vit.training.engines import hf_trainer, progress
from chestxray_vit.training.engines.base import BaseTrainer

IS_5 = int(version("transformers").split(".")[0]) >= 5
pipelines = pytest.mark.skipif(not IS_5, reason="pipelines on CUDA and CPU need transformers 5")
# Private methods of our own, that no other package calls.
OURS = {"_restore", "_loader", "_names", "_empty_model"}


def is_ours(kind):
    return kind.__module__.startswith("chestxray_vit")


def overridden(kind):
    """Return the private names that a class of ours defines, it or its bases of ours, and that are not our own."""
    names = {name for base in kind.__mro__ if is_ours(base) for name in vars(base)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")} - OURS - {"_abc_impl"}


def lacking(kind, library):
    """Return the private names that we override and the library's bases lack, each with the installed version."""
    theirs = [base for base in kind.__mro__ if not is_ours(base)]
    names = sorted(overridden(kind))
    found = f"{library} {version(library)}"
    return [f"{kind.__name__}.{name} in {found}" for name in names if not any(name in vars(base) for base in theirs)]


def test_the_trainer_has_what_ours_override():
    assert overridden(hf_trainer.RestoringTrainer) >= {
        "_prepare_inputs",
        "_load_rng_state",
        "_load_from_checkpoint",
        "_load_best_model",
        "_get_train_sampler",
    }
    assert lacking(hf_trainer.RestoringTrainer, "transformers") == []


@pipelines
def test_the_trainer_and_its_arguments_have_what_a_pipeline_overrides():
    from chestxray_vit.training.engines import pipeline_trainer

    assert overridden(pipeline_trainer.StageTrainer) >= {
        "_clip_grad_norm",
        "_get_grad_norm",
        "_save_checkpoint",
        "_save_rng_state",
        "_save_optimizer_and_scheduler",
        "_load_optimizer_and_scheduler",
    }
    assert lacking(pipeline_trainer.StageTrainer, "transformers") == []
    assert overridden(pipeline_trainer.StageArguments) == {"_setup_devices"}
    assert lacking(pipeline_trainer.StageArguments, "transformers") == []


@pipelines
def test_accelerate_has_the_state_that_a_pipeline_makes():
    from accelerate.state import AcceleratorState, PartialState

    from chestxray_vit.training.engines.pipeline_trainer import LoneState

    found = f"accelerate {version('accelerate')}"
    assert overridden(LoneState) == {"_prepare_backend"}
    assert lacking(LoneState, "accelerate") == []
    assert callable(getattr(AcceleratorState, "_reset_state", None)), f"AcceleratorState._reset_state in {found}"
    assert hasattr(PartialState, "_shared_state"), f"PartialState._shared_state in {found}"
    assert "self._prepare_backend(" in inspect.getsource(PartialState.__init__), f"its use in {found}"


@pipelines
def test_the_trainer_has_the_attributes_that_ours_set():
    found = f"transformers {version('transformers')}"
    assert "self.model_accepts_loss_kwargs" in inspect.getsource(transformers.Trainer), found
    assert "self._n_gpu" in inspect.getsource(transformers.TrainingArguments), found
    assert hasattr(transformers.PreTrainedModel, "set_attn_implementation"), found


def test_progress_bars_to_replace_are_there():
    found = f"transformers {version('transformers')}"
    assert hasattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK"), found
    source = inspect.getsource(progress.Progress.__mro__[1])
    for name in ("training_bar", "prediction_bar"):
        assert f"self.{name}" in source, f"ProgressCallback.{name} in {found}"


def test_torch_has_the_hooks_of_a_stage():
    pipelining = pytest.importorskip("torch.distributed.pipelining")
    for name in ("forward_one_chunk", "backward_one_chunk"):
        assert hasattr(pipelining.PipelineStage, name), f"PipelineStage.{name} in torch {version('torch')}"


def test_a_renamed_method_is_found(monkeypatch):
    monkeypatch.setattr(BaseTrainer, "_renamed_long_ago", lambda self: None, raising=False)
    where = f"in transformers {version('transformers')}"
    assert lacking(hf_trainer.RestoringTrainer, "transformers") == [f"RestoringTrainer._renamed_long_ago {where}"]


@pytest.mark.ipu_stack
def test_optimum_graphcore_has_what_ours_override():
    pytest.importorskip("poptorch")
    from optimum.graphcore import IPUConfig, ipu_configuration

    from chestxray_vit.training.engines import ipu_model, ipu_trainer

    found = f"optimum-graphcore {version('optimum-graphcore')}"
    assert lacking(ipu_trainer.PipelinedTrainer, "optimum-graphcore") == []
    assert overridden(ipu_model.PodConfig) == {"_to_options"}
    assert lacking(ipu_model.PodConfig, "optimum-graphcore") == []
    assert lacking(ipu_model.PipelinedViT, "optimum-graphcore") == []
    assert hasattr(ipu_configuration, "Options"), f"ipu_configuration.Options in {found}"
    assert "_parallelize_kwargs" in inspect.getsource(IPUConfig), f"IPUConfig._parallelize_kwargs in {found}"
    for name in ("compile_model", "create_scheduler", "evaluation_loop"):
        assert hasattr(ipu_trainer.IPUTrainer, name), f"IPUTrainer.{name} in {found}"
