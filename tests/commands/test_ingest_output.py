"""Where `ingest` writes, what it never writes over, and that ImageFolder reads it there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import MINI_ROWS, write_release
from tests.helpers.ingesting import (
    CSV,
    MINI_METADATA,
    ingest,
    refusal,
    report_of,
    rows_of,
    written,
)

NOTICE = (
    "notice: ImageFolder takes NIH's split lists for its own splits and finds no image in them. Name its files: "
    'load_dataset("imagefolder", data_dir=..., data_files=["metadata.jsonl", "**/*.png"])\n'
)


@pytest.mark.parametrize("images, where", [("images", "images"), ("images_001/images", ".")])
@pytest.mark.parametrize("lists", [True, False])
def test_the_default_place(tmp_path, capsys, images, where, lists):
    """Where --dataset_dir of the other stages finds it; told where ImageFolder would take NIH's lists."""
    release = write_release(tmp_path / "release", images=images)
    if not lists:
        (release / "train_val_list.txt").unlink(), (release / "test_list.txt").unlink()
    assert ingest(release) == 0
    assert written(release, "metadata.jsonl") == release / where / "metadata.jsonl"
    assert written(release, "ingest_report.json") == release / where / "ingest_report.json"
    assert (NOTICE in capsys.readouterr().out) == (lists and where == ".")


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


@pytest.mark.parametrize("where", ["elsewhere", "chest-xray-nihcc/images/deeper", "chest-xray"])
def test_output_not_above_the_images(mini_release, capsys, where):
    output = mini_release.parent / where / "metadata.jsonl"
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


def assert_imagefolder_reads(folder, cache_dir, **options):
    """Load with ImageFolder, and compare every field of every row, and its image, with the mini release."""
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache_dir), **options
    )
    assert len(read) == 5
    row_of = {tuple(row["labels"]): row for row in read}
    for index, line in enumerate(MINI_METADATA):
        expected = json.loads(line)
        del expected["file_name"]
        row = row_of[tuple(expected["labels"])]
        assert set(row) == {"image", *expected}
        assert {name: row[name] for name in expected} == expected
        assert row["image"].tobytes() == bytes([40 * index]) * 64  # each row has its own image


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
        name: NIH_CHESTXRAY14.encode(cell.split("|")) for name, cell in cell_of.items()
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
