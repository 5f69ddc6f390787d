"""The page's charts, as inline SVG: they open from an e-mail, print sharply, and their words stay text.

They are drawn by matplotlib, which the package needs anyway and which needs no script and no network. Series differ by
marker and line, not by colour alone, and each chart has its own text alternative."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple

from chestxray_vit.reporting.render.tables import label_of

INK, FAINT, ACCENT = "#1a1a1a", "#8a8a8a", "#1f5f99"
STYLE: Dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words
    "text.parse_math": False,  # a dollar sign in a label is no formula
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
MARKERS = ("^", "s", "D")
LONGEST_LABEL = 40  # characters at the left of a forest


def forest(rows: Sequence[Mapping[str, Any]], published: Mapping[str, Mapping[str, Any]], name: str, title: str) -> str:
    """Draw AUCs with their intervals, one below the other, with published ones beside them.

    Args:
        rows: `finding` or `label` (the words at the left), `auc`, `low`, `high`, None where undefined, from the top.
        published: by model, `split` and `auc` by finding.
        name: of the chart, unique in the page.
        title: the text alternative's first words.
    """
    with _styled(name):
        figure, axes = _figure(5.2, 0.9 + 0.25 * len(rows))
        figure.set_layout_engine("constrained")
        defined = [(height, row) for height, row in enumerate(reversed(rows)) if row["auc"] is not None]
        for height, row in defined:
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [height, height], "-", color=INK, linewidth=1.4)
            axes.plot(row["auc"], height, "o", color=INK, markersize=5)
        _draw_published(axes, defined, published)
        axes.axvline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [_fitting(_label(row)) for row in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel("AUC, 95 % interval")
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        if published:
            figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
        words = "; ".join(f"{_label(row)} {_in_words(row)}" for row in rows)
        return _svg(figure, name, title, f"{title}: {words}.")


def _draw_published(
    axes: Any, defined: Sequence[Tuple[int, Mapping[str, Any]]], published: Mapping[str, Mapping[str, Any]]
) -> None:
    style = {"color": ACCENT, "markerfacecolor": "none", "markersize": 5, "linestyle": "none"}
    for marker, (model, values) in zip(MARKERS, published.items()):
        aucs = values["auc"]
        points = [(aucs[row["finding"]], height) for height, row in defined if row.get("finding") in aucs]
        axes.plot(
            [auc for auc, _ in points],
            [height for _, height in points],
            marker,
            label=f"{model} ({values['split']})",
            **style,
        )


class Curves:
    """Draws the ROC and the precision-recall curve of one finding after another on the same axes, in half the time."""

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

    def draw(
        self, curve: Mapping[str, Any], row: Mapping[str, Any], point: Optional[Mapping[str, Any]], name: str
    ) -> str:
        """Return the SVG of a finding, with its chosen point on both curves.

        Args:
            curve: of the finding, among `curves`.
            row: of the finding, among `findings`.
            point: its operating point, or None.
            name: of the chart, unique in the page.
        """
        positives, negatives = row["num_positives"], row["num_images"] - row["num_positives"]
        pairs = list(zip(curve["true_positives"], curve["false_positives"]))
        rates = [(0.0, 0.0), *((fp / max(1, negatives), tp / max(1, positives)) for tp, fp in pairs)]
        shares = [(tp / max(1, positives), tp / (tp + fp)) for tp, fp in pairs if tp + fp]
        for line, points in zip(self.lines, (rates, shares)):
            line.set_data([x for x, _ in points], [y for _, y in points])
        self.prevalence.set_ydata([row["prevalence"] or 0.0] * 2)
        for marker, found in zip(self.points, _positions(point)):
            marker.set_data(*([value] for value in found) if found else ((), ()))
        title = f"{_label(row)}: ROC and precision-recall curve"
        with _styled(name):
            return _svg(self.figure, name, title, f"{title}, of {positives:,} positives and {negatives:,} negatives.")


class Reliability:
    """Draws how often a finding is present among images of similar scores, one finding after another."""

    def __init__(self) -> None:
        with _styled("reliability"):
            self.figure, self.axes = _figure(2.5, 2.4)
            self.figure.subplots_adjust(left=0.18, right=0.97, bottom=0.2, top=0.97)
            self.axes.plot([0, 1], [0, 1], ":", color=FAINT, linewidth=0.8)
            self.line = self.axes.plot([], [], "-", color=ACCENT, linewidth=1)[0]
            self.circles = self.axes.scatter([], [], facecolors="white", edgecolors=INK, linewidths=1, zorder=3)
            _unit(self.axes, "mean score", "share of positives")

    def draw(self, bins: Sequence[Mapping[str, Any]], label: str, name: str) -> str:
        """Return the SVG of a finding.

        Args:
            bins: `mean_score`, `num_images`, `num_positives`, of `calibration.reliability`.
            label: the finding's name for readers.
            name: of the chart, unique in the page.
        """
        filled = [row for row in bins if row["num_images"]]
        points = [(row["mean_score"], row["num_positives"] / row["num_images"]) for row in filled]
        most = max((row["num_images"] for row in filled), default=1)
        self.line.set_data([x for x, _ in points], [y for _, y in points])
        self.circles.set_offsets(points or [(-1, -1)])
        self.circles.set_sizes([10 + 60 * (row["num_images"] / most) ** 0.5 for row in filled])
        words = "; ".join(
            f"{row['num_positives']:,} of {row['num_images']:,} at {row['mean_score']:.2f}" for row in filled
        )
        with _styled(name):
            description = f"{label}, positives by mean score: {words}."
            return _svg(self.figure, name, f"{label}: reliability", description)


def _positions(point: Optional[Mapping[str, Any]]) -> List[Optional[Tuple[float, float]]]:
    """Return where an operating point lies on the ROC and the precision-recall curve; None where it is undefined."""
    if point is None:
        return [None, None]
    sensitivity, specificity, ppv = (point[rate]["value"] for rate in ("sensitivity", "specificity", "ppv"))
    roc = None if None in (sensitivity, specificity) else (1 - specificity, sensitivity)
    return [roc, None if None in (sensitivity, ppv) else (sensitivity, ppv)]


def _styled(name: str) -> ContextManager[None]:
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


def _label(row: Mapping[str, Any]) -> str:
    return row["label"] if "label" in row else label_of(row["finding"])


def _fitting(label: str) -> str:
    """Return a label as short as the chart needs it."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _in_words(row: Mapping[str, Any]) -> str:
    if row["auc"] is None:
        return "undefined"
    interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['auc']:.3f}{interval}"


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    """Return a figure as an inline SVG element with its text alternative."""
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # words stay text: the browser has the font
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and each figure has the same ones
    words = [f'<title id="{name}-title">{html.escape(title)}</title>', f'<desc id="{name}-desc">']
    words += [html.escape(description), "</desc>"]
    head, _, rest = svg[len("<svg") :].partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)  # the page says how wide
    return f'<svg role="img" aria-labelledby="{name}-title {name}-desc"{head}>{"".join(words)}{rest}'
