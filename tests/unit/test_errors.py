"""Problems are told all at once, with counts; what the user can mend ends without a traceback."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import pytest

from chestxray_vit import errors as problems
from chestxray_vit.entry_point import READER_LEFT, cli_main
from chestxray_vit.errors import InputError, Problems, explain_out_of_memory


def test_nothing_noted_raises_nothing():
    empty = Problems("a.csv")
    assert not empty
    empty.raise_if_any()


def test_one_kind_is_one_line():
    found = Problems("a.csv")
    found.add("unknown finding", "line 3: 'Masse'", remedy="Spell it as NIH does.")
    assert found
    with pytest.raises(InputError) as error:
        found.raise_if_any()
    assert str(error.value) == "a.csv: unknown finding: line 3: 'Masse'. Spell it as NIH does."


@pytest.mark.parametrize(
    "count, expected",
    [
        (1, "a.csv: bad: line 1."),
        (2, "a.csv: bad: line 1; line 2."),
        (3, "a.csv: bad: line 1; line 2; line 3."),
        (4, "a.csv: bad (4 times; the first 3: line 1; line 2; line 3)."),
        (1234, "a.csv: bad (1,234 times; the first 3: line 1; line 2; line 3)."),
    ],
)
def test_three_examples_are_shown_and_the_others_counted(count, expected):
    found = Problems("a.csv")
    for line in range(1, count + 1):
        found.add("bad", f"line {line}")
    assert str(found) == expected


def test_kinds_are_listed_in_the_order_of_their_first_example():
    found = Problems("a.csv")
    found.add("worse", "line 9", remedy="Stop.")
    for line in range(1, 5):
        found.add("bad", f"line {line}", remedy="Go on.")
    found.add("worse", "line 10", remedy="Stop.")
    assert str(found) == (
        "a.csv: 2 kinds of problems\n"
        "  - worse: line 9; line 10. Stop.\n"
        "  - bad (4 times; the first 3: line 1; line 2; line 3). Go on."
    )


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_docstring_example():
    result = doctest.testmod(problems)
    assert (result.attempted, result.failed) == (3, 0)


# cli_main


def test_reported_returns_what_main_returns():
    seen = []

    @cli_main
    def main(argv=None):
        """Run the stage."""
        seen.append(argv)
        return 7

    assert main() == 7
    assert main(["a"]) == 7
    assert seen == [None, ["a"]]
    assert (main.__name__, main.__doc__) == ("main", "Run the stage.")


def test_reported_tells_an_input_error_and_exits_2(capsys):
    @cli_main
    def main(argv=None):
        raise InputError("a.csv: no rows.")

    assert main([]) == 2
    assert capsys.readouterr() == ("", "error: a.csv: no rows.\n")


def test_reported_answers_ctrl_c_with_130(capsys):
    @cli_main
    def main(argv=None):
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr() == ("", "stopped by the user\n")


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, SystemExit])
def test_reported_hides_no_other_exception(kind):
    @cli_main
    def main(argv=None):
        raise kind("a defect")

    with pytest.raises(kind, match="a defect"):
        main([])


PRINTING = """
import sys
from chestxray_vit.entry_point import cli_main
@cli_main
def main(argv=None):
    for _ in range({lines}):
        print("a line", flush={flush})
    return 7
sys.exit(main())
"""


@pytest.mark.parametrize("lines, flush, code", [(9, False, 7), (9, True, READER_LEFT), (99999, False, READER_LEFT)])
def test_a_reader_that_leaves_is_no_error(lines, flush, code):
    """As `| head` does: what is done by then counts, and nothing is said."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", PRINTING.format(lines=lines, flush=flush)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=buffered, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (code, b"")


def test_another_broken_pipe_is_a_defect():
    @cli_main
    def main(argv=None):
        raise BrokenPipeError("of a loader")

    with pytest.raises(BrokenPipeError, match="of a loader"):
        main([])


def test_no_memory_is_told_with_what_helps():
    words = "^no memory for 1,024 images at a time: lower it[.]$"
    with pytest.raises(InputError, match=words), explain_out_of_memory(1024, "lower it"):
        bytearray(1 << 60)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(1, "lower it"):
        raise RuntimeError("shapes differ")
