"""What the tests with random files share: how often they draw, how a file is broken, and what a reader may answer.

The same 60 examples a test in every run. CHESTXRAY_VIT_FUZZ=N draws N others, new ones each time; a failure prints the
example and how to repeat it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, configuration, settings
from hypothesis import strategies as st

from chestxray_vit.errors import InputError

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))  # not into the repository
MORE = os.environ.get("CHESTXRAY_VIT_FUZZ")
fuzzed = settings(
    max_examples=int(MORE or 60),
    derandomize=MORE is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MOST_SAID = 20_000  # characters of an error


def read(reader: Callable[[], Any]) -> Any:
    """Return what a reader gives, None if it refuses."""
    try:
        return reader()
    except InputError as error:
        assert 0 < len(str(error)) < MOST_SAID
        return None


# How a file is broken: whole bytes at random, or a good file with some edits.

PIECES = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b",",
    b";",
    b'"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"|",
    b"-",
    b"..",
    b"/",
    b"nan",
    b"1e999",
]
PIECES += [
    b"9" * 30,
    b"\xd9\xa5",
    b"\xe2\x80\xa8",
    b"\x1b[2J",
    b"null",
    b"[",
    b"{",
    b"}",
    b"]",
    b"\\",
    b"\\u0000",
    b":",
]
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 20), st.one_of(st.sampled_from(PIECES), st.binary(max_size=9))),
    min_size=1,
    max_size=6,
)
garbage = st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))


def edited(content: bytes, changes: List[Tuple[float, int, bytes]]) -> bytes:
    """Replace bytes of a good file: (where in it, how many, by what)."""
    for index, length, piece in changes:
        at = int(index * len(content))
        content = content[:at] + piece + content[at + length :]
    return content
