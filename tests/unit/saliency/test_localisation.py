"""The score of heat maps on boxes: by hand, by slow versions, and what must not change it.

The 2 x 2 map [[1, 0], [0, 0]] at 1024 x 1024 is f(row) f(column), with f(i) = 1 up to pixel 255 (the patch's centre
is at 256), then falling by 1 / 512 a pixel to 0 from pixel 768 on: f(i) = 1 - (i + 0.5 - 256) / 512 between."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chestxray_vit.saliency import localisation
from chestxray_vit.saliency.localisation import (
    Case,
    MapScore,
    localisation_report,
    near,
    read_localisation,
    score_map,
    to_text,
    upsample,
)

CORNER = np.array([[1.0, 0.0], [0.0, 0.0]])


def boxes(*rows):
    return np.array(rows, dtype=float)


def slow_upsample(map_hw, height, width):
    """Weigh the four neighbours of each pixel, one pixel at a time."""
    h, w = map_hw.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            for row in range(h):
                for column in range(w):
                    weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                    result[i, j] += weight * map_hw[row, column]
    return result


def slow_near(boxes_K4, x, y, tolerance):
    """Measure the distance of a point from the nearest point of each box."""
    for left, top, width, height in boxes_K4:
        nearest_x, nearest_y = min(max(x, left), left + width), min(max(y, top), top + height)
        if math.hypot(x - nearest_x, y - nearest_y) <= tolerance:
            return True
    return False


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 4), (5, 2)])
def test_upsampling_is_bilinear(shape):
    map_hw = np.random.default_rng(0).random(shape)
    assert np.abs(upsample(map_hw, 13, 8) - slow_upsample(map_hw, 13, 8)).max() < 1e-12


def test_upsampling_is_that_of_torch():
    torch = pytest.importorskip("torch")
    map_hw = np.random.default_rng(1).random((14, 12))
    there = torch.nn.functional.interpolate(torch.from_numpy(map_hw)[None, None], (1024, 1024), mode="bilinear")
    assert np.abs(upsample(map_hw) - there[0, 0].numpy()).max() < 1e-12


def test_upsampling_keeps_what_is_level_level():
    flat = np.full((7, 5), 0.1)
    assert (upsample(flat, 100, 99) == 0.1).all()
    edge = np.array([[0.3, 0.1], [0.1, 0.1]])
    assert (upsample(edge)[:256, :256] == 0.3).all()  # above and left of the first patch's centre
    assert upsample(edge)[256, 255] < 0.3
    assert (upsample(edge[::-1, ::-1])[768:, 768:] == 0.3).all()


def test_points_near_boxes():
    several = boxes((10, 20, 30, 5), (60, 0, 4, 40.5), (0, 50, 100, 3))
    centres = np.arange(80) + 0.5
    for tolerance in (0, 2.5, 15):
        fast = near(several, centres[None, :], centres[:, None], tolerance)
        slow = [[slow_near(several, x, y, tolerance) for x in centres] for y in centres]
        assert (fast == np.array(slow)).all()
        assert 0 < fast.mean() < 1


def test_edges_of_a_box_and_a_margin_belong_to_it():
    box = boxes((10, 10, 5, 5))
    assert near(box, np.array([10.0, 15.0, 9.999, 15.001]), np.array([15.0, 10.0, 12.0, 12.0]), 0).tolist() == [
        *(True, True, False, False)
    ]
    # from the corner (15, 15): 3, 4 away is 5
    assert near(box, np.array([18.0, 18.001]), np.array([19.0, 19.0]), 5).tolist() == [True, False]


def test_corner_map_by_hand():
    score = score_map(CORNER, boxes((0, 0, 128, 1024)))
    # the maxima are the 256 x 256 pixels of the corner; the box holds 128 of their 256 columns, with a margin 143
    assert score.hits == (128 / 256, 143 / 256)
    assert score.random == (128 / 1024, 143 / 1024)
    assert score.central == (0, 0)
    assert score.iou_whole == 128 / 1024
    assert not score.is_flat
    falling = np.clip(1 - (np.arange(1024) + 0.5 - 256) / 512, 0, 1)  # f of the module's docstring
    for threshold, iou in zip(localisation.THRESHOLDS, score.ious):
        hot_columns = [int((falling[i] * falling >= threshold).sum()) for i in range(1024)]
        inside = sum(min(columns, 128) for columns in hot_columns)
        assert iou == inside / (sum(hot_columns) + 128 * 1024 - inside)
    # by hand at 0.5: row 0 is hot up to f >= 0.5, which is column 511
    assert int((falling >= 0.5).sum()) == 512


def test_perfect_box():
    map_hw = np.kron(CORNER, np.ones((64, 64)))  # 128 patches a side: a square of 512 pixels, its rim 4 pixels wide
    score = score_map(map_hw, boxes((0, 0, 512, 512)))
    assert score.hits == (1, 1)
    assert score.central == (1, 1)  # the corner of the box is the image's centre
    # f is .9375, .8125, .6875, .5625 on the last four pixels: six of their products are below 0.5, and 6 missing
    assert score.ious[1] == 1 - 6 / 512**2
    assert 0.98 < min(score.ious) < score.ious[1]
    assert score.iou_whole == 0.25


def test_map_without_information_scores_chance():
    for map_hw in (np.full((14, 14), 0.3), np.zeros((14, 14))):
        score = score_map(map_hw, boxes((100, 200, 300, 50), (0, 0, 20, 20)))
        assert score.is_flat
        assert score.hits == score.random
        assert score.ious == (score.iou_whole,) * 3
        assert score.iou_whole == (300 * 50 + 20 * 20) / 1024**2


def test_two_maxima_share_the_hit():
    map_hw = np.zeros((4, 4))
    map_hw[0, 0] = map_hw[3, 3] = 1.0  # two level corners of 128 x 128 pixels
    assert score_map(map_hw, boxes((0, 0, 200, 200))).hits == (0.5, 0.5)
    assert score_map(map_hw, boxes((0, 0, 200, 200), (800, 800, 224, 224))).hits == (1, 1)
    assert score_map(map_hw, boxes((300, 300, 100, 100))).hits == (0, 0)


def test_margin_of_fifteen_pixels():
    # the maxima of the corner map reach to the pixel centre 255.5; only theirs count, so one column of 256
    assert score_map(CORNER, boxes((256, 0, 100, 1024))).hits == (0, 15 / 256)
    assert score_map(CORNER, boxes((270.6, 0, 100, 1024))).hits == (0, 0)


def test_overlapping_boxes_count_once():
    once, twice = boxes((100, 100, 300, 300)), boxes((100, 100, 300, 300), (150, 150, 100, 100))
    map_hw = np.random.default_rng(2).random((14, 14))
    assert score_map(map_hw, once) == score_map(map_hw, twice)


def test_what_does_not_change_a_score():
    rng = np.random.default_rng(3)
    for _ in range(4):
        map_hw = rng.random((6, 9))
        left, top = rng.integers(0, 700, 2)
        width, height = rng.integers(20, 300, 2)
        score = score_map(map_hw, boxes((left, top, width, height)))
        assert score_map(map_hw * 2.0**-20, boxes((left, top, width, height))) == score
        mirrored = score_map(map_hw[:, ::-1], boxes((1024 - left - width, top, width, height)))
        turned = score_map(map_hw.T, boxes((top, left, height, width)))
        for other in (mirrored, turned):
            assert other.hits == score.hits
            assert other.random == score.random
            assert other.ious == pytest.approx(score.ious, abs=1e-5)  # rounding may move a pixel on the threshold


def test_whole_image_as_box():
    score = score_map(np.random.default_rng(4).random((14, 14)), boxes((-1, -1, 1026, 1026)))
    assert score.hits == score.random == score.central == (1, 1)
    assert score.iou_whole == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1])
def test_map_must_be_finite_and_not_below_zero(wrong):
    with pytest.raises(ValueError, match="finite and nowhere below 0"):
        score_map(np.array([[wrong, 1.0]]), boxes((0, 0, 10, 10)))


def case(finding, file_name, patient, hit, iou, num_boxes=1, flat=False):
    score = MapScore((hit, hit), (0.1, 0.2), (1.0, 1.0), (iou, iou / 2, 0.0), 0.2, flat)
    return Case(finding, file_name, patient, num_boxes, score)


CASES = [
    case("Mass", "a.png", "1", 1.0, 0.4),
    case("Mass", "b.png", "1", 0.0, 0.3, num_boxes=2),
    case("Mass", "c.png", "2", 0.5, 0.1, flat=True),
    case("Nodule", "a.png", "1", 1.0, 0.05),
]


def test_summary_by_hand():
    results = localisation_report(CASES, ["Mass", "Nodule", "Effusion"], "gradient")
    mass, nodule, effusion = results["findings"]
    assert [mass[name] for name in ("num_boxes", "num_cases", "num_images", "num_patients")] == [4, 3, 3, 2]
    assert mass["num_flat_maps"] == 1
    game = mass["pointing_game"][0]
    assert (game["tolerance"], game["hits"], game["share"]) == (0, 1.5, 0.5)  # (1 + 0 + 0.5) / 3
    assert (game["random_point"], game["central_point"]) == (pytest.approx(0.1), 1.0)
    assert mass["pointing_game"][1]["random_point"] == pytest.approx(0.2)
    assert mass["iou"][0]["mean"] == pytest.approx(0.8 / 3)
    # 0.4, 0.3, 0.1: all reach 0.1, two reach 0.3
    assert mass["iou"][0]["at_least"] == [{"iou": 0.1, "share": 1.0}, {"iou": 0.3, "share": 2 / 3}]
    assert [level["share"] for level in mass["iou"][1]["at_least"]] == [2 / 3, 0.0]  # 0.2, 0.15, 0.05
    assert mass["iou_whole_image"]["at_least"] == [{"iou": 0.1, "share": 1.0}, {"iou": 0.3, "share": 0.0}]
    assert nodule["num_cases"] == 1
    overall = results["all"]
    assert [overall[name] for name in ("num_boxes", "num_cases", "num_images", "num_patients")] == [5, 4, 3, 2]
    assert overall["pointing_game"][0]["share"] == 2.5 / 4
    assert effusion["num_cases"] == 0
    undefined = effusion["pointing_game"][0]
    assert [undefined[name] for name in ("share", "low", "high", "random_point")] == [None] * 4
    assert effusion["iou"][0]["mean"] is None
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (3, 5), (5, 5), (40, 120)])
def test_interval_is_wilsons(hits, total):
    stats = pytest.importorskip("scipy.stats")
    if not hasattr(stats, "binomtest"):
        pytest.skip("needs scipy 1.7")
    cases = [case("Mass", f"{index}.png", "1", float(index < hits), 0.1) for index in range(total)]
    game = localisation_report(cases, ["Mass"], "gradient")["all"]["pointing_game"][0]
    there = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert (game["low"], game["high"]) == pytest.approx((there.low, there.high), abs=1e-9)


def test_texts_tell_method_chance_and_use():
    results = localisation_report(CASES, ["Mass", "Effusion"], "rollout", synthetic=True)
    text = to_text(results)
    assert "of no single finding" in text
    assert "Wilson, by image" in " ".join(text.split())
    assert "1 of 4 maps are the same everywhere" in text
    assert "Research use only. A heat map shows where a model looked, not why. Synthetic X-rays" in " ".join(
        text.split()
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    row = next(line.split() for line in lines if line.startswith("Mass"))
    assert row[:4] == ["Mass", "3", "2", "0.50"]
    assert row[7:9] == ["0.10", "1.00"]  # after `low to high`: what a random and what the central point hit
    assert next(line.split() for line in lines if line.startswith("Effusion"))[1:5] == ["0", "0", "-", "-"]
    assert "Synthetic" not in to_text(localisation_report(CASES, ["Mass"], "gradient"))


def test_longest_findings_fit_the_width():
    longest = case("Pleural_Thickening", "a.png", "1", 1.0, 0.5)
    assert max(map(len, to_text(localisation_report([longest], ["Cardiomegaly"], "gradient")).splitlines())) <= 110


def test_a_file_of_version_0_5_is_read(tmp_path):
    content = localisation_report(CASES, ["Mass"], "gradient", synthetic=True)
    content["caution"] = "Research use only. Drawn X-rays: these numbers say nothing of patients."
    content["boxes"] = {"num_boxes": 4, "images_not_in_dataset": []}  # without findings_not_scored
    (tmp_path / "localisation.json").write_text(json.dumps({"package_version": "0.5.0", **content}))
    assert read_localisation(tmp_path / "localisation.json")["caution"] == content["caution"]
