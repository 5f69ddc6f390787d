"""Random IPU configurations, images and archives: read or refused, and nothing but an InputError escapes."""

from __future__ import annotations

import gzip
import json

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from chestxray_vit.data.readers import nih_archives as archives
from chestxray_vit.data.readers import nih_fields
from chestxray_vit.images.files import check_pixels
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.stage_plan import StagePlan
from tests.robustness.hostile.archives import member, tar
from tests.robustness.hostile.fuzz import MOST_SAID, edited, edits, fuzzed, read
from tests.robustness.hostile.images import DAMAGED, FORMS, png
from tests.robustness.hostile.ipu_configs import GOOD

# IPU configurations, images and archives: nothing to write back, so only that nothing escapes.

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["pod4", "pod16", "default", "pod"]), inner)
    ),
    max_leaves=8,
)


@fuzzed
@given(changes=st.dictionaries(st.sampled_from(ipu_config.FIELDS), VALUE, min_size=1, max_size=4))
def test_any_configuration_is_planned_or_refused(folder, changes):
    path = folder / "ipu_config.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    config = read(lambda: ipu_config.read_ipu_config(str(path)))
    if config is not None:
        for inference in (False, True):
            plan = read(lambda inference=inference: StagePlan.from_config(config, ViTSize(), inference=inference))
            assert plan is None or json.dumps(plan.to_dict(), allow_nan=False)


GOOD_IMAGES = [png(), *(content() for content, _ in FORMS.values()), *(content() for content, _, _ in DAMAGED.values())]


@fuzzed
@given(good=st.sampled_from([content for content in GOOD_IMAGES if len(content) < 20_000]), changes=edits)
def test_an_edited_image_is_read_or_refused(folder, good, changes):
    path = folder / "image.png"
    path.write_bytes(edited(good, changes))
    wrong = check_pixels(path)
    assert wrong is None or 0 < len(wrong) < MOST_SAID


TAR = tar(*(member(f"images/0000000{number}_000.png", png()) for number in range(3)))


@fuzzed
@given(changes=edits, keep_size=st.booleans())
def test_an_edited_archive_is_unpacked_or_refused(tmp_path_factory, changes, keep_size):
    root = tmp_path_factory.mktemp("archive")
    changes = [(index, len(piece) if keep_size else length, piece) for index, length, piece in changes]
    (root / "images_001.tar.gz").write_bytes(gzip.compress(edited(TAR, changes), 1))
    count = read(lambda: archives.extract_archives(root))
    names = sorted(path.name for path in root.rglob("*"))
    images = sorted(path.name for path in root.glob("images/*"))
    assert names == sorted([*images, *["images"] * (root / "images").is_dir(), "images_001.tar.gz"])
    assert len(images) == (count or 0)
    assert all(nih_fields.NAME_PATTERN.fullmatch(name) for name in images)
