"""PopTorch's optimizers: the settings on the host, and the rules by which the device updates its weights.

The moments live on the device, that is in the executor; an optimizer reads them back for `state_dict` and hands
loaded ones over at compilation or `setOptimizer`. Its own `step` has nothing to do, and refuses.

Formulas: Kingma and Ba, ICLR 2015 (Adam); Loshchilov and Hutter, ICLR 2019 (AdamW). `bias_correction=False` leaves
out the division of the moments by 1 - beta^t."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any, Dict, Optional, Set

import torch

from poptorch._impl import Error


class VariableAttributes:
    """Which settings the compiler may take as constant."""

    def __init__(self):
        self.constants: Set[str] = set()

    def markAsConstant(self, name: str) -> None:
        """Promise that a setting will not change."""
        self.constants.add(name)

    def markAsVariable(self, name: str) -> None:
        """Take the promise back."""
        self.constants.discard(name)

    def isConstant(self, name: str) -> bool:
        """Tell whether it was promised."""
        return name in self.constants


class Optimizer:
    """What PopTorch's optimizers have beyond torch's: a state that lives on the device."""

    def _prepare(self, loss_scaling: float, accum_type: Optional[torch.dtype] = None, **dtypes) -> None:
        for name, dtype in {"accum_type": accum_type, **dtypes}.items():
            if dtype not in (None, torch.float16, torch.float32):
                raise ValueError(f"{name} is {dtype}, expected torch.float16 or torch.float32")
            setattr(self, name, dtype or torch.float32)
        self.loss_scaling = loss_scaling
        self.variable_attrs = VariableAttributes()
        self.loaded_state: Optional[Dict[str, Any]] = None  # waits for an executor
        self._executor_ref = None
        self._opt_called = True  # schedulers warn unless a step was seen, and steps happen on the device

    def step(self, closure=None):
        """Refuse: the executor updates its weights itself."""
        raise Error("optimizer.step() cannot be called: a poptorch.trainingModel takes the steps on the device")

    def serve(self, executor) -> Optional[Dict[str, Any]]:
        """Read the state back from this executor from now on; return the one that it is to take over, if any."""
        self._executor_ref = weakref.ref(executor)
        loaded, self.loaded_state = self.loaded_state, None
        return loaded

    def leave(self, device_state: Optional[Dict[str, Any]]) -> None:
        """Keep the state of an executor that goes on without this optimizer, or ends."""
        self._executor_ref = None
        self.loaded_state = device_state

    def state_dict(self) -> Dict[str, Any]:
        """Return the settings and, if there is one, the state on the device: tensors, numbers, strings alone."""
        executor = None if self._executor_ref is None else self._executor_ref()
        device_state = self.loaded_state
        if device_state is None and executor is not None:
            device_state = executor.read_optimizer_state()
        device_state = device_state or {"ipu_state": None, "ipu_param": None}
        return {**copy.deepcopy(device_state), "state": {}, "param_groups": super().state_dict()["param_groups"]}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take the settings at once, and the state on the device at `setOptimizer` or compilation."""
        for key in ("ipu_state", "ipu_param"):
            if key not in state_dict:
                raise Error(f"load_state_dict: no {key!r} in it: only a PopTorch optimizer's state can be loaded")
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        if state_dict["ipu_state"] is not None:
            self.loaded_state = copy.deepcopy({key: state_dict[key] for key in ("ipu_state", "ipu_param")})


class SGD(Optimizer, torch.optim.SGD):
    """torch's SGD on the device."""

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        loss_scaling: float = 1.0,
    ):
        if nesterov:
            raise ValueError("Nesterov momentum is not supported")
        super().__init__(params, lr, momentum, dampening, weight_decay)
        self._prepare(loss_scaling)


class Adam(Optimizer, torch.optim.Adam):
    """torch's Adam on the device."""

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas=(0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        loss_scaling: float = 1.0,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
        self._prepare(
            loss_scaling,
            accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self.max_grad_norm = max_grad_norm


class AdamW(Optimizer, torch.optim.AdamW):
    """torch's AdamW on the device, with or without bias correction."""

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas=(0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        loss_scaling: float = 1.0,
        bias_correction: bool = True,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
        self._prepare(
            loss_scaling,
            accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self.bias_correction = bias_correction
        self.max_grad_norm = max_grad_norm


class RMSprop(Optimizer, torch.optim.RMSprop):
    """Only a name."""

    def __init__(self, *_, **__):
        raise Error("poptorch.optim.RMSprop is not in this double")


class LAMB(Optimizer, torch.optim.Optimizer):
    """Only a name."""

    def __init__(self, *_, **__):
        raise Error("poptorch.optim.LAMB is not in this double")


def _adam(weight, gradient, moments, settings, step: int, decoupled: bool, bias_correction: bool) -> None:
    beta1, beta2 = settings["betas"]
    if decoupled:
        weight.mul_(1 - settings["lr"] * settings["weight_decay"])
    else:
        gradient = gradient + settings["weight_decay"] * weight
    for name in ("exp_avg", "exp_avg_sq"):
        moments.setdefault(name, torch.zeros_like(weight))
    moments["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    moments["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    denominator = moments["exp_avg_sq"].sqrt().div_(math.sqrt(correction2)).add_(settings["eps"])
    weight.addcdiv_(moments["exp_avg"], denominator, value=-settings["lr"] / correction1)


def _sgd(weight, gradient, moments, settings) -> None:
    gradient = gradient + settings["weight_decay"] * weight
    if settings["momentum"]:
        if "momentum_buffer" in moments:
            moments["momentum_buffer"].mul_(settings["momentum"]).add_(gradient, alpha=1 - settings["dampening"])
        else:
            moments["momentum_buffer"] = gradient.clone()
        gradient = moments["momentum_buffer"]
    weight.add_(gradient, alpha=-settings["lr"])


def check_supported(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose rule is not here."""
    if not isinstance(optimizer, (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)):
        raise Error(f"Unsupported optimizer: {type(optimizer).__name__}")


def update(optimizer, settings: Dict[str, Any], weight, gradient, moments: Dict[str, torch.Tensor], step: int) -> None:
    """Change one float32 weight and its moments in place.

    Args:
        optimizer: names the rule.
        settings: of the weight's group.
        weight, gradient: of one parameter.
        moments: its own; empty before the first step.
        step: number of this step, from 1.
    """
    if isinstance(optimizer, torch.optim.AdamW):  # first: in newer torch it is also an Adam
        _adam(weight, gradient, moments, settings, step, True, getattr(optimizer, "bias_correction", True))
    elif isinstance(optimizer, torch.optim.Adam):
        _adam(weight, gradient, moments, settings, step, False, True)
    else:
        _sgd(weight, gradient, moments, settings)
