"""Which set `ingest` assigns each image to: by NIH's lists, by patient, by image."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import write_release
from tests.helpers.ingesting import (
    CSV,
    ingest,
    refusal,
    report_of,
    rows_of,
    splits_of,
)


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


def test_a_view_does_not_change_the_split(mini_release):
    assert ingest(mini_release) == 0
    whole = splits_of(mini_release)
    assert ingest(mini_release, "--views", "PA") == 0
    assert splits_of(mini_release) == {name: split for name, split in whole.items() if name != "00000003_000.png"}
