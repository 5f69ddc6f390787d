"""Tables for a terminal."""

from __future__ import annotations

from typing import List, Sequence


def aligned(rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Return cells in aligned columns, with rules under the header and above the last row.

    Args:
        rows: cells; the first two are the header's lines, the last is set apart.
        words: columns that stand to the left; the others stand to the right, as numbers do.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines: List[str] = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])
