"""What an executor runs on: a copy of the model in float32, the moments of its optimizer, its own random numbers.

The device computes in float32 from weights that the host's type can hold, since torch 2.0 has no float16
convolution on the CPU; after each step the weights of a half model are rounded to float16 again."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from poptorch import _impl
from poptorch._impl import Error
from poptorch.batching import cut, map_tensors, num_micro_batches, round_to_half, walk_tensors
from poptorch.enums import ReductionType
from poptorch.ops import block_of, recomputationCheckpoint
from poptorch.optim import update
from poptorch.options import Options

Groups = List[Tuple[Dict[str, Any], List[str]]]  # settings, and the names of the weights that they are for


class Trace(NamedTuple):
    """What a first forward pass shows."""

    placement: Dict[str, int]  # IPU of each leaf module that ran
    num_recomputation_checkpoints: int


def weights_of(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Return parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def find_loss(outputs: Any, marked_losses: List[torch.Tensor]) -> torch.Tensor:
    """Return what to train on: what `identity_loss` marked, else the first output that is a number."""
    if len(marked_losses) > 1:
        raise Error(f"{len(marked_losses)} losses are marked by identity_loss, expected one")
    numbers = [tensor for _, tensor in walk_tensors(outputs) if tensor.dim() == 0 and tensor.requires_grad]
    loss = next(iter(marked_losses + numbers), None)
    if loss is None or loss.dim():
        raise Error("the model returns no loss: a number, or what poptorch.identity_loss marks, reduced to a number")
    return loss


class Device:
    """One copy of a model, as if on its IPUs; all replicas hold the same weights, so one copy does for them.

    Args:
        model: the user model, as it is now: its mode, its blocks.
        options: of the executor.
    """

    def __init__(self, model: torch.nn.Module, options: Options):
        self.dtypes = {name: weight.dtype for name, weight in weights_of(model).items()}
        self.model = copy.deepcopy(model).float()
        self.options = options
        self.moments: Dict[str, Dict[str, torch.Tensor]] = {}
        self.step_count = 0
        self._rng_state: Optional[torch.Tensor] = None

    @property
    def is_half(self) -> bool:
        """Tell whether the host's weights are float16."""
        return torch.float16 in self.dtypes.values()

    def trace(self, args: tuple, kwargs: Dict[str, Any]) -> Trace:
        """Run the first micro-batch, to see what runs where. Upload the weights after: buffers may have changed."""
        args, kwargs = cut((args, kwargs), self.options, 0)
        names = {module: name for name, module in self.model.named_modules()}
        placement: Dict[str, int] = OrderedDict()
        running = -1  # no block has begun

        def note(module, _):
            nonlocal running
            block = block_of(module)
            if block is not None:
                running = running + 1 if block.ipu_id is None else block.ipu_id
            if not any(module.children()):
                placement.setdefault(names[module], max(running, 0))

        hooks = [module.register_forward_pre_hook(note) for module in names]
        checkpoints = recomputationCheckpoint.calls
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _impl.on_the_ipu():
            self.model(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        return Trace(placement, recomputationCheckpoint.calls - checkpoints)

    def upload(self, model: torch.nn.Module) -> None:
        """Take the weights of the user model."""
        self._copy(model, self.model)

    def download(self, model: torch.nn.Module) -> None:
        """Give the weights to the user model."""
        self._copy(self.model, model)

    @staticmethod
    def _copy(source: torch.nn.Module, target: torch.nn.Module) -> None:
        sources = weights_of(source)
        with torch.no_grad():
            for name, weight in weights_of(target).items():
                weight.copy_(sources[name])

    @contextlib.contextmanager
    def _own_random_numbers(self):
        with torch.random.fork_rng(devices=[]):
            if self._rng_state is None:
                torch.random.default_generator.manual_seed(self.options.random_seed or 0)
            else:
                torch.set_rng_state(self._rng_state)
            yield
            self._rng_state = torch.get_rng_state()

    def infer(self, args: tuple, kwargs: Dict[str, Any]) -> List[Any]:
        """Return the outputs of each micro-batch."""
        with self._own_random_numbers(), torch.no_grad(), _impl.on_the_ipu():
            parts = (cut((args, kwargs), self.options, place) for place in range(num_micro_batches(self.options)))
            return [self.model(*args, **kwargs) for args, kwargs in parts]

    def train(self, args: tuple, kwargs: Dict[str, Any], optimizer, groups: Groups) -> List[Any]:
        """Return the outputs of each micro-batch; take one step for each device iteration."""
        outputs = []
        accumulated = self.options.Training.gradient_accumulation * self.options.replication_factor
        with self._own_random_numbers(), torch.enable_grad():
            for place in range(num_micro_batches(self.options)):
                outputs.append(self._accumulate(*cut((args, kwargs), self.options, place)))
                if (place + 1) % accumulated == 0:
                    self._step(optimizer, groups, accumulated)
        return outputs

    def _accumulate(self, args: tuple, kwargs: Dict[str, Any]) -> Any:
        with _impl.on_the_ipu() as execution:
            outputs = self.model(*args, **kwargs)
        find_loss(outputs, execution.marked_losses).backward()
        return map_tensors(torch.Tensor.detach, outputs)  # else they hold on to all activations

    def _step(self, optimizer, groups: Groups, accumulated: int) -> None:
        self.step_count += 1
        weights = dict(self.model.named_parameters())
        trained = [(settings, name) for settings, names in groups for name in names if weights[name].grad is not None]
        if self.options.Training.reduction_type is ReductionType.Mean:
            for _, name in trained:
                weights[name].grad.div_(accumulated)
        if getattr(optimizer, "max_grad_norm", None):
            torch.nn.utils.clip_grad_norm_([weights[name] for _, name in trained], optimizer.max_grad_norm)
        # a new generator each step, so that a resumed run rounds as an undisturbed one
        generator = torch.Generator().manual_seed((self.options.random_seed or 0) * 1_000_003 + self.step_count)
        for settings, name in trained:
            weight, moments = weights[name].data, self.moments.setdefault(name, {})
            update(optimizer, settings, weight, weights[name].grad, moments, self.step_count)
            if self.dtypes[name] is torch.float16:
                stochastic = self.options.Precision.stochastic_rounding
                weight.copy_(round_to_half(weight, generator) if stochastic else weight.half())
        self.model.zero_grad(set_to_none=True)

    def read_optimizer_state(self) -> Optional[Dict[str, Any]]:
        """Return the moments and the count of steps as plain tensors and numbers, None before the first step."""
        if self.step_count == 0:
            return None
        moments = {
            f"{kind}___{name}": tensor.clone() for name, kinds in self.moments.items() for kind, tensor in kinds.items()
        }
        return {"ipu_state": moments, "ipu_param": {"step": self.step_count}}

    def load_optimizer_state(self, state: Dict[str, Any]) -> None:
        """Take what `read_optimizer_state` gave."""
        weights = dict(self.model.named_parameters())
        moments: Dict[str, Dict[str, torch.Tensor]] = {}
        for key, tensor in state["ipu_state"].items():
            kind, name = key.split("___", 1)
            if name not in weights or weights[name].shape != tensor.shape:
                raise Error(f"the optimizer's state has {name} of shape {tuple(tensor.shape)}, the model has not")
            moments.setdefault(name, {})[kind] = tensor.clone()
        self.moments, self.step_count = moments, state["ipu_param"]["step"]
