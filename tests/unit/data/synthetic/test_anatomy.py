"""The anatomy is the patient's, breath and exposure are the study's, and the pixels are those of version 0.5.0."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from chestxray_vit.data.synthetic.release import Study, draw_xray
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.helpers.radiographs import PATIENTS, SIDE, both, heart_width

FINDINGS = NIH_CHESTXRAY14.names
# sha256 of what version 0.5.0 drew, by the series of numpy: its sin, exp and tanh differ in the last bit.
DRAWN_BY_0_5_0 = {
    "1.23": "86969a84af0275f4d06093041edb38068b380a0fcc445ecc9b0744a2eb4acf4a",
    "1.24": "9f1b39511b9baa07e945b750ca3a8db2770269b6d034f31462a1a2ba15977b24",
    "2.4": "6e22e35ec8ba44bfd52830080144d13d0a9d88fd9e430edba49bc3a448564eb8",
}


def test_pixels_are_those_of_0_5_0():
    series = ".".join(np.__version__.split(".")[:2])
    if series not in DRAWN_BY_0_5_0:
        pytest.skip(f"0.5.0 was not run with numpy {series}")
    digest = hashlib.sha256()
    for number, finding in enumerate((None, *FINDINGS)):
        study = Study(
            patient_id=1 + number % 4, follow_up=number % 3, sex="MF"[number % 2], view=("PA", "AP")[number // 2 % 2]
        )
        for size in (64, 128):
            digest.update(draw_xray([finding] if finding else [], study, size, seed=1337).tobytes())
    digest.update(draw_xray(FINDINGS, Study(7, 1, "F", "AP"), 256, seed=5).tobytes())
    assert digest.hexdigest() == DRAWN_BY_0_5_0[series]


def test_patient_and_study_do_not_collide():
    images = {draw_xray([], Study(patient, study)).tobytes() for patient in range(4) for study in range(4)}
    assert len(images) == 16  # a seed padded with zeros would give study 0 the numbers of the patient


def test_small_and_large_drawing_show_the_same():
    small_HW = draw_xray(["Mass"], Study(3), image_size=64).astype(float)
    large_HW = draw_xray(["Mass"], Study(3), image_size=512).reshape(64, 8, 64, 8).mean((1, 3))
    assert np.corrcoef(small_HW.ravel(), large_HW.ravel())[0, 1] > 0.98


def test_studies_of_a_patient_share_the_anatomy():
    first = [draw_xray([], Study(patient)).astype(float) for patient in PATIENTS]
    second = [draw_xray([], Study(patient, 1)).astype(float) for patient in PATIENTS]

    def alike(a_HW, b_HW):  # correlation, so that the exposure does not count
        return np.corrcoef(a_HW.ravel(), b_HW.ravel())[0, 1]

    alike_PP = np.array([[alike(a, b) for b in second] for a in first])
    same, others = alike_PP.diagonal(), (alike_PP.sum(1) - alike_PP.diagonal()) / (len(PATIENTS) - 1)
    assert same.mean() > others.mean() + 0.05
    assert np.mean(same > others) > 0.9


def test_ap_heart_is_wider_and_lungs_brighter():
    pa, ap = (
        [draw_xray([], Study(p, view=view), image_size=SIDE).astype(float) for p in PATIENTS] for view in ("PA", "AP")
    )
    assert np.mean([heart_width(a) - heart_width(b) for a, b in zip(ap, pa)]) > 0.02
    assert np.mean([both(a - b, (0.28, 0.34), (0.30, 0.60)) for a, b in zip(ap, pa)]) > 5
