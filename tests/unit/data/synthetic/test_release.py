"""A synthetic release has NIH's formats, near its prevalences, and both classes in both parts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.data.synthetic.release import (
    MARKERS,
    MIN_PATIENTS,
    README,
    Study,
    draw_release,
    draw_xray,
    is_synthetic,
)
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14

FINDINGS = NIH_CHESTXRAY14.names
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return the default release, with blank images: 2,400 would take seconds, and the rows do not need them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestxray_vit.data.synthetic.release.draw_xray", lambda *_: np.zeros((64, 64), np.uint8))
        return draw_release(tmp_path_factory.mktemp("synthetic") / "default")


@pytest.fixture(scope="module")
def rows(release):
    lines = (release / "Data_Entry_2017_v2020.csv").read_bytes().decode("ascii").split("\n")
    assert lines[0] == HEADER and lines[-1] == "" and not any("\r" in line or '"' in line for line in lines)
    return [line.split(",") for line in lines[1:-1]]


def lists(folder):
    return [(folder / name).read_text().split("\n") for name in ("train_val_list.txt", "test_list.txt")]


def sums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def positive_patients(folder):
    """Return, for train_val and test, finding -> patients with it; and all patients of the part."""
    lines = (folder / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
    test = set(lists(folder)[1])
    parts = [({name: set() for name in FINDINGS}, set()) for _ in range(2)]
    for name, cell, _, patient, *_ in (line.split(",") for line in lines):
        positive, everyone = parts[name in test]
        everyone.add(patient)
        for finding in cell.split("|"):
            if finding != "No Finding":
                positive[finding].add(patient)
    return parts


def test_every_row_has_nihs_form(rows):
    assert len({row[0] for row in rows}) == len(rows)
    studies = Counter()
    for row in rows:
        assert len(row) == 11
        name, cell, follow_up, patient, age, sex, view, width, height, across, down = row
        assert re.fullmatch(r"\d{8}_\d{3}\.png", name)
        assert int(name[:8]) == int(patient) and int(name[9:12]) == int(follow_up) == studies[patient]
        names = cell.split("|")
        assert names == ["No Finding"] or (names == sorted(set(names)) and set(names) <= set(FINDINGS))
        assert 1 <= int(age) <= 95 and sex in "MF" and view in ("PA", "AP")
        assert 2000 <= int(width) <= 3100 and 2000 <= int(height) <= 3100
        assert 0.13 < float(across) < 0.2 and across == down
        studies[patient] += 1
    assert sorted(map(int, studies)) == list(range(1, 668))
    assert max(studies.values()) == 12 and 3.3 < len(rows) / 667 < 3.9
    assert 0.25 < sum(count == 1 for count in studies.values()) / 667 < 0.40


def test_sex_is_the_patients_and_age_never_falls(rows):
    last = {}
    for row in rows:
        age, sex = last.get(row[3], (int(row[4]), row[5]))
        assert sex == row[5] and age <= int(row[4])
        last[row[3]] = int(row[4]), row[5]
    assert 0.50 < sum(sex == "M" for _, sex in last.values()) / 667 < 0.62


def test_the_folder_holds_the_rows_images_and_nothing_else(release, rows):
    top = ["Data_Entry_2017_v2020.csv", "README.txt", "images", "test_list.txt", "train_val_list.txt"]
    assert sorted(path.name for path in release.iterdir()) == top
    assert sorted(path.name for path in (release / "images").iterdir()) == sorted(row[0] for row in rows)
    readme = " ".join((release / "README.txt").read_text().split())
    assert readme.isascii()
    for words in (
        "chestxray_vit.data.synthetic.release",
        "show no person",
        "must not be used for anything else",
        "seed=1337",
    ):
        assert words in readme


def test_lists_part_the_csv_by_patient(release, rows):
    train_val, test = lists(release)
    assert train_val[-1] and test.pop() == ""  # NIH's train_val_list.txt has no final newline, its test_list.txt one
    assert sorted(train_val + test) == sorted(row[0] for row in rows)
    assert not {name[:8] for name in train_val} & {name[:8] for name in test}
    assert 0.20 < len(test) / len(rows) < 0.24


def test_prevalence_is_near_nihs_with_rare_findings_raised(release, rows):
    share = {name: sum(name in row[1].split("|") for row in rows) / len(rows) for name in FINDINGS}
    assert max(share, key=share.get) == "Infiltration" and 0.13 < share["Infiltration"] < 0.20
    for name in ("Atelectasis", "Effusion"):
        assert 0.08 < share[name] < 0.14
    for name in FINDINGS:
        assert 0.035 < share[name] < 0.20, name
    assert 0.35 < sum(row[1] == "No Finding" for row in rows) / len(rows) < 0.55  # NIH 0.54
    ap = [row[6] == "AP" for row in rows]
    assert 0.36 < np.mean(ap) < 0.46  # NIH 0.40
    edema = [at for at, row in zip(ap, rows) if "Edema" in row[1]]
    assert np.mean(edema) > np.mean(ap) + 0.2  # NIH 0.88


def test_findings_come_together_as_at_nih(rows):
    has = {name: np.array([name in row[1].split("|") for row in rows]) for name in FINDINGS}
    for one, other in (("Cardiomegaly", "Effusion"), ("Edema", "Infiltration"), ("Emphysema", "Pneumothorax")):
        assert has[other][has[one]].mean() > 1.3 * has[other].mean(), (one, other)


def test_findings_persist_from_study_to_study(rows):
    after = [
        finding in next_row[1].split("|")
        for row, next_row in zip(rows, rows[1:])
        if row[3] == next_row[3] and row[1] != "No Finding"
        for finding in row[1].split("|")
    ]
    assert 0.7 < np.mean(after) < 0.9


@pytest.mark.parametrize("num_patients", [27, 28, 40, 60])
@pytest.mark.parametrize("seed", [0, 1337])
def test_small_releases_hold_both_classes_in_both_parts(tmp_path, monkeypatch, num_patients, seed):
    blank = np.zeros((64, 64), np.uint8)
    monkeypatch.setattr(
        "chestxray_vit.data.synthetic.release.draw_xray", lambda *_: blank
    )  # the labels are what counts
    for (positive, everyone), least in zip(positive_patients(draw_release(tmp_path, num_patients, seed=seed)), (2, 1)):
        for name in FINDINGS:
            assert least <= len(positive[name]) < len(everyone), name


def test_same_arguments_same_bytes(tmp_path):
    releases = [draw_release(tmp_path / name, 27, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    a, b, c = map(sums, releases)
    assert a == b
    common = {name for name in a if name.endswith(".png")} & set(c)
    assert len(common) > 27 and not [name for name in common if a[name] == c[name]]
    assert a["Data_Entry_2017_v2020.csv"] != c["Data_Entry_2017_v2020.csv"]
    # Each image can be drawn alone, from what its row says.
    for line in (releases[0] / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1::7]:
        name, cell, study, patient, _, sex, view, *_ = line.split(",")
        present = [] if cell == "No Finding" else cell.split("|")
        alone_HW = draw_xray(present, Study(int(patient), int(study), sex, view), seed=5)
        np.testing.assert_array_equal(alone_HW, np.asarray(Image.open(releases[0] / "images" / name)))


@pytest.mark.parametrize("size", [64, 1024])
def test_images_are_8_bit_grey_of_the_size(tmp_path, monkeypatch, size):
    if size == 1024:  # one drawing of 1 MP is enough
        image_HW = draw_xray(["Mass"], Study(1), image_size=size)
        monkeypatch.setattr("chestxray_vit.data.synthetic.release.draw_xray", lambda *_: image_HW)
        monkeypatch.setattr("chestxray_vit.data.synthetic.release.NUM_STUDIES", (1.0,))
    for path in (draw_release(tmp_path, 27, image_size=size) / "images").iterdir():
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        with Image.open(path) as image:
            assert image.mode == "L" and image.size == (size, size) and image.info == {}
            low, high = np.percentile(np.asarray(image), [5, 95])
            assert high - low > 80  # exposed from air to bone


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"image_size": 63}, "image_size is 63; a synthetic X-ray has 64 to 1024 pixels a side."),
        ({"image_size": 1025}, "image_size is 1025; a synthetic X-ray has 64 to 1024 pixels a side."),
        (
            {"num_patients": 26},
            "num_patients is 26; it takes 27 for both parts of the release to hold patients with and without each "
            "finding.",
        ),
        ({"seed": -1}, "seed is -1; it must be 0 or more."),
    ],
)
def test_refuses_what_cannot_be_drawn(tmp_path, arguments, text):
    with pytest.raises(InputError) as error:
        draw_release(tmp_path / "new", **arguments)
    assert str(error.value) == text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "images"])
def test_refuses_a_folder_with_a_release(tmp_path, name):
    (tmp_path / name).mkdir() if name == "images" else (tmp_path / name).write_text("real data")
    with pytest.raises(InputError, match=rf"already holds a release \({name}\)\. Remove it, or name another folder\."):
        draw_release(tmp_path, 27)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_refuses_a_file_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file; name a folder to draw the release into\."):
        draw_release(tmp_path / "file", 27)


def test_a_broken_off_drawing_leaves_no_release(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("chestxray_vit.data.synthetic.release.draw_xray", broken)
    with pytest.raises(KeyboardInterrupt):
        draw_release(tmp_path / "new", 27)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_synthetic_release_is_known_as_one(tmp_path):
    assert is_synthetic(draw_release(tmp_path / "new", num_patients=MIN_PATIENTS))
    assert README.startswith(MARKERS[0])
    (tmp_path / "README.txt").write_text("NIH Clinical Center")
    assert not is_synthetic(tmp_path)
    assert not is_synthetic(tmp_path / "nowhere")


def test_a_synthetic_release_of_0_5_0_is_known_as_one(tmp_path):
    text = "Drawn by chestxray_vit.phantom 0.5.0\nwith num_patients=60, image_size=64, seed=1337.\n\nThese images are"
    (tmp_path / "README.txt").write_text(text)
    assert is_synthetic(tmp_path)
