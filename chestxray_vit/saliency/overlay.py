"""Draw a heat map over an X-ray: transparent where it is lowest, so that the X-ray stays readable."""

from __future__ import annotations

import io
from typing import Any, Tuple

import numpy as np
from PIL import Image

from chestxray_vit.saliency.localisation import CAUTION, upsample

TITLES = {"gradient": "gradient-weighted attention", "rollout": "attention rollout, of no single finding"}
LONGEST = 768  # pixels of the X-ray in an overlay


def overlay(image: Image.Image, map_hw: np.ndarray, finding: str, score: float, method: str) -> bytes:
    """Draw a heat map over an X-ray, and return the PNG.

    Args:
        image: grey; shown with its own aspect.
        map_hw: of its patches; where it is lowest the X-ray is not covered.
        finding, score, method: for the title.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    width, height = (max(1, round(side * LONGEST / max(image.size))) for side in image.size)
    share_HW = upsample(map_hw / (map_hw.max() or 1.0), height, width)
    lowest = share_HW.min() if share_HW.min() < 1 else 0.0
    colours = colormaps["viridis"](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0, 0.6, 256)
    figure, axes, bar = _laid_out(width, height)
    axes.imshow(image.resize((width, height), Image.Resampling.BILINEAR), cmap="gray", vmin=0, vmax=255)
    heat = axes.imshow(share_HW, cmap=ListedColormap(colours), vmin=lowest, vmax=1)
    figure.colorbar(heat, cax=bar, label="share of the map's maximum")
    title, full_height = f"{finding}: score {score:.3f}\n{TITLES[method]}", figure.bbox.height
    figure.text(0.02, 1 - 10 / full_height, title, va="top", fontsize=13)
    figure.text(0.02, 8 / full_height, CAUTION, fontsize=8, color="0.4")
    result = io.BytesIO()
    figure.savefig(result, format="png")
    return result.getvalue()


def _laid_out(width: int, height: int) -> Tuple[Any, Any, Any]:
    """Return a figure, axes of width x height pixels for an X-ray, and beside them those of a colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    full = np.array([max(width, 400) + 130, max(height, 300) + 100])
    left, bottom = (full - (120, 30) - (width, height)) / 2
    figure = Figure(figsize=(full[0] / 100, full[1] / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((np.array([left, bottom, width, height]) / (*full, *full)).tolist())
    axes.set_axis_off()
    bar = np.array([left + width + 14, bottom, 18, height]) / (*full, *full)
    return figure, axes, figure.add_axes(bar.tolist(), facecolor="0.4")  # grey: its colours are translucent
