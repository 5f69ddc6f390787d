"""The anatomy of a synthetic chest radiograph: a thorax with lungs, ribs, heart and diaphragm.

Lengths are fractions of the image's side, so that one drawing serves 64 and 1024 pixels. As on every chest film, the
patient's right is on the image's left. Opacity is about 0.2 in aerated lung and 1 below the diaphragm.

Shapes: H rows, W columns of the image."""

from __future__ import annotations

import functools
from typing import Tuple

import numpy as np

Span = Tuple[float, float]


def edge(depth_HW: np.ndarray, width: float) -> np.ndarray:
    """Return 1 where depth is positive, 0 where negative, with a linear ramp of `width` between."""
    return np.clip(depth_HW * np.float32(1 / width) + np.float32(0.5), 0, 1)


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return x_1W and y_H1 of the pixels' centres."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


class Chest:
    """One chest on one film: its geometry, which some findings change, and the opacities that the others add."""

    def __init__(self, body: np.random.Generator, study: np.random.Generator, sex: str, view: str, size: int):
        self.size, self.sex, supine = size, sex, view == "AP"
        # The patient's anatomy, the same in all studies.
        tilt, shift = body.normal(0, 0.012), body.normal(0, 0.008)
        self.width = body.uniform(0.38, 0.42)
        self.top = body.uniform(0.07, 0.11)
        base, self.dome = body.uniform(0.74, 0.80), body.uniform(0.07, 0.10)
        self.heart = body.uniform(0.39, 0.45) * (1.12 if supine else 1.0)  # the cardiothoracic ratio
        self.rib_spacing, self.rib_phase = body.uniform(0.075, 0.092), body.uniform()
        self.fat = body.uniform(0, 1)
        self.vessel_phases = body.uniform(0, 6.28, 2)
        self.knob = body.uniform(0.05, 0.08)
        # The film: position, breath, exposure.
        zoom = study.uniform(0.97, 1.03)
        tilt += study.normal(0, 0.01)
        shift += study.normal(0, 0.008)
        base += study.normal(0, 0.01) - 0.03 * supine
        self.gain, self.gamma = study.uniform(0.9, 1.1), study.uniform(0.85, 1.2) - 0.1 * supine
        self.lung = study.uniform(0.17, 0.23) + 0.04 * supine
        self.stomach = study.uniform() < 0.5
        self.drift = study.normal(0, 0.025, 2)  # how far breath and posture move a sign
        self.waves = study.uniform(-1, 1, (3, 4))
        self.grain = study
        x_1W, y_H1 = _grid(size)
        x_1W, y_H1 = (x_1W - 0.5) / zoom, (y_H1 - 0.5) / zoom
        self.x = (x_1W * np.cos(tilt) - y_H1 * np.sin(tilt) - shift).astype(np.float32)
        self.y = (x_1W * np.sin(tilt) + y_H1 * np.cos(tilt) + 0.5).astype(np.float32)
        self.u = np.abs(self.x) / np.float32(self.width)  # 0 in the midline, 1 at the widest chest wall
        self.base = {-1: base, 1: base + 0.015}  # of each hemidiaphragm; the right one (-1) stands higher
        self.inside = self.within(self.top, base)
        self.in_lung = np.zeros_like(self.x)  # opacity seen only through aerated lung
        self.over = np.zeros_like(self.x)  # opacity seen everywhere
        self.vessels = np.ones_like(self.x)  # 0 where there are no markings

    def within(self, top: float, base: float) -> np.ndarray:
        """Return the level distance to the chest wall, positive inside, for a dome of the pleura at height `top`."""
        down_HW = np.clip((self.y - top) / np.float32(base - top), 0, 1)
        return np.float32(self.width) * ((1 - (1 - down_HW) ** 3) ** np.float32(0.6) - self.u)

    def side(self, side: int) -> np.ndarray:
        """Return the mask of one half: -1 the patient's right, +1 the left."""
        return self.x * side > 0

    def above(self) -> np.ndarray:
        """Return the height above the diaphragm, negative below; it falls towards the costophrenic angles."""
        left_HW = edge(self.x - 0.03, 0.12)
        base_HW = np.float32(self.base[1]) * left_HW + np.float32(self.base[-1]) * (1 - left_HW)
        return base_HW + np.float32(self.dome) * ((self.u - 0.4) / 0.6) ** 2 - self.y

    def blob(self, x: float, y: float, radius: float, tall: float = 1.0) -> np.ndarray:
        """Return a soft round shadow of height 1."""
        return np.exp(-((self.x - x) ** 2 + ((self.y - y) / tall) ** 2) * np.float32(1 / radius**2))

    def line(self, distance_HW: np.ndarray, width: float) -> np.ndarray:
        """Return a bright line where the distance is 0, never thinner than a pixel."""
        width = max(width, 0.8 / self.size)
        return np.clip(1 - np.abs(distance_HW) * np.float32(1 / width), 0, 1)

    def locate(self, rng: np.random.Generator, side: int, across: Span, down: Span) -> Tuple[float, float]:
        """Return a random x, y in one lung: `across` from midline to wall, `down` from apex to diaphragm."""
        height = self.base[side] - self.top
        x, y = side * self.width * rng.uniform(*across), self.top + height * rng.uniform(*down)
        return x + self.drift[0], y + self.drift[1]

    def expose(self) -> np.ndarray:
        """Return the radiograph of this chest: 8-bit grey of shape (H, W)."""
        middle_HW, chest_HW, above_HW = self._middle(), edge(self.inside, 0.02), self.above()
        body_HW, film_HW = self._soft_tissue(middle_HW, above_HW)
        lung_HW = chest_HW * edge(above_HW, 0.015) * (1 - middle_HW)
        film_HW += lung_HW * (self.lung + self.vessels * self._markings() + self.in_lung - film_HW)
        film_HW += 0.075 * self._ribs() * chest_HW * edge(above_HW + 0.03, 0.1)
        y, u, base = self.y, self.u, self.base[1]
        collar_HW = self.line(y - self.top - 0.10 + 0.11 * u, 0.02) * edge(u - 0.15, 0.1) * edge(1.05 - u, 0.15)
        film_HW += 0.12 * collar_HW
        if self.sex == "F":
            breast_HW = np.hypot(np.abs(self.x) - 0.55 * self.width, y - base + 0.09) - 0.17
            film_HW += body_HW * 0.07 * edge(-breast_HW, 0.03) * edge(y - base + 0.10, 0.12)
        film_HW += self.over
        for fx, fy, start, height in self.waves.astype(np.float32):  # folds, clothes, scatter
            film_HW += 0.02 * height * np.sin(12 * fx * self.x + 12 * fy * y + 3.14 * start)
        return self._develop(film_HW)

    def _middle(self) -> np.ndarray:
        """Return the opacity of heart, spine and aortic knob, from 0 to 1."""
        x, y = self.x, self.y
        half, base = self.heart * self.width, self.base[1]
        height = 0.15 + 0.25 * half
        lean_HW = x - 0.3 * half - 0.3 * (y - base + 0.6 * height)
        heart_HW = edge(1 - (lean_HW / half) ** 2 - ((y - base + 0.65 * height) / height) ** 2, 0.25)
        column_HW = edge(0.06 + 0.04 * np.clip(3 * y - 0.6, 0, 1) - np.abs(x - 0.01), 0.03)
        knob_HW = self.blob(0.035, self.top + 0.2, self.knob)
        return np.maximum(np.maximum(heart_HW, column_HW), np.minimum(1, 1.3 * knob_HW))

    def _soft_tissue(self, middle_HW: np.ndarray, above_HW: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the body's mask, and its opacity with spine, trachea and stomach, before the lungs are put in."""
        x, y, base = self.x, self.y, self.base[1]
        shoulders_HW = np.sqrt(np.clip((y - 0.01 + 0.05 * self.fat) * 8, 0, 1))
        body_HW = edge(0.12 + (self.width - 0.05 + 0.05 * self.fat) * shoulders_HW - np.abs(x), 0.03)
        film_HW = body_HW * (0.5 + 0.08 * self.fat + 0.32 * edge(-above_HW, 0.03) * (y > 0.4) + 0.16 * middle_HW)
        spine_HW = self.line(x, 0.05) * (0.8 + 0.2 * np.sin(y * np.float32(6.28 / 0.05)))
        film_HW += 0.14 * spine_HW - 0.16 * self.line(x + 0.005, 0.03) * edge(self.top + 0.2 - y, 0.1)
        if self.stomach:
            film_HW -= 0.16 * self.blob(0.5 * self.width, base + 0.1, 0.06, 0.6)
        return body_HW, film_HW

    def _markings(self) -> np.ndarray:
        """Return the opacity of hila and vessels in the lungs."""
        x, y, base = self.x, self.y, self.base[1]
        hilum_x, hilum_y = 0.27 * self.width, self.top + 0.45 * (base - self.top)
        out_HW, down_HW = np.abs(x) - np.float32(hilum_x), y - np.float32(hilum_y)
        far_HW, angle_HW = np.hypot(out_HW, down_HW), np.arctan2(down_HW, out_HW)
        phase_HW = np.where(x < 0, self.vessel_phases[0], self.vessel_phases[1]).astype(np.float32)
        wind_HW = 8 * angle_HW + phase_HW + 2.5 * np.sin(30 * far_HW + phase_HW)
        branches_HW = np.clip(np.sin(wind_HW), 0, 1) ** 2 * np.exp(-6 * far_HW) * np.clip(20 * far_HW, 0, 1)
        return 0.13 * branches_HW + 0.16 * np.exp(-((far_HW / 0.05) ** 2))

    def _ribs(self) -> np.ndarray:
        """Return the opacity of the ribs, from 0 to 1."""
        arch_HW = (self.y + 0.10 * (self.u - 0.35) ** 2 - 0.10 * self.u) * np.float32(6.28 / self.rib_spacing)
        return np.clip(np.sin(arch_HW + np.float32(6.28 * self.rib_phase)) * 1.5 - 0.3, 0, 1)

    def _develop(self, film_HW: np.ndarray) -> np.ndarray:
        """Return opacity as 8-bit grey: the film's curve, a side marker (an L on the left), and quantum noise."""
        x, y = self.x, self.y
        film_HW = np.tanh(1.15 * self.gain * np.clip(film_HW, 0.01, None)) ** np.float32(self.gamma)
        stroke_HW = np.maximum(edge(0.006 - np.abs(x - 0.43), 0.01), edge(0.005 - np.abs(y - 0.065), 0.01))
        film_HW += 0.5 * stroke_HW * edge(0.013 - np.abs(x - 0.436), 0.01) * edge(0.02 - np.abs(y - 0.05), 0.01)
        film_HW += np.float32(0.016) * self.grain.standard_normal(x.shape, dtype=np.float32)
        return np.rint(np.clip(film_HW, 0, 1) * 255).astype(np.uint8)
