"""Tables for a terminal and for Markdown, and how numbers are written in them."""

from __future__ import annotations

import re
from typing import Any, List, Mapping, Optional, Sequence

Rows = List[List[str]]
MARKDOWN = re.compile(r"[\\|*`<>\[\]&~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return cells in aligned columns, with rules under the header and above the last row.

    Args:
        rows: cells; the first two are the header's lines, the last is set apart.
        left: columns that are aligned to the left; the others are aligned to the right, as numbers are.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines: List[str] = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])


def in_two_lines(rows: Rows) -> Rows:
    """Return rows with the header cut at each cell's last space."""
    header = [cell.rpartition(" ") for cell in rows[0]]
    return [[above for above, _, _ in header], [below for _, _, below in header], *rows[1:]]


def piped(rows: Rows, num_left: int = 1) -> str:
    """Return cells as a table in Markdown, whose first `num_left` columns are aligned to the left."""
    lines = [rows[0], ["---"] * num_left + ["---:"] * (len(rows[0]) - num_left), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(text: str) -> str:
    """Return a text of a file, such as a label, with the characters escaped that Markdown would take for markup."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", text)


def label_of(finding: str) -> str:
    """Return the name of a finding for readers."""
    return finding.replace("_", " ")


def shown(number: Optional[float], form: str = ".3f") -> str:
    """Return a number for readers."""
    return "undefined" if number is None else format(number, form)


def shown_p(p: Optional[float]) -> str:
    """Return a p-value for readers."""
    return "<0.001" if p is not None and p < 0.001 else shown(p)


def interval(row: Mapping[str, Any]) -> str:
    """Return `low to high`."""
    return "undefined" if row["low"] is None else f"{shown(row['low'])} to {shown(row['high'])}"
