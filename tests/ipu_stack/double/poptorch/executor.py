"""`PoplarExecutor`: a model on the device, which has weights of its own.

Training changes the device's weights alone; the host's follow when somebody asks for them. What was run is recorded,
for tests: `placement`, `calls`, `micro_batches`, `num_optimizer_steps`, and more."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, List, Optional, Tuple

import torch

from poptorch import _impl
from poptorch._impl import Error
from poptorch.batching import check_divisible, join, named_tensors, num_micro_batches
from poptorch.device import Device, Groups
from poptorch.enums import OutputMode
from poptorch.optim import Optimizer, check_supported
from poptorch.options import Options

executors: List[PoplarExecutor] = []


class PoplarExecutor:
    """Made by `trainingModel` and `inferenceModel`; what it has not itself, it passes on from the user model.

    Attributes:
        training: whether it trains.
        placement: IPU of each leaf module, by its name in the user model, in the order in which they ran.
        compiled_shapes, compiled_dtypes: of the inputs, by the names of forward's arguments.
        micro_batches: size of each micro-batch that was run, in order.
        num_optimizer_steps: steps taken by this executor.
        num_recomputation_checkpoints: calls of `recomputationCheckpoint` in one forward pass.
        calls: one dictionary a call: `images`, and `learning_rates`, for each step those of the groups.
    """

    def __init__(self, model: torch.nn.Module, options: Optional[Options], training: bool, optimizer=None):
        self._user_model = model
        self._options = options or Options()
        self.training = training
        self.placement: Dict[str, int] = {}
        self.compiled_shapes: Dict[str, Tuple[int, ...]] = {}
        self.compiled_dtypes: Dict[str, torch.dtype] = {}
        self.micro_batches: List[int] = []
        self.num_optimizer_steps = 0
        self.num_recomputation_checkpoints = 0
        self.calls: List[Dict[str, Any]] = []
        self._device: Optional[Device] = None  # once compiled
        self._ipus_held = 0
        self._dirty_host_weights = False
        self._host_weights_version = 0  # counts what was fetched from this executor
        self._uploaded_version = 0  # that of the training executor, when the host's weights were uploaded to this one
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._groups: Groups = []
        if training:
            self.setOptimizer(optimizer or torch.optim.SGD(model.parameters(), lr=0.01))
            _impl.wrap(model, self)
        executors.append(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_user_model":  # asked for while a copy is not yet filled
            raise AttributeError(name)
        return getattr(self._user_model, name)

    @property
    def model(self) -> torch.nn.Module:
        """The user model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The options it was made with."""
        return self._options

    @property
    def output_mode(self) -> OutputMode:
        """The options' output mode, with the default filled in."""
        if self._options.output_mode is not OutputMode.Default:
            return self._options.output_mode
        return OutputMode.Final if self.training else OutputMode.All

    @property
    def num_ipus(self) -> int:
        """IPUs that the compiled model takes, over all replicas."""
        num_ipus = (max(self.placement.values(), default=0) + 1) * self._options.replication_factor
        return 1 << (num_ipus - 1).bit_length() if self._options.auto_round_num_ipus else num_ipus

    @property
    def is_offline(self) -> bool:
        """Tell whether it may compile only."""
        return self._options.offline_ipu_version is not None

    # Compiling and attaching

    def compile(self, *args, **kwargs) -> None:
        """Fix the inputs' shapes, find each module's IPU, and attach to the device; nothing if done before."""
        if self.isCompiled():
            return
        tensors = named_tensors(self._user_model.forward, args, kwargs)
        check_divisible(tensors, self._options)
        for ipu, share in self._options.available_memory_proportion.items():
            if not 0 <= share <= 1:
                raise Error(f"availableMemoryProportion of {ipu} is {share}, expected 0 to 1")
        device = Device(self._user_model, self._options)
        self.placement, self.num_recomputation_checkpoints = device.trace(args, kwargs)
        if not self.is_offline:
            _impl.hardware.acquire(self.num_ipus)
            self._ipus_held = self.num_ipus
        self._device = device
        self.copyWeightsToDevice()
        self._hand_over_optimizer_state()
        self.compiled_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.compiled_dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    def isCompiled(self) -> bool:
        """Tell whether `compile` was done, and `destroy` not."""
        return self._device is not None

    def isAttachedToDevice(self) -> bool:
        """Tell whether it holds IPUs."""
        return self._ipus_held > 0

    def attachToDevice(self) -> None:
        """Take the IPUs again, and upload the host's weights."""
        self._check_compiled()
        if self.is_offline:
            raise Error("Trying to attach to an offline device")
        if self.isAttachedToDevice():
            raise Error("Device is already attached")
        _impl.hardware.acquire(self.num_ipus)
        self._ipus_held = self.num_ipus
        self.copyWeightsToDevice()

    def detachFromDevice(self) -> None:
        """Fetch the weights, if training has changed them, and give the IPUs back."""
        self._check_compiled()
        self.copyWeightsToHostIfNeeded()
        if not self.isAttachedToDevice():
            raise Error("Device is not attached")
        self.release()

    def release(self) -> None:
        """Give the IPUs back, and lose what is on them."""
        _impl.hardware.release(self._ipus_held)
        self._ipus_held = 0

    def destroy(self) -> None:
        """Fetch the weights, give the IPUs back, and give the user model its class back; nothing if not compiled."""
        if not self.isCompiled():
            return
        self.copyWeightsToHostIfNeeded()
        if isinstance(self._optimizer, Optimizer):
            self._optimizer.leave(self.read_optimizer_state())
        self.release()
        self._device = None
        if self.training:
            _impl.unwrapModelIfNecessary(self._user_model)

    def _check_compiled(self) -> None:
        if not self.isCompiled():
            raise Error("Model has not been compiled or has been destroyed.")

    # Weights

    @contextlib.contextmanager
    def _nothing_fetched(self):
        dirty, self._dirty_host_weights = self._dirty_host_weights, False
        try:
            yield
        finally:
            self._dirty_host_weights = dirty

    def copyWeightsToHost(self) -> None:
        """Have the host's weights follow the device's."""
        self._check_compiled()
        self._dirty_host_weights = False  # before the host's weights are looked at, which asks for them again
        self._device.download(self._user_model)
        self._host_weights_version += 1

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Do so if training has changed the device's since; tell whether it had."""
        needed = self._dirty_host_weights
        if needed:
            self.copyWeightsToHost()
        return needed

    def copyWeightsToDevice(self) -> None:
        """Upload the host's weights."""
        self._check_compiled()
        self._dirty_host_weights = False
        self._device.upload(self._user_model)
        trainer = _impl.training_executor(self._user_model)
        self._uploaded_version = 0 if trainer is None else trainer._host_weights_version

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True):
        """Load into the user model, and upload if attached."""
        result = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return result

    def _follow_training(self) -> None:
        trainer = _impl.training_executor(self._user_model)
        if trainer is not None and trainer is not self:
            trainer.copyWeightsToHostIfNeeded()
            if trainer._host_weights_version != self._uploaded_version:
                self.copyWeightsToDevice()

    # The optimizer

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over an optimizer's settings as they are now, and the state that it has loaded, if any."""
        check_supported(optimizer)
        with self._nothing_fetched():
            names = {id(weight): name for name, weight in self._user_model.named_parameters()}
        groups: Groups = []
        for group in optimizer.param_groups:
            if any(id(weight) not in names for weight in group["params"]):
                raise Error("setOptimizer: the optimizer holds a parameter that is not the model's")
            settings = {key: value for key, value in group.items() if key != "params"}
            groups.append((settings, [names[id(weight)] for weight in group["params"]]))
        if self._optimizer is not optimizer and isinstance(self._optimizer, Optimizer):
            self._optimizer.leave(self.read_optimizer_state())
        self._optimizer, self._groups = optimizer, groups
        self._hand_over_optimizer_state()

    def _hand_over_optimizer_state(self) -> None:
        if self.isCompiled() and isinstance(self._optimizer, Optimizer):
            loaded = self._optimizer.serve(self)
            if loaded is not None:
                self._device.load_optimizer_state(loaded)

    def read_optimizer_state(self) -> Optional[Dict[str, Any]]:
        """Return the device's moments and count of steps; None if there are none."""
        return self._device.read_optimizer_state() if self.isCompiled() else None

    # Running

    def __call__(self, *args, **kwargs):
        """Run one combined batch, of the shapes that the model was compiled for; the first call compiles."""
        if self.is_offline:
            raise Error("Trying to run a model on an offline device: use model.compile(inputs) instead")
        if not self.isCompiled():
            self.compile(*args, **kwargs)
        if not self.isAttachedToDevice():
            self.attachToDevice()
        with self._nothing_fetched():
            tensors = named_tensors(self._user_model.forward, args, kwargs)
        self._check_shapes(tensors)
        if self.training:
            outputs = self._device.train(args, kwargs, self._optimizer, self._groups)
            self._dirty_host_weights = True
        else:
            self._follow_training()
            outputs = self._device.infer(args, kwargs)
        self._record(tensors)
        return join(outputs, self.output_mode, self._options.replication_factor, self._device.is_half)

    def _check_shapes(self, tensors: Dict[str, torch.Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in (*self.compiled_shapes, *shapes):
            if shapes.get(name) != self.compiled_shapes.get(name):
                raise Error(
                    f"{name}: shape {shapes.get(name)} was given, but the model was compiled for "
                    f"{self.compiled_shapes.get(name)}"
                )

    def _record(self, tensors: Dict[str, torch.Tensor]) -> None:
        images = next(iter(tensors.values())).shape[0]
        num_steps = self._options.device_iterations if self.training else 0
        learning_rates = [settings["lr"] for settings, _ in self._groups]
        self.calls.append({"images": images, "learning_rates": [list(learning_rates) for _ in range(num_steps)]})
        parts = num_micro_batches(self._options)
        self.micro_batches += [images // parts] * parts
        self.num_optimizer_steps += num_steps


def trainingModel(model: torch.nn.Module, options: Optional[Options] = None, optimizer=None) -> PoplarExecutor:
    """Wrap a model for training; it gets a class of its own, which keeps its weights up to date."""
    if _impl.isWrapped(model):
        raise Error(
            "Model has already been wrapped in 'poptorch.trainingModel'. "
            "Call model.destroy() on the model to unwrap before wrapping again."
        )
    return PoplarExecutor(model, options, True, optimizer)


def inferenceModel(model: torch.nn.Module, options: Optional[Options] = None) -> PoplarExecutor:
    """Wrap a model for inference."""
    if options is not None and options.Training.gradient_accumulation != 1:
        raise Error(
            f"gradient accumulation is {options.Training.gradient_accumulation}, expected the default 1 for inference"
        )
    return PoplarExecutor(model, options, False)
