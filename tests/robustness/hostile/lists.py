"""NIH's two split lists, spoilt: a patient in two sets is worth more than a stop."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Callable, List

from tests.robustness.hostile import ACCEPT, REFUSE, Case
from tests.robustness.hostile.csvs import rows_of, same

INGEST = "ingest release"
TRAIN_VAL, TEST = "release/train_val_list.txt", "release/test_list.txt"


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


def both(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        changed(TRAIN_VAL, change)(root)
        changed(TEST, change)(root)

    return make


def names(root: Path, name: str) -> List[str]:
    return (root / name).read_text().split()


def torn(root: Path) -> None:
    """Move one of two images of a patient from the test list to the other."""
    test = names(root, TEST)
    image = next(one for one in test if sum(other[:8] == one[:8] for other in test) > 1)
    (root / TEST).write_text("\n".join(one for one in test if one != image))
    (root / TRAIN_VAL).write_text("\n".join([*names(root, TRAIN_VAL), image]))


def overlapping(root: Path) -> None:
    (root / TRAIN_VAL).write_text("\n".join([*names(root, TRAIN_VAL), names(root, TEST)[0]]))


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return change


def removed(*paths: str) -> Callable[[Path], object]:
    return lambda root: [(root / path).unlink() for path in paths]


def by_patient(root: Path, said: str) -> None:
    """Without lists patients are drawn, and no patient is in two sets."""
    rows = rows_of(root)
    assert len({(row["patient_id"], row["split"]) for row in rows}) == len({row["patient_id"] for row in rows})
    assert len({row["split"] for row in rows}) == 3


def no_test(root: Path, said: str) -> None:
    assert "test" not in {row["split"] for row in rows_of(root)}


SAME = {"command": INGEST, "outcome": ACCEPT, "check": same}
UNKNOWN = "image that the CSV has not"

CASES = (
    Case("CRLF", both(lambda content: content.replace(b"\n", b"\r\n")), **SAME),
    Case("byte order mark", both(lambda content: b"\xef\xbb\xbf" + content), **SAME),
    Case("no final newline", both(bytes.rstrip), **SAME),
    Case("blank lines and blanks", both(lambda content: b"\n\n " + content.replace(b"\n", b"  \n\n") + b"\t"), **SAME),
    Case("sorted the other way", both(lambda content: b"\n".join(reversed(content.split()))), **SAME),
    Case("a name twice in one list", both(lambda content: content + b"\n" + content.split()[0]), **SAME),
    Case("gzipped under its own name", both(gzip.compress), **SAME),
    Case("lists that overlap", overlapping, INGEST, REFUSE, ("image in both lists: '", "Each image belongs to one")),
    Case("one list for both", lambda root: None, f"{INGEST} --train_val_list {TEST}", REFUSE, ("image in both lists",)),
    Case("lists that tear a patient", torn, INGEST, REFUSE, ("patient in both lists: ", "--split patient")),
    Case(
        "an unknown name",
        changed(TEST, lambda content: content + b"99999999_000.png\n"),
        INGEST,
        REFUSE,
        (f"{UNKNOWN}: '99999999_000.png'",),
    ),
    Case(
        "names with folders",
        both(lambda content: content.replace(b"0000", b"images/0000", 1)),
        INGEST,
        REFUSE,
        (UNKNOWN,),
    ),
    Case(
        "names that climb", changed(TEST, lambda c: c + b"../../outside/xray.png"), INGEST, REFUSE, ("'../../outside",)
    ),
    Case("names in capitals", both(bytes.upper), INGEST, REFUSE, (UNKNOWN, "image of the CSV in neither list")),
    Case("names with commas", both(lambda content: content.replace(b"\n", b",\n")), INGEST, REFUSE, (UNKNOWN,)),
    Case("cut", changed(TRAIN_VAL, lambda content: content[:-7]), INGEST, REFUSE, (UNKNOWN, "in neither list")),
    Case("an empty list of both", both(lambda content: b""), INGEST, REFUSE, ("in neither list", "NIH's whole lists")),
    Case("an empty train_val list", changed(TRAIN_VAL, lambda content: b""), INGEST, REFUSE, ("in neither list",)),
    Case("not UTF-8", changed(TEST, lambda c: c + b"\xff.png"), INGEST, REFUSE, ("test_list.txt line ", "not UTF-8")),
    Case("NULs", changed(TEST, lambda content: content + b"\0" * 99), INGEST, REFUSE, (UNKNOWN, r"\x00")),
    Case("terminal codes", changed(TEST, lambda c: c + b"\x1b[2J\n"), INGEST, REFUSE, (UNKNOWN, r"\x1b[2J")),
    Case("one name of 1 MB", changed(TEST, lambda content: content + b"x" * 10**6), INGEST, REFUSE, (UNKNOWN,)),
    Case("an HTML page", changed(TEST, lambda content: b"<!DOCTYPE html><p>Sign in</p>"), INGEST, REFUSE, (UNKNOWN,)),
    Case(
        "a bomb",
        changed(TEST, lambda content: gzip.compress(b"\n" * 2**20) * 6_000),
        INGEST,
        REFUSE,
        ("larger than",),
        contained=True,
    ),
    Case("a folder", in_place(TEST, Path.mkdir), INGEST, REFUSE, ("no such file: test_list.txt", "--test_list")),
    Case("a pipe", in_place(TEST, os.mkfifo), INGEST, REFUSE, ("no such file: test_list.txt",), contained=True),
    Case("a link to nowhere", in_place(TEST, lambda path: path.symlink_to("no")), INGEST, REFUSE, ("no such file",)),
    Case("one list alone", removed(TEST), INGEST, REFUSE, ("no such file: test_list.txt",)),
    Case("no lists", removed(TEST, TRAIN_VAL), INGEST, ACCEPT, ("splitting by a hash",), check=by_patient),
    Case("no lists, though wanted", removed(TEST, TRAIN_VAL), f"{INGEST} --split official", REFUSE, ("no such file",)),
    Case(
        "an empty test list",
        lambda root: [
            (root / TRAIN_VAL).write_text("\n".join(names(root, TRAIN_VAL) + names(root, TEST))),
            (root / TEST).write_text(""),
        ],
        INGEST,
        ACCEPT,
        ("the test set is empty",),
        check=no_test,
    ),
)
