"""The recipes in notebooks/recipes: the real parser reads each, and its first lines name a command that runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

pytest.importorskip("transformers")

from chestxray_vit import demo, train
from chestxray_vit.training import arguments

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "notebooks" / "recipes").iterdir())
# What stops each recipe here, after its flags were accepted: there is no such data set, no IPU, no checkpoint.
STOPPED_BY = {
    "cpu_demo": "nowhere/metadata.jsonl",
    "pipeline_2_processes": "nowhere/metadata.jsonl",
    "pod16": "--device ipu: PopTorch",
    "pod4": "--device ipu: PopTorch",
    "resume": "--resume_from_checkpoint: no checkpoint in",
    "tutorial": "nowhere/metadata.jsonl",
}
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture
def parse(tmp_path, monkeypatch, capsys):
    """Return a function that runs `train` on a command line; it returns the values read, and the error at the end."""
    parse_for_train = arguments.parse

    def parse(*argv):
        values = {}

        def recorded(*args, **kwargs):
            kinds, training, positional = parse_for_train(*args, **kwargs)
            for kind in kinds:
                values.update(vars(kind))
            values.update(training)
            return kinds, training, positional

        monkeypatch.setattr(arguments, "parse", recorded)
        folders = ["--dataset_dir", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")]
        assert train.main([*argv, *folders]) == 2
        return values, capsys.readouterr().err

    return parse


@each
def test_recipe_is_accepted(path, parse):
    values, error = parse(str(path))
    assert STOPPED_BY[path.stem] in error
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if name == "warmup_ratio" and "warmup_ratio" not in values:
            name = "warmup_steps"
        read = values[name]
        assert getattr(read, "value", read) == value, name


def test_tutorial_is_the_default_recipe(parse):
    assert differences(parse(str(ROOT / "notebooks" / "recipes" / "tutorial.yaml"))[0], parse()[0]) == {
        "global_batch_size": 128
    }


def test_cpu_demo_is_the_demos_recipe(parse):
    path = ROOT / "notebooks" / "recipes" / "cpu_demo.yaml"
    assert differences(parse(str(path))[0], parse(*demo.RECIPE.split())[0]) == {}


def differences(values, others):
    """Return the values that differ; None is what the engine decides, such as a global batch of 128."""
    return {name: value for name, value in values.items() if value != others[name]}


@each
def test_recipe_begins_with_its_command_and_what_was_measured(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    command = shlex.split(comments[1].lstrip("# "))
    start = command.index("chestxray_vit.train")
    recipes = [word for word in command[start + 1 :] if word.endswith(".yaml")]
    assert f"notebooks/recipes/{path.name}" in recipes
    assert all((ROOT / recipe).is_file() for recipe in recipes)
    assert command[:start] in (["python", "-m"], ["torchrun", "--nproc-per-node", "2", "-m"])
    assert command[start + 1 + len(recipes) :: 2] == ["--dataset_dir", "--output_dir"]
    assert re.search(r"[Mm]easured|timed here", " ".join(comments[2:]))


def test_recipe_with_an_unknown_flag_is_refused(tmp_path, parse):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rat: 1.0e-4\n")
    assert "unknown flags: learning_rat" in parse(str(recipe))[1]
