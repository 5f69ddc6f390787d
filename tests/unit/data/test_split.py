"""Every patient to one set: the hash against pure Python, its statistics, and the proof that nothing leaks."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter

import numpy as np
import pytest

from chestxray_vit.data.split import SPLITS, TEST_FRACTION, assign, hash_to_unit, leaked_patients, numbers_of_ids

ALL = range(1, 30_806)  # NIH's patient ids


def assign_numbers(patients, test_patients=None, *args, **options):
    """Assign patients whose ids are whole numbers, as NIH's are."""
    test_patients = None if test_patients is None else set(map(str, test_patients))
    return {
        int(patient): split for patient, split in assign(map(str, patients), test_patients, *args, **options).items()
    }


# Slow and plain: splitmix64 on Python's integers.


def splitmix64(state):
    """Return the output of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) whose state has come to `state`."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def slow_unit(number, seed, stream):
    start = splitmix64(0x9E3779B97F4A7C15 * (2 * seed + stream + 1))
    return (splitmix64(start + 0x9E3779B97F4A7C15 * number) >> 11) / 2**53


def slow_assign(patient, test_patients, val_fraction, seed):
    in_test = slow_unit(patient, seed, 1) < 0.2 if test_patients is None else patient in test_patients
    return "test" if in_test else "validation" if slow_unit(patient, seed, 0) < val_fraction else "train"


def test_the_slow_version_is_splitmix64():
    # the first outputs of the reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) seeded with 0
    golden = 0x9E3779B97F4A7C15
    assert [splitmix64(golden * step) for step in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("seed", [0, 1, 1337, 2**40, 2**63, -5])
@pytest.mark.parametrize("stream", [0, 1])
def test_hash_is_splitmix64(seed, stream):
    ids = [0, 1, 2, 30_805, 99_999_999, 99_999_999_999, *random.Random(seed).sample(range(10**8), 200)]
    expected = [slow_unit(number, seed, stream) for number in ids]
    assert hash_to_unit(np.array(ids), seed, stream).tolist() == expected  # bit for bit


def test_frozen():
    """A change of these literals moves patients between the sets of every data set ingested before."""
    assert hash_to_unit(np.array([1, 2, 3, 30_805]), 1337, stream=0).tolist() == [
        0.2824133713251018,
        0.1569372643901793,
        0.9448609077813469,
        0.0737161206102469,
    ]
    split_of = assign_numbers(range(1, 30))
    assert {patient for patient, split in split_of.items() if split == "test"} == {4, 11, 15, 17, 21, 27, 28}
    assert {patient for patient, split in split_of.items() if split == "validation"} == {14, 25}
    assert Counter(split_of.values()) == {"train": 20, "test": 7, "validation": 2}


@pytest.mark.parametrize("seed", [1337, 7])
@pytest.mark.parametrize("test_patients", [None, set(range(5, 3000, 11))])
def test_assign_is_the_slow_assign(test_patients, seed):
    patients = list(range(1, 3000))
    expected = {patient: slow_assign(patient, test_patients, 0.15, seed) for patient in patients}
    assert assign_numbers(patients, test_patients, 0.15, seed) == expected


def test_order_and_repeats_do_not_matter():
    patients = random.Random(0).choices(range(1, 500), k=2000)
    assert assign_numbers(patients) == assign_numbers(sorted(set(patients)))
    assert assign_numbers(iter(patients)) == assign_numbers(reversed(patients))


def test_a_patient_stays_where_it_is_when_others_come_or_go():
    some, all_ = assign_numbers(range(1, 1000)), assign_numbers(ALL)
    assert {patient: all_[patient] for patient in some} == some
    without = assign_numbers(range(1, 1000), val_fraction=0.3)
    assert all(without[patient] == "test" for patient, split in some.items() if split == "test")
    assert all(without[patient] == "validation" for patient, split in some.items() if split == "validation")


@pytest.mark.parametrize("seed", [0, 1337, 2024])
def test_fractions_of_nihs_patients(seed):
    counts = Counter(assign_numbers(ALL, val_fraction=0.1, seed=seed).values())
    for split, share in {"test": 0.2, "validation": 0.08, "train": 0.72}.items():
        deviation = math.sqrt(len(ALL) * share * (1 - share))  # binomial
        assert abs(counts[split] - len(ALL) * share) < 3.5 * deviation
    assert TEST_FRACTION == 0.2


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("other", [(1337, 1), (1338, 0), (1338, 1)])
def test_streams_and_seeds_are_independent(other, shift):
    """Neither for one patient nor for neighbours does one draw tell about the other."""
    ids = np.array(ALL)
    a, b = hash_to_unit(ids + shift, 1337, stream=0), hash_to_unit(ids, *other)
    assert not set(a[:100].tolist()) & set(b.tolist())
    assert abs(np.corrcoef(a, b)[0, 1]) < 3.5 / math.sqrt(len(ids))
    both = ((a < 0.1) & (b < 0.2)).mean()
    assert abs(both - 0.02) < 3.5 * math.sqrt(0.02 * 0.98 / len(ids))


def test_the_test_list_is_kept():
    test_patients = {3, 5, 8, 10**7}  # the last is no patient here
    split_of = assign_numbers(range(1, 1000), test_patients, val_fraction=0.1)
    assert {patient for patient, split in split_of.items() if split == "test"} == {3, 5, 8}
    assert 60 < sum(split == "validation" for split in split_of.values()) < 140
    assert "test" not in assign_numbers(range(1, 1000), set()).values()


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_val_fraction_out_of_range(val_fraction):
    with pytest.raises(ValueError, match=f"^val_fraction is {val_fraction}, expected 0 <= val_fraction < 1$"):
        assign_numbers([1], val_fraction=val_fraction)


def test_no_validation_on_request():
    assert set(assign_numbers(ALL, val_fraction=0).values()) == {"train", "test"}


def test_no_patients():
    assert assign_numbers([]) == {}


# Ids that are texts.


def test_the_numbers_of_ids_are_frozen():
    """A change of these literals moves patients between the sets of every data set ingested before."""
    frozen = {
        "0": 0,
        "30805": 30_805,
        str(2**63 - 1): 2**63 - 1,
        str(2**63): 14_250_122_529_802_926_627,
        "patient00001": 6_882_805_413_750_701_342,
        "3" * 39: 12_325_934_450_987_072_074,
        "007": 7_106_483_370_208_201_996,
        "-4": 16_564_249_596_333_281_209,
        "ä": 3_739_913_210_162_221_132,
        "": 16_406_829_232_824_261_652,
    }
    assert dict(zip(frozen, numbers_of_ids(list(frozen)).tolist())) == frozen
    slow = {
        patient: int(patient)
        if patient in ("0", "30805", str(2**63 - 1))
        else int(hashlib.sha256(patient.encode("utf-8")).hexdigest()[:16], 16)
        for patient in frozen
    }
    assert frozen == slow


def test_ids_that_differ_are_drawn_apart():
    ids = [f"patient{number:05d}" for number in range(1, 20_001)]
    counts = Counter(assign(ids).values())
    assert {split: round(count / 20_000, 2) for split, count in counts.items()} == {
        "train": 0.72,
        "validation": 0.08,
        "test": 0.2,
    }
    assert assign(ids[:100]) == {patient: assign(ids)[patient] for patient in ids[:100]}
    assert assign(["1", "01", "1" * 39]).keys() == {"1", "01", "1" * 39}
    assert assign(ids, ids[:3], val_fraction=0) == {**dict.fromkeys(ids, "train"), **dict.fromkeys(ids[:3], "test")}


# leaked_patients


def test_an_assignment_leaks_no_patient():
    patients_N = random.Random(1).choices(ALL, k=10_000)
    split_of = assign_numbers(patients_N)
    splits_N = [split_of[patient] for patient in patients_N]
    assert set(splits_N) == set(SPLITS)
    assert leaked_patients(patients_N, splits_N) == []


def test_planted_leaks_are_found():
    patients_N = [9, 1, 2, 3, 4, 4, 3, 2, 1, 9, 5]
    splits_N = "train train train train test test test validation train validation train".split()
    assert leaked_patients(patients_N, splits_N) == [2, 3, 9]
    assert leaked_patients([7, 7], ["validation", "test"]) == [7]
    codes_N = np.array([0, 0, 0, 0, 2, 2, 2, 1, 0, 1, 0], dtype=np.int32)
    assert leaked_patients(np.array(patients_N), codes_N) == leaked_patients(tuple(patients_N), codes_N) == [2, 3, 9]
    assert leaked_patients([], []) == leaked_patients(np.array([], np.int64), np.array([], np.int32)) == []
    assert leaked_patients([7, 7, 7], ["validation", "test", "train"]) == [7]
    assert leaked_patients(["a", "b", "a"], ["test", "test", "train"]) == ["a"]


def test_a_split_by_image_leaks():
    """Of a random 5 % of NIH's images, 83 % have their patient among the others: here 100 patients with 10 each."""
    patients_N = [patient for patient in range(100) for _ in range(10)]
    split_of = assign_numbers(range(1000))
    assert len(leaked_patients(patients_N, [split_of[image] for image in range(1000)])) > 90
