"""The files of a report: auc.json, its schema, and the same numbers as CSV, Markdown and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

from chestxray_vit.errors import InputError
from chestxray_vit.reporting.render.csv_tables import to_csv, to_operating_csv, to_subgroup_csv
from chestxray_vit.reporting.render.html import to_html
from chestxray_vit.reporting.render.text import to_markdown
from chestxray_vit.reporting.schema import schema_text
from chestxray_vit.storage.atomic import PathLike, atomic_write_many
from chestxray_vit.storage.json_files import to_json

OUTPUTS = (
    "auc.json",
    "auc.schema.json",
    "auc.csv",
    "operating_points.csv",
    "subgroups.csv",
    "auc.md",
    "auc.html",
)


def texts(results: Dict[str, Any], pictures: Optional[Dict[str, str]] = None) -> Dict[str, str]:
    """Return the text of each file, by the names of OUTPUTS.

    Args:
        results: of `build_report` or `read_results`.
        pictures: of the mistakes' images, by file name, of `thumbnails.thumbnails`; None to show none.
    """
    rendered = (
        to_json(results),
        schema_text(),
        to_csv(results),
        to_operating_csv(results),
        to_subgroup_csv(results),
        to_markdown(results),
        to_html(results, pictures),
    )
    return dict(zip(OUTPUTS, rendered))


def write_results(
    results: Dict[str, Any], output_dir: PathLike, pictures: Optional[Dict[str, str]] = None
) -> List[Path]:
    """Write all files of a report, all or none, and return their paths.

    Args:
        results, pictures: as `texts` takes them.
        output_dir: made if it is not there.

    Raises:
        InputError: the folder cannot be written to.
    """
    paths = [Path(output_dir) / name for name in OUTPUTS]
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with atomic_write_many(paths) as asides:
            for aside, text in zip(asides, texts(results, pictures).values()):
                aside.write_bytes(text.encode("utf-8"))
    except OSError as err:
        raise InputError(f"{output_dir}: cannot be written to: {err}. Name another with --output_dir.") from err
    return paths
