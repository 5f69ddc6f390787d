"""Releases to measure on: NIH's real table where it is at hand, else synthetic rows repeated to its size."""

from __future__ import annotations

import csv
import gzip
import os
import tempfile
from pathlib import Path
from typing import List, Set, Tuple

from PIL import Image

from chestxray_vit.data.readers import nih
from chestxray_vit.data.synthetic.release import Study, draw_release, draw_xray

FULL = 112_120  # images of ChestX-ray14
REAL = Path(__file__).parents[3] / "shared" / "data" / "nih"
CSV = nih.CSV_NAMES[0]


def write_tables(directory: Path, num_rows: int) -> str:
    """Write the CSV and the two split lists of a release of `num_rows` images, and say where they come from."""
    directory.mkdir(parents=True)
    real = nih.find_file(REAL, nih.CSV_NAMES)
    if real is None:
        header, rows, test_names = _synthetic_rows(num_rows)
    else:
        data = real.read_bytes()
        text = (gzip.decompress(data) if real.suffix == ".gz" else data).decode()
        header, *rows = text.splitlines()
        test_names = set((REAL / nih.TEST_LIST).read_text().split())
    rows = rows[:num_rows]
    names = [row.partition(",")[0] for row in rows]
    (directory / CSV).write_text("\n".join([header, *rows]) + "\n")
    for name, in_test in ((nih.TRAIN_VAL_LIST, False), (nih.TEST_LIST, True)):
        (directory / name).write_text("\n".join(image for image in names if (image in test_names) == in_test))
    return f"{'NIH table' if real else 'synthetic table'}, {len(rows):,} rows"


def _synthetic_rows(num_rows: int) -> Tuple[str, List[str], Set[str]]:
    """Repeat a small synthetic release with new patients each time; return header, rows and the test images."""
    num_patients = 100
    with tempfile.TemporaryDirectory() as folder:
        release = draw_release(Path(folder, "synthetic"), num_patients)
        test_names = set((release / nih.TEST_LIST).read_text().split())
        header, *lines = (release / CSV).read_text().splitlines()
    rows, in_test = [], set()
    for offset in range(0, num_rows * num_patients // len(lines) + num_patients, num_patients):
        for name, cell, follow_up, patient, *rest in csv.reader(lines):
            new_name = f"{int(patient) + offset:08d}{name[8:]}"
            rows.append(",".join([new_name, cell, follow_up, str(int(patient) + offset), *rest]))
            if name in test_names:
                in_test.add(new_name)
    return header, rows, in_test


def file_names(directory: Path) -> List[str]:
    """Return the image names of a release's CSV."""
    return [line.partition(",")[0] for line in (directory / CSV).read_text().splitlines()[1:]]


def touch_images(directory: Path) -> None:
    """Put an empty file in `images/` for every row."""
    (directory / "images").mkdir()
    for name in file_names(directory):
        (directory / "images" / name).touch()


def link_images(directory: Path) -> None:
    """Put one tiny PNG in `images/` under the name of every row."""
    (directory / "images").mkdir()
    first, *others = [directory / "images" / name for name in file_names(directory)]
    Image.new("L", (8, 8)).save(first)
    for path in others:
        os.link(first, path)


def xrays_1024(directory: Path, num_images: int) -> Tuple[List[Path], str]:
    """Return paths of X-rays of 1024 pixels a side, and say what they are."""
    real = sorted((REAL / "images").glob("*.png"))[:num_images]
    if real:
        return real, "NIH PNGs of 1024 px"
    directory.mkdir(parents=True)
    for number in range(num_images):
        image_HW = draw_xray([], Study(number + 1), image_size=1024)
        Image.fromarray(image_HW).save(directory / f"{number + 1:08d}_000.png")
    return sorted(directory.glob("*.png")), "synthetic PNGs of 1024 px"
