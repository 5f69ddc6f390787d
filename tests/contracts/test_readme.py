"""The README's first screen: how to see the demo, and how to run the tests."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_readme_first_screen():
    lines = README.read_text(encoding="utf-8").splitlines()
    install, test = "pip install -e . && python -m chestxray_vit.demo", "pip install -e '.[test]' && pytest"
    places = [next(number for number, line in enumerate(lines) if command in line) for command in (install, test)]
    assert places == sorted(places)
    assert places[-1] < 45
