"""The files of a report: all or none, and nothing but numbers in the JSON."""

from __future__ import annotations

import json

import pytest

from chestxray_vit.artifacts.evaluation import source_of
from chestxray_vit.errors import InputError
from chestxray_vit.reporting.render.csv_tables import to_csv
from chestxray_vit.reporting.render.text import to_markdown
from chestxray_vit.reporting.write import OUTPUTS, write_results
from chestxray_vit.storage.atomic import sha256
from tests.unit.reporting.examples import edge_cases, report_of


def test_written_files_hold_the_table_and_no_nan(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    source = tmp_path / "a`b|<script>.csv"
    source.write_text("bytes")
    results = report_of(edge_cases(), edge_cases(), sources=[source_of(source)] * 2)
    paths = write_results(results, tmp_path / "new" / "report")
    assert [path.name for path in paths] == list(OUTPUTS)
    assert json.loads(paths[0].read_text(encoding="utf-8"), parse_constant=refuse) == results
    assert paths[2].read_text(encoding="utf-8") == to_csv(results)
    assert paths[5].read_text(encoding="utf-8") == to_markdown(results)
    assert results["sources"] == [{"file_name": source.name, "sha256": sha256(source)}] * 2
    assert str(tmp_path) not in paths[0].read_text(encoding="utf-8")
    assert f"Source a: `a'b|<script>.csv`, sha256 {sha256(source)[:16]}." in to_markdown(results)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(OUTPUTS)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to: .* Name another with --output_dir"):
        write_results(report_of(edge_cases()), tmp_path / "file")
