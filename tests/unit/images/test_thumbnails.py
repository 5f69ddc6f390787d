from __future__ import annotations

import base64
import io
import logging

from PIL import Image

from chestxray_vit.images.thumbnails import SIDE, thumbnails


def test_thumbnails_are_small_pictures_of_the_images(tmp_path):
    Image.linear_gradient("L").resize((600, 300)).save(tmp_path / "a.png")
    pictures = thumbnails(tmp_path, ["a.png", "a.png"])
    kind, _, content = pictures["a.png"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (SIDE, SIDE // 2)
        assert image.getpixel((10, 70)) > image.getpixel((10, 5)) + 200  # dark above, as the gradient is


def test_what_cannot_be_shown_is_told_and_left_out(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    names = ["../outside.png", str(tmp_path / "outside.png"), "broken.png", "none.png", "link.png"]
    with caplog.at_level(logging.WARNING):
        assert thumbnails(folder, names) == {}
    assert "5 images have no thumbnail" in caplog.text
