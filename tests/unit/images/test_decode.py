"""`read_grey` gives 8-bit grey of every form of PNG and JPEG, upright, and names what it refuses."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import ORIENTATION, read_grey
from tests.helpers.images import encoded, grey_rgba, random_HW

SHAPE = (33, 47)  # height, width


@pytest.mark.parametrize(
    "image, expected_HW",
    [
        (Image.fromarray(random_HW()), random_HW()),
        (Image.fromarray(random_HW()).convert("RGB"), random_HW()),
        (grey_rgba(), random_HW()),
        (grey_rgba().convert("LA"), random_HW()),
        (grey_rgba(alpha=0), np.zeros_like(random_HW())),
        (Image.fromarray(random_HW()).convert("P"), random_HW()),
        (Image.fromarray(random_HW() > 127), (random_HW() > 127) * 255),
        (Image.fromarray(random_HW(high=65536, dtype=np.uint16)), random_HW(high=65536, dtype=np.uint16) >> 8),
        (Image.fromarray(random_HW(high=4096, dtype=np.uint16)), random_HW(high=4096, dtype=np.uint16) >> 8),
    ],
    ids=["L", "RGB", "RGBA", "LA", "transparent", "P", "1", "I;16", "12 bits in 16"],
)
def test_read_grey(tmp_path, image, expected_HW):
    data = encoded(image)
    grey = read_grey(data)
    assert (grey.mode, grey.size) == ("L", (70, 50))
    np.testing.assert_array_equal(np.asarray(grey), expected_HW)
    (tmp_path / "a.png").write_bytes(data)
    assert read_grey(tmp_path / "a.png").tobytes() == read_grey(str(tmp_path / "a.png")).tobytes() == grey.tobytes()


def test_transparency_is_laid_over_black():
    half = Image.new("RGBA", (4, 4), (200, 200, 200, 128))
    assert set(read_grey(encoded(half)).tobytes()) == {200 * 128 // 255}
    palette = Image.fromarray(random_HW()).convert("P")
    grey_HW = np.asarray(read_grey(encoded(palette, transparency=7)))
    np.testing.assert_array_equal(grey_HW, np.where(np.asarray(palette) == 7, 0, random_HW()))


def test_colour_becomes_grey_as_pillow_makes_it():
    colour = Image.fromarray(random_HW(size=(20, 30, 3)))
    assert read_grey(encoded(colour)).tobytes() == colour.convert("L").tobytes()


def test_jpeg():
    data = encoded(Image.fromarray(random_HW()), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        assert read_grey(data).tobytes() == image.convert("L").tobytes()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS", "PPM", "WEBP"])
def test_other_formats_named_png_are_refused(tmp_path, kind):
    path = tmp_path / "00000001_000.png"
    path.write_bytes(encoded(Image.fromarray(random_HW()).convert("RGB"), kind))
    with pytest.raises(InputError, match=f"^{path}: cannot be decoded: .* Fetch it again, or leave it out.$"):
        read_grey(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 8, 30, 1000])
def test_a_cut_image_is_refused(kind, keep):
    with pytest.raises(InputError, match="^image: cannot be decoded: .* Fetch it again, or leave it out.$"):
        read_grey(encoded(Image.fromarray(random_HW()), kind)[:keep])


def test_no_such_image(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}/a.png: cannot be decoded: .*No such file"):
        read_grey(tmp_path / "a.png")


# Orientation: EXIF's eight (CIPA DC-008, tag 0x0112).

UPRIGHT = {
    1: lambda stored_HW: stored_HW,
    2: np.fliplr,
    3: lambda stored_HW: np.rot90(stored_HW, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored_HW: np.rot90(stored_HW, -1),
    7: lambda stored_HW: np.rot90(stored_HW, 2).T,
    8: np.rot90,
}


def stored_with(exif, kind="PNG", mode="L"):
    pixels_HW = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)
    image = Image.fromarray(np.kron(pixels_HW, np.ones((8, 8), np.uint8))).convert(mode)  # JPEG keeps whole blocks
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue(), np.asarray(image.convert("L"))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind, mode", [("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB")])
def test_an_image_is_turned_as_its_exif_says(kind, mode, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content, stored_HW = stored_with(exif, kind, mode)
    found_HW, expected_HW = np.asarray(read_grey(content)), UPRIGHT[orientation](stored_HW)
    assert found_HW.shape == expected_HW.shape
    assert np.abs(found_HW.astype(int) - expected_HW).max() <= (2 if kind == "JPEG" else 0)


def test_orientation_is_that_of_datasets():
    datasets = pytest.importorskip("datasets")
    for orientation in UPRIGHT:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        content, _ = stored_with(exif)
        theirs = datasets.Image().decode_example({"bytes": content, "path": None})
        assert np.array_equal(np.asarray(read_grey(content)), np.asarray(theirs))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\xff" * 99])
def test_exif_of_garbage_says_nothing(exif):
    content, stored_HW = stored_with(exif)
    assert np.array_equal(np.asarray(read_grey(content)), stored_HW)
