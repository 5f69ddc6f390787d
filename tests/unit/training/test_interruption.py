"""Out of memory while training: which errors say so, and which are defects."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safetensors import SafetensorError

from chestxray_vit.errors import InputError
from chestxray_vit.training import interruption


def test_no_memory_is_told():
    with pytest.raises(InputError) as told, interruption.explain_disk_and_memory_errors("run", 32, 128):
        torch.empty(1 << 60)  # torch's own words
    assert str(told.value) == (
        "no memory for 32 images at once: lower --per_device_train_batch_size (the global batch of 128 stays)."
    )
    with pytest.raises(InputError, match="no memory for 1 images"), interruption.explain_disk_and_memory_errors(
        "run", 1, 1
    ):
        raise MemoryError
    with pytest.raises(InputError, match="no memory"), interruption.explain_disk_and_memory_errors("run", 1, 1):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), SafetensorError("invalid header")])
def test_other_errors_of_training_are_defects(error):
    with pytest.raises(type(error)), interruption.explain_disk_and_memory_errors("run", 1, 1):
        raise error
