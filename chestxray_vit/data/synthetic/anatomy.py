"""Draw a chest film: a thorax with lungs, ribs, heart and domes, and for each of the 14 findings its own sign.

Lengths are fractions of the image's side, so that one drawing serves 64 and 1024 pixels. As on every chest film, the
patient's right is on the image's left. Opacity is about 0.2 in aerated lung and 1 below the diaphragm.

Shapes: H rows, W columns of the image."""

from __future__ import annotations

import functools
from typing import Callable, Dict, Tuple

import numpy as np

Span = Tuple[float, float]


def _edge(depth_HW: np.ndarray, width: float) -> np.ndarray:
    """Return 1 where depth is positive, 0 where negative, with a linear ramp of `width` between."""
    return np.clip(depth_HW * np.float32(1 / width) + np.float32(0.5), 0, 1)


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return x_1W and y_H1 of the pixels' centres."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


class Chest:
    """One chest on one film: its geometry, which some findings change, and the canvases the others draw on."""

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
        left_HW = _edge(self.x - 0.03, 0.12)
        base_HW = np.float32(self.base[1]) * left_HW + np.float32(self.base[-1]) * (1 - left_HW)
        return base_HW + np.float32(self.dome) * ((self.u - 0.4) / 0.6) ** 2 - self.y

    def blob(self, x: float, y: float, radius: float, tall: float = 1.0) -> np.ndarray:
        """Return a soft round shadow of height 1."""
        return np.exp(-((self.x - x) ** 2 + ((self.y - y) / tall) ** 2) * np.float32(1 / radius**2))

    def line(self, distance_HW: np.ndarray, width: float) -> np.ndarray:
        """Return a bright line where the distance is 0, never thinner than a pixel."""
        width = max(width, 0.8 / self.size)
        return np.clip(1 - np.abs(distance_HW) * np.float32(1 / width), 0, 1)

    def place(self, rng: np.random.Generator, side: int, across: Span, down: Span) -> Tuple[float, float]:
        """Return a random x, y in one lung: `across` from midline to wall, `down` from apex to diaphragm."""
        height = self.base[side] - self.top
        x, y = side * self.width * rng.uniform(*across), self.top + height * rng.uniform(*down)
        return x + self.drift[0], y + self.drift[1]

    def expose(self) -> np.ndarray:
        """Put anatomy and signs on the film; return 8-bit grey of shape (H, W)."""
        x, y, u, above = self.x, self.y, self.u, self.above()
        # Heart, aorta, spine and the soft tissue around the chest.
        half, base = self.heart * self.width, self.base[1]
        height = 0.15 + 0.25 * half
        lean_HW = x - 0.3 * half - 0.3 * (y - base + 0.6 * height)
        heart_HW = _edge(1 - (lean_HW / half) ** 2 - ((y - base + 0.65 * height) / height) ** 2, 0.25)
        column_HW = _edge(0.06 + 0.04 * np.clip(3 * y - 0.6, 0, 1) - np.abs(x - 0.01), 0.03)
        knob_HW = self.blob(0.035, self.top + 0.2, self.knob)
        middle_HW = np.maximum(np.maximum(heart_HW, column_HW), np.minimum(1, 1.3 * knob_HW))
        chest_HW = _edge(self.inside, 0.02)
        lung_HW = chest_HW * _edge(above, 0.015) * (1 - middle_HW)
        shoulders_HW = np.sqrt(np.clip((y - 0.01 + 0.05 * self.fat) * 8, 0, 1))
        body_HW = _edge(0.12 + (self.width - 0.05 + 0.05 * self.fat) * shoulders_HW - np.abs(x), 0.03)
        film_HW = body_HW * (0.5 + 0.08 * self.fat + 0.32 * _edge(-above, 0.03) * (y > 0.4) + 0.16 * middle_HW)
        spine_HW = self.line(x, 0.05) * (0.8 + 0.2 * np.sin(y * np.float32(6.28 / 0.05)))
        film_HW += 0.14 * spine_HW - 0.16 * self.line(x + 0.005, 0.03) * _edge(self.top + 0.2 - y, 0.1)
        if self.stomach:
            film_HW -= 0.16 * self.blob(0.5 * self.width, base + 0.1, 0.06, 0.6)
        # Lungs with hila and vessels, then the ribs over all of the chest.
        hilum_x, hilum_y = 0.27 * self.width, self.top + 0.45 * (base - self.top)
        out_HW, down_HW = np.abs(x) - np.float32(hilum_x), y - np.float32(hilum_y)
        far_HW, angle_HW = np.hypot(out_HW, down_HW), np.arctan2(down_HW, out_HW)
        phase_HW = np.where(x < 0, self.vessel_phases[0], self.vessel_phases[1]).astype(np.float32)
        wind_HW = 8 * angle_HW + phase_HW + 2.5 * np.sin(30 * far_HW + phase_HW)
        branches_HW = np.clip(np.sin(wind_HW), 0, 1) ** 2 * np.exp(-6 * far_HW) * np.clip(20 * far_HW, 0, 1)
        marks_HW = 0.13 * branches_HW + 0.16 * np.exp(-((far_HW / 0.05) ** 2))
        film_HW += lung_HW * (self.lung + self.vessels * marks_HW + self.in_lung - film_HW)
        arch_HW = (y + 0.10 * (u - 0.35) ** 2 - 0.10 * u) * np.float32(6.28 / self.rib_spacing)
        ribs_HW = np.clip(np.sin(arch_HW + np.float32(6.28 * self.rib_phase)) * 1.5 - 0.3, 0, 1)
        film_HW += 0.075 * ribs_HW * chest_HW * _edge(above + 0.03, 0.1)
        collar_HW = self.line(y - self.top - 0.10 + 0.11 * u, 0.02) * _edge(u - 0.15, 0.1) * _edge(1.05 - u, 0.15)
        film_HW += 0.12 * collar_HW
        if self.sex == "F":
            breast_HW = np.hypot(np.abs(x) - 0.55 * self.width, y - base + 0.09) - 0.17
            film_HW += body_HW * 0.07 * _edge(-breast_HW, 0.03) * _edge(y - base + 0.10, 0.12)
        film_HW += self.over
        for fx, fy, start, height in self.waves.astype(np.float32):  # folds, clothes, scatter
            film_HW += 0.02 * height * np.sin(12 * fx * x + 12 * fy * y + 3.14 * start)
        # The film's curve, a side marker (an L on the left), and quantum noise.
        film_HW = np.tanh(1.15 * self.gain * np.clip(film_HW, 0.01, None)) ** np.float32(self.gamma)
        stroke_HW = np.maximum(_edge(0.006 - np.abs(x - 0.43), 0.01), _edge(0.005 - np.abs(y - 0.065), 0.01))
        film_HW += 0.5 * stroke_HW * _edge(0.013 - np.abs(x - 0.436), 0.01) * _edge(0.02 - np.abs(y - 0.05), 0.01)
        film_HW += np.float32(0.016) * self.grain.standard_normal(x.shape, dtype=np.float32)
        return np.rint(np.clip(film_HW, 0, 1) * 255).astype(np.uint8)


def _draw_atelectasis(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Plate-like band across the lower zone, and a hemidiaphragm raised by the lost volume."""
    side = rng.choice([-1, 1])
    chest.base[side] -= 0.085 * grade
    x, y = chest.place(rng, side, (0.55, 0.65), (0.80, 0.86))
    slope = rng.uniform(-0.3, 0.3)
    band_HW = chest.line(chest.y - y - slope * (chest.x - x), 0.022) * _edge(0.13 - np.abs(chest.x - x), 0.03)
    chest.in_lung += 0.45 * grade * band_HW


def _draw_cardiomegaly(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Heart wider than half of the thorax."""
    chest.heart = max(chest.heart, 0.53) + 0.09 * grade * rng.uniform(0.5, 1)


def _draw_effusion(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Blunted costophrenic angle: fluid with a meniscus that climbs the lateral wall."""
    first, both = rng.choice([-1, 1]), rng.random() < 0.4
    for side in (first, -first)[: 1 + both]:
        rise_HW = chest.y - chest.base[side] - 0.4 * chest.dome + 0.14 * chest.u**3
        chest.in_lung += 0.5 * _edge(rng.uniform(0.06, 0.16) * grade + rise_HW, 0.03) * chest.side(side)


def _draw_infiltration(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Patchy, ill-defined haze in the mid zones."""
    for side in (-1, 1):
        for _ in range(rng.integers(2, 4)):
            x, y = chest.place(rng, side, (0.35, 0.75), (0.35, 0.75))
            chest.in_lung += 0.13 * grade * chest.blob(x, y, rng.uniform(0.05, 0.09), rng.uniform(0.7, 1.4))


def _draw_mass(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """One lobulated opacity of more than 3 cm (a thorax is about 30 cm wide)."""
    x, y = chest.place(rng, rng.choice([-1, 1]), (0.5, 0.65), (0.3, 0.6))
    angle_HW, radius = np.arctan2(chest.y - y, chest.x - x), rng.uniform(0.065, 0.09) * grade
    lobes_HW = radius * (1 + 0.10 * np.sin(3 * angle_HW + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angle_HW))
    chest.in_lung += 0.42 * _edge(lobes_HW - np.hypot(chest.x - x, chest.y - y), 0.035)


def _draw_nodule(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """A few round opacities of less than 3 cm."""
    for _ in range(rng.integers(2, 6)):
        x, y = chest.place(rng, rng.choice([-1, 1]), (0.45, 0.75), (0.3, 0.7))
        radius = rng.uniform(0.026, 0.036) * grade
        chest.in_lung += 0.55 * _edge(radius - np.hypot(chest.x - x, chest.y - y), 0.02)


def _draw_pneumonia(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dense patches that run together in one lower segment."""
    side = rng.choice([-1, 1])
    for _ in range(6):
        x, y = chest.place(rng, side, (0.5, 0.9), (0.65, 0.9))
        chest.in_lung += 0.21 * grade * chest.blob(x, y, rng.uniform(0.03, 0.08), rng.uniform(0.6, 1.2))


def _draw_pneumothorax(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dark rim without vessel markings along apex and wall, and the thin line of the visceral pleura."""
    side, rim = rng.choice([-1, 1]), rng.uniform(0.06, 0.10) * grade
    pleura_HW = chest.within(chest.top + 0.7 * rim, chest.base[side]) - np.float32(rim)
    half_HW = chest.side(side)
    air_HW = _edge(-pleura_HW, 0.015) * half_HW
    chest.vessels *= 1 - air_HW
    chest.in_lung += 0.10 * half_HW * (1 - air_HW) - 0.14 * air_HW + 0.25 * chest.line(pleura_HW, 0.01) * half_HW


def _draw_consolidation(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dense upper lobe that ends at the fissure, with the dark branches of air bronchograms."""
    side = rng.choice([-1, 1])
    fissure = chest.top + (0.36 + 0.08 * grade) * (chest.base[side] - chest.top)
    lobe_HW = _edge(fissure + 0.08 * (chest.u - 0.5) - chest.y, 0.03) * chest.side(side)
    out_HW, up_HW = chest.x * side - 0.1, fissure - chest.y
    bronchi_HW = chest.line(out_HW * 0.7 - up_HW * 0.7 - 2 * out_HW**2, 0.01)
    bronchi_HW += chest.line(out_HW * 0.9 - up_HW * 0.35 + out_HW**2, 0.01) + chest.line(out_HW * 0.4 - up_HW, 0.01)
    chest.in_lung += lobe_HW * (0.33 * grade - 0.13 * np.minimum(bronchi_HW, 1))


def _draw_edema(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Perihilar haze on both sides, and Kerley B lines: short, level, at the lateral bases."""
    height = chest.base[1] - chest.top
    for side in (-1, 1):
        x, y = side * 0.36 * chest.width, chest.top + rng.uniform(0.45, 0.55) * height
        chest.in_lung += 0.30 * grade * chest.blob(x, y, 0.12, 1.4)
    kerley_HW = np.clip(np.sin(chest.y * np.float32(6.28 / 0.04)), 0, 1) * _edge(0.05 - chest.inside, 0.02)
    chest.in_lung += 0.15 * kerley_HW * _edge(chest.y - chest.top - 0.7 * height, 0.05)


def _draw_emphysema(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Overinflated: dark lungs with few vessels, low flat diaphragms, a narrow heart."""
    for side in (-1, 1):
        chest.base[side] += 0.065 * grade
    chest.dome *= 0.3
    chest.heart *= 0.85
    chest.lung -= 0.08 * rng.uniform(0.8, 1.2)
    chest.vessels *= 0.5


def _draw_fibrosis(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Net of irregular lines at both bases, with honeycomb cysts between them."""
    period = max(0.04, 2.6 / chest.size)
    a_HW = chest.x * 0.9 + chest.y * 0.5 + 0.012 * np.sin(31 * chest.y + rng.uniform(0, 6))
    b_HW = chest.y * 0.9 - chest.x * 0.5 + 0.012 * np.sin(37 * chest.x + rng.uniform(0, 6))
    net_HW = np.abs(np.sin(a_HW * np.float32(3.14 / period)) * np.sin(b_HW * np.float32(3.14 / period)))
    low_HW = np.clip(1.2 - chest.above() * 5, 0, 1)
    chest.in_lung += low_HW * grade * (0.36 * (1 - net_HW) ** 3 + 0.07)


def _draw_pleural_thickening(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Bright band along the lateral chest wall, with an apical cap."""
    side, thick = rng.choice([-1, 1]), rng.uniform(0.04, 0.06) * grade
    wavy_HW = thick * (1 + 0.2 * np.sin(25 * chest.y + rng.uniform(0, 6)))
    band_HW = _edge(wavy_HW - chest.within(chest.top + 0.02, chest.base[side]), 0.015)
    chest.in_lung += 0.42 * band_HW * chest.side(side)


def _draw_hernia(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Round shadow behind the heart, with a level of fluid below air."""
    x, y = rng.uniform(0.03, 0.06) + 0.5 * chest.drift[0], chest.base[1] - rng.uniform(0.06, 0.08)
    pouch_HW = np.float32(0.11 * grade) - np.hypot(chest.x - x, 1.1 * (chest.y - y))
    air_HW = _edge(pouch_HW - 0.01, 0.02) * _edge(y + 0.015 - chest.y, 0.012)
    chest.over += 0.25 * _edge(pouch_HW, 0.02) * (1 - air_HW) - 0.4 * air_HW


SIGNS: Dict[str, Callable[[Chest, np.random.Generator, float], None]] = {
    "Atelectasis": _draw_atelectasis,
    "Cardiomegaly": _draw_cardiomegaly,
    "Effusion": _draw_effusion,
    "Infiltration": _draw_infiltration,
    "Mass": _draw_mass,
    "Nodule": _draw_nodule,
    "Pneumonia": _draw_pneumonia,
    "Pneumothorax": _draw_pneumothorax,
    "Consolidation": _draw_consolidation,
    "Edema": _draw_edema,
    "Emphysema": _draw_emphysema,
    "Fibrosis": _draw_fibrosis,
    "Pleural_Thickening": _draw_pleural_thickening,
    "Hernia": _draw_hernia,
}
RESHAPE = ("Emphysema", "Atelectasis", "Cardiomegaly")  # drawn first: the others lie in the lungs that these leave
