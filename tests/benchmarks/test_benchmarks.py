"""The benchmarks run and say what they should; how fast the package is, only a full run tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHMARKS, main
from tests.benchmarks.measure import Result, interleave, to_markdown
from tests.benchmarks.releases import CSV, write_tables

ROOT = Path(__file__).parents[2]
KEYS = {"benchmark", "work", "unit", "baseline", "baseline_is", "ours", "ratio", "at_least", "below", "reached"}
KEYS |= {"limit", "limit_is"}
LIMITED = {"ingest", "open", "preprocess", "cache_build", "cached_read", "evaluate", "auc", "bootstrap"}


@pytest.mark.parametrize(
    "names", [[name for name in BENCHMARKS if name != "pipeline"], pytest.param([], id="all", marks=pytest.mark.slow)]
)
def test_benchmarks_run_small(names, tmp_path, capsys):
    """All but the pipeline here, whose processes load torch each; all of them by the command."""
    pytest.importorskip("datasets")
    path = tmp_path / "numbers.json"
    small = [*names, "--rows", "400", "--json", str(path)]
    if names:
        assert main(small) == 0
        printed = capsys.readouterr().out
    else:
        command = [sys.executable, "-m", "tests.benchmarks", *small]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout
    content = json.loads(path.read_text())
    assert content["rows"] == 400
    assert {"cpu", "cores", "python", "numpy", "torch", "transformers", "datasets"} <= set(content["machine"])
    assert list(dict.fromkeys(result["benchmark"] for result in content["results"])) == (names or list(BENCHMARKS))
    lines = printed[printed.index("| benchmark ") :].splitlines()
    for line, result in zip(lines[2:], content["results"]):
        check_result(line, result)
    assert "cores" in lines[-1]


def check_result(line, result):
    """A line of the table shows a result, whose numbers agree."""
    assert set(result) == KEYS
    assert line.count("|") == 8
    assert (result["benchmark"] not in LIMITED) or (result["limit"] > 0 and result["limit_is"] in line)
    assert line.startswith(f"| {result['benchmark']} ")
    assert result["work"] in line
    assert result["ours"] > 0
    assert result["reached"] is None  # targets hold at full size only
    if result["baseline"] is not None:
        faster = result["baseline"] / result["ours"]
        assert result["ratio"] == pytest.approx(1 / faster if result["unit"].endswith("/s") else faster)


def test_result_knows_which_way_is_better_and_whether_the_target_is_reached():
    slower = Result("a", "w", "ms", 4.0, baseline=2.0, baseline_is="b", at_least=1.0, limit=0.0123, limit_is="l")
    faster = Result("a", "w", "images/s", ours=30.0, baseline=10.0, baseline_is="b", at_least=3.0)
    assert (slower.ratio, slower.reached) == (0.5, False)
    assert (faster.ratio, faster.reached) == (3.0, True)
    assert (Result("a", "w", "s", ours=2.0, below=2).reached, Result("a", "w", "s", ours=2.0).reached) == (False, None)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in to_markdown([slower, faster]).splitlines()]
    assert rows[0] == ["benchmark", "what", "baseline", "ours", "ratio", "limit", "target"]
    assert rows[2] == ["a", "w", "2.00 ms (b)", "4.00 ms", "0.50x", "0.012 ms (l)", ">= 1x: MISSED"]
    assert rows[3] == ["a", "w", "10.0 images/s (b)", "30.0 images/s", "3.00x", "", ">= 3x: reached"]


def test_interleave_turns_the_order_and_leaves_out_the_first_round():
    calls = []
    clock = iter(range(100))
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    # the clock is read around every counted run, and at the start of the others
    medians = interleave(ways, 2, lambda: next(clock))
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert medians == {"a": 1, "b": 1}


def test_synthetic_table_has_the_size_and_form_of_the_real_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.releases.REAL", tmp_path / "nowhere")
    assert write_tables(tmp_path / "release", 1000) == "synthetic table, 1,000 rows"
    from chestxray_vit.data import ingestion
    from chestxray_vit.data.readers import nih

    entries = nih.read_entries(tmp_path / "release" / CSV)
    assert len(entries) == len(set(entries.column("file_name"))) == 1000
    lists = ingestion.find_lists(tmp_path / "release", "auto", None, None)
    splits = set(ingestion.assign_splits(entries, lists, False, 0.1, 1337).column("split"))
    assert splits == {"train", "validation", "test"}


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["ingest", "digest"])
    assert (
        "no benchmark digest. Known: ingest, ingest_end_to_end, open, preprocess, cache_build, cached_read, waiting"
        in capsys.readouterr().err
    )
