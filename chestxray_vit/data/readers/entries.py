"""The images of a release, as each reader returns them: one row an image, every field checked.

N images, L labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.labels import SEPARATOR, LabelSet

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Entries:
    """The images of a release, in its order.

    Attributes:
        table: a row an image. `file_name`: without a folder, all different; `number`: the whole number that the name
            stands for; `findings`: a cell such as `Edema|Effusion`; `patient_id`: a text; `age`: completed years, null
            where absurd; `sex`: `M`, `F` or null; `view`: `PA`, `AP` or another text, null where unknown;
            `follow_up`: a number, null where unknown. `split` is added when images are assigned.
        label_set: what the cells of `findings` are encoded by.
        notices: what was repaired in reading, in words.
        left_out: why images were left out, and how many.
    """

    table: pyarrow.Table
    label_set: LabelSet
    notices: Tuple[str, ...] = ()
    left_out: Tuple[Tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return self.table.num_rows

    def arrow(self, name: str) -> Any:
        """Return a column of the table as one Arrow array of N values."""
        return self.table[name].combine_chunks()

    def column(self, name: str) -> List[Any]:
        """Return a column of the table as a list of N values."""
        return self.table[name].to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of whole numbers without nulls as an array of N int64."""
        return self.table[name].to_numpy()

    def keep(self, rows_N: np.ndarray, notices: Sequence[str] = (), reason: Optional[str] = None) -> Entries:
        """Return the entries whose element in `rows_N` (bool) is true.

        Args:
            rows_N: whether a row is kept.
            notices: further ones.
            reason: why the others are left out; None does not count them.
        """
        import pyarrow

        table = self.table.filter(pyarrow.array(rows_N))
        counted = () if reason is None else ((reason, len(self) - len(table)),)
        return Entries(table, self.label_set, (*self.notices, *notices), (*self.left_out, *counted))

    def with_splits(self, names: Sequence[str], codes_N: np.ndarray) -> Entries:
        """Return the entries with a column `split`: for each row the name that its code stands for."""
        import pyarrow

        column = pyarrow.DictionaryArray.from_arrays(codes_N, list(names))
        return Entries(self.table.append_column("split", column), self.label_set, self.notices, self.left_out)

    def labels(self) -> Tuple[List[List[float]], np.ndarray]:
        """Return the N-hot rows (L) of the distinct cells, and for each image the index of its row (N)."""
        cells, codes_N = distinct(self.arrow("findings"))
        return [self.label_set.encode(cell.split(SEPARATOR)) for cell in cells], codes_N
