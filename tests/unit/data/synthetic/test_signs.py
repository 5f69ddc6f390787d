"""Each finding has its own sign, seen by a measure that no other sign moves."""

from __future__ import annotations

import numpy as np
import pytest

from chestxray_vit.data.synthetic.release import Study, draw_xray
from chestxray_vit.data.synthetic.signs import SIGNS
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.helpers.radiographs import PATIENTS, SIDE, both, box, heart_width

FINDINGS = NIH_CHESTXRAY14.names


def raised_diaphragm(with_HW, without_HW):
    gain_HW = with_HW - without_HW
    low, high, lateral = (
        both(gain_HW, *where)
        for where in (((0.13, 0.22), (0.69, 0.74)), ((0.13, 0.22), (0.56, 0.62)), ((0.33, 0.37), (0.60, 0.68)))
    )
    return max(a - abs(b) - abs(c) for a, b, c in zip(low, high, lateral))


def haze(with_HW, without_HW):
    """Measure the share of both mid zones that is faintly brighter, less what is dense at the hila."""
    gain_HW = with_HW - without_HW
    faint = both((gain_HW > 3) & (gain_HW < 45), (0.15, 0.32), (0.35, 0.60))
    dense = both(gain_HW > 45, (0.11, 0.18), (0.38, 0.50))
    return min(faint) - max(dense)


def island(with_HW, without_HW, inner, outer):
    """Find the brightest square of side `inner` amid an unchanged frame of side `outer`, in the upper lungs."""
    gain_HW = (with_HW - without_HW)[round(0.15 * SIDE) : round(0.6 * SIDE)]
    inner, outer = round(inner * SIDE), round(outer * SIDE)
    windows = np.lib.stride_tricks.sliding_window_view(gain_HW, (outer, outer))
    frame = np.max([windows[..., 0, :], windows[..., -1, :], windows[..., :, 0], windows[..., :, -1]], axis=(0, -1))
    start = (outer - inner) // 2
    bright = windows[..., start : start + inner, start : start + inner].min((-2, -1))
    return np.where(frame < 12, bright, 0).max()


def roughness(image_HW):
    return min(both(image_HW, (0.2, 0.34), (0.64, 0.74), lambda part: np.abs(np.diff(np.diff(part, axis=0))).mean()))


# What each sign does to the image of the same patient and study without it: a measure in grey levels or shares, and a
# bound that its mean over patients must pass, while that of every other finding must not.
MEASURES = {
    "Atelectasis": (raised_diaphragm, 30),
    "Cardiomegaly": (lambda a, b: heart_width(a) - heart_width(b), 0.10),
    "Effusion": (lambda a, b: max(both(a - b, (0.32, 0.36), (0.68, 0.75))), 70),
    "Infiltration": (haze, 0.3),
    "Mass": (lambda a, b: island(a, b, 0.085, 0.25), 40),
    "Nodule": (lambda a, b: island(a, b, 0.03, 0.10), 40),
    "Pneumonia": (lambda a, b: max(both(a - b, (0.28, 0.35), (0.55, 0.66))), 58),
    "Pneumothorax": (lambda a, b: -min(both(a - b, (0.34, 0.37), (0.45, 0.65))), 29),
    "Consolidation": (lambda a, b: max(both(a - b, (0.12, 0.25), (0.18, 0.35))), 50),
    "Edema": (lambda a, b: min(both(a - b, (0.11, 0.18), (0.38, 0.50))), 40),
    "Emphysema": (lambda a, b: -max(both(a - b, (0.15, 0.30), (0.30, 0.75))), 12),
    "Fibrosis": (lambda a, b: min(roughness(a) - roughness(b), *both(a - b, (0.20, 0.34), (0.64, 0.74))), 5),
    "Pleural_Thickening": (lambda a, b: max(both(a - b, (0.34, 0.37), (0.40, 0.60))), 45),
    "Hernia": (lambda a, b: -box(a - b, 1, (0.02, 0.08), (0.62, 0.69)).mean(), 35),
}


@pytest.fixture(scope="module")
def images():
    """Return patient -> finding -> image, `None` being the image without finding."""
    kinds = [None, *FINDINGS]
    return [
        {kind: draw_xray([kind] if kind else [], Study(p), image_size=SIDE).astype(float) for kind in kinds}
        for p in PATIENTS
    ]


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_has_its_own_sign(images, finding):
    measure, bound = MEASURES[finding]
    seen = {other: np.mean([measure(of[other], of[None]) for of in images]) for other in FINDINGS}
    assert {other for other, value in seen.items() if value > bound} == {finding}, seen


def test_cardiomegaly_is_a_heart_wider_than_half_the_thorax(images):
    assert np.mean([heart_width(of[None]) for of in images]) < 0.48
    assert min(heart_width(of["Cardiomegaly"]) for of in images) > 0.5


def test_signs_add_up(images):
    for patient in PATIENTS:
        pair_HW = draw_xray(["Nodule", "Effusion"], Study(patient), image_size=SIDE).astype(float)
        alone = images[patient - 1]
        nodule_HW = alone["Nodule"] - alone[None]
        shown_HW = (pair_HW - alone["Effusion"])[: round(0.5 * SIDE)]  # above the fluid
        np.testing.assert_allclose(shown_HW, nodule_HW[: round(0.5 * SIDE)], atol=1)


def test_signs_stand_in_nihs_order():
    assert tuple(SIGNS) == FINDINGS
