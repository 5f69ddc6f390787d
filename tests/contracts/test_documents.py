"""What the READMEs and notebooks name exists: flags, modules and their names, files of the repository, links."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.helpers.commands import known_flags

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "chestxray_vit"
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
MADE = ("walkthrough", "auc_report", "demo", "build", "dist")  # folders that git ignores


def of_the_repository(path):
    """Tell whether a path is none of a hidden or an ignored folder."""
    parts = path.relative_to(ROOT).parts
    return not parts[0].startswith(".") and parts[0] not in MADE


DOCUMENTS = [path for path in sorted([*ROOT.rglob("README.md"), *NOTEBOOKS]) if of_the_repository(path)]
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and (of_the_repository(path) or path.name == ".ci")}
# of other programs: pip, torchrun, poprun, pytest and the benchmarks
FOREIGN = {"--no-deps", "--nproc-per-node", "--num-instances", "--num-replicas", "--ipus-per-replica", "--durations"}
FOREIGN |= {"--scale", "--rows", "--json"}
NAMED = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


def code_of(path):
    """Return the modules that a notebook's code cells parse to."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [ast.parse(source) for source in sources]


def exists(dotted):
    """Tell whether a dotted name is a module, or a name in one."""
    words = dotted.split(".")
    for length in range(len(words), 0, -1):
        name = ".".join(words[:length])
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if found is not None:
            rest = words[length:]
            return not rest or (len(rest) == 1 and hasattr(importlib.import_module(name), rest[0]))
    return False


def unknown_files(path):
    """Return the paths that begin with a folder of the repository, and the links, which lead nowhere."""
    text = text_of(path)
    named = {match.rstrip("./") for match in re.findall(r"(?<![\w./-])[.\w-]+/[\w./*{},-]*[\w*}]", text)}
    named = {name for name in named if name.split("/")[0] in TOP and not re.search(r"[*{]", name)}
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = {name for name in named if not (ROOT / name).exists()}
    return missing | {link for link in links if link and not (path.parent / link).exists()}


@NAMED
def test_flags_exist(path):
    pytest.importorskip("transformers")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text_of(path)))
    assert named - known_flags() - FOREIGN == set()


@NAMED
def test_modules_and_their_names_exist(path):
    pytest.importorskip("transformers")
    named = set(re.findall(r"\bchestxray_vit(?:\.[A-Za-z_]\w*)+", text_of(path)))
    endings = (".py", ".md", ".json", ".html")  # of a file in the package's folder, not of a module
    assert {name for name in named if not name.endswith(endings) and not exists(name)} == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_notebooks_import_exists(path):
    pytest.importorskip("transformers")
    nodes = [node for tree in code_of(path) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    ours = [name for name in named if name.startswith("chestxray_vit.")]
    assert ours
    assert [name for name in ours if not exists(name)] == []


@NAMED
def test_files_exist(path):
    assert unknown_files(path) == set()


def test_what_does_not_exist_is_found(tmp_path):
    (tmp_path / "README.md").write_text(
        "See [it](nowhere.md), tests/conftest.py, `chestxray_vit/README.mdx` and https://huggingface.co/tests/x."
    )
    assert unknown_files(tmp_path / "README.md") == {"nowhere.md", "chestxray_vit/README.mdx"}
    assert exists("chestxray_vit.labels.NIH_CHESTXRAY14") and exists("chestxray_vit.data.readers")
    assert not exists("chestxray_vit.labels.FINDING") and not exists("chestxray_vit.nih")


@pytest.mark.parametrize(
    "path", [*PACKAGE.rglob("*.[phcj][yts]*"), *DOCUMENTS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_medical_claims(path):
    assert not re.search(r"\bdiagnos(is|es|tic)\b|\bvalidated\b", path.read_text(encoding="utf-8").lower())


def test_every_module_is_listed():
    """The README of the package has a row for each module, under the name of its folder."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (.*)\n\n((?:\|.*\n)+)", text, flags=re.M))
    listed = {name: set(re.findall(r"^\| `(\w+)` \|", rows, flags=re.M)) for name, rows in sections.items()}
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    for folder in folders:
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert listed.get(f"`{folder.relative_to(PACKAGE).as_posix()}/`", set()) == modules, folder
    root = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert listed["Commands"] | listed["Below all"] == root
