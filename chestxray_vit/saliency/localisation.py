"""Score heat maps on boxes: is a map's maximum, or its high part, where a radiologist marked the finding?

Chance stands beside each share. Large boxes are easily hit: a box around the heart holds the centre of the image, and
a map that is high everywhere overlaps with it well. A map without any information scores as a random point does.

Shapes: K boxes (x, y, width, height) in pixels of SIDE x SIDE, h x w grid of patches, S = SIDE."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from chestxray_vit.errors import InputError
from chestxray_vit.metrics.intervals import wilson
from chestxray_vit.reporting.render.tables import aligned
from chestxray_vit.storage.atomic import PathLike
from chestxray_vit.storage.json_files import read_json
from chestxray_vit.storage.json_schema import conforms, list_of, object_of

FILE = "localisation.json"
SIDE = 1024  # NIH's images
TOLERANCES = (0, 15)  # pixels; the first is the box itself, 15 is that of Zhang et al.
THRESHOLDS = (0.25, 0.5, 0.75)  # of a map's maximum
AT_LEAST = (0.1, 0.3)  # IoU
METHODS = {
    "gradient": "gradient-weighted attention (Chefer, Gur & Wolf, ICCV 2021), of the box's finding",
    "rollout": "attention rollout (Abnar & Zuidema, ACL 2020), of no single finding",
}
POINTING = (
    "Pointing game (Zhang et al., IJCV 2018): share of cases whose map has its maximum in a box, or within 15 pixels "
    "of one; of several maxima, the share of them that is"
)
IOU = "IoU: of the map's pixels >= threshold x its maximum with the union of the boxes"
CHANCE = "Chance: what a random point hits, and what the image's central point hits; IoU of the whole image"
UNIT = (
    "A case is an image and a finding with its boxes; maps are upsampled bilinearly to 1024 x 1024. Intervals: 95 %, "
    "Wilson, by image: patients with several images make them too narrow"
)
CAUTION = "Research use only. A heat map shows where a model looked, not why."
SYNTHETIC = "Synthetic X-rays: these numbers say nothing about patients."

REMEDY = "Give a localisation.json as `python -m chestxray_vit.explain RUN --boxes` writes it."
NUMBER, STRING, INTEGER = {"type": ["number", "null"]}, {"type": "string"}, {"type": "integer"}
POINTING_GAME = object_of(dict.fromkeys(("share", "low", "high", "random_point", "central_point"), NUMBER))
SHARE_AT_LEAST = object_of({"iou": NUMBER, "share": NUMBER})
ROW = object_of(
    {
        "finding": STRING,
        "num_cases": INTEGER,
        "num_patients": INTEGER,
        "pointing_game": list_of(POINTING_GAME),
        "iou": list_of(object_of({"threshold": NUMBER, "mean": NUMBER, "at_least": list_of(SHARE_AT_LEAST)})),
    }
)
TEXTS = dict.fromkeys(("method", "pointing_game", "iou", "unit", "caution"), STRING)
SCHEMA = object_of({**TEXTS, "findings": list_of(ROW), "all": ROW})


@dataclass(frozen=True)
class MapScore:
    """How one map meets the boxes of its case.

    Attributes:
        hits: by tolerance, the share of the map's maxima that hit; 0 or 1 unless several pixels are equal.
        random: by tolerance, what a random point hits, in [0, 1].
        central: by tolerance, 1 if the image's central point hits, else 0.
        ious: by threshold.
        iou_whole: of the whole image.
        is_flat: the map is the same everywhere.
    """

    hits: Tuple[float, ...]
    random: Tuple[float, ...]
    central: Tuple[float, ...]
    ious: Tuple[float, ...]
    iou_whole: float
    is_flat: bool


@dataclass(frozen=True)
class Case:
    """An image and a finding with its boxes, and how the map of the finding meets them."""

    finding: str
    file_name: str
    patient_id: str
    num_boxes: int
    score: MapScore


def upsample(map_hw: np.ndarray, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Return a map at (height, width), bilinear, values centred in their patches; beyond the outer centres it is level.

    Differences are added to the lower neighbour, so that what is level stays so to the last bit: its ties count.
    """
    for axis, (size, side) in enumerate(zip(map_hw.shape, (height, width))):
        position_S = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        lower_S = np.minimum(position_S.astype(int), max(size - 2, 0))
        part_S = (position_S - lower_S).reshape((-1, 1) if axis == 0 else (1, -1))
        low = np.take(map_hw, lower_S, axis=axis).astype(np.float64)
        high = np.take(map_hw, np.minimum(lower_S + 1, size - 1), axis=axis)
        map_hw = np.where(part_S == 1, high, low + part_S * (high - low))
    return map_hw


def near(boxes_K4: np.ndarray, x: np.ndarray, y: np.ndarray, tolerance: float) -> np.ndarray:
    """Return which points are in a box, its edges counted, or within so many pixels of one.

    Args:
        boxes_K4: x, y, width, height.
        x, y: of the points, in pixels from the image's left and upper edge; they broadcast.
        tolerance: the largest distance, 0 or more.
    """
    result = np.zeros(np.broadcast(x, y).shape, dtype=bool)
    for left, top, width, height in boxes_K4:
        beside = np.maximum(np.maximum(left - x, x - left - width), 0)
        above = np.maximum(np.maximum(top - y, y - top - height), 0)
        result |= beside**2 + above**2 <= tolerance**2
    return result


def score_map(map_hw: np.ndarray, boxes_K4: np.ndarray) -> MapScore:
    """Score a map on the boxes of its image and finding. A pixel is where its centre is.

    Args:
        map_hw: finite, none below 0.
        boxes_K4: x, y, width, height in pixels of SIDE x SIDE; at least one.

    Raises:
        ValueError: a value of the map is not finite, or below 0.
    """
    map_hw = np.asarray(map_hw, dtype=np.float64)
    if not (np.isfinite(map_hw) & (map_hw >= 0)).all():
        raise ValueError("a heat map must be finite and nowhere below 0")
    map_SS, centres_S, middle = upsample(map_hw), np.arange(SIDE) + 0.5, np.array(SIDE / 2)
    largest = map_SS.max()
    maxima_SS = map_SS == largest
    hit_by = [near(boxes_K4, centres_S[None, :], centres_S[:, None], tolerance) for tolerance in TOLERANCES]
    in_box_SS = hit_by[0]
    return MapScore(
        hits=tuple(float(hit_SS[maxima_SS].mean()) for hit_SS in hit_by),
        random=tuple(float(hit_SS.mean()) for hit_SS in hit_by),
        central=tuple(float(near(boxes_K4, middle, middle, tolerance)) for tolerance in TOLERANCES),
        ious=tuple(_iou(map_SS >= threshold * largest, in_box_SS) for threshold in THRESHOLDS),
        iou_whole=float(in_box_SS.mean()),
        is_flat=bool(maxima_SS.all()),
    )


def _iou(one_SS: np.ndarray, other_SS: np.ndarray) -> float:
    return float(np.count_nonzero(one_SS & other_SS) / np.count_nonzero(one_SS | other_SS))


def localisation_report(
    cases: Sequence[Case], findings: Sequence[str], method: str, synthetic: bool = False
) -> Dict[str, Any]:
    """Return the shares by finding and over all cases, as JSON's types; None where there is no case.

    Args:
        cases: each image and finding once.
        findings: names that get a row, in order.
        method: `gradient` or `rollout`.
        synthetic: whether the images are synthetic.
    """
    return {
        "method": METHODS[method],
        "pointing_game": POINTING,
        "iou": IOU,
        "chance": CHANCE,
        "unit": UNIT,
        "caution": f"{CAUTION} {SYNTHETIC}" if synthetic else CAUTION,
        "tolerances": list(TOLERANCES),
        "thresholds": list(THRESHOLDS),
        "at_least": list(AT_LEAST),
        "findings": [_row(finding, [case for case in cases if case.finding == finding]) for finding in findings],
        "all": _row("all", cases),
    }


def _row(name: str, cases: Sequence[Case]) -> Dict[str, Any]:
    scores = [case.score for case in cases]
    return {
        "finding": name,
        "num_boxes": sum(case.num_boxes for case in cases),
        "num_cases": len(cases),
        "num_images": len({case.file_name for case in cases}),
        "num_patients": len({case.patient_id for case in cases}),
        "num_flat_maps": sum(score.is_flat for score in scores),
        "pointing_game": [_pointing(scores, index) for index in range(len(TOLERANCES))],
        "iou": [
            {"threshold": threshold, **_overlap([score.ious[index] for score in scores])}
            for index, threshold in enumerate(THRESHOLDS)
        ],
        "iou_whole_image": _overlap([score.iou_whole for score in scores]),
    }


def _pointing(scores: Sequence[MapScore], index: int) -> Dict[str, Optional[float]]:
    hits = math.fsum(score.hits[index] for score in scores)
    low, high = wilson(hits, len(scores)) if scores else (None, None)
    return {
        "tolerance": TOLERANCES[index],
        "hits": hits,
        "share": _mean([score.hits[index] for score in scores]),
        "low": low,
        "high": high,
        "random_point": _mean([score.random[index] for score in scores]),
        "central_point": _mean([score.central[index] for score in scores]),
    }


def _overlap(ious: Sequence[float]) -> Dict[str, Any]:
    shares = [{"iou": level, "share": _mean([iou >= level for iou in ious])} for level in AT_LEAST]
    return {"mean": _mean(ious), "at_least": shares}


def _mean(values: Sequence[float]) -> Optional[float]:
    return math.fsum(values) / len(values) if values else None


def read_localisation(path: PathLike) -> Dict[str, Any]:
    """Read the localisation.json that `explain --boxes` wrote.

    Raises:
        InputError: the file is not there, or is no such table.
    """
    content = read_json(path, REMEDY)
    if not conforms(content, SCHEMA):
        raise InputError(f"{path}: holds no localisation. {REMEDY}")
    return content


def to_text(results: Dict[str, Any]) -> str:
    """Return `localisation_report`'s content as two aligned tables with their notes, at most 110 columns wide."""
    rows = [*results["findings"], results["all"]]
    notes = [results[name] for name in ("pointing_game", "iou", "chance", "unit")]
    flat = results["all"]["num_flat_maps"]
    if flat:
        notes.append(f"{flat:,} of {results['all']['num_cases']:,} maps are the same everywhere: they hit by chance")
    texts = [textwrap.fill(text, 110) for text in (*(f"{note}." for note in notes), results["caution"])]
    tables = [aligned(_in_two_lines(table)) for table in (_pointing_table(rows), _iou_table(rows))]
    heading = f"Heat maps on boxes: {results['method']}."
    return "\n\n".join([heading, *tables, "\n".join(texts)])


def _pointing_table(rows: Sequence[Dict[str, Any]]) -> List[List[str]]:
    chance = ("random|point", "central|point")
    groups = [name for tolerance in TOLERANCES for name in (f"within|{tolerance} px", "95 %|interval", *chance)]
    table = [["|finding", "|cases", "|patients", *groups]]
    for row in rows:
        cells = [row["finding"], f"{row['num_cases']:,}", f"{row['num_patients']:,}"]
        for game in row["pointing_game"]:
            interval = "-" if game["low"] is None else f"{game['low']:.2f} to {game['high']:.2f}"
            cells += [_shown(game["share"]), interval, _shown(game["random_point"]), _shown(game["central_point"])]
        table.append(cells)
    return table


def _iou_table(rows: Sequence[Dict[str, Any]]) -> List[List[str]]:
    above = [words for threshold in THRESHOLDS for words in ("map >=", f"{threshold:g} x", "max.")]
    below = ["IoU", *(f">= {level}" for level in AT_LEAST)] * (len(THRESHOLDS) + 1)
    table = [["|finding", *(f"{first}|{second}" for first, second in zip([*above, "the", "whole", "image"], below))]]
    for row in rows:
        cells = [row["finding"]]
        for overlap in (*row["iou"], row["iou_whole_image"]):
            cells += [_shown(overlap["mean"]), *(_shown(level["share"]) for level in overlap["at_least"])]
        table.append(cells)
    return table


def _shown(share: Optional[float]) -> str:
    return "-" if share is None else f"{share:.2f}"


def _in_two_lines(rows: List[List[str]]) -> List[List[str]]:
    """Return rows with the header cut at each cell's `|`."""
    header = [cell.partition("|") for cell in rows[0]]
    return [[above for above, _, _ in header], [below for _, _, below in header], *rows[1:]]
