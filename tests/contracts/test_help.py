"""`--help` of each command, and the list of commands: complete, and without torch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from chestxray_vit import __main__
from tests.helpers.commands import COMMANDS, LISTED

WITH_TRANSFORMERS = ("train", "evaluate")  # whose flags are those of its TrainingArguments, too
HELP = """
import contextlib, importlib, io, json, sys
found = {}
for name in sys.argv[1:]:
    printed, code = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            importlib.import_module(f"chestxray_vit.{name}").main(["--help"])
        except SystemExit as end:
            code = end.code
    found[name] = printed.getvalue(), code, [heavy for heavy in ("torch", "transformers") if heavy in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helped():
    """Return what `--help` of each command printed, its exit code, and what of torch and transformers was loaded."""
    names = [name for name in COMMANDS if name not in WITH_TRANSFORMERS]
    if importlib.util.find_spec("transformers"):
        names += WITH_TRANSFORMERS  # last, as they load it
    done = subprocess.run([sys.executable, "-c", HELP, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_torch(command, helped):
    if command in WITH_TRANSFORMERS:
        pytest.importorskip("transformers")
    printed, code, loaded = helped[command]
    assert printed.startswith("usage: python -m chestxray_vit." + command)
    assert code == 0
    assert loaded == (["transformers"] if command in WITH_TRANSFORMERS else [])


def test_help_all_adds_those_of_training_arguments(capsys):
    pytest.importorskip("transformers")
    from chestxray_vit import train

    with pytest.raises(SystemExit):
        train.main(["--help_all"])
    printed = capsys.readouterr().out
    assert printed.index("--dataset_dir") < printed.index("--learning_rate") < printed.index("--adam_beta1")
    assert re.search(r"--learning_rate .*\(default: 0\.0002\)", " ".join(printed.split()))


def test_main_lists_the_commands(capsys):
    assert __main__.main([]) == 0
    printed = capsys.readouterr().out
    assert tuple(LISTED) == COMMANDS
    assert all(f"\n  {command} " in printed for command in COMMANDS)
    assert __main__.main(["diagnose"]) == 2


def test_main_runs_a_command(capsys, tmp_path):
    assert __main__.main(["ingest", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
