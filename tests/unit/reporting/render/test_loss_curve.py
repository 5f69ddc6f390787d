"""The loss curve: what is drawn is what was logged."""

from __future__ import annotations

from PIL import Image

from chestxray_vit.reporting.render.loss_curve import draw_loss_curve

LOG = [
    {"step": 2, "loss": 0.7, "learning_rate": 1e-3},
    {"step": 3, "eval_loss": 0.65},
    {"step": 4, "loss": 0.6, "learning_rate": 5e-4},
    {"step": 4, "train_runtime": 1.0},
]


def lines(figure):
    found = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            found[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_losses_and_learning_rate_are_drawn_by_update(tmp_path):
    figure = draw_loss_curve(LOG, tmp_path / "loss.png")
    assert lines(figure) == {
        "training loss": ([2, 4], [0.7, 0.6]),
        "validation loss": ([3], [0.65]),
        "learning rate": ([2, 4], [1e-3, 5e-4]),
    }
    assert Image.open(tmp_path / "loss.png").size == (840, 480)


def test_the_legend_names_only_what_was_logged(tmp_path):
    figure = draw_loss_curve([entry for entry in LOG if "eval_loss" not in entry], tmp_path / "loss.png")
    legend = next(axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["training loss", "learning rate"]
