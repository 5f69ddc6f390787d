"""Split studies by patient, so that no patient is in two sets.

A patient has 3.6 images on average; a split by image leaks anatomy into the test AUC: of a random
5 % of images, 83 % have their patient among the rest. NIH's test list is kept where there is one;
validation, and test without a list, follow from a seeded hash of the patient id, so that a patient
stays in its set when others are added or left out.

N images, P patients."""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import Any, Collection, Dict, Iterable, List, Optional

import numpy as np
from numpy.typing import ArrayLike

from chestxray_vit.artifacts.metadata import SPLITS

WHOLE_NUMBER = re.compile("0|[1-9][0-9]{,18}")
TEST_FRACTION = 0.2  # of the patients, where no test list is given; NIH's list has 9 % of them, 23 % of the images


def assign(
    patients: Iterable[str],
    test_patients: Optional[Collection[str]] = None,
    val_fraction: float = 0.1,
    seed: int = 1337,
) -> Dict[str, str]:
    """Assign every patient to train, validation or test.

    Args:
        patients: patient ids, in any order, repeated or not.
        test_patients: the patients of an official test list; None chooses them by hash.
        val_fraction: expected share of the patients outside test that go to validation, 0 to below 1.
        seed: of the hash.

    Returns:
        Patient id to `train`, `validation` or `test`.

    Raises:
        ValueError: `val_fraction` is out of range.
    """
    ids = list(dict.fromkeys(patients))
    test_P = None
    if test_patients is not None:
        official = set(test_patients)
        test_P = np.fromiter((patient in official for patient in ids), dtype=bool, count=len(ids))
    codes_P = assign_codes(ids, test_P, val_fraction, seed)
    return dict(zip(ids, (SPLITS[code] for code in codes_P.tolist())))


def assign_codes(ids: List[str], test_P: Optional[np.ndarray], val_fraction: float, seed: int) -> np.ndarray:
    """Return the index in SPLITS (P, int32) of each patient's set, as `assign` does.

    Args:
        ids: P patients, each once.
        test_P: whether each is on the official test list; None draws them by hash.
        val_fraction, seed: as of `assign`.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, expected 0 <= val_fraction < 1")
    numbers_P = numbers_of_ids(ids)
    if test_P is None:
        test_P = hash_to_unit(numbers_P, seed, stream=1) < TEST_FRACTION
    validation_P = ~test_P & (hash_to_unit(numbers_P, seed, stream=0) < val_fraction)
    return np.where(test_P, 2, np.where(validation_P, 1, 0)).astype(np.int32)


def numbers_of_ids(ids: List[str]) -> np.ndarray:
    """Return the number (P, uint64) that each patient id is hashed as, equal on every machine and in every release.

    A whole number below 2**63 without leading zeros, such as each of NIH's, is itself. Of any other text it is the
    first eight bytes, big-endian, of the SHA-256 of its UTF-8.
    """
    with contextlib.suppress(ValueError, OverflowError):  # all of NIH's together, in a third of the time
        numbers_P = np.array(list(map(int, ids)), dtype=np.int64)
        if (numbers_P >= 0).all() and list(map(str, numbers_P.tolist())) == ids:
            return numbers_P.astype(np.uint64)
    return np.fromiter(map(_number_of_id, ids), dtype=np.uint64, count=len(ids))


def _number_of_id(patient: str) -> int:
    if WHOLE_NUMBER.fullmatch(patient) and int(patient) < 2**63:
        return int(patient)
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")


def hash_to_unit(ids_P: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Hash integers to [0, 1): splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), equal on every machine.

    Args:
        ids_P: int64 or uint64.
        seed, stream: two streams of one seed are independent draws.
    """
    golden = 0x9E3779B97F4A7C15
    # the start is hashed too: else stream 1 of one patient is stream 0 of the next
    start_1 = _mix(np.array([(golden * (2 * seed + stream + 1)) % 2**64], dtype=np.uint64))
    x_P = _mix(ids_P.astype(np.uint64) * np.uint64(golden) + start_1)
    return (x_P >> np.uint64(11)).astype(np.float64) / 2**53


def _mix(x_P: np.ndarray) -> np.ndarray:
    x_P = (x_P ^ (x_P >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_P = (x_P ^ (x_P >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_P ^ (x_P >> np.uint64(31))


def leaked_patients(patients_N: ArrayLike, splits_N: ArrayLike) -> List[Any]:
    """Return the patients whose images are in more than one set, sorted; an empty list proves the sets disjoint.

    Args:
        patients_N: ids, or codes of them.
        splits_N: names of sets, or codes of them.
    """
    patients, patient_N = np.unique(np.asarray(patients_N), return_inverse=True)
    splits, split_N = np.unique(np.asarray(splits_N), return_inverse=True)
    seen = np.zeros((len(patients), len(splits)), dtype=bool)
    seen[patient_N, split_N] = True
    return patients[seen.sum(axis=1) > 1].tolist()
