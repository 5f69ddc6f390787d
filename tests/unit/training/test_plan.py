"""What `resolve` decides before a training starts."""

from __future__ import annotations

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit.data.dataset import open_dataset
from chestxray_vit.errors import InputError
from chestxray_vit.training.arguments import PipelineArguments, TrainArguments, ViTSizeArguments
from chestxray_vit.training.distributed import Ranks
from chestxray_vit.training.global_batch import GlobalBatch
from chestxray_vit.training.plan import TrainCommand, open_output, resolve
from chestxray_vit.training.recipe import installed_name, recipe
from tests.helpers.engines import engine_of


def command_of(folder, args=None, size=None, pipeline=None, **values):
    """Return the command of a training on the CPU."""
    named = {"resume_from_checkpoint": None, "output_dir": str(folder), **values}
    return TrainCommand(
        args or TrainArguments(dataset_dir="data"),
        size or ViTSizeArguments(),
        pipeline or PipelineArguments(),
        {**recipe(), **{installed_name(name): value for name, value in named.items()}},
    )


def test_nothing_is_left_open(synthetic_dataset, tmp_path):
    command = command_of(tmp_path / "run", TrainArguments(global_batch_size=32))
    dataset = open_dataset(synthetic_dataset)
    plan = resolve(command, engine_of(), dataset)
    assert plan.global_batch == GlobalBatch(32, 1, 1)
    assert plan.label_set == dataset.label_set
    assert list(plan.splits) == ["train", "validation"]
    assert (plan.pipeline_config, plan.resume_from) == (None, None)
    arguments = plan.training_arguments
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (32, 1)
    assert (arguments.bf16, arguments.load_best_model_at_end) == (False, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.global_batch = GlobalBatch(1, 1, 1)  # type: ignore[misc]
    facts = json.loads(json.dumps(plan.facts(), default=str))
    assert facts["global_batch"] == {
        "micro_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "num_replicas": 1,
        "global_batch_size": 32,
    }
    assert (facts["device"], facts["processes"], facts["flags"]["global_batch_size"]) == ("cpu", 1, 32)


def test_without_evaluation_there_is_no_validation_split_and_no_best_model(synthetic_dataset, tmp_path):
    command = command_of(tmp_path / "run", eval_strategy="no")
    plan = resolve(command, engine_of(), open_dataset(synthetic_dataset))
    assert list(plan.splits) == ["train"]
    assert plan.training_arguments.load_best_model_at_end is False
    assert command.values["load_best_model_at_end"] is True  # a plan does not change what was asked


def test_an_ipu_configuration_gives_the_global_batch(synthetic_dataset, tmp_path):
    pipeline = PipelineArguments(ipu_config_name="vit-tiny-2ipu")
    command = command_of(tmp_path / "run", pipeline=pipeline, per_device_train_batch_size=2)
    plan = resolve(command, engine_of("cpu", pipeline), open_dataset(synthetic_dataset))
    assert plan.pipeline_config.training.gradient_accumulation_steps == 8
    assert plan.global_batch == GlobalBatch(2, 8, 1)


def test_all_that_is_wrong_with_a_command_is_said_at_once(tmp_path):
    command = command_of(
        tmp_path,
        TrainArguments(global_batch_size=0),
        ViTSizeArguments(patch_size=8),
        PipelineArguments(pipeline=True),
    )
    command = dataclasses.replace(command, values={**command.values, "output_dir": None})
    with pytest.raises(InputError) as found:
        command.check()
    lines = str(found.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "--dataset_dir",
        "--output_dir",
        "--patch_size",
        "--global_batch_size",
        "--pipeline",
    ]


def test_only_the_main_process_looks_for_an_earlier_run(tmp_path):
    (tmp_path / "train_config.json").touch()
    command = command_of(tmp_path)
    with pytest.raises(InputError, match="holds an earlier run"):
        open_output(command, Ranks())
    assert open_output(command, Ranks(rank=1, world_size=2)) == command
    overwriting = command_of(tmp_path, TrainArguments(overwrite=True))
    assert open_output(overwriting, Ranks()) == overwriting


def test_the_last_checkpoint_is_found(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    for name in ("trainer_state.json", "rng_state.pth"):
        (tmp_path / "checkpoint-3" / name).touch()
    for word in ("last", "true"):
        command = open_output(command_of(tmp_path, resume_from_checkpoint=word), Ranks())
        assert command.values["resume_from_checkpoint"] == str(tmp_path / "checkpoint-3")
