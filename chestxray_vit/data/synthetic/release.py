"""Draw a small synthetic release in NIH's exact file formats: the default for demo, tests and benchmarks.

The real release is 45 GB and may not be handed on, so whatever must run at once and offline runs on this one. Every
finding has its own radiographic sign, so that a model that learns nothing, or whose columns are swapped, is seen in
the AUC. The images show no person; no number measured on them says anything about patients.

Shapes: L findings; S studies of one patient."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
from PIL import Image

from chestxray_vit import __version__
from chestxray_vit.data.synthetic.anatomy import Chest
from chestxray_vit.data.synthetic.signs import RESHAPE, SIGNS
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, SEPARATOR
from chestxray_vit.storage.atomic import PathLike, write_text

FINDINGS, NO_FINDING = NIH_CHESTXRAY14.names, NIH_CHESTXRAY14.negative
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
MIN_SIZE, MAX_SIZE = 64, 1024
# 2 of 9 patients are test; 27 give 6: five that share the 14 findings among them, and one without any.
MIN_PATIENTS = 27
TEST_OF_NINE = 2
# How the README.txt of a synthetic release begins; up to version 0.5.0 the second.
MARKERS = ("Drawn by chestxray_vit.data.synthetic.release ", "Drawn by chestxray_vit.phantom ")
README = """Drawn by chestxray_vit.data.synthetic.release {version}
with num_patients={num_patients}, image_size={image_size}, seed={seed}.

These images are synthetic. They show no person and come from no hospital. The files have the formats of NIH
ChestX-ray14, so that the software can be tried out; they must not be used for anything else.
"""

# Share of patients who ever have the finding. Near NIH's, but the rare ones are raised until each split of a small
# release holds both classes: at 667 patients every finding has 4 to 16 % of the images.
RATES: Dict[str, float] = {
    "Atelectasis": 0.14,
    "Cardiomegaly": 0.09,
    "Effusion": 0.13,
    "Infiltration": 0.20,
    "Mass": 0.11,
    "Nodule": 0.11,
    "Pneumonia": 0.07,
    "Pneumothorax": 0.085,
    "Consolidation": 0.12,
    "Edema": 0.08,
    "Emphysema": 0.10,
    "Fibrosis": 0.09,
    "Pleural_Thickening": 0.095,
    "Hernia": 0.11,
}
# What a finding brings along in the same study, after the co-occurrence in Data_Entry_2017_v2020.csv.
COMPANIONS: Tuple[Tuple[str, str, float], ...] = (
    ("Cardiomegaly", "Effusion", 0.25),
    ("Edema", "Effusion", 0.15),
    ("Edema", "Infiltration", 0.25),
    ("Edema", "Pneumonia", 0.10),
    ("Pneumonia", "Infiltration", 0.25),
    ("Consolidation", "Effusion", 0.15),
    ("Consolidation", "Atelectasis", 0.15),
    ("Effusion", "Atelectasis", 0.15),
    ("Emphysema", "Pneumothorax", 0.15),
    ("Mass", "Nodule", 0.10),
    ("Fibrosis", "Pleural_Thickening", 0.10),
)
PERSISTS = 0.85  # a finding is still there in the next study
NUM_STUDIES = (0.32, 0.17, 0.12, 0.09, 0.07, 0.055, 0.045, 0.035, 0.03, 0.025, 0.02, 0.02)  # 1 to 12; mean 3.6
# Width, height, spacing of the original, its weight: the commonest in NIH's table, spelled as there.
ORIGINALS = (
    ("2500,2048,0.168,0.168", 0.42),
    ("2992,2991,0.14300000000000002,0.14300000000000002", 0.26),
    ("3056,2544,0.139,0.139", 0.18),
    ("2048,2500,0.168,0.168", 0.09),
    ("2021,2021,0.19431099999999998,0.19431099999999998", 0.05),
)
# Streams of random numbers: one each for labels, body, study, sign and split, so that none depends on another.
LABELS, BODY, STUDY, SIGN, SPLIT = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Study:
    """One study of one synthetic patient, with one image.

    Attributes:
        patient_id: 0 or more; decides the anatomy.
        follow_up: number of the study, from 0; decides breath, position and exposure.
        sex: `M` or `F`.
        view: `PA` or `AP`.
    """

    patient_id: int
    follow_up: int = 0
    sex: str = "M"
    view: str = "PA"


def draw_xray(findings: Iterable[str], study: Study, image_size: int = 64, seed: int = 1337) -> np.ndarray:
    """Draw the image of one study.

    Returns:
        8-bit grey of shape (image_size, image_size). The same arguments give the same image, whatever else is drawn.
    """
    body = np.random.default_rng([seed, BODY, study.patient_id])
    film = np.random.default_rng([seed, STUDY, study.patient_id, study.follow_up])
    grades_L = film.uniform(0.85, 1.15, len(FINDINGS))
    chest = Chest(body, film, study.sex, study.view, image_size)
    for name in sorted(set(findings), key=lambda name: (name not in RESHAPE, FINDINGS.index(name))):
        index = FINDINGS.index(name)
        SIGNS[name](chest, np.random.default_rng([seed, SIGN, study.patient_id, index]), grades_L[index])
    return chest.expose()


def _draw_labels(rng: np.random.Generator) -> np.ndarray:
    """Draw the findings of all studies of one patient: bool of shape (S, L)."""
    num_studies = 1 + rng.choice(len(NUM_STUDIES), p=NUM_STUDIES)
    labels_SL = np.zeros((num_studies, len(FINDINGS)), bool)
    for index in np.flatnonzero(rng.random(len(FINDINGS)) < np.array(list(RATES.values()))):
        first = rng.integers(num_studies) * (rng.random() < 0.4)  # mostly there from the first study on
        labels_SL[first:, index] = np.cumprod(rng.random(num_studies - first) < PERSISTS) > 0
        labels_SL[first, index] = True
    for finding, companion, chance in COMPANIONS:
        brings_S = labels_SL[:, FINDINGS.index(finding)] & (rng.random(num_studies) < chance)
        labels_SL[:, FINDINGS.index(companion)] |= brings_S
    return labels_SL


def _choose_test(num_studies: Sequence[int], rng: np.random.Generator) -> List[bool]:
    """Choose 2 of 9 patients for the test part, among patients with like numbers of studies."""
    order = np.argsort(num_studies, kind="stable")
    in_test = np.zeros(len(order), bool)
    for start in range(0, len(order), 9):
        nine = order[start : start + 9]
        in_test[rng.permutation(nine)[: round(TEST_OF_NINE * len(nine) / 9)]] = True
    return in_test.tolist()


def _hold_both_classes(labels: List[np.ndarray], num_positive: int) -> None:
    """Change the labels of one part in place until each finding has positive patients, and one patient has none."""
    clear = min(range(len(labels)), key=lambda patient: labels[patient].sum())
    labels[clear][:] = False
    for index in range(len(FINDINGS)):
        without = [labels_SL for labels_SL in labels[:clear] + labels[clear + 1 :] if not labels_SL[:, index].any()]
        lacking = num_positive - (len(labels) - 1 - len(without))
        for labels_SL in sorted(without, key=lambda labels_SL: labels_SL.any(0).sum())[: max(0, lacking)]:
            labels_SL[:, index] = True


def _draw_patients(num_patients: int, seed: int) -> Tuple[List[np.random.Generator], List[np.ndarray], List[bool]]:
    """Return, of each patient, the stream of random numbers, the findings (S, L), and whether the test part has it."""
    rngs = [np.random.default_rng([seed, LABELS, patient_id]) for patient_id in range(1, num_patients + 1)]
    labels = [_draw_labels(rng) for rng in rngs]
    in_test = _choose_test([len(labels_SL) for labels_SL in labels], np.random.default_rng([seed, SPLIT]))
    for part, num_positive in ((False, 2), (True, 1)):
        _hold_both_classes([labels[i] for i in range(num_patients) if in_test[i] == part], num_positive)
    return rngs, labels, in_test


def _check(directory: Path, num_patients: int, image_size: int, seed: int) -> None:
    """Refuse what cannot be drawn."""
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise InputError(f"image_size is {image_size}; a synthetic X-ray has {MIN_SIZE} to {MAX_SIZE} pixels a side.")
    if num_patients < MIN_PATIENTS:
        raise InputError(
            f"num_patients is {num_patients}; it takes {MIN_PATIENTS} for both parts of the release to hold "
            "patients with and without each finding."
        )
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more.")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; name a folder to draw the release into.")
    found = sorted([*directory.glob("Data_Entry*"), *directory.glob("images")])
    if found:
        raise InputError(f"{directory} already holds a release ({found[0].name}). Remove it, or name another folder.")


def is_synthetic(directory: PathLike) -> bool:
    """Return whether a folder holds a release that `draw_release` drew, in this version or up to 0.5.0."""
    readme = Path(directory) / "README.txt"
    return readme.is_file() and readme.read_bytes().startswith(tuple(marker.encode() for marker in MARKERS))


def draw_release(directory: PathLike, num_patients: int = 667, image_size: int = 64, seed: int = 1337) -> Path:
    """Draw a synthetic release: NIH's CSV, its two split lists, `images/` and a README.txt.

    Args:
        directory: made if missing; must not hold a release.
        num_patients: with 3.6 images each on average; 27 or more.
        image_size: pixels a side, 64 to 1024.
        seed: same arguments, same bytes of every file (with the same Pillow and numpy).

    Returns:
        The directory. The CSV is written last: a release with a CSV is whole.

    Raises:
        InputError: a size, number or seed out of range, or a directory that holds a release.
    """
    directory = Path(directory)
    _check(directory, num_patients, image_size, seed)
    rngs, labels, in_test = _draw_patients(num_patients, seed)
    directory.mkdir(parents=True, exist_ok=True)
    rows = [HEADER]
    lists: Tuple[List[str], List[str]] = ([], [])  # train_val, test
    aside = directory / f".images.{os.getpid()}"
    try:
        aside.mkdir()
        for patient_id, (rng, labels_SL) in enumerate(zip(rngs, labels), start=1):
            for name, row in _draw_patient(aside, patient_id, labels_SL, rng, (image_size, seed)):
                rows.append(f"{name},{row}")
                lists[in_test[patient_id - 1]].append(name)
        os.replace(aside, directory / "images")
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(aside)
    readme = README.format(num_patients=num_patients, image_size=image_size, seed=seed, version=__version__)
    write_text(directory / "README.txt", readme)
    write_text(directory / "train_val_list.txt", "\n".join(lists[False]))  # NIH's has no final newline
    write_text(directory / "test_list.txt", "\n".join(lists[True]) + "\n")
    write_text(directory / "Data_Entry_2017_v2020.csv", "\n".join(rows) + "\n")
    return directory


def _draw_patient(
    folder: Path, patient_id: int, labels_SL: np.ndarray, rng: np.random.Generator, drawing: Tuple[int, int]
) -> Iterator[Tuple[str, str]]:
    """Write the images of one patient to a folder; give each file's name and the rest of its row in NIH's CSV.

    Args:
        folder: to write to.
        patient_id: from 1.
        labels_SL: bool, the findings of each study.
        rng: from which `labels_SL` was drawn.
        drawing: image size and seed.
    """
    sex = "M" if rng.random() < 0.56 else "F"
    age = int(np.clip(rng.normal(47, 16), 1, 90))
    for follow_up, labels_L in enumerate(labels_SL):
        present = [name for name, value in zip(FINDINGS, labels_L) if value]
        often = 0.31 + 0.07 * min(len(present), 3) + 0.3 * ("Edema" in present or "Consolidation" in present)
        view = "AP" if rng.random() < often else "PA"
        original = ORIGINALS[rng.choice(len(ORIGINALS), p=[weight for _, weight in ORIGINALS])][0]
        age = min(95, age + int(rng.random() < 0.3))
        name = f"{patient_id:08d}_{follow_up:03d}.png"
        image_HW = draw_xray(present, Study(patient_id, follow_up, sex, view), *drawing)
        Image.fromarray(image_HW).save(folder / name, compress_level=1)
        cell = SEPARATOR.join(sorted(present)) or NO_FINDING
        yield name, f"{cell},{follow_up},{patient_id},{age},{sex},{view},{original}"
