"""The page's charts: well-formed SVG that says in words what it shows, with labels as text."""

from __future__ import annotations

import re
import warnings
import xml.dom.minidom

import pytest

from chestxray_vit.reporting.render.charts import Curves, Reliability, forest

ROWS = [
    {"finding": "Pleural_Thickening", "auc": 0.75, "low": 0.6, "high": 0.9},
    {"finding": "Hernia", "auc": 0.5, "low": None, "high": None},
    {"finding": "Mass", "auc": None, "low": None, "high": None},
    {"label": "macro over 2", "auc": 0.625, "low": 0.6, "high": 0.65},
]
PUBLISHED = {"Wang 2017": {"split": "its own split", "auc": {"Hernia": 0.767, "Pleural_Thickening": 0.708}}}
RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 1, "total": 2}


def words_of(svg):
    document = xml.dom.minidom.parseString(svg)
    return [node.firstChild.data for tag in ("title", "desc", "text") for node in document.getElementsByTagName(tag)]


def test_forest_says_in_words_what_it_shows():
    words = words_of(forest(ROWS, PUBLISHED, "name", "AUC of each finding"))
    assert words[:2] == [
        "AUC of each finding",
        "AUC of each finding: Pleural Thickening 0.750 (0.600 to 0.900); Hernia 0.500; Mass undefined; "
        "macro over 2 0.625 (0.600 to 0.650).",
    ]
    assert "Wang 2017 (its own split)" in words
    labels = [word for word in words[2:] if word in ("Pleural Thickening", "Hernia", "Mass", "macro over 2")]
    assert labels == ["macro over 2", "Mass", "Hernia", "Pleural Thickening"]  # from the bottom up


def markers_of(rows, monkeypatch):
    """Return where published values are drawn: the AUC by the label of its height."""
    from matplotlib.axes import Axes

    shown = {}
    plot = Axes.plot

    def spy(axes, x, y, *args, **kwargs):
        if "label" in kwargs:
            shown.update(zip(y, x))
        return plot(axes, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    forest(rows, PUBLISHED, "name", "title")
    return {rows[::-1][height]["finding"]: auc for height, auc in shown.items()}


@pytest.mark.parametrize("rows", [ROWS, ROWS[1::-1], ROWS[:2]])
def test_published_values_stand_beside_their_own_finding(rows, monkeypatch):
    assert markers_of(rows, monkeypatch) == PUBLISHED["Wang 2017"]["auc"]


@pytest.mark.parametrize("label", ["$x$", "cost $5", r"$\frac{1}$", "<b>&", "肺", "x" * 200])
def test_labels_are_text_and_no_formula(label):
    row = {
        "finding": label,
        "auc": 0.5,
        "low": 0.4,
        "high": 0.6,
        "num_positives": 1,
        "num_images": 2,
        "prevalence": 0.5,
    }
    bins = [{"mean_score": 0.1, "num_images": 2, "num_positives": 1}, {"num_images": 0, "num_positives": 0}]
    curve = {"true_positives": [0, 1], "false_positives": [1, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svgs = [
            forest([row], {}, "forest", "AUC"),
            Curves().draw(curve, row, None, "curve"),
            Reliability().draw(bins, label, "reliability"),
        ]
    for svg in svgs:
        assert any(label in words for words in words_of(svg)[:2])
    shortened = label if len(label) <= 40 else f"{'x' * 39}…"
    assert shortened in words_of(svgs[0])


def test_curves_mark_the_operating_point_where_it_is_defined():
    row = {"finding": "Mass", "num_positives": 2, "num_images": 4, "prevalence": 0.5}
    curve = {"true_positives": [0, 1, 2], "false_positives": [1, 1, 2]}
    curves = Curves()
    point = {"sensitivity": {**RATE, "value": 0.5}, "specificity": {**RATE, "value": 0.75}, "ppv": {"value": None}}
    curves.draw(curve, row, point, "a")
    roc, precision = curves.points
    assert (list(roc.get_xdata()), list(roc.get_ydata())) == ([0.25], [0.5])
    assert list(precision.get_xdata()) == []  # no image is called positive
    assert list(curves.lines[0].get_xdata()) == [0.0, 0.5, 0.5, 1.0]
    assert list(curves.lines[1].get_ydata()) == [0.0, 0.5, 0.5]
    curves.draw(curve, row, None, "b")
    assert list(roc.get_xdata()) == []


def test_the_same_chart_has_the_same_bytes_and_no_date():
    first, second = (forest(ROWS, PUBLISHED, "name", "title") for _ in range(2))
    assert first == second
    assert not re.search(r"metadata|20\d\d-\d\d-\d\d", first)
