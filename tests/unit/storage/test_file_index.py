"""Names keep their order and their exact text; a scan finds the files that are among them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.storage.file_index import folders_of, indices_of, is_outside, pack_names, scan_folder, unpack_names

NAMES = ["b.png", "a/ä.png", "a/z.png", "a.png", "a/b/\U0001f9b4.png", "\ufffd.png", "a b.png", "00000001_000.png", "Z"]


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025])
def test_names_are_held_in_the_order_given(count):
    names = [f"{'ä' * (number % 7)}{number}" for number in range(count)]
    names_N = pack_names(iter(names))
    assert names_N.shape == (count,)
    assert unpack_names(names_N) == names


def test_names_sort_as_strings_do():
    names = [*NAMES, "\udcff.png", "\ud7ff", "\ue000", "\uffff", "\U00010000", "a", "aa", "", "A", "ab", "é", "e\u0301"]
    random.Random(1).shuffle(names)
    names_N = pack_names(names)
    names_N.sort()
    assert unpack_names(names_N) == sorted(names)


@pytest.mark.parametrize("name", ["a.png\0", "a\0b.png", "\0", "n" * 8193, "ä" * 4097])
def test_names_that_no_file_can_have(name):
    with pytest.raises(InputError) as error:
        pack_names(["b.png", name])
    assert str(error.value) == f"no file can have the name {name[:80]!r}. Ingest the release again."


def test_indices_of_names():
    names_N = pack_names(sorted(NAMES))
    wanted = ["b.png", "", "zz", "a.png", "00000001_000.png.bak", "00000001_000.pn", "a/b/\U0001f9b4.pngg", "b.png"]
    expected = [sorted(NAMES).index(name) if name in NAMES else -1 for name in wanted]
    indices_M = indices_of(names_N, pack_names(wanted))
    assert (indices_M.dtype, indices_M.tolist()) == (np.int64, expected)
    assert indices_of(names_N, pack_names([])).shape == (0,)


def test_folders_of_names():
    assert folders_of(pack_names(NAMES)) == {"", "a/", "a/b/"}
    assert folders_of(pack_names(["/x", "../x", "a.png"])) == {"/", "../", ""}
    assert [is_outside(folder) for folder in ("", "a/", "a..b/", "/", "/a/", "../", "a/../")] == [False] * 3 + [
        True
    ] * 4


def test_a_scan_gives_what_is_among_the_names(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names_N = pack_names(sorted(NAMES))
    found = [
        (unpack_names(names_N)[index], file.name)
        for folder in ("", "a/")
        for indices_M, files in scan_folder(tmp_path, folder, names_N)
        for index, file in zip(indices_M.tolist(), files)
        if index >= 0
    ]
    assert sorted(found) == sorted((name, name.rpartition("/")[2]) for name in NAMES if "/b/" not in name)
