"""What a user can mend, told all at once and without a traceback.

A stage collects the problems of its input by kind, with a count and the first examples, and raises
them together, so that a file is mended in one go and not one line a run."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Callable, Dict, List, Optional, Sequence

SHOWN = 3  # examples of one kind of problem; the count tells the rest


class InputError(ValueError):
    """The input is wrong in a way that the user can mend; the text says what, where, and how."""


class Problems:
    """Collects problems by kind.

    >>> problems = Problems("Data_Entry_2017.csv")
    >>> problems.add("unknown finding", "line 812: 'Pneumonía'", remedy="Is the file UTF-8?")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    chestxray_vit.problems.InputError: Data_Entry_2017.csv: unknown finding: line 812: 'Pneumonía'. Is the file UTF-8?
    """

    def __init__(self, where: str):
        self.where = where
        self._examples: Dict[str, List[str]] = {}
        self._remedies: Dict[str, str] = {}

    def add(self, kind: str, example: str, remedy: str = "") -> None:
        """Note one occurrence of a kind of problem."""
        self._examples.setdefault(kind, []).append(example)
        self._remedies[kind] = remedy

    def __bool__(self) -> bool:
        return bool(self._examples)

    def __str__(self) -> str:
        lines = [self._line(kind, examples) for kind, examples in self._examples.items()]
        if len(lines) == 1:
            return f"{self.where}: {lines[0]}"
        return "\n".join([f"{self.where}: {len(lines)} kinds of problems", *(f"  - {line}" for line in lines)])

    def _line(self, kind: str, examples: Sequence[str]) -> str:
        count = f" ({len(examples):,} times; the first {SHOWN}: " if len(examples) > SHOWN else ": "
        close = ")" if len(examples) > SHOWN else ""
        remedy = f". {self._remedies[kind]}" if self._remedies[kind] else "."
        return f"{kind}{count}{'; '.join(examples[:SHOWN])}{close}{remedy}"

    def raise_if_any(self) -> None:
        """Raise one InputError that tells all that was noted."""
        if self:
            raise InputError(str(self))


def reported(main: Callable[[Optional[Sequence[str]]], int]) -> Callable[..., int]:
    """Make a stage's `main` answer an InputError with its text and exit code 2, and Ctrl-C with 130."""

    @functools.wraps(main)
    def stage(argv: Optional[Sequence[str]] = None) -> int:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        for ours in ("chestxray_vit", "__main__"):  # a stage run by `python -m` logs as __main__
            logging.getLogger(ours).setLevel(logging.INFO)
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped by the user", file=sys.stderr)
            return 130

    return stage
