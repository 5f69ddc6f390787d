"""Pixel values are those of the checkpoint's own image processor: of an image bit for bit, of planes to rounding."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from chestxray_vit.errors import InputError
from chestxray_vit.images.decode import read_grey
from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
from tests.helpers.images import encoded, grey_rgba, random_HW, reference

HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def processor_of(mean, std, size=64):
    return transformers.ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=mean, image_std=std, resample=2
    )


@pytest.fixture(scope="module")
def processor():
    """Return an image processor with a mean and std of its own for each channel."""
    return transformers.ViTImageProcessor(
        size={"height": 48, "width": 40}, image_mean=[0.485, 0.5, 0.406], image_std=[0.229, 0.5, 0.225], resample=3
    )


def assert_same_pixels(processor, image, shown=None):
    """Compare the bytes of `image` as preprocessed with what the processor makes of `shown`."""
    rows = Preprocess(processor)({"image": [{"bytes": encoded(image), "path": None}]})
    pixels, expected = rows["pixel_values"][0], reference(processor, image if shown is None else shown)
    assert pixels.dtype == torch.float32
    assert pixels.shape == expected.shape == (3, processor.size["height"], processor.size["width"])
    assert pixels.numpy().tobytes() == np.asarray(expected, np.float32).tobytes()  # bit for bit


@pytest.mark.parametrize("size", [(64, 64), (48, 40), (31, 200), (1024, 1024), (7, 9)])
def test_pixels_are_the_processors(processor, size):
    assert_same_pixels(processor, Image.fromarray(random_HW(size=size)))


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_pixels_with_other_filters(resample):
    image_processor = transformers.ViTImageProcessor(size={"height": 24, "width": 24}, resample=resample)
    assert_same_pixels(image_processor, Image.fromarray(random_HW()))


def test_pixels_of_other_modes(processor):
    grey = Image.fromarray(random_HW())
    assert_same_pixels(processor, grey_rgba(), grey)
    assert_same_pixels(processor, grey_rgba().convert("RGB"), grey)
    assert_same_pixels(processor, grey.convert("P"), grey)
    wide_HW = random_HW(high=65536, dtype=np.uint16)
    assert_same_pixels(processor, Image.fromarray(wide_HW), Image.fromarray((wide_HW >> 8).astype(np.uint8)))


def test_pixels_of_the_real_deit(deit_tiny, synthetic_dataset):
    image_processor = transformers.AutoImageProcessor.from_pretrained(deit_tiny)
    assert Preprocess(image_processor).size == (224, 224)
    grey = Image.fromarray(random_HW(size=(1024, 1024)))
    for image in (grey, Image.fromarray(np.dstack([random_HW(size=(500, 400))] * 3)), Image.new("L", (224, 224), 9)):
        assert_same_pixels(image_processor, image)
    for path in sorted((synthetic_dataset / "images").glob("*.png"))[:5]:
        assert_same_pixels(image_processor, Image.open(path))


def test_pixels_without_normalisation():
    image_processor = transformers.ViTImageProcessor(size={"height": 24, "width": 24}, do_normalize=False)
    assert_same_pixels(image_processor, Image.fromarray(random_HW()))


def test_half_precision(processor):
    grey = read_grey(encoded(Image.fromarray(random_HW())))
    half, single = (Preprocess(processor, dtype).pixels(grey) for dtype in (np.float16, np.float32))
    assert half.dtype == torch.float16
    assert torch.equal(half, single.half())


def test_a_processor_without_height_and_width():
    image_processor = transformers.ViTImageProcessor(size={"height": 24, "width": 24})
    image_processor.size = {"shortest_edge": 24}
    with pytest.raises(InputError, match="^preprocessor_config.json: size is .*, expected height and width.$"):
        Preprocess(image_processor)


def test_preprocess_pickles(processor):
    preprocess = Preprocess(processor)
    again = pickle.loads(pickle.dumps(preprocess))
    grey = read_grey(encoded(Image.fromarray(random_HW())))
    assert torch.equal(again.pixels(grey), preprocess.pixels(grey))


# GreyToPixelValues


@pytest.mark.parametrize(("statistics", "alike"), [(HALF, True), (IMAGENET, False)])
def test_grey_planes_give_the_image_processors_pixel_values_to_float32_rounding(statistics, alike):
    preprocess = Preprocess(processor_of(*statistics))
    to_pixel_values = GreyToPixelValues(preprocess)
    planes = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(2, -1, -1)
    made = to_pixel_values(planes)
    assert made.shape == (2, 3, 16, 16)
    assert made.dtype == torch.float32
    expected = torch.from_numpy(preprocess.levels_3x256).reshape(3, 16, 16)
    assert torch.allclose(made[1], expected, rtol=0, atol=5e-7)
    assert to_pixel_values.alike is alike
    assert to_pixel_values.channels(planes).shape[1] == (1 if alike else 3)
