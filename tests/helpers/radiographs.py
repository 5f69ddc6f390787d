"""Measures of synthetic radiographs of `SIDE` pixels a side."""

from __future__ import annotations

import numpy as np

SIDE = 128  # pixels of the images that the signs are measured on
PATIENTS = range(1, 25)


def box(image_HW, side, across, down):
    """Cut a box: `across` from the midline outwards, `down` from the top; side -1 is the patient's right."""
    left, right = sorted(0.5 + side * x for x in across)
    top, bottom, left, right = (round(SIDE * edge) for edge in (*down, left, right))
    return image_HW[top:bottom, left:right]


def both(image_HW, across, down, measure=np.mean):
    return [measure(box(image_HW, side, across, down)) for side in (-1, 1)]


def heart_width(image_HW):
    """Measure the heart against the thorax: the bright run around the midline, two thirds down."""
    row_W = image_HW[round(0.56 * SIDE) : round(0.61 * SIDE)].mean(0)
    dark_W = np.flatnonzero(np.convolve(row_W, np.ones(3) / 3, "same") < 120)
    left, right = dark_W[dark_W < SIDE // 2].max(initial=0), dark_W[dark_W > SIDE // 2].min(initial=SIDE)
    return (right - left) / (0.8 * SIDE)
