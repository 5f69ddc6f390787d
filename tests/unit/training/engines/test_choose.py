"""Which engine a device and `--pipeline` choose, and that the base is no engine."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit.errors import InputError
from chestxray_vit.labels import LabelSet
from chestxray_vit.training.arguments import IPUArguments, PipelineArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.engines import choose
from chestxray_vit.training.engines.base import Engine, check_labels
from chestxray_vit.training.engines.hf_trainer import HFEngine
from chestxray_vit.training.engines.pipeline_trainer import PipelineEngine


@pytest.mark.parametrize(
    ("device", "options", "kind"),
    [
        ("cpu", IPUArguments(), HFEngine),
        ("cpu", PipelineArguments(), HFEngine),
        ("cpu", PipelineArguments(pipeline=True, ipu_config_name="vit-tiny-2ipu"), PipelineEngine),
    ],
)
def test_engine_follows_from_device_and_pipeline(device, options, kind):
    ranks = Ranks(rank=1, world_size=2)
    engine = choose.choose(device, options, ranks)
    assert type(engine) is kind
    assert (engine.device, engine.ranks) == (device, ranks)


def test_a_pipeline_of_processes_is_not_for_ipus(monkeypatch):
    monkeypatch.setattr(choose, "wants_ipu", lambda device: True)
    with pytest.raises(InputError, match="--pipeline is for CUDA and CPU; on IPUs the model is always pipelined"):
        choose.choose("ipu", PipelineArguments(pipeline=True), Ranks())


def test_an_engine_has_all_its_parts():
    assert Engine.__abstractmethods__ == {"global_batch", "arguments", "trainer"}
    with pytest.raises(TypeError):
        Engine("cpu", IPUArguments(), Ranks())


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("Mass", "Edema"), "a run scores 2 labels, data has 2: the model lacks Nodule; the data set lacks Edema"),
        (("Mass",), "a run scores 1 labels, data has 2: the model lacks Nodule"),
        (("Mass", "Nodule", "Edema"), "a run scores 3 labels, data has 2: the data set lacks Edema"),
        (("Nodule", "Mass"), "a run scores 2 labels, data has 2: they are in another order"),
    ],
)
def test_other_labels_are_named(names, text):
    expected = LabelSet("two", ("Mass", "Nodule"))
    check_labels("a run", LabelSet("the same names", ("Mass", "Nodule")), "data", expected)
    with pytest.raises(InputError, match=text):
        check_labels("a run", LabelSet("others", names), "data", expected)
