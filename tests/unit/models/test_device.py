from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from chestxray_vit.errors import InputError
from chestxray_vit.models.device import pick_device


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_it_is_there(there, auto, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert (pick_device(), pick_device("cpu")) == (auto, "cpu")
    if there:
        assert pick_device("cuda") == "cuda"
    else:
        with pytest.raises(InputError, match="no CUDA device is visible to torch"):
            pick_device("cuda")
