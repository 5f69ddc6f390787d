"""The radiographic signs of the 14 findings of NIH ChestX-ray14: each changes a chest, or draws on it.

Every sign differs from the others, so that a model that learns nothing, or whose columns are swapped, is seen in the
AUC. Lengths are fractions of the image's side; grade is the strength of a sign, about 1.

Shapes: H rows, W columns of the image."""

from __future__ import annotations

from typing import Callable, Dict

import numpy as np

from chestxray_vit.data.synthetic.anatomy import Chest, edge


def _draw_atelectasis(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Plate-like band across the lower zone, and a hemidiaphragm raised by the lost volume."""
    side = rng.choice([-1, 1])
    chest.base[side] -= 0.085 * grade
    x, y = chest.locate(rng, side, (0.55, 0.65), (0.80, 0.86))
    slope = rng.uniform(-0.3, 0.3)
    band_HW = chest.line(chest.y - y - slope * (chest.x - x), 0.022) * edge(0.13 - np.abs(chest.x - x), 0.03)
    chest.in_lung += 0.45 * grade * band_HW


def _draw_cardiomegaly(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Heart wider than half of the thorax."""
    chest.heart = max(chest.heart, 0.53) + 0.09 * grade * rng.uniform(0.5, 1)


def _draw_effusion(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Blunted costophrenic angle: fluid with a meniscus that climbs the lateral wall."""
    first, both = rng.choice([-1, 1]), rng.random() < 0.4
    for side in (first, -first)[: 1 + both]:
        rise_HW = chest.y - chest.base[side] - 0.4 * chest.dome + 0.14 * chest.u**3
        chest.in_lung += 0.5 * edge(rng.uniform(0.06, 0.16) * grade + rise_HW, 0.03) * chest.side(side)


def _draw_infiltration(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Patchy, ill-defined haze in the mid zones."""
    for side in (-1, 1):
        for _ in range(rng.integers(2, 4)):
            x, y = chest.locate(rng, side, (0.35, 0.75), (0.35, 0.75))
            chest.in_lung += 0.13 * grade * chest.blob(x, y, rng.uniform(0.05, 0.09), rng.uniform(0.7, 1.4))


def _draw_mass(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """One lobulated opacity of more than 3 cm (a thorax is about 30 cm wide)."""
    x, y = chest.locate(rng, rng.choice([-1, 1]), (0.5, 0.65), (0.3, 0.6))
    angle_HW, radius = np.arctan2(chest.y - y, chest.x - x), rng.uniform(0.065, 0.09) * grade
    lobes_HW = radius * (1 + 0.10 * np.sin(3 * angle_HW + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angle_HW))
    chest.in_lung += 0.42 * edge(lobes_HW - np.hypot(chest.x - x, chest.y - y), 0.035)


def _draw_nodule(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """A few round opacities of less than 3 cm."""
    for _ in range(rng.integers(2, 6)):
        x, y = chest.locate(rng, rng.choice([-1, 1]), (0.45, 0.75), (0.3, 0.7))
        radius = rng.uniform(0.026, 0.036) * grade
        chest.in_lung += 0.55 * edge(radius - np.hypot(chest.x - x, chest.y - y), 0.02)


def _draw_pneumonia(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dense patches that run together in one lower segment."""
    side = rng.choice([-1, 1])
    for _ in range(6):
        x, y = chest.locate(rng, side, (0.5, 0.9), (0.65, 0.9))
        chest.in_lung += 0.21 * grade * chest.blob(x, y, rng.uniform(0.03, 0.08), rng.uniform(0.6, 1.2))


def _draw_pneumothorax(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dark rim without vessel markings along apex and wall, and the thin line of the visceral pleura."""
    side, rim = rng.choice([-1, 1]), rng.uniform(0.06, 0.10) * grade
    pleura_HW = chest.within(chest.top + 0.7 * rim, chest.base[side]) - np.float32(rim)
    half_HW = chest.side(side)
    air_HW = edge(-pleura_HW, 0.015) * half_HW
    chest.vessels *= 1 - air_HW
    chest.in_lung += 0.10 * half_HW * (1 - air_HW) - 0.14 * air_HW + 0.25 * chest.line(pleura_HW, 0.01) * half_HW


def _draw_consolidation(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Dense upper lobe that ends at the fissure, with the dark branches of air bronchograms."""
    side = rng.choice([-1, 1])
    fissure = chest.top + (0.36 + 0.08 * grade) * (chest.base[side] - chest.top)
    lobe_HW = edge(fissure + 0.08 * (chest.u - 0.5) - chest.y, 0.03) * chest.side(side)
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
    kerley_HW = np.clip(np.sin(chest.y * np.float32(6.28 / 0.04)), 0, 1) * edge(0.05 - chest.inside, 0.02)
    chest.in_lung += 0.15 * kerley_HW * edge(chest.y - chest.top - 0.7 * height, 0.05)


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
    band_HW = edge(wavy_HW - chest.within(chest.top + 0.02, chest.base[side]), 0.015)
    chest.in_lung += 0.42 * band_HW * chest.side(side)


def _draw_hernia(chest: Chest, rng: np.random.Generator, grade: float) -> None:
    """Round shadow behind the heart, with a level of fluid below air."""
    x, y = rng.uniform(0.03, 0.06) + 0.5 * chest.drift[0], chest.base[1] - rng.uniform(0.06, 0.08)
    pouch_HW = np.float32(0.11 * grade) - np.hypot(chest.x - x, 1.1 * (chest.y - y))
    air_HW = edge(pouch_HW - 0.01, 0.02) * edge(y + 0.015 - chest.y, 0.012)
    chest.over += 0.25 * edge(pouch_HW, 0.02) * (1 - air_HW) - 0.4 * air_HW


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
