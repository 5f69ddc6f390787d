"""NIH's boxes: the real file, its spelling, and files that are not it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from chestxray_vit.data.readers.nih_boxes import Box, by_case, count_used, read_boxes
from chestxray_vit.errors import InputError

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"  # as NIH's: nine columns, rows of six fields


def write(path, *lines, header=HEADER):
    path.write_text("".join(f"{line}\n" for line in (header, *lines)), encoding="utf-8")
    return path


def problems_of(path):
    with pytest.raises(InputError) as caught:
        read_boxes(path)
    return str(caught.value)


def test_a_row_is_a_box(tmp_path):
    path = write(
        tmp_path / "b.csv", "00000001_000.png,Infiltrate,10.5,20,30,40.25", "00000002_000.png,Mass,0,0,1024,1024"
    )
    assert read_boxes(path) == [
        Box("00000001_000.png", "Infiltration", 10.5, 20.0, 30.0, 40.25),
        Box("00000002_000.png", "Mass", 0.0, 0.0, 1024.0, 1024.0),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_boxes(path)[0].x = 1


def test_columns_are_found_by_name(tmp_path):
    path = write(tmp_path / "b.csv", "4,a.png,1,2,3,Mass,note", header="h],Image Index,Bbox [x,y,w,Finding Label,by")
    assert read_boxes(path) == [Box("a.png", "Mass", 1.0, 2.0, 3.0, 4.0)]


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_ends_byte_order_mark_and_commas_at_the_end(tmp_path, ending):
    text = ending.join([HEADER, "a.png,Mass,1,2,3,4,,,", "", "b.png,Mass,1,2,3,4"])
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [box.file_name for box in read_boxes(tmp_path / "b.csv")] == ["a.png", "b.png"]


def test_real_file(real_release):
    boxes = read_boxes(real_release / "BBox_List_2017.csv")
    assert len(boxes) == 984
    assert len({box.file_name for box in boxes}) == 880
    # counted in the file by cut, sort and uniq
    assert Counter(box.finding for box in boxes) == {
        "Atelectasis": 180,
        "Cardiomegaly": 146,
        "Effusion": 153,
        "Infiltration": 123,
        "Mass": 85,
        "Nodule": 79,
        "Pneumonia": 120,
        "Pneumothorax": 98,
    }
    index = (225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661)
    assert boxes[0] == Box("00013118_008.png", "Atelectasis", *index)


def test_hostile_file_is_told_all_at_once(tmp_path):
    path = write(
        tmp_path / "b.csv",
        "a.png,Fracture,1,2,3,4",
        "b.png,Mass,one,2,inf,4",
        "c.png,Mass,-1.5,2,3,4",
        "d.png,Mass,1000,2,25.5,4",
        "e.png,Mass,1,2,0,4",
        ",Mass,1,2,3,4",
        "f.png,Mass,1,2,3",
        "g.png,Mass,1,2,3,4,,,,",
        "h.png,Mass,1,2,3,-4",
    )
    text = problems_of(path)
    assert "b.csv: 7 kinds of problems" in text
    assert "unknown finding: line 2: 'Fracture'. Known: Atelectasis" in text
    assert "not a number: line 3: 'one'; line 3: 'inf'" in text
    assert "negative number: line 4: x -1.5, y 2, width 3, height 4; line 10: x 1, y 2, width 3, height -4" in text
    assert "box outside the image: line 5: reaches to x 1025.5, y 6" in text
    assert "box without an area: line 6: width 0, height 4" in text
    assert "image name is empty: line 7" in text
    assert "row of another length: line 8 has 5 fields, expected 6 to 9; line 9 has 10 fields" in text


@pytest.mark.parametrize("row", ["-1,0,5,5", "0,-1,5,5", "1020,0,5,5", "0,1020,5,5"])
def test_one_pixel_of_rounding_is_taken(tmp_path, row):
    assert len(read_boxes(write(tmp_path / "b.csv", f"a.png,Mass,{row}"))) == 1


@pytest.mark.parametrize("row", ["-1.01,0,5,5", "0,-1.01,5,5", "1020.1,0,5,5", "0,1020.1,5,5", "nan,0,5,5", ",0,5,5"])
def test_more_is_not(tmp_path, row):
    assert "line 2" in problems_of(write(tmp_path / "b.csv", f"a.png,Mass,{row}"))


def test_missing_and_doubled_columns(tmp_path):
    text = problems_of(write(tmp_path / "b.csv", "a.png,Mass,1,2", header="Image Index,Finding Label,y,y,w"))
    assert "missing column: 'Bbox [x'; 'h]'. Found: Image Index, Finding Label, y, y, w" in text
    assert "doubled column: 'y'" in text


def test_empty_files(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    assert "the file is empty" in problems_of(tmp_path / "empty.csv")
    assert "found a header and no row" in problems_of(write(tmp_path / "b.csv"))


def test_no_file_other_bytes_and_a_broken_csv(tmp_path):
    assert "cannot be read" in problems_of(tmp_path / "nowhere.csv")
    assert "cannot be read" in problems_of(tmp_path)
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\na.png,Mass,1,2,3,4\n".encode() + "bé.png".encode("latin-1"))
    assert "latin.csv line 3: not UTF-8" in problems_of(tmp_path / "latin.csv")
    (tmp_path / "long.csv").write_text(f"{HEADER}\na.png,{'x' * 200_000},1,2,3,4\n")
    assert "long.csv line 2: field larger than field limit" in problems_of(tmp_path / "long.csv")


def test_boxes_are_grouped_and_counted():
    boxes = [
        Box("a.png", "Mass", 1, 2, 3, 4),
        Box("b.png", "Mass", 1, 2, 3, 4),
        Box("a.png", "Nodule", 1, 2, 3, 4),
        Box("a.png", "Mass", 5, 6, 7, 8),
        Box("c.png", "Mass", 1, 2, 3, 4),
        Box("c.png", "Nodule", 1, 2, 3, 4),
    ]
    assert by_case(boxes, {"a.png", "b.png"}) == {
        ("a.png", "Mass"): [boxes[0], boxes[3]],
        ("b.png", "Mass"): [boxes[1]],
        ("a.png", "Nodule"): [boxes[2]],
    }
    assert count_used(boxes, used={"a.png"}, images={"a.png", "b.png"}) == {
        "num_boxes": 6,
        "num_used": 3,
        "num_left_out": 3,
        "images_not_in_dataset": ["c.png"],
        "images_unreadable": ["b.png"],
    }
