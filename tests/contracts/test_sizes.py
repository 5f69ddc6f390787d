"""Sizes that keep the house readable: modules a folder, lines a module and a function, parameters."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "chestxray_vit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_MODULES, MOST_AT_THE_ROOT = 9, 18  # besides __init__
MOST_LINES, MOST_TEST_LINES, MOST_FUNCTION_LINES = 300, 400, 40
MOST_PARAMETERS = 6  # besides self
PARSERS = ("parser", "parse")  # which list flags, as many as there are


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def num_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_is_seen_at_a_glance(folder):
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= (MOST_AT_THE_ROOT if folder == PACKAGE else MOST_MODULES), modules


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_read_in_one_sitting(path):
    assert num_lines(path) <= MOST_LINES
    long = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in PARSERS:
            parameters = [word.arg for word in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            of_caller = parameters[1:] if parameters[:1] in (["self"], ["cls"]) else parameters
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_FUNCTION_LINES or len(of_caller) > MOST_PARAMETERS:
                long.append(f"line {node.lineno}: {node.name}, {lines} lines, {len(of_caller)} parameters")
    assert long == []


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_a_test_file_holds_one_subject(path):
    assert num_lines(path) <= MOST_TEST_LINES
