"""What the tests of hostile inputs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder that all examples of a module write into."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session", autouse=True)
def figures_drawn_once():
    """Keep each figure that a report draws: most hostile tables differ in their texts, not in their numbers."""
    from chestxray_vit.reporting.render import charts

    def remembering(draw, of_object):
        kept = {}

        def remembered(*args, **kwargs):
            key = repr((args[of_object:], kwargs))
            if key not in kept:
                kept[key] = draw(*args, **kwargs)
            return kept[key]

        return remembered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts.Curves, "draw", remembering(charts.Curves.draw, 1))
        patch.setattr(charts.Reliability, "draw", remembering(charts.Reliability.draw, 1))
        patch.setattr(charts, "forest", remembering(charts.forest, 0))
        yield
