"""What the engines' loaders share: collating for IPUs, padding to whole batches, shares of an epoch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import ViTImageProcessor

from chestxray_vit.images.preprocess import GreyToPixelValues, Preprocess
from chestxray_vit.training.engines.loading import EpochSampler, IPUCollate, PaddedDataset

HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def processor(mean, std, size=64):
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std, resample=2)


@pytest.mark.parametrize(("statistics", "channels"), [(HALF, 1), (IMAGENET, 3)])
def test_ipus_get_one_channel_where_all_are_alike(statistics, channels):
    preprocess = Preprocess(processor(*statistics))
    planes = torch.randint(0, 256, (2, 8, 8), dtype=torch.uint8)
    batch = IPUCollate(GreyToPixelValues(preprocess), torch.float16)(
        {"pixel_values": planes, "labels": torch.zeros(2, 14)}
    )
    assert batch["pixel_values"].shape == (2, channels, 8, 8)
    assert batch["pixel_values"].dtype == torch.float16
    expected = torch.from_numpy(preprocess.levels_3x256)[:channels, planes.long()].transpose(0, 1)
    assert torch.allclose(batch["pixel_values"].float(), expected, atol=2e-3)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5])
def test_padding_repeats_the_last_row_up_to_whole_batches(num_rows):
    padded = PaddedDataset(list(range(num_rows)), 4)
    assert padded.num_rows == num_rows
    assert len(padded) == (4 if num_rows <= 4 else 8)
    rows = [padded[index] for index in range(len(padded))]
    assert rows == [*range(num_rows), *[num_rows - 1] * (len(padded) - num_rows)]
    assert padded.__getitems__(range(len(padded))) == rows


def test_shares_of_an_epoch_make_up_its_whole_batches():
    rows = range(11)
    shares = [list(EpochSampler(rows, 4, seed=3, num_processes=2, process=process)) for process in (0, 1)]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3)).tolist()[:8]
    assert [index for pair in zip(*shares) for index in pair] == order
