"""Which images `ingest` keeps, and where it finds them: views, missing and damaged files, mirrors, archives."""

from __future__ import annotations

import os
import shutil
import tarfile

from tests.conftest import MINI_ROWS, write_release
from tests.helpers.ingesting import (
    CSV,
    MINI_METADATA,
    ingest,
    positives,
    refusal,
    report_of,
    rows_of,
)


def test_views(mini_release, capsys):
    assert ingest(mini_release, "--views", "AP") == 0
    assert [row["file_name"] for row in rows_of(mini_release)] == ["00000003_000.png"]
    report = report_of(mini_release)
    assert (report["num_rows"], report["num_images"]) == (5, 1)
    assert report["left_out"] == {"view other than AP": 4}
    assert "5 rows, 1 images kept; 4 view other than AP\n" in capsys.readouterr().out
    assert ingest(mini_release, "--views", "PA,AP") == 0
    assert (mini_release / "images" / "metadata.jsonl").read_text().splitlines() == MINI_METADATA


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
        MINI_METADATA[index] for index in (0, 3, 4)
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
