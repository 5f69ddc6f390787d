"""What a process knows of the others: torchrun's variables, read once."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from chestxray_vit.errors import InputError
from chestxray_vit.training.distributed import Ranks, explain_lost_process

OF_TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_a_launcher_a_process_is_the_only_one():
    ranks = Ranks.from_environment({})
    assert ranks == Ranks(rank=0, world_size=1, local_rank=0, has_rendezvous=False, instance=0, num_instances=1)
    assert ranks.is_main


def test_torchruns_variables_are_read_and_stay():
    environment = dict(OF_TORCHRUN)
    ranks = Ranks.from_environment(environment)
    assert environment == OF_TORCHRUN
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.has_rendezvous) == (3, 4, 1, True)
    assert not ranks.is_main
    assert Ranks.from_environment({**OF_TORCHRUN, "RANK": "0"}).is_main


def test_only_the_first_process_of_the_first_instance_is_main():
    assert not Ranks(instance=1, num_instances=2).is_main
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ranks().rank = 1  # type: ignore[misc]


def test_a_lost_process_is_named_where_there_are_others():
    text = "[gloo] Connection closed by peer"
    with pytest.raises(InputError, match="another process of this run has ended"), explain_lost_process(
        Ranks(world_size=2)
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="gloo"), explain_lost_process(Ranks()):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes differ"), explain_lost_process(Ranks(world_size=2)):
        raise RuntimeError("shapes differ")
