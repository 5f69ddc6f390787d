"""The page's charts, as SVG to put inline: they open from a mail, print sharply, and their words stay text.

Drawn by matplotlib, which the package needs anyhow and which asks for no script and no network. Charts are told apart
by marker and line, not by colour alone, and each has its own text alternative."""

from __future__ import annotations

import html
import io
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

INK, FAINT, ACCENT = "#1a1a1a", "#8a8a8a", "#1f5f99"
STYLE = {
    "svg.fonttype": "none",  # words stay words
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
MARKERS = ("^", "s", "D")


def forest(
    rows: Sequence[Dict[str, Any]],
    published: Dict[str, Dict[str, Any]],
    name: str,
    title: str,
    label: str = "AUC, 95 % interval",
) -> str:
    """Draw AUCs with their intervals, one below the other, published ones beside.

    Args:
        rows: `finding` (what stands at the left), `auc`, `low`, `high`, None where undefined, from the top down.
        published: by model, `auc` by finding.
        name: of the chart, unique in the page.
        title: the text alternative's first words.
        label: of the axis.
    """
    with _styled(name):
        figure, axes = _figure(6.4, 0.9 + 0.27 * len(rows))
        figure.set_layout_engine("constrained")
        shown = [(place, row) for place, row in enumerate(reversed(rows)) if row["auc"] is not None]
        for place, row in shown:
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], "-", color=INK, linewidth=1.4)
            axes.plot(row["auc"], place, "o", color=INK, markersize=5)
        for marker, (model, values) in zip(MARKERS, published.items()):
            points = [(values["auc"][row["finding"]], place) for place, row in shown if row["finding"] in values["auc"]]
            style = {"color": ACCENT, "markerfacecolor": "none", "markersize": 5, "linestyle": "none"}
            axes.plot(*zip(*points), marker, label=f"{model} ({values['split']})", **style)
        axes.axvline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [row["finding"] for row in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(label)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        if published:
            figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
        words = "; ".join(f"{row['finding']} {_in_words(row)}" for row in rows)
        return _svg(figure, name, title, f"{title}: {words}.")


class Curves:
    """Draws the ROC and the precision-recall curve of one finding after the other, on the same axes: half the time."""

    def __init__(self) -> None:
        with _styled("curves"):
            self.figure, (roc, precision) = _figure(4.6, 2.5, columns=2)
            self.figure.subplots_adjust(left=0.1, right=0.98, bottom=0.2, top=0.97, wspace=0.3)
            roc.plot([0, 1], [0, 1], ":", color=FAINT, linewidth=0.8)
            self.prevalence = precision.axhline(0, linestyle=":", color=FAINT, linewidth=0.8)
            self.lines = [axes.plot([], [], "-", color=ACCENT, linewidth=1.3)[0] for axes in (roc, precision)]
            self.points = [axes.plot([], [], "o", color=INK, markersize=4.5)[0] for axes in (roc, precision)]
            _unit(roc, "1 - specificity", "sensitivity")
            _unit(precision, "sensitivity (recall)", "PPV (precision)")

    def draw(self, curve: Dict[str, Any], row: Dict[str, Any], point: Optional[Dict[str, Any]], name: str) -> str:
        """Return the SVG of a finding, with its chosen point on both curves.

        Args:
            curve: of `curves.curve`.
            row: of the finding, among `findings`.
            point: its operating point, or None.
            name: of the chart, unique in the page.
        """
        positives, negatives = row["num_positives"], row["num_images"] - row["num_positives"]
        pairs = list(zip(curve["true_positives"], curve["false_positives"]))
        rates = [(0.0, 0.0), *((fp / max(1, negatives), tp / max(1, positives)) for tp, fp in pairs)]
        shares = [(tp / max(1, positives), tp / (tp + fp)) for tp, fp in pairs if tp + fp]
        for line, places in zip(self.lines, (rates, shares)):
            line.set_data(*(zip(*places) if places else ((), ())))
        self.prevalence.set_ydata([row["prevalence"] or 0.0] * 2)
        for marker, place in zip(self.points, _places(point)):
            marker.set_data(*([value] for value in place) if place else ((), ()))
        title = f"{row['finding']}: ROC and precision-recall curve"
        with _styled(name):
            return _svg(self.figure, name, title, f"{title}, of {positives:,} positives and {negatives:,} negatives.")


class Reliability:
    """Draws how often a finding is there among images of similar scores, one finding after the other."""

    def __init__(self) -> None:
        with _styled("reliability"):
            self.figure, self.axes = _figure(2.5, 2.4)
            self.figure.subplots_adjust(left=0.18, right=0.97, bottom=0.2, top=0.97)
            self.axes.plot([0, 1], [0, 1], ":", color=FAINT, linewidth=0.8)
            self.line = self.axes.plot([], [], "-", color=ACCENT, linewidth=1)[0]
            self.circles = self.axes.scatter([], [], facecolors="white", edgecolors=INK, linewidths=1, zorder=3)
            _unit(self.axes, "mean score", "share of positives")

    def draw(self, bins: Sequence[Dict[str, Any]], finding: str, name: str) -> str:
        """Return the SVG of a finding.

        Args:
            bins: `mean_score`, `num_images`, `num_positives`, of `calibration.reliability`.
            finding: its name.
            name: of the chart, unique in the page.
        """
        filled = [row for row in bins if row["num_images"]]
        places = [(row["mean_score"], row["num_positives"] / row["num_images"]) for row in filled]
        most = max((row["num_images"] for row in filled), default=1)
        self.line.set_data(*(zip(*places) if places else ((), ())))
        self.circles.set_offsets(places or [(-1, -1)])
        self.circles.set_sizes([10 + 60 * (row["num_images"] / most) ** 0.5 for row in filled])
        words = "; ".join(
            f"{row['num_positives']:,} of {row['num_images']:,} at {row['mean_score']:.2f}" for row in filled
        )
        with _styled(name):
            description = f"{finding}, positives by mean score: {words}."
            return _svg(self.figure, name, f"{finding}: reliability", description)


def _places(point: Optional[Dict[str, Any]]) -> List[Optional[Tuple[float, float]]]:
    """Return where an operating point lies on the ROC and the precision-recall curve; None where it is undefined."""
    if point is None:
        return [None, None]
    sensitivity, specificity, ppv = (point[rate]["value"] for rate in ("sensitivity", "specificity", "ppv"))
    roc = None if None in (sensitivity, specificity) else (1 - specificity, sensitivity)
    return [roc, None if None in (sensitivity, ppv) else (sensitivity, ppv)]


def _styled(name: str):
    import matplotlib

    return matplotlib.rc_context({**STYLE, "svg.hashsalt": name})  # ids that are the same in every run


def _figure(width: float, height: float, columns: int = 1) -> Tuple[Any, Any]:
    """Return a figure of inches and its axes; not by pyplot, which keeps figures and may want a display."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.subplots(1, columns)


def _unit(axes: Any, across: str, up: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_aspect("equal")
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _in_words(row: Dict[str, Any]) -> str:
    if row["auc"] is None:
        return "undefined"
    interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['auc']:.3f}{interval}"


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    """Return a figure as an inline SVG element with its text alternative."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and each figure has the same ones
    words = [f'<title id="{name}-title">{html.escape(title)}</title>', f'<desc id="{name}-desc">']
    words += [html.escape(description), "</desc>"]
    head, rest = re.match(r"<svg([^>]*)>(.*)", svg, flags=re.DOTALL).groups()
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)  # the page says how wide
    return f'<svg role="img" aria-labelledby="{name}-title {name}-desc"{head}>{"".join(words)}{rest}'
