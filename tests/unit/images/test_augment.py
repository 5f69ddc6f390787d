from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from chestxray_vit.images.augment import Augment

NONE = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "contrast": 0.0, "brightness": 0.0}


def marked(size=64):
    """Return an X-ray that is dark but for a bright spot on its upper right."""
    pixels = torch.full((1, 3, size, size), -1.0)
    pixels[:, :, size // 4 : size // 4 + 4, 3 * size // 4 : 3 * size // 4 + 4] = 1.0
    return pixels


def centre(pixels):
    """Return the bright spot's (row, column), weighed by brightness."""
    weights = (pixels[0, 0] + 1).clamp(min=0)
    centres = torch.arange(len(weights), dtype=torch.float32) + 0.5
    return (weights.sum(1) @ centres / weights.sum()).item(), (weights.sum(0) @ centres / weights.sum()).item()


def test_nothing_changes_by_nothing():
    pixels = torch.rand(4, 3, 32, 32)
    assert torch.allclose(Augment(**NONE)(pixels), pixels, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "most", "furthest"),
    [("shift", 0.1, 0.1 * 64 * 2**0.5), ("rotation", 10.0, 24 * 0.1763 * 1.1), ("scale", 0.1, 24 * 0.12)],
)
def test_movements_stay_within_their_bounds_and_use_them(name, most, furthest):
    torch.manual_seed(0)
    pixels = marked()
    row, column = centre(pixels)
    distances = []
    for _ in range(100):
        moved_row, moved_column = centre(Augment(**{**NONE, name: most})(pixels))
        assert moved_row < 32 < moved_column  # never mirrored
        distances.append(((moved_row - row) ** 2 + (moved_column - column) ** 2) ** 0.5)
    assert furthest / 3 < max(distances) <= furthest + 0.1


def test_rotation_keeps_the_distance_from_the_centre():
    torch.manual_seed(0)
    rows_columns = [centre(Augment(**{**NONE, "rotation": 10.0})(marked())) for _ in range(20)]
    distances = [((row - 32) ** 2 + (column - 32) ** 2) ** 0.5 for row, column in rows_columns]
    row, column = centre(marked())
    assert distances == pytest.approx([((row - 32) ** 2 + (column - 32) ** 2) ** 0.5] * 20, abs=0.2)


def test_contrast_and_brightness_are_within_their_bounds():
    torch.manual_seed(0)
    ones = torch.ones(200, 1, 4, 4)
    contrast = Augment(**{**NONE, "contrast": 0.1})(ones)[:, 0, 0, 0]
    brightness = Augment(**{**NONE, "brightness": 0.2})(0 * ones)[:, 0, 0, 0]
    assert 0.9 <= contrast.min() < 0.91 < 1.09 < contrast.max() <= 1.1
    assert -0.2 <= brightness.min() < -0.19 < 0.19 < brightness.max() <= 0.2


def test_every_image_is_changed_in_its_own_way_and_a_seed_repeats_it():
    pixels = marked().expand(3, -1, -1, -1)
    torch.manual_seed(5)
    first = Augment()(pixels)
    torch.manual_seed(5)
    assert torch.equal(Augment()(pixels), first)
    assert not torch.allclose(first[0], first[1], atol=1e-2)
    assert torch.equal(first[:, 0], first[:, 2])  # channels move together
