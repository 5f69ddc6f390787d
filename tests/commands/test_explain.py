"""The stage `explain`: overlays and the score on boxes, with the ViT of which the maps are known (test_attention)."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from chestxray_vit import explain, ingest
from chestxray_vit.data import dataset as xrays
from chestxray_vit.data.readers.nih_boxes import read_boxes
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.preprocess import Preprocess
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models import vit as model
from chestxray_vit.saliency import attention_maps as attention
from chestxray_vit.saliency import localisation, write_overlays
from chestxray_vit.saliency.overlay import overlay
from chestxray_vit.storage.lock import folder_lock
from tests.conftest import write_release
from tests.unit.saliency.test_attention_maps import known_vit

FINDINGS = NIH_CHESTXRAY14.names

BRIGHT_AT, DARK_AT = (1, 2), (2, 1)  # row and column of 4 x 4 patches
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
# In pixels of 1024 x 1024: a patch is 256 wide, and the boxes are inset by 56.
ON_BRIGHT, ON_DARK, ON_NEITHER = "568,312,144,144", "312,568,144,144", "824,824,144,144"


def xray(width=64, height=64, bright=BRIGHT_AT, dark=DARK_AT):
    """Draw a grey X-ray with a bright and a dark field, a sixteenth of it each."""
    grey_HW = np.full((height, width), 127, dtype=np.uint8)
    for (row, column), level in ((bright, 255), (dark, 30)):
        rows = slice(row * height // 4, (row + 1) * height // 4)
        grey_HW[rows, column * width // 4 : (column + 1) * width // 4] = level
    return Image.fromarray(grey_HW)


def save_run(folder, vit, processor):
    vit.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("explain") / "run", *known_vit())


@pytest.fixture
def dataset(tmp_path):
    """Three patients and five images of the two fields, ingested; those of patient 3 are the test split."""
    folder = write_release(tmp_path / "release")
    for path in (folder / "images").glob("*.png"):
        xray().save(path)
    assert ingest.main([str(folder), "--split", "official", "--val_fraction", "0.2"]) == 0
    return folder


def write_boxes(path, *rows):
    path.write_text("".join(f"{line}\n" for line in (HEADER, *rows)))
    return path


def explained(run, *arguments):
    return explain.main([str(run), *map(str, arguments), "--device", "cpu"])


def xray_part(path, width, height):
    """Cut the X-ray out of an overlay, RGB; it is `width` x `height`, less 0.5 pixel of rounding."""
    with Image.open(path) as image:
        full = np.asarray(image.convert("RGB")).astype(int)
    left, bottom = (full.shape[1] - 120 - width) / 2, (full.shape[0] - 30 - height) / 2
    top = full.shape[0] - bottom - height
    return full[round(top) : round(top) + height, round(left) : round(left) + width]


def colour_at(part_HW3, position):
    """Return how far the middle of a field of 4 x 4 is from grey."""
    row, column = (round((at + 0.5) * side / 4) for at, side in zip(position, part_HW3.shape))
    return int(np.ptp(part_HW3[row, column]))


def test_overlays_are_warm_where_the_finding_is(run, tmp_path, capsys):
    xray().save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert explained(run, tmp_path / "a.png", "--finding", "Cardiomegaly", "Mass", "--output_dir", out) == 0
    assert {path.name for path in out.iterdir()} == {"a.Cardiomegaly.png", "a.Mass.png"}
    for finding, warm, cold in (("Cardiomegaly", BRIGHT_AT, DARK_AT), ("Mass", DARK_AT, BRIGHT_AT)):
        part = xray_part(out / f"a.{finding}.png", 768, 768)
        assert colour_at(part, warm) > 50
        assert colour_at(part, cold) == 0  # the plain X-ray, also where it speaks against the finding
        plain = np.asarray(xray().resize((768, 768), Image.Resampling.BILINEAR)).astype(int)[..., None]
        assert 0.05 < (np.abs(part - plain).max(axis=2) > 10).mean() < 0.5
        corner = np.abs(part - plain)[600:, 600:]  # far from both fields
        assert corner.max() <= 2
    assert "a.png, Cardiomegaly, score 0." in capsys.readouterr().out


def test_default_is_the_finding_of_the_highest_score(run, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    out = tmp_path / "out"
    assert explained(run, tmp_path / "white.png", tmp_path / "black.png", "--output_dir", out) == 0
    assert {path.name for path in out.iterdir()} == {"white.Cardiomegaly.png", "black.Mass.png"}


def test_title_tells_finding_score_and_method(run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    texts, text = [], Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **more: texts.append(s) or text(self, x, y, s, **more))
    xray().save(tmp_path / "a.png")
    for method in attention.METHODS:
        assert explained(run, tmp_path / "a.png", "--method", method, "--finding", "Mass") == 0
    vit, processor = model.load_model(run)
    pixels = Preprocess(processor).pixels(read_grey(tmp_path / "a.png"))
    with torch.no_grad():
        score = torch.sigmoid(vit(pixel_values=pixels[None]).logits[0, FINDINGS.index("Mass")]).item()
    assert texts[0] == f"Mass: score {score:.3f}\ngradient-weighted attention"
    assert texts[2] == f"Mass: score {score:.3f}\nattention rollout, of no single finding"
    assert texts[1] == texts[3] == "Research use only. A heat map shows where a model looked, not why."
    shutil.rmtree(run / "explain")  # the default folder


@pytest.mark.parametrize(("width", "height"), [(40, 80), (90, 30), (64, 64)])
def test_xray_keeps_its_aspect(width, height):
    map_hw = np.zeros((4, 4))
    map_hw[BRIGHT_AT] = 1.0
    path = io.BytesIO(overlay(xray(width, height), map_hw, "Mass", 0.5, "gradient"))
    scale = 768 / max(width, height)
    part = xray_part(path, round(width * scale), round(height * scale))
    assert colour_at(part, BRIGHT_AT) > 50
    assert colour_at(part, DARK_AT) == 0
    row, column = (round((at + 0.5) * side / 4) for at, side in zip(DARK_AT, part.shape))
    assert abs(part[row, column] - 30).max() <= 1


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_flat_map_is_drawn(level):
    png = overlay(xray(), np.full((4, 4), level), "Mass", 0.5, "gradient")
    part = xray_part(io.BytesIO(png), 768, 768)
    assert (colour_at(part, (0, 0)) > 100) == (level > 0)  # no warmth at all, or the warmest everywhere


def test_same_stems_and_the_same_file_twice(run, tmp_path):
    for folder, suffix in (("one", "png"), ("two", "png"), ("two", "jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        xray().save(tmp_path / folder / f"a.{suffix}")
    xray().save(tmp_path / "two" / "A_2.png")
    out, inputs = tmp_path / "out", [tmp_path / "one" / "a.png", tmp_path / "one", tmp_path / "two"]
    assert explained(run, *inputs, "--finding", "Mass", "--output_dir", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("A_2.Mass.png", "a.Mass.png", "a_3.Mass.png", "a_4.Mass.png")
    ]


def test_names_differ_even_where_case_does_not_count(tmp_path):
    paths = [tmp_path / name for name in ("x/a.png", "a_2.png", "y/A.png", "z/a.png", "a_2.jpg")]
    names = write_overlays.overlay_stems(paths)
    assert names == ["a", "a_2", "A_3", "a_4", "a_2_2"]


def test_unreadable_image_is_named_and_left_out(run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    xray().save(folder / "b.png")
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes()[:60])
    assert explained(run, folder, "--output_dir", tmp_path / "out") == 1
    assert len(list((tmp_path / "out").iterdir())) == 1
    printed = capsys.readouterr().err
    assert "a.png: cannot be decoded" in printed
    assert "1 images have no heat map" in printed


def test_inputs_are_never_overwritten(run, tmp_path, capsys):
    xray().save(tmp_path / "a.png")
    xray(bright=(0, 0)).save(tmp_path / "a.Mass.png")
    before = (tmp_path / "a.Mass.png").read_bytes()
    for inputs in ([tmp_path], [tmp_path / "a.png", tmp_path / "a.Mass.png"]):
        assert explained(run, *inputs, "--output_dir", tmp_path) == 2
    printed = capsys.readouterr().err
    assert f"lies in {tmp_path}, which holds X-rays" in printed
    assert "would overwrite a.Mass.png, which holds X-rays" in printed
    assert explained(run, tmp_path, "--output_dir", tmp_path / "out") == 2
    assert (tmp_path / "a.Mass.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_another_process_writes_is_refused(run, dataset, tmp_path, capsys):
    xray().save(tmp_path / "x.png")
    with folder_lock(tmp_path / "maps", ()):
        assert explain.main([str(run), str(tmp_path / "x.png"), "--output_dir", str(tmp_path / "maps")]) == 2
    assert "is writing here" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_images_may_follow_a_flag(run, tmp_path):
    xray().save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert explain.main([str(run), "--output_dir", str(out), "--device", "cpu", str(tmp_path / "a.png")]) == 0
    assert len(list(out.iterdir())) == 1


def refusal(capsys, *arguments):
    assert explain.main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_refusals(run, dataset, tmp_path, capsys):
    image, boxes = dataset / "images" / "00000001_000.png", write_boxes(tmp_path / "b.csv", f"x.png,Mass,{ON_DARK}")
    assert "nothing to explain" in refusal(capsys, run)
    both = refusal(capsys, run, image, "--boxes", boxes, "--dataset_dir", dataset)
    assert "Leave out one of the two" in both
    assert "--dataset_dir is missing" in refusal(capsys, run, "--boxes", boxes)
    assert "--dataset_dir goes with --boxes" in refusal(capsys, run, image, "--dataset_dir", dataset)
    with_finding = refusal(capsys, run, "--boxes", boxes, "--dataset_dir", dataset, "--finding", "Mass")
    assert "each box has its own finding" in with_finding
    unknown = refusal(capsys, run, "--finding", "Mass", "mass", image)
    assert f"unknown: 'mass', {str(image)!r}. Known: Atelectasis, " in unknown
    assert "Images come before --finding" in unknown
    assert "no such file or folder" in refusal(capsys, run, tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    assert "no PNG or JPEG in this folder" in refusal(capsys, run, tmp_path / "empty")
    assert "no ViT checkpoint" in refusal(capsys, tmp_path / "empty", image)
    elsewhere = refusal(capsys, run, "--boxes", boxes, "--dataset_dir", dataset)
    assert f"none of its 1 images is in {dataset} (first: x.png)" in elsewhere
    assert "First: python -m chestxray_vit.ingest" in refusal(capsys, run, "--boxes", boxes, "--dataset_dir", tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refusal(capsys, run, image, "--output_dir", tmp_path / "file")


BOXES = (
    f"00000003_000.png,Cardiomegaly,{ON_BRIGHT}",
    f"00000003_000.png,Mass,{ON_DARK}",
    f"00000003_001.png,Mass,{ON_NEITHER}",
    f"00000003_001.png,Mass,{ON_BRIGHT}",
    f"00000001_000.png,Mass,{ON_NEITHER}",
    f"00000001_000.png,Mass,{ON_DARK}",
    f"09999999_000.png,Infiltrate,{ON_DARK}",
)


def test_boxes_are_hit_where_the_known_vit_looks(run, dataset, tmp_path, capsys):
    boxes, out = write_boxes(tmp_path / "b.csv", *BOXES), tmp_path / "out"
    assert explained(run, "--boxes", boxes, "--dataset_dir", dataset, "--output_dir", out) == 0
    text = (out / "localisation.json").read_text()
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert localisation.read_localisation(out / "localisation.json") == results
    assert results["run"] == "run"
    about = {name: value for name, value in results["boxes"].items() if name.startswith(("num", "images"))}
    assert about == {
        "num_boxes": 7,
        "num_used": 6,
        "num_left_out": 1,
        "images_not_in_dataset": ["09999999_000.png"],
        "images_unreadable": [],
    }
    assert results["num_images_by_split"] == {"test": 2, "train": 1}
    rows = {row["finding"]: row for row in results["findings"]}
    assert list(rows) == ["Cardiomegaly", "Infiltration", "Mass"]
    hits = {finding: row["pointing_game"][0]["hits"] for finding, row in rows.items()}
    assert hits == {"Cardiomegaly": 1, "Infiltration": 0, "Mass": 2}  # of 1, 0 and 3 cases
    assert [rows["Mass"][name] for name in ("num_boxes", "num_cases", "num_patients")] == [5, 3, 2]
    # pixel centres 568.5 to 711.5 are in the box: 144 x 144 of 1024 x 1024; two boxes are twice that
    assert rows["Cardiomegaly"]["pointing_game"][0]["random_point"] == (144 / 1024) ** 2
    assert rows["Mass"]["pointing_game"][0]["random_point"] == pytest.approx(5 / 3 * (144 / 1024) ** 2)
    assert rows["Infiltration"]["pointing_game"][0]["share"] is None
    printed = capsys.readouterr().out
    assert "6 of 7 boxes are on images of release." in printed
    assert "left out: 1 images that it has not: 09999999_000.png" in printed
    assert "1 of 3 images are not in the test split: the run may have learned them." in printed
    assert "Research use only. A heat map shows where a model looked, not why." in printed


def slow_score(map_hw, boxes):
    """Score a map on boxes whose edges are whole pixels: torch's upsampling, and rectangles by slices."""
    map_hw = torch.from_numpy(np.asarray(map_hw)).double()
    large = torch.nn.functional.interpolate(map_hw[None, None], (1024, 1024), mode="bilinear")[0, 0].numpy()
    mask = np.zeros((1024, 1024), dtype=bool)
    for box in boxes:
        x, y, width, height = (int(value) for value in (box.x, box.y, box.width, box.height))
        mask[y : y + height, x : x + width] = True
    row, column = np.unravel_index(large.argmax(), large.shape)
    hot = [large >= threshold * large.max() for threshold in (0.25, 0.5, 0.75)]
    return float(mask[row, column]), [(mask & part).sum() / (mask | part).sum() for part in hot]


@pytest.mark.parametrize("method", attention.METHODS)
def test_boxes_score_as_one_by_one(dataset, tmp_path, method):
    torch.manual_seed(11)
    vit, processor = known_vit()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    run = save_run(tmp_path / "run", vit, processor)
    rng = np.random.default_rng(6)
    for path in (dataset / "images").glob("*.png"):
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    left, upper = "0,0,512,1024", "0,0,1024,512"
    rows = ("3_000.png,Mass,", left), ("3_000.png,Edema,", upper), ("3_001.png,Mass,", upper), ("1_000.png,Mass,", left)
    rows = [*(f"0000000{image}{box}" for image, box in rows), f"00000001_000.png,Mass,{ON_NEITHER}"]
    path = write_boxes(tmp_path / "b.csv", *rows)
    arguments = ["--boxes", path, "--dataset_dir", dataset, "--method", method, "--output_dir", tmp_path / "out"]
    assert explained(run, *arguments) == 0
    overall = json.loads((tmp_path / "out" / "localisation.json").read_text())["all"]
    vit, processor = model.load_model(run)
    cases = {}
    for box in read_boxes(path):
        cases.setdefault((box.file_name, box.finding), []).append(box)
    expected = []
    for (name, finding), boxes in cases.items():
        pixels = Preprocess(processor).pixels(read_grey(dataset / "images" / name))
        map_hw = attention.heat_maps(vit, pixels[None], [FINDINGS.index(finding)], method)[0].numpy()
        expected.append(slow_score(map_hw, boxes))
    assert overall["num_cases"] == len(expected) == 4
    assert overall["pointing_game"][0]["hits"] == pytest.approx(sum(hit for hit, _ in expected), abs=1e-12)
    for position, row in enumerate(overall["iou"]):
        assert row["mean"] == pytest.approx(np.mean([ious[position] for _, ious in expected]), abs=1e-4)
        assert row["mean"] > 0


def test_unreadable_boxed_image_is_named_and_counted(run, dataset, tmp_path, capsys):
    damaged = dataset / "images" / "00000003_000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    boxes, out = write_boxes(tmp_path / "b.csv", *BOXES), tmp_path / "out"
    assert explained(run, "--boxes", boxes, "--dataset_dir", dataset, "--output_dir", out) == 1
    about = json.loads((out / "localisation.json").read_text())["boxes"]
    assert (about["num_used"], about["images_unreadable"]) == (4, ["00000003_000.png"])
    printed = capsys.readouterr().err
    assert printed.count("00000003_000.png: cannot be decoded") == 1  # though two of its findings are boxed
    only = write_boxes(tmp_path / "only.csv", *BOXES[:2])
    assert "no boxed image can be read" in refusal(capsys, run, "--boxes", only, "--dataset_dir", dataset)


def test_synthetic_images_are_named(run, synthetic_dataset, tmp_path, capsys):
    name = xrays.load_xrays(synthetic_dataset, "test")["file_name"][0]
    boxes = write_boxes(tmp_path / "b.csv", f"{name},Mass,{ON_DARK}")
    arguments = ["--boxes", boxes, "--dataset_dir", synthetic_dataset, "--output_dir", tmp_path]
    assert explained(run, *arguments) == 0
    assert localisation.SYNTHETIC in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("method", attention.METHODS)
def test_real_boxes_and_images(real_release, deit_tiny, tmp_path, method):
    torch.manual_seed(0)
    run = save_run(tmp_path / "run", *model.build_model(str(deit_tiny)))
    folder, path = tmp_path / "nih", real_release / "BBox_List_2017.csv"
    (folder / "images").mkdir(parents=True)
    boxed = {box.file_name: box for box in read_boxes(path)}
    images = [image for image in (real_release / "images").glob("*.png") if image.name in boxed]
    for image in images:
        (folder / "images" / image.name).symlink_to(image)
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt"):
        shutil.copy(real_release / name, folder)
    assert ingest.main([str(folder), "--allow_missing"]) == 0
    assert explained(run, "--boxes", path, "--dataset_dir", folder, "--method", method) == 0
    results = json.loads((run / "explain" / "localisation.json").read_text())
    assert results["boxes"]["num_boxes"] == 984
    assert results["boxes"]["num_used"] == len(images) == 11
    assert len(results["boxes"]["images_not_in_dataset"]) == 880 - 11
    assert results["num_images_by_split"] == {"test": 11}
    assert len(results["findings"]) == 8
    overall = results["all"]
    assert (overall["num_cases"], overall["num_flat_maps"]) == (11, 0)
    area = np.mean([boxed[image.name].width * boxed[image.name].height for image in images]) / 1024**2
    assert overall["pointing_game"][0]["random_point"] == pytest.approx(area, rel=0.01)
    assert 0 < overall["iou"][0]["mean"] < 0.5
