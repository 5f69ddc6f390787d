"""A run's loss.png: training loss, validation loss and learning rate by update, from the Trainer's log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_loss_curve(log_history: Sequence[Mapping[str, Any]], path: Path) -> Figure:
    """Write the loss curve as a PNG.

    Args:
        log_history: of the Trainer's state: entries with `step` and either `loss` and `learning_rate`, or `eval_loss`.
        path: of the PNG.

    Returns:
        The matplotlib figure, for tests.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [entry for entry in log_history if "loss" in entry]
    _draw_losses(axes, train, [entry for entry in log_history if "eval_loss" in entry])
    rates = axes.twinx()
    steps = [entry["step"] for entry in train]
    rates.plot(steps, [entry["learning_rate"] for entry in train], ":", label="learning rate", color="C2")
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lines = [line for line in (*axes.get_lines(), *rates.get_lines()) if len(line.get_xdata())]  # type: ignore[arg-type]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    figure.savefig(path, dpi=120)
    return figure


def _draw_losses(axes: Axes, train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> None:
    steps, losses = [entry["step"] for entry in train], [entry["loss"] for entry in train]
    axes.plot(steps, losses, label="training loss", color="C0")
    steps, losses = [entry["step"] for entry in validation], [entry["eval_loss"] for entry in validation]
    axes.plot(steps, losses, "o--", label="validation loss", color="C1")
    axes.set_xlabel("update")
    axes.set_ylabel("binary cross-entropy")
    axes.grid(alpha=0.3)
