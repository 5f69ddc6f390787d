"""predictions.csv: every digit and every order kept, every wrong file refused with all its problems."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

from chestxray_vit.artifacts.predictions import Predictions, predictions_of, read_predictions, write_predictions
from chestxray_vit.artifacts.predictions_rows import header_of
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14, LabelSet
from chestxray_vit.metrics.probability import probabilities

FINDINGS = NIH_CHESTXRAY14.names

COLUMNS = tuple(header_of(NIH_CHESTXRAY14.names))


def random_predictions(num_images=5, seed=0):
    random = np.random.default_rng(seed)
    return Predictions(
        file_names=[f"images/{image:08d}_000.png" for image in range(num_images)],
        patient_ids=[str(image // 2) for image in range(num_images)],
        ages=[None if image == 1 else 40 + image for image in range(num_images)],
        sexes=["M" if image % 2 else "F" for image in range(num_images)],
        views=["PA"] * num_images,
        targets_NL=random.integers(0, 2, (num_images, 14)),
        scores_NL=random.random((num_images, 14)),
    )


def assert_equal(a, b):
    for name in ("file_names", "patient_ids", "ages", "sexes", "views"):
        assert list(getattr(a, name)) == list(getattr(b, name))
    np.testing.assert_array_equal(a.targets_NL, b.targets_NL)
    np.testing.assert_array_equal(a.scores_NL, b.scores_NL)  # bit for bit


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions.csv"


def write_lines(path, change=lambda cells: None, line=2, num_images=3):
    """Write a good file, then let `change` edit the cells of one line (the header is line 1)."""
    write_predictions(path, random_predictions(num_images))
    lines = [text.split(",") for text in path.read_text().splitlines()]
    change(lines[line - 1])
    path.write_text("\n".join(map(",".join, lines)) + "\n")


def cell(column, value):
    def change(cells):
        cells[COLUMNS.index(column)] = value

    return change


def test_saturated_sigmoids_step_down_from_the_top():
    scores_N = probabilities(np.array([[40], [41], [42], [41]], dtype=np.float32))[:, 0]
    below = np.nextafter(1.0, 0)
    assert scores_N.tolist() == [np.nextafter(below, 0), below, 1.0, below]


# The CSV


def test_round_trip_is_exact(path):
    scores_NL = np.random.default_rng(1).random((5, 14))
    scores_NL[0, :5] = [0.0, 1.0, 5e-324, np.nextafter(1, 0), 0.1 + 0.2]
    predictions = random_predictions()
    predictions = Predictions(
        ["a.png", "b,c.png", 'd"e.png', "f\ng.png", "é 日本.png"],
        ["1", "00001", "A-7", "x, y", "Ü"],
        [None, 0, 95, 0.5, 60.0],
        ["M", "F", "", "M", "F"],
        ["PA", "AP", "", "PA", "AP"],
        predictions.targets_NL,
        scores_NL,
    )
    write_predictions(path, predictions)
    assert_equal(read_predictions(path), predictions)


def test_file_has_the_documented_columns(path):
    write_predictions(path, random_predictions(2))
    header, first, second = path.read_text().splitlines()
    targets, scores = (",".join(f"{kind}_{finding}" for finding in FINDINGS) for kind in ("target", "score"))
    assert header == f"file_name,patient_id,age,sex,view,{targets},{scores}"
    assert first.startswith("images/00000000_000.png,0,40,F,PA,1,1,1,0,0,0,0,")
    assert second.startswith("images/00000001_000.png,0,,M,PA,")
    assert second.endswith(f",{float(random_predictions(2).scores_NL[1, 13])!r}")


def test_columns_may_come_in_any_order_with_further_ones(path, caplog):
    write_predictions(path, random_predictions())
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows = [[*reversed(row), "note" if row is rows[0] else "seen"] for row in rows]
    path.write_text("\ufeff" + "\r\n".join(map(",".join, rows)) + "\r\n\r\n", encoding="utf-8")  # as Excel writes
    with caplog.at_level(logging.INFO):
        assert_equal(read_predictions(path), random_predictions())
    assert "1 further columns are ignored: note" in caplog.text


def test_other_tools_may_write_targets_and_ages_as_floats(path):
    write_lines(path, lambda cells: (cell("age", "61.0")(cells), cell("target_Mass", "1.0")(cells)))
    predictions = read_predictions(path)
    assert predictions.ages[0] == 61
    assert predictions.targets_NL[0, FINDINGS.index("Mass")] == 1


def test_a_failed_write_leaves_the_earlier_file(path):
    write_predictions(path, random_predictions())
    before = path.read_bytes()
    broken = random_predictions()
    object.__setattr__(broken, "file_names", ["a.png", *"bcd", "\ud800"])  # a lone surrogate has no UTF-8
    with pytest.raises(UnicodeEncodeError):
        write_predictions(path, broken)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            cell("target_Edema", "2"),
            "a target is not 0 or 1: line 3, target_Edema: '2'. 1 = the finding is there, 0 = not",
        ),
        (cell("target_Edema", ""), "a target is not 0 or 1: line 3, target_Edema: ''"),
        (cell("target_Edema", "nan"), "a target is not 0 or 1: line 3, target_Edema: 'nan'"),
        (cell("score_Mass", "high"), r"a score is not a number: line 3, score_Mass: 'high'. Expected a probability"),
        (cell("score_Mass", ""), "a score is not a number: line 3, score_Mass: ''"),
        (cell("score_Mass", "NaN"), "a score is not a number: line 3, score_Mass: 'NaN'"),
        (cell("score_Mass", "inf"), r"a score is outside \[0, 1\]: line 3, score_Mass: 'inf'"),
        (cell("score_Mass", "-0.1"), r"a score is outside \[0, 1\]: line 3, score_Mass: '-0.1'.*makes them of logits"),
        (cell("score_Mass", "1.0000001"), r"a score is outside \[0, 1\]: line 3"),
        (cell("patient_id", " "), "patient_id is empty: line 3. Intervals need to know whose image it is"),
        (cell("file_name", ""), "file_name is empty: line 3"),
        (cell("file_name", "images/00000000_000.png"), "file_name twice: 'images/00000000_000.png' on lines 2 and 3"),
        (cell("age", "60Y"), "age is not a number of years: line 3: '60Y'. Leave it empty"),
        (cell("age", "-1"), "age is not a number of years: line 3: '-1'"),
        (lambda cells: cells.pop(), "a row without 33 fields: line 3 has 32"),
    ],
)
def test_wrong_cells_are_refused_with_their_place(path, change, message):
    write_lines(path, change, line=3)
    with pytest.raises(InputError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells.remove("view"), "a column is missing from line 1: view. Found file_name, patient_id, age"),
        (cell("view", "sex"), "a column is there twice on line 1: sex"),
    ],
)
def test_wrong_headers_are_refused(path, change, message):
    write_lines(path, change, line=1)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_all_problems_come_at_once_with_counts(path):
    write_predictions(path, random_predictions(6))
    text = path.read_text().replace(",0.", ",3.", 5).replace("PA,1", "PA,7", 1).replace("00005_000", "00004_000")
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_predictions(path)
    message = str(error.value)
    assert "3 kinds of problems" in message
    assert "a score is outside [0, 1] (5 times; the first 3: line 2, score_Atelectasis: '3." in message
    assert "a target is not 0 or 1: line 2, target_Atelectasis: '7'" in message
    assert "file_name twice: 'images/00000004_000.png' on lines 6 and 7" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty: expected a header and a row an image"),
        (",".join(COLUMNS).encode(), "no image: found a header and no row"),
        (
            b"file_name;patient_id\n",
            "a column is missing from line 1 .7 times; the first 3: file_name; patient_id; age",
        ),
        ("file_name".encode("utf-16"), "cannot be read as a CSV in UTF-8"),
    ],
)
def test_no_table_is_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_no_file_is_refused(path):
    with pytest.raises(InputError, match=r"predictions.csv: there is no such file. Give a predictions.csv"):
        read_predictions(path)
    with pytest.raises(InputError, match="cannot be read as a CSV"):
        read_predictions(path.parent)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patient_ids", ["1"], "patient_ids holds 1 values, file_names 5"),
        ("patient_ids", ["1", "2", "", "4", "5"], "patient_ids holds an empty text"),
        ("file_names", ["a"] * 5, "file_names holds a name twice"),
        ("targets_NL", np.zeros((5, 15)), r"targets_NL has shape \(5, 15\), not \(5, 14\)"),
        ("targets_NL", np.full((5, 14), 2), "targets_NL must be 0 or 1"),
        ("scores_NL", np.full((5, 14), 1.5), r"scores_NL must be in \[0, 1\]; `probabilities` makes such of logits"),
        ("scores_NL", np.full((5, 14), np.nan), r"scores_NL must be in \[0, 1\]"),
    ],
)
def test_a_table_that_no_file_would_hold_is_not_made(field, value, message):
    with pytest.raises(ValueError, match=message):
        Predictions(**{**vars(random_predictions()), field: value})


def test_200_000_rows_take_less_than_1_gb(path):
    random = np.random.default_rng(0)
    tails = [
        ",".join([*map(str, random.integers(0, 2, 14)), *map(repr, random.random(14).tolist())]) for _ in range(1000)
    ]
    rows = [f"{image:08d}_000.png,{image // 4},50,M,PA,{tails[image % 1000]}" for image in range(200_000)]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    script = (  # VmHWM, not ru_maxrss: that one starts from the parent's
        "import re, sys; from chestxray_vit.artifacts.predictions import read_predictions;"
        "num_images = len(read_predictions(sys.argv[1]).file_names);"
        "print(num_images, re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, check=True).stdout
    num_images, kilobytes = map(int, answer.split())
    assert num_images == 200_000
    assert 50_000 < kilobytes < 1_000_000


# Other label sets

THREE = LabelSet("3 labels", ("Fracture", "Airspace opacity", "a,b"))


def table_of_three(tmp_path, header=None):
    path = tmp_path / "three.csv"
    random = np.random.default_rng(0)
    predictions = Predictions(
        ["a.png", "b.png"], ["1", "2"], [30, None], ["F", ""], ["PA", "AP"], np.eye(2, 3), random.random((2, 3)), THREE
    )
    write_predictions(path, predictions)
    if header:
        text = path.read_text()
        path.write_text(header(text.splitlines()[0]) + text[text.index("\n") :])
    return path, predictions


def test_the_header_carries_the_labels(tmp_path):
    path, predictions = table_of_three(tmp_path)
    read = read_predictions(path)
    assert read.label_set == THREE
    assert [name for name, _, _ in read.columns()] == list(THREE.names)
    np.testing.assert_array_equal(read.scores_NL, predictions.scores_NL)
    np.testing.assert_array_equal(read.targets_NL, predictions.targets_NL)


@pytest.mark.parametrize("missing", ["target_Fracture", "score_Fracture"])
def test_a_label_needs_its_target_and_its_score(tmp_path, missing):
    path, _ = table_of_three(tmp_path, lambda header: header.replace(missing, "unused"))
    with pytest.raises(InputError, match=f"a column is missing from line 1: {missing}[.] Found file_name"):
        read_predictions(path)


@pytest.mark.parametrize(("label", "shown"), [("Mass\u00a0", r"'Mass\\xa0'"), ("a\x07", r"'a\\x07'")])
def test_a_label_that_is_not_printable_is_refused(tmp_path, label, shown):
    path, _ = table_of_three(tmp_path, lambda header: header.replace("Fracture", label))
    with pytest.raises(InputError, match=f"a label is not printable text: line 1: {shown}. Rename its target_ and"):
        read_predictions(path)


def test_one_label_is_read(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("file_name,patient_id,age,sex,view,target_Mass,score_Mass\na.png,1,,,,1,0.5\nb.png,2,,,,0,0.25\n")
    read = read_predictions(path)
    assert read.label_set.names == ("Mass",)
    assert read.targets_NL.tolist() == [[1], [0]]
    assert read.scores_NL.tolist() == [[0.5], [0.25]]


def test_predictions_of_rows_leave_out_the_negative():
    rows = {"file_name": ["a.png", "b.png"], "patient_id": ["1", 2], "age": [3, None], "sex": ["F", None]}
    labels = LabelSet("two", ("Mass", "None"), negative="None")
    found = predictions_of({**rows, "view": [None, "PA"]}, np.array([[1.0, 0], [0, 1]]), np.zeros((2, 2)), labels)
    assert (found.label_set.names, found.label_set.negative) == (("Mass",), "None")
    assert (found.patient_ids, found.sexes, found.views) == (["1", "2"], ["F", ""], ["", "PA"])
    assert found.targets_NL.tolist() == [[1], [0]]
    assert found.scores_NL.tolist() == [[0.5], [0.5]]


def test_half_a_label_beside_nihs_is_a_further_column(tmp_path, caplog):
    """As in 0.5.0: a tool may add a column such as score_total."""
    path = tmp_path / "predictions.csv"
    write_predictions(path, random_predictions(5))
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},score_total,target_Any", *(f"{row},7,x" for row in rows)]) + "\n")
    with caplog.at_level("INFO"):
        read = read_predictions(path)
    assert read.label_set == NIH_CHESTXRAY14
    assert "2 further columns are ignored: score_total, target_Any" in caplog.text
