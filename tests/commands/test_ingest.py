"""The ingest stage: a release in, metadata and report out; nothing written when anything is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from chestxray_vit import __version__
from chestxray_vit.ingest import main
from chestxray_vit.labels import FINDINGS, NIH_CHESTXRAY14, encode
from chestxray_vit.storage.atomic import sha256
from tests.conftest import MINI_ROWS, write_csv, write_release

CSV = "Data_Entry_2017_v2020.csv"
# With --val_fraction 0.2 and seed 1337: patient 1 train, patient 2 validation, patient 3 test.
MINI_METADATA = [
    '{"file_name": "00000001_000.png", '
    '"labels": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "split": "train", '
    '"patient_id": "1", "age": 57, "sex": "M", "view": "PA", "follow_up": 0}',
    '{"file_name": "00000001_001.png", '
    '"labels": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], "split": "train", '
    '"patient_id": "1", "age": 58, "sex": "M", "view": "PA", "follow_up": 1}',
    '{"file_name": "00000003_000.png", '
    '"labels": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "split": "test", '
    '"patient_id": "3", "age": 80, "sex": "F", "view": "AP", "follow_up": 0}',
    '{"file_name": "00000002_000.png", '
    '"labels": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "split": "validation", '
    '"patient_id": "2", "age": 80, "sex": "M", "view": "PA", "follow_up": 0}',
    '{"file_name": "00000003_001.png", '
    '"labels": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0], "split": "test", '
    '"patient_id": "3", "age": 81, "sex": "F", "view": "PA", "follow_up": 1}',
]


def ingest(folder, *flags):
    return main([str(folder), "--val_fraction", "0.2", *map(str, flags)])


def written(folder, name):
    """Return the one file of a name that lies in a release or beside its images."""
    (path,) = (path for path in (folder / name, folder / "images" / name) if path.is_file())
    return path


def rows_of(folder):
    return [json.loads(line) for line in written(folder, "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def report_of(folder):
    path = written(folder, "ingest_report.json")
    assert path.parent == written(folder, "metadata.jsonl").parent
    return json.loads(path.read_text())


def splits_of(folder):
    return {row["file_name"].rpartition("/")[2]: row["split"] for row in rows_of(folder)}


def refusal(capsys, folder, *flags):
    """Return what is told of a release that is refused; an earlier run's files stay as they are."""
    earlier = [
        place / name for place in (folder, folder / "images") for name in ("metadata.jsonl", "ingest_report.json")
    ]
    for path in earlier:
        path.write_text("earlier")
    paths = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert ingest(folder, *flags) == 2
    assert [path.read_text() for path in earlier] == ["earlier"] * 4
    assert sorted(folder.rglob("*")) == paths
    for path in earlier:
        path.unlink()
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("error: ")
    return told


def positives(**counts):
    return {**dict.fromkeys(FINDINGS, 0), **counts}


# What it writes.


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
        "findings": list(FINDINGS),
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
        assert row["labels"] == encode(cell.split("|"))
        assert (row["split"] == "test") == (name in test)
        fields = (row["patient_id"], row["age"], row["sex"], row["view"], row["follow_up"])
        assert fields == (patient, int(age), sex, view, int(follow_up))
    report = report_of(synthetic_dataset)
    for split, counts in report["splits"].items():
        of_split = [row for row in rows if row["split"] == split]
        assert counts["images"] == len(of_split) > 0
        assert counts["patients"] == len({row["patient_id"] for row in of_split})
        sums = [sum(column) for column in zip(*(row["labels"] for row in of_split))]
        assert counts["positives"] == dict(zip(FINDINGS, sums))
    sets = [{row["patient_id"] for row in rows if row["split"] == split} for split in report["splits"]]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_no_finding_as_a_fifteenth_label(mini_release):
    assert ingest(mini_release, "--include_no_finding") == 0
    labels = [row["labels"] for row in rows_of(mini_release)]
    assert [row[14] for row in labels] == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert [row[:14] for row in labels] == [json.loads(line)["labels"] for line in MINI_METADATA]
    report = report_of(mini_release)
    assert report["findings"] == [*FINDINGS, "No Finding"]
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
        f"{1 + n:08d}_000.png,{FINDINGS[n % 14]},{follow_up},{1 + n},{age},{sex},{view},1,1,1,1"
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
            expected.append((name, encode([cell]), patient, *values))
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


# Splits.


def test_auto_splits_by_patient_where_no_list_is(mini_release, caplog):
    (mini_release / "train_val_list.txt").unlink(), (mini_release / "test_list.txt").unlink()
    assert ingest(mini_release) == 0
    report = report_of(mini_release)
    assert report["split"] == {"method": "patient", "val_fraction": 0.2, "seed": 1337, "leaked_patients": 0}
    assert list(report["sources"]) == [CSV]
    # the hash of 1, 2, 3 for test is .457, .265, .631: none below .2; for validation .282, .157, .945
    assert [row["split"] for row in rows_of(mini_release)] == ["train", "train", "train", "validation", "train"]
    assert "no train_val_list.txt and test_list.txt: splitting by a hash of the patient id" in caplog.text


def test_split_by_patient_passes_over_the_lists(mini_release):
    assert ingest(mini_release, "--split", "patient", "--seed", "0") == 0
    report = report_of(mini_release)
    assert (report["split"]["method"], report["split"]["seed"]) == ("patient", 0)
    assert list(report["sources"]) == [CSV]


def test_split_by_image_warns_and_writes_the_leak(tmp_path, caplog, capsys):
    rows = [f"{1 + n // 10:08d}_{n % 10:03d}.png,Mass,0,{1 + n // 10},50,F,PA,1,1,1,1" for n in range(200)]
    release = write_release(tmp_path / "release", rows)
    assert ingest(release, "--split", "image") == 0
    sets = {}
    for row in rows_of(release):
        sets.setdefault(row["patient_id"], set()).add(row["split"])
    leaked = sum(len(splits) > 1 for splits in sets.values())
    assert 15 < leaked <= 20
    assert report_of(release)["split"] == {
        "method": "image",
        "val_fraction": 0.2,
        "seed": 1337,
        "leaked_patients": leaked,
    }
    assert f"warning: {leaked} patients are in more than one set. AUCs on this split are too high" in caplog.text
    assert f"split: image; patients in more than one set: {leaked}\n" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["patient", "image"])
def test_lists_for_a_split_that_reads_none(mini_release, capsys, split):
    train_val = ["--train_val_list", mini_release / "train_val_list.txt"]
    test = ["--test_list", mini_release / "test_list.txt"]
    for flags, named in (
        (train_val, "--train_val_list"),
        (test, "--test_list"),
        ([*test, *train_val], "--train_val_list and --test_list"),
    ):
        told = refusal(capsys, mini_release, "--split", split, *flags)
        assert told == f"error: --split {split} does not read lists; leave out {named}.\n"


@pytest.mark.parametrize("split", ["official", "auto"])
def test_a_missing_split_list(mini_release, capsys, split):
    (mini_release / "test_list.txt").unlink()
    assert refusal(capsys, mini_release, "--split", split) == (
        f"error: no such file: test_list.txt in {mini_release}, plain or .gz. "
        "Fetch it from NIH, or name it with --test_list.\n"
    )


def test_official_without_lists(mini_release, capsys):
    (mini_release / "train_val_list.txt").unlink(), (mini_release / "test_list.txt").unlink()
    told = refusal(capsys, mini_release, "--split", "official")
    assert told.startswith(f"error: no such file: train_val_list.txt in {mini_release}, plain or .gz.")
    told = refusal(capsys, mini_release, "--test_list", mini_release / "no list.txt")
    assert told.startswith(f"error: no such file: train_val_list.txt in {mini_release}, plain or .gz.")


def test_lists_that_tear_a_patient(mini_release, capsys):
    (mini_release / "test_list.txt").write_text("00000003_000.png\n00000001_001.png")
    (mini_release / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n00000003_001.png")
    assert refusal(capsys, mini_release) == (
        "error: train_val_list.txt and test_list.txt: patient in both lists: 1; 3. "
        "Use NIH's own lists, or --split patient.\n"
    )


def test_lists_that_overlap(mini_release, capsys):
    shutil.copy(str(mini_release / "test_list.txt"), str(mini_release / "train_val_list.txt"))
    told = refusal(capsys, mini_release)
    assert "  - image in both lists: '00000003_000.png'; '00000003_001.png'. Each image belongs to one list." in told
    assert "  - image of the CSV in neither list: '00000001_000.png'; '00000001_001.png'; '00000002_000.png'." in told


@pytest.mark.parametrize("fraction", ["-0.01", "1", "1.5", "nan", "inf"])
@pytest.mark.parametrize("split", ["official", "patient", "image"])
def test_val_fraction_out_of_range(mini_release, capsys, fraction, split):
    told = refusal(capsys, mini_release, "--split", split, f"--val_fraction={fraction}")
    assert told == f"error: --val_fraction is {float(fraction)}, expected 0 <= fraction < 1.\n"


def test_val_fraction_moves_whole_patients_out_of_train(mini_release):
    seen = []
    for fraction in ("0", "0.2", "0.3", "0.999"):
        assert ingest(mini_release, "--val_fraction", fraction) == 0
        split_of = splits_of(mini_release)
        seen.append([split_of[f"0000000{patient}_000.png"] for patient in (1, 2, 3)])
    assert seen == [
        ["train", "train", "test"],
        ["train", "validation", "test"],
        ["validation", "validation", "test"],
        ["validation", "validation", "test"],
    ]


# What is left out.


def test_views(mini_release, capsys):
    assert ingest(mini_release, "--views", "AP") == 0
    assert [row["file_name"] for row in rows_of(mini_release)] == ["00000003_000.png"]
    report = report_of(mini_release)
    assert (report["num_rows"], report["num_images"]) == (5, 1)
    assert report["left_out"] == {"view other than AP": 4}
    assert "5 rows, 1 images kept; 4 view other than AP\n" in capsys.readouterr().out
    assert ingest(mini_release, "--views", "PA,AP") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


def test_a_view_does_not_change_the_split(mini_release):
    assert ingest(mini_release) == 0
    whole = splits_of(mini_release)
    assert ingest(mini_release, "--views", "PA") == 0
    assert splits_of(mini_release) == {name: split for name, split in whole.items() if name != "00000003_000.png"}


def test_views_where_some_are_null(tmp_path, capsys):
    rows = [*MINI_ROWS, "00000004_000.png,Mass,0,4,50,F,,1,1,1,1", "00000005_000.png,Mass,0,5,50,F,PA,1,1,1,1"]
    release = write_release(tmp_path / "release", rows)
    for views in ("", "PA,", "LL", "None"):
        unknown = views.replace("PA,", "")
        assert refusal(capsys, release, "--views", views) == (
            f"error: --views: no image has view {unknown}. Found in the CSV: AP, PA.\n"
        )
    assert ingest(release, "--views", "PA") == 0
    assert [row["patient_id"] for row in rows_of(release)] == ["1", "1", "2", "3", "5"]
    assert {row["view"] for row in rows_of(release)} == {"PA"}
    assert report_of(release)["left_out"] == {"view other than PA": 2}


def test_an_unknown_view(mini_release, capsys):
    assert refusal(capsys, mini_release, "--views", "PA,LL,ap") == (
        "error: --views: no image has view LL, ap. Found in the CSV: AP, PA.\n"
    )


def test_missing_images(mini_release, capsys):
    for name in ("00000001_001.png", "00000003_000.png"):
        (mini_release / "images" / name).unlink()
    assert refusal(capsys, mini_release) == (
        f"error: {mini_release}/images: images missing: 2 of 5 (first: 00000001_001.png). "
        "Unpack all archives, or pass --allow_missing.\n"
    )
    assert ingest(mini_release, "--allow_missing") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == [
        MINI_METADATA[place] for place in (0, 3, 4)
    ]
    report = report_of(mini_release)
    assert report["left_out"] == {"image missing": 2}
    assert report["splits"]["train"] == {"images": 1, "patients": 1, "positives": positives(Cardiomegaly=1)}
    assert "5 rows, 3 images kept; 2 image missing\n" in capsys.readouterr().out


def test_missing_and_unreadable_images_are_told_together(mini_release, capsys):
    images = mini_release / "images"
    (images / "00000001_000.png").unlink()
    (images / "00000001_001.png").write_bytes(b"")
    (images / "00000002_000.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (images / "00000003_001.png").write_bytes(b"<html></html>")
    assert refusal(capsys, mini_release) == (
        f"error: {images}: 2 kinds of problems\n"
        "  - images missing: 1 of 5 (first: 00000001_000.png). Unpack all archives, or pass --allow_missing.\n"
        "  - unreadable image: 00000001_001.png: an empty file; "
        "00000002_000.png: a Git LFS pointer (run `git lfs pull`); "
        "00000003_001.png: not a PNG or JPEG: starts with b'<html></'. Fetch it again, or pass --allow_missing.\n"
    )
    assert ingest(mini_release, "--allow_missing") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == [MINI_METADATA[2]]
    assert report_of(mini_release)["left_out"] == {"image missing": 1, "image unreadable": 3}


def test_verify(mini_release, capsys):
    path = mini_release / "images" / "00000002_000.png"
    path.write_bytes(path.read_bytes()[:50])
    assert ingest(mini_release) == 0  # by default the first bytes only
    told = refusal(capsys, mini_release, "--verify", "full")
    assert told.startswith(f"error: {mini_release}/images: unreadable image: 00000002_000.png: cannot be decoded: ")
    assert ingest(mini_release, "--verify", "full", "--allow_missing") == 0
    assert report_of(mini_release)["left_out"] == {"image unreadable": 1}
    path.write_bytes(b"")
    assert "unreadable image: 00000002_000.png: an empty file." in refusal(capsys, mini_release)
    assert ingest(mini_release, "--verify", "none") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


def test_nothing_is_left(mini_release, capsys):
    shutil.rmtree(str(mini_release / "images"))
    (mini_release / "images").mkdir()
    assert refusal(capsys, mini_release, "--allow_missing", "--views", "PA") == (
        f"error: {CSV}: no image is left (1 view other than PA, 4 image missing). Loosen --views, or unpack images.\n"
    )


def test_images_that_the_csv_has_not_are_passed_over(mini_release):
    shutil.copy(str(mini_release / "images" / "00000001_000.png"), str(mini_release / "images" / "00000009_000.png"))
    assert ingest(mini_release) == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


# Folders.


def test_the_kaggle_mirrors_folders(tmp_path):
    release = write_release(tmp_path / "release", images="images_001/images")
    (release / "images_012" / "images").mkdir(parents=True)
    moved = release / "images_012" / "images" / "00000002_000.png"
    (release / "images_001" / "images" / "00000002_000.png").rename(moved)
    assert ingest(release) == 0
    assert [row["file_name"] for row in rows_of(release)] == [
        "images_001/images/00000001_000.png",
        "images_001/images/00000001_001.png",
        "images_001/images/00000003_000.png",
        "images_012/images/00000002_000.png",
        "images_001/images/00000003_001.png",
    ]
    assert sorted(os.listdir(release)) == [
        CSV,
        "images_001",
        "images_012",
        "ingest_report.json",
        "metadata.jsonl",
        "test_list.txt",
        "train_val_list.txt",
    ]


NOTICE = (
    "notice: ImageFolder takes NIH's split lists for its own splits and finds no image in them. Name its files: "
    'load_dataset("imagefolder", data_dir=..., data_files=["metadata.jsonl", "**/*.png"])\n'
)


@pytest.mark.parametrize("images, place", [("images", "images"), ("images_001/images", ".")])
@pytest.mark.parametrize("lists", [True, False])
def test_the_default_place(tmp_path, capsys, images, place, lists):
    """Where --dataset_dir of the other stages finds it; told where ImageFolder would take NIH's lists."""
    release = write_release(tmp_path / "release", images=images)
    if not lists:
        (release / "train_val_list.txt").unlink(), (release / "test_list.txt").unlink()
    assert ingest(release) == 0
    assert written(release, "metadata.jsonl") == release / place / "metadata.jsonl"
    assert written(release, "ingest_report.json") == release / place / "ingest_report.json"
    assert (NOTICE in capsys.readouterr().out) == (lists and place == ".")


def test_folders_without_images_do_not_move_the_default_place(mini_release):
    (mini_release / "images_001" / "images").mkdir(parents=True)
    (mini_release / "images_002" / "images").mkdir(parents=True)
    repeated = mini_release / "images_002" / "images" / "00000001_000.png"
    shutil.copy(str(mini_release / "images" / "00000001_000.png"), str(repeated))
    assert ingest(mini_release) == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA
    assert not (mini_release / "metadata.jsonl").exists()


def test_spaces_quotes_and_umlauts_in_folder_names(tmp_path):
    release = write_release(tmp_path / "Röntgen 'A' {1}", images='Bil"der Ä\\ %s{0}')
    assert ingest(release, "--images", release / 'Bil"der Ä\\ %s{0}') == 0
    folder = release / 'Bil"der Ä\\ %s{0}'
    assert rows_of(folder)[0]["file_name"] == "00000001_000.png"
    assert ingest(release, "--images", folder, "--output", release / "metadata.jsonl") == 0
    assert rows_of(release)[0]["file_name"] == 'Bil"der Ä\\ %s{0}/00000001_000.png'
    assert all((release / row["file_name"]).is_file() for row in rows_of(release))
    folder.rename(release / "images")
    shutil.move(str(release / "images"), str(release / 'images_0"Ä' / "images"))
    (release / "images_1 é\\").mkdir()
    moved = (release / 'images_0"Ä' / "images" / "00000002_000.png", release / "images_1 é\\" / "images")
    moved[1].mkdir(), shutil.move(*map(str, moved))
    assert ingest(release) == 0
    names = [row["file_name"] for row in rows_of(release)]
    assert (names[0], names[3]) == ('images_0"Ä/images/00000001_000.png', "images_1 é\\/images/00000002_000.png")
    assert all((release / name).is_file() for name in names)


def test_output_in_a_folder_above_the_images(mini_release):
    above = mini_release.parent
    assert ingest(mini_release, "--output", above / "metadata.jsonl") == 0
    assert rows_of(above)[0]["file_name"] == "chest-xray-nihcc/images/00000001_000.png"
    assert report_of(above)["num_images"] == 5
    for folder in (mini_release, mini_release / "images"):
        assert not {"metadata.jsonl", "ingest_report.json"} & set(os.listdir(folder))


def test_output_beside_the_images(mini_release, monkeypatch):
    monkeypatch.chdir(mini_release / "images")
    assert ingest("..", "--images", ".", "--output", "metadata.jsonl") == 0
    assert rows_of(mini_release / "images")[0]["file_name"] == "00000001_000.png"


@pytest.mark.parametrize("place", ["elsewhere", "chest-xray-nihcc/images/deeper", "chest-xray"])
def test_output_not_above_the_images(mini_release, capsys, place):
    output = mini_release.parent / place / "metadata.jsonl"
    told = refusal(capsys, mini_release, "--output", output)
    assert told.startswith(
        f"error: {output}: the images in {mini_release}/images are not below its folder, and ImageFolder reads no "
        "others. Write the metadata above the images (--output), or link them: ln -s "
    )
    assert not output.parent.exists()


def test_linked_images(mini_release, tmp_path):
    """The remedy that a refusal names: a folder of one's own, with the images linked into it."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "images").symlink_to(mini_release / "images")
    lists = ["--train_val_list", mini_release / "train_val_list.txt", "--test_list", mini_release / "test_list.txt"]
    assert ingest(own, "--csv", mini_release / CSV, *lists) == 0
    expected = [line.replace('"file_name": "', '"file_name": "images/') for line in MINI_METADATA]
    assert (own / "metadata.jsonl").read_text().splitlines() == expected
    assert sorted(os.listdir(own)) == ["images", "ingest_report.json", "metadata.jsonl"]
    assert sorted(os.listdir(mini_release / "images")) == sorted(row.split(",")[0] for row in MINI_ROWS)


@pytest.mark.parametrize(
    "name, what",
    [
        (CSV, "a file of the release"),
        ("train_val_list.txt", "a file of the release"),
        ("00000001_000.png", "a file of the release"),
        ("images", "a folder"),
        ("ingest_report.json", "the report's name"),
    ],
)
def test_output_that_would_overwrite(mini_release, capsys, name, what):
    before = (mini_release / CSV).read_bytes()
    told = refusal(capsys, mini_release, "--output", mini_release / name)
    assert told == (
        f"error: --output: {mini_release}/{name} is {what}. Name a file such as {mini_release}/metadata.jsonl.\n"
    )
    assert (mini_release / CSV).read_bytes() == before


def test_an_image_is_not_written_over(mini_release, capsys):
    before = (mini_release / "images" / "00000001_000.png").read_bytes()
    told = refusal(capsys, mini_release, "--output", mini_release / "images" / "00000001_000.png")
    assert told.startswith(f"error: --output: {mini_release}/images/00000001_000.png is a file of the release. Name")
    assert (mini_release / "images" / "00000001_000.png").read_bytes() == before


def test_a_folder_that_cannot_be_written(mini_release, capsys, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("chestxray_vit.artifacts.ingest_report.write_bytes", refuse)  # root may write anywhere
    assert refusal(capsys, mini_release) == (
        f"error: {mini_release}/images/metadata.jsonl: cannot be written: Permission denied. "
        "Make it writable, or name --output.\n"
    )
    output = mini_release / "test_list.txt" / "metadata.jsonl"  # below a file
    assert ingest(mini_release, "--output", output) == 2


def test_a_report_that_cannot_be_written(mini_release, capsys):
    (mini_release / "images" / "ingest_report.json").mkdir()
    assert ingest(mini_release) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told == (
        f"error: {mini_release}/images/ingest_report.json: cannot be written to: "
        "a folder of that name is there. Move it away.\n"
    )
    assert [path.name for path in (mini_release / "images").glob(".*")] == []


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


# --extract


def pack(release, archive, names):
    with tarfile.open(str(release / archive), "w:gz") as tar:
        for name in names:
            tar.add(str(release / "images" / name), f"images/{name}")


def test_extract(mini_release):
    names = sorted(os.listdir(mini_release / "images"))
    pack(mini_release, "images_001.tar.gz", names[:3]), pack(mini_release, "images_002.tar.gz", names[3:])
    before = {name: (mini_release / "images" / name).read_bytes() for name in names}
    shutil.rmtree(str(mini_release / "images"))
    assert ingest(mini_release, "--extract", "--verify", "full") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA
    assert {path.name: path.read_bytes() for path in (mini_release / "images").glob("*.png")} == before
    added = {"metadata.jsonl", "ingest_report.json"}
    assert {path.name for path in (mini_release / "images").iterdir()} == {*before, *added}


def test_extract_refused(mini_release, capsys):
    told = refusal(capsys, mini_release, "--extract")
    assert told.startswith(f"error: --extract: no images_*.tar.gz in {mini_release}.")
    pack(mini_release, "images_001.tar.gz", os.listdir(mini_release / "images"))
    archive = mini_release / "images_001.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    assert refusal(capsys, mini_release, "--extract").startswith("error: images_001.tar.gz: cut or damaged: ")


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


def assert_imagefolder_reads(folder, cache_dir, **options):
    """Load with ImageFolder, and compare every field of every row, and its image, with the mini release."""
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache_dir), **options
    )
    assert len(read) == 5
    row_of = {tuple(row["labels"]): row for row in read}
    for place, line in enumerate(MINI_METADATA):
        expected = json.loads(line)
        del expected["file_name"]
        row = row_of[tuple(expected["labels"])]
        assert set(row) == {"image", *expected}
        assert {name: row[name] for name in expected} == expected
        assert row["image"].tobytes() == bytes([40 * place]) * 64  # each row has its own image


@pytest.mark.parametrize("lists", [False, True])
def test_imagefolder_reads_the_images_folder_as_it_is(tmp_path, lists):
    release = write_release(tmp_path / "a release")
    assert ingest(release) == 0
    if not lists:
        (release / "train_val_list.txt").unlink(), (release / "test_list.txt").unlink()
    assert_imagefolder_reads(release / "images", tmp_path / "cache")


def test_imagefolder_reads_every_label_of_an_official_release(synthetic_dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    assert (synthetic_dataset / "test_list.txt").is_file()
    read = datasets.load_dataset(
        "imagefolder", data_dir=str(synthetic_dataset / "images"), split="train", cache_dir=str(tmp_path)
    ).cast_column("image", datasets.Image(decode=False))
    cell_of = dict(line.split(",")[:2] for line in (synthetic_dataset / CSV).read_text().splitlines()[1:])
    assert len(read) == len(cell_of) > 100
    assert {Path(row["image"]["path"]).name: row["labels"] for row in read} == {
        name: encode(cell.split("|")) for name, cell in cell_of.items()
    }


@pytest.mark.parametrize("lists", [False, True])
def test_imagefolder_reads_the_kaggle_mirrors_folders(tmp_path, capsys, lists):
    """As they are; NIH's lists beside the metadata `datasets` takes for its splits, unless told its files."""
    release = write_release(tmp_path / "a release", images="images_001/images")
    (release / "images_012" / "images").mkdir(parents=True)
    moved = release / "images_012" / "images" / "00000002_000.png"
    (release / "images_001" / "images" / "00000002_000.png").rename(moved)
    assert ingest(release) == 0
    assert NOTICE in capsys.readouterr().out
    files = {"data_files": ["metadata.jsonl", "**/*.png"]} if lists else {}
    if not lists:
        (release / "train_val_list.txt").unlink(), (release / "test_list.txt").unlink()
    assert_imagefolder_reads(release, tmp_path / "cache", **files)


def test_stdout_may_be_closed_early(mini_release):
    """`python -m chestxray_vit.ingest ... | head -1` still writes whole files."""
    command = f"{sys.executable} -m chestxray_vit.ingest '{mini_release}' --val_fraction 0.2 | head -1"
    result = subprocess.run(command, shell=True, capture_output=True)
    assert result.stdout.split() == [b"train", b"validation", b"test"]
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA
