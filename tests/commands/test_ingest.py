"""`ingest` on small releases: every row of the metadata, every count of the report, every refusal."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chestxray_vit import __version__
from chestxray_vit.ingest import main
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.storage.atomic import sha256
from tests.conftest import MINI_ROWS, write_csv, write_release
from tests.helpers.ingesting import (
    CSV,
    MINI_METADATA,
    ingest,
    positives,
    refusal,
    report_of,
    rows_of,
)


def test_metadata_of_the_mini_release(mini_release, capsys):
    assert ingest(mini_release) == 0
    assert (mini_release / "images" / "metadata.jsonl").read_bytes().decode() == "\n".join(MINI_METADATA) + "\n"
    images = mini_release / "images"
    assert capsys.readouterr().out.endswith(f"\nwrote {images}/metadata.jsonl and {images}/ingest_report.json\n")
    assert sorted(os.listdir(mini_release)) == [CSV, "images", "test_list.txt", "train_val_list.txt"]


def test_report_of_the_mini_release(mini_release):
    assert ingest(mini_release) == 0
    assert report_of(mini_release) == {
        "package_version": __version__,
        "label_set": NIH_CHESTXRAY14.to_dict(),
        "findings": list(NIH_CHESTXRAY14.findings),
        "sources": {name: sha256(mini_release / name) for name in (CSV, "train_val_list.txt", "test_list.txt")},
        "metadata": {"metadata.jsonl": sha256(mini_release / "images" / "metadata.jsonl")},
        "split": {"method": "official", "val_fraction": 0.2, "seed": 1337, "leaked_patients": 0},
        "num_rows": 5,
        "num_images": 5,
        "left_out": {},
        "notices": [],
        "splits": {
            "train": {"images": 2, "patients": 1, "positives": positives(Cardiomegaly=2, Emphysema=1)},
            "validation": {"images": 1, "patients": 1, "positives": positives()},
            "test": {
                "images": 2,
                "patients": 1,
                "positives": positives(Hernia=1, Infiltration=1, Pleural_Thickening=1),
            },
        },
    }


def test_printed_table(mini_release, capsys):
    assert main([str(mini_release)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["train", "validation", "test"],
        ["images", "3", "0", "2"],
        ["patients", "2", "0", "1"],
        ["Atelectasis", "0", "0", "0"],
        ["Cardiomegaly", "2", "0", "0"],
    ]
    assert lines[-4:-1] == [
        "5 rows, 5 images kept; nothing was left out",
        "notice: the validation set is empty",
        "split: official; patients in more than one set: 0",
    ]


def test_same_bytes_twice(mini_release, synthetic_release, tmp_path):
    for release in (mini_release, shutil.copytree(str(synthetic_release), str(tmp_path / "phantom"))):
        contents = []
        for _ in range(2):
            assert ingest(release) == 0
            names = ("metadata.jsonl", "ingest_report.json")
            contents.append([(Path(release) / "images" / name).read_bytes() for name in names])
        assert contents[0] == contents[1]


def test_every_row_of_a_release_is_a_row_of_the_metadata(synthetic_dataset):
    """The independent slow reading: split each line at its commas."""
    lines = (synthetic_dataset / CSV).read_text().splitlines()[1:]
    test = set((synthetic_dataset / "test_list.txt").read_text().split())
    rows = rows_of(synthetic_dataset)
    assert len(rows) == len(lines) > 100
    for line, row in zip(lines, rows):
        name, cell, follow_up, patient, age, sex, view = line.split(",")[:7]
        assert row["file_name"] == name
        assert row["labels"] == NIH_CHESTXRAY14.encode(cell.split("|"))
        assert (row["split"] == "test") == (name in test)
        fields = (row["patient_id"], row["age"], row["sex"], row["view"], row["follow_up"])
        assert fields == (patient, int(age), sex, view, int(follow_up))
    report = report_of(synthetic_dataset)
    for split, counts in report["splits"].items():
        of_split = [row for row in rows if row["split"] == split]
        assert counts["images"] == len(of_split) > 0
        assert counts["patients"] == len({row["patient_id"] for row in of_split})
        sums = [sum(column) for column in zip(*(row["labels"] for row in of_split))]
        assert counts["positives"] == dict(zip(NIH_CHESTXRAY14.findings, sums))
    sets = [{row["patient_id"] for row in rows if row["split"] == split} for split in report["splits"]]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_no_finding_as_a_fifteenth_label(mini_release):
    assert ingest(mini_release, "--include_no_finding") == 0
    labels = [row["labels"] for row in rows_of(mini_release)]
    assert [row[14] for row in labels] == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert [row[:14] for row in labels] == [json.loads(line)["labels"] for line in MINI_METADATA]
    report = report_of(mini_release)
    assert report["findings"] == [*NIH_CHESTXRAY14.findings, "No Finding"]
    assert [counts["positives"]["No Finding"] for counts in report["splits"].values()] == [0, 1, 0]


def test_nulls_in_the_metadata(tmp_path):
    rows = [*MINI_ROWS, "00000004_000.png,Mass,,4,411Y,,,2500,2048,0.171,0.171"]
    release = write_release(tmp_path / "release", rows)
    assert ingest(release) == 0
    last = (release / "images" / "metadata.jsonl").read_text().splitlines()[-1]
    assert last.endswith('"patient_id": "4", "age": null, "sex": null, "view": null, "follow_up": null}')
    assert report_of(release)["notices"] == [
        "1 of 6 rows have no usable age (such as '411Y'): kept as null",
        "1 of 6 rows have no usable sex (such as ''): kept as null",
        "1 of 6 rows have no usable view (such as ''): kept as null",
        "1 of 6 rows have no usable follow-up number (such as ''): kept as null",
    ]


def test_nulls_where_rows_are_left_out(tmp_path):
    """Values, nulls among them, stay with their image through --views, --allow_missing and the merging of rows."""
    texts = [("58", "M", "PA", "3"), ("411Y", "F", "", ""), ("", "", "AP", "0"), ("013M", "U", "PA", "x")]
    rows = [
        f"{1 + n:08d}_000.png,{NIH_CHESTXRAY14.findings[n % 14]},{follow_up},{1 + n},{age},{sex},{view},1,1,1,1"
        for n in range(60)
        for age, sex, view, follow_up in [texts[n % 4] if n % 5 else texts[1]]
    ]
    release = write_release(tmp_path / "release", rows)
    write_csv(release / CSV, [*rows[:20], rows[7], rows[19], *rows[20:]])
    for n in range(0, 60, 7):
        (release / "images" / f"{1 + n:08d}_000.png").unlink()
    known = {"58": 58, "411Y": None, "": None, "013M": 1, "M": "M", "F": "F", "U": None, "3": 3, "0": 0, "x": None}
    expected = []
    for row in rows:
        name, cell, follow_up, patient, age, sex, view = row.split(",")[:7]
        if (int(patient) - 1) % 7:
            values = (known[age], known[sex], view or None, known[follow_up])
            expected.append((name, NIH_CHESTXRAY14.encode([cell]), patient, *values))
    for views in (None, "PA", "AP", "AP,PA"):
        assert ingest(release, "--allow_missing", *(["--views", views] if views else [])) == 0
        names = ("file_name", "labels", "patient_id", "age", "sex", "view", "follow_up")
        found = [tuple(row[name] for name in names) for row in rows_of(release)]
        assert found == [row for row in expected if views is None or row[5] in views.split(",")]
        assert len(found) > 8
    assert any(row[5] is None for row in expected)


def test_a_column_that_is_null_in_every_row(tmp_path):
    rows = [f"0000000{n}_000.png,Mass,,{n},411Y,,,1,1,1,1" for n in range(1, 6)]
    release = write_release(tmp_path / "release", rows)
    assert ingest(release) == 0
    for row in rows_of(release):
        assert [row[name] for name in ("age", "sex", "view", "follow_up")] == [None] * 4
    assert report_of(release)["notices"][0] == "5 of 5 rows have no usable age (such as '411Y'): kept as null"
    assert main([str(release), "--views", "PA"]) == 2


def test_a_release_of_one_image(tmp_path):
    release = write_release(tmp_path / "release", MINI_ROWS[:1])
    assert ingest(release) == 0
    assert (release / "images" / "metadata.jsonl").read_text() == MINI_METADATA[0] + "\n"


def test_a_view_that_json_must_escape(tmp_path):
    rows = [*MINI_ROWS, '00000004_000.png,Mass,0,4,50,F,"P""Ä\\",2500,2048,0.171,0.171']
    release = write_release(tmp_path / "release", rows)
    assert ingest(release) == 0
    assert rows_of(release)[-1]["view"] == 'P"Ä\\'


def test_doubled_rows_are_merged_with_a_notice(tmp_path, capsys):
    release = write_release(tmp_path / "release")
    write_csv(release / CSV, [*MINI_ROWS, MINI_ROWS[0]])
    assert ingest(release) == 0
    assert len(rows_of(release)) == 5
    notice = "1 doubled rows agree with the first of their image: merged"
    assert report_of(release)["notices"] == [notice]
    assert f"notice: {notice}\n" in capsys.readouterr().out


def test_gzipped_csv_and_lists(mini_release):
    for name in (CSV, "train_val_list.txt", "test_list.txt"):
        (mini_release / f"{name}.gz").write_bytes(gzip.compress((mini_release / name).read_bytes()))
        (mini_release / name).unlink()
    assert ingest(mini_release) == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA
    assert list(report_of(mini_release)["sources"]) == [f"{CSV}.gz", "train_val_list.txt.gz", "test_list.txt.gz"]


def test_the_older_csv_is_taken_where_the_newer_is_not(mini_release):
    write_csv(mini_release / "Data_Entry_2017.csv", MINI_ROWS[:1])
    assert ingest(mini_release) == 0
    assert report_of(mini_release)["num_rows"] == 5
    (mini_release / CSV).rename(mini_release / "Data_Entry_2017.csv")
    assert ingest(mini_release) == 0
    assert next(iter(report_of(mini_release)["sources"])) == "Data_Entry_2017.csv"


def test_files_named_by_flags(mini_release, tmp_path):
    for name in (CSV, "train_val_list.txt", "test_list.txt"):
        (mini_release / name).rename(tmp_path / f"my {name}")
    flags = ["--csv", tmp_path / f"my {CSV}", "--train_val_list", tmp_path / "my train_val_list.txt"]
    assert ingest(mini_release, *flags, "--test_list", tmp_path / "my test_list.txt") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


def test_no_release(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/none: no such folder. Name the folder of the NIH release as the first argument.\n"
    )
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: no such file: {CSV} or Data_Entry_2017.csv in {tmp_path}, plain or .gz. "
        "Fetch it from NIH, or name it with --csv.\n"
    )
    assert main([str(tmp_path), "--csv", str(tmp_path / "x.csv")]) == 2
    assert capsys.readouterr().err.startswith(f"error: no such file: {tmp_path}/x.csv. Fetch it from NIH")
    write_csv(tmp_path / CSV)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no image folder: looked for {tmp_path}/images and ")
    assert os.listdir(tmp_path) == [CSV]


def test_a_wrong_csv(mini_release, capsys):
    write_csv(mini_release / CSV, [*MINI_ROWS, MINI_ROWS[0].replace("Cardiomegaly", "Herz").replace("_000", "_009")])
    assert refusal(capsys, mini_release).startswith(f"error: {CSV}: unknown finding: line 7: 'Herz'. Known: ")


@pytest.mark.parametrize("from_environment", [True, False])
def test_default_folder(mini_release, monkeypatch, tmp_path, from_environment):
    if from_environment:
        monkeypatch.setenv("DATASETS_DIR", str(mini_release.parent))
        monkeypatch.chdir("/")
    else:
        monkeypatch.delenv("DATASETS_DIR", raising=False)
        monkeypatch.chdir(mini_release.parent)
    assert main(["--val_fraction", "0.2"]) == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


# The command, and what reads its output.


def test_help_and_imports_need_no_torch():
    script = (
        "import contextlib, sys\n"
        "from chestxray_vit.ingest import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert b"--val_fraction" in result.stdout
    command = [sys.executable, "-m", "chestxray_vit.ingest", "--help"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_a_whole_run_needs_no_torch(mini_release):
    script = (
        "import sys; from chestxray_vit.ingest import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(mini_release), "--verify", "full"]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")


def test_the_command_tells_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "chestxray_vit.ingest", str(tmp_path)]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"error: no such file: Data_Entry_2017_v2020.csv or ")


@pytest.mark.parametrize("flags", [["--val_frac", "0.2"], ["--split", "random"], ["--seed", "x"], ["a", "b"]])
def test_flags_are_checked(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert "usage: python -m chestxray_vit.ingest" in capsys.readouterr().err


def test_stdout_may_be_closed_early(mini_release):
    """`python -m chestxray_vit.ingest ... | head -1` still writes whole files."""
    command = f"{sys.executable} -m chestxray_vit.ingest '{mini_release}' --val_fraction 0.2 | head -1"
    result = subprocess.run(command, shell=True, capture_output=True)
    assert result.stdout.split() == [b"train", b"validation", b"test"]
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA
