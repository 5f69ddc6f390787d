"""A file of equal rows, filled by many threads; a killed fill goes on where it was.

A second file marks each row: to do, done, or failed. A row is marked done once its bytes are on the disk, so that
neither a kill nor a power cut leaves a mark without a row. The caller holds the lock: one process writes.

N rows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Deque, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from chestxray_vit.storage.atomic import write_bytes

TO_DO, DONE, FAILED = 0, 1, 2  # marks
WINDOW = 256  # rows in work or not yet marked: no more are made again after a kill
Row = Union[bytes, str]  # its bytes, or why it has none


class RowFile:
    """Rows of the same number of bytes, and their marks.

    Attributes:
        marks_N: uint8; those of an earlier fill, but only where the rows are still there.
    """

    def __init__(self, path: Path, marks_path: Path, num_rows: int, row_bytes: int):
        self.path, self.marks_path, self.row_bytes = path, marks_path, row_bytes
        self.marks_N = np.zeros(num_rows, np.uint8)
        with contextlib.suppress(FileNotFoundError):
            num_there = path.stat().st_size // row_bytes
            found_N = np.fromfile(marks_path, np.uint8)
            if len(found_N) == num_rows:
                self.marks_N[:num_there] = found_N[:num_there]
        # before `reserve`, which makes the file long again
        write_bytes(marks_path, self.marks_N.tobytes())

    @property
    def todo(self) -> np.ndarray:
        """The rows that are not done; failed ones are tried again, since their cause may be gone."""
        return np.flatnonzero(self.marks_N != DONE)

    def reserve(self) -> None:
        """Take the disk space of all rows now, so that a full disk is seen before the first row.

        Raises:
            OSError: no space; what could be had of it is given back.
        """
        total = len(self.marks_N) * self.row_bytes
        with open(self.path, "ab") as file:
            before = min(total, os.fstat(file.fileno()).st_size)
            try:
                if hasattr(os, "posix_fallocate"):  # macOS has none
                    os.posix_fallocate(file.fileno(), 0, total)
            except OSError as error:
                file.truncate(before)
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that reserve nothing
                    raise
            file.truncate(total)

    def fill(
        self, make_row: Callable[[int], Row], num_threads: Optional[int], advance: Callable[[], object]
    ) -> Dict[int, str]:
        """Make and write the rows that are not done, marking them.

        Args:
            make_row: gives a row, called in many threads; what it raises ends the fill.
            num_threads: None for as many as cores.
            advance: called after each row.

        Returns:
            Why rows failed, by row.

        Raises:
            OSError: a write failed.
        """
        with open(self.path, "r+b") as rows, open(self.marks_path, "r+b") as marks:
            filling = _Filling(self, make_row, advance, rows.fileno(), marks.fileno())
            with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:  # ends before its files are closed
                filling.run(pool)
        return filling.failed


class _Filling:
    """One call of `fill`: two half windows are in work; while one goes to the disk the threads make the other."""

    def __init__(
        self, target: RowFile, make_row: Callable[[int], Row], advance: Callable[[], object], rows: int, marks: int
    ):
        self.target, self.make_row, self.advance, self.rows, self.marks = target, make_row, advance, rows, marks
        self.failed: Dict[int, str] = {}

    def run(self, pool: ThreadPoolExecutor) -> None:
        todo, half = self.target.todo, WINDOW // 2
        pending: Deque[Tuple[np.ndarray, List[Future]]] = deque()
        try:
            for start in range(0, len(todo), half):
                rows = todo[start : start + half]
                pending.append((rows, [pool.submit(self.write, row) for row in rows.tolist()]))
                if len(pending) == 2:
                    self.settle(*pending[0])
                    pending.popleft()
            for rows, futures in pending:
                self.settle(rows, futures)
        finally:
            for _, futures in pending:  # after an error or Ctrl-C: do not wait for what has not begun
                for future in futures:
                    future.cancel()

    def write(self, row: int) -> Optional[str]:
        made = self.make_row(row)
        if isinstance(made, str):
            return made
        # not through a memory map: there a disk that is full after all ends the process (SIGBUS)
        _write_at(self.rows, made, row * self.target.row_bytes)
        return None

    def settle(self, rows: np.ndarray, futures: Sequence[Future]) -> None:
        """Wait for ascending rows, bring them to the disk, and only then mark them."""
        marks_N = self.target.marks_N
        for row, future in zip(rows.tolist(), futures):
            reason = future.result()
            marks_N[row] = DONE if reason is None else FAILED
            if reason is not None:
                self.failed[row] = reason
            self.advance()
        os.fsync(self.rows)
        first, end = int(rows[0]), int(rows[-1]) + 1  # a row between them that is not of them was done before
        _write_at(self.marks, marks_N[first:end].tobytes(), first)
        os.fsync(self.marks)


def _write_at(file: int, content: bytes, offset: int) -> None:
    while content:  # a write stops short at the end of the disk; the next one raises
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
