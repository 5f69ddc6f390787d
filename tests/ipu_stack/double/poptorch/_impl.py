"""What the parts of the double share: the IPUs of the machine, what runs on them, and the wrapped user model.

optimum-graphcore imports `rewrapModelIfNecessary` and `unwrapModelIfNecessary` from here."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any, List, Optional

import torch


class Error(RuntimeError):
    """PopTorch's own errors."""


class Hardware:
    """The IPUs of the machine: how many there are, and how many nobody holds.

    The environment variable DOUBLE_IPUS_PRESENT sets how many there are, for tests that start a process.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Give every IPU back, and have the first number again."""
        self.present = int(os.environ.get("DOUBLE_IPUS_PRESENT", "64"))
        self._elsewhere = 0
        self._taken = 0

    @property
    def free(self) -> int:
        """IPUs that nobody holds; set it to have others hold the rest."""
        return self.present - self._elsewhere - self._taken

    @free.setter
    def free(self, num_ipus: int) -> None:
        self._elsewhere = self.present - self._taken - num_ipus

    def acquire(self, num_ipus: int) -> None:
        """Take IPUs, or fail as PopTorch does."""
        if num_ipus > self.free:
            raise Error(f"Failed to acquire {num_ipus} IPU(s)")
        self._taken += num_ipus

    def release(self, num_ipus: int) -> None:
        """Give IPUs back."""
        self._taken -= num_ipus


hardware = Hardware()


class Execution:
    """What one run of the model on the device did: the losses that it marked."""

    def __init__(self):
        self.marked_losses: List[torch.Tensor] = []


_execution: Optional[Execution] = None


@contextlib.contextmanager
def on_the_ipu():
    """Have `isRunningOnIpu()` say so, and collect what the model marks."""
    global _execution
    before, _execution = _execution, Execution()
    try:
        yield _execution
    finally:
        _execution = before


def current_execution() -> Optional[Execution]:
    """Return the run under way, None outside the device."""
    return _execution


def isRunningOnIpu() -> bool:
    """Tell whether the caller is run by an executor."""
    return _execution is not None


WEIGHT_STORES = ("_parameters", "_buffers", "_modules", "forward")


def _wrapping_class(own: type, executor_ref) -> type:
    """Return a subclass of a model's class that fetches the device's weights before anybody reads the host's."""

    class PoptorchModel(own):
        _own_class = own
        _executor_ref = executor_ref

        def copyWeightsToHostIfNeeded(self) -> bool:
            """Fetch the device's weights if training has changed them; tell whether it had."""
            executor = executor_ref()
            return executor is not None and executor.copyWeightsToHostIfNeeded()

        # torch.nn.Module reads these attributes wherever it walks over weights: state_dict, load_state_dict,
        # parameters, half. One place for all of them, as in PopTorch.
        def __getattribute__(self, name: str) -> Any:
            if name in WEIGHT_STORES:
                object.__getattribute__(self, "copyWeightsToHostIfNeeded")()
            return super().__getattribute__(name)

        def __getattr__(self, name: str) -> Any:  # a submodule or a weight, as in `model.classifier.weight`
            self.copyWeightsToHostIfNeeded()
            return super().__getattr__(name)

        def __reduce_ex__(self, protocol):  # a copy is a plain model, with no executor
            self.copyWeightsToHostIfNeeded()
            constructor, arguments, *rest = super().__reduce_ex__(protocol)
            return (constructor, (own, *arguments[1:]), *rest)

    PoptorchModel.__name__ = PoptorchModel.__qualname__ = f"Poptorch{own.__name__}"
    PoptorchModel.__module__ = own.__module__
    return PoptorchModel


def isWrapped(model: torch.nn.Module) -> bool:
    """Tell whether a training executor watches over this model."""
    return hasattr(type(model), "_own_class")


def training_executor(model: torch.nn.Module):
    """Return the training executor that watches over this model, None if there is none."""
    return type(model)._executor_ref() if isWrapped(model) else None


def wrap(model: torch.nn.Module, executor) -> None:
    """Swap the model's class for one that keeps its weights up to date."""
    executor_ref = weakref.ref(executor)  # the model must not keep the executor alive
    model.__class__ = _wrapping_class(type(model), executor_ref)


_unwrapped = weakref.WeakKeyDictionary()


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give the model its own class back."""
    if isWrapped(model):
        model.copyWeightsToHostIfNeeded()
        _unwrapped[model] = type(model)
        model.__class__ = type(model)._own_class


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Undo `unwrapModelIfNecessary`."""
    if model in _unwrapped:
        model.__class__ = _unwrapped.pop(model)
