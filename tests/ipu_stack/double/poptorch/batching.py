"""Cut combined batches into micro-batches, put their outputs together, and round weights to half precision.

The order of a combined batch is that of PopART's streams: device iteration outermost, then gradient accumulation,
then replica, then the rows of a micro-batch. Micro-batch (iteration i, accumulation a, replica r) begins at row
((i x accumulations + a) x replicas + r) x micro-batch size."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from poptorch._impl import Error
from poptorch.enums import OutputMode
from poptorch.options import Options


def map_tensors(function: Callable, *values: Any) -> Any:
    """Apply a function to the tensors at each place of equally built structures; other values pass."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return function(*values)
    if isinstance(first, dict):
        return type(first)(**{key: map_tensors(function, *(value[key] for value in values)) for key in first})
    if isinstance(first, (list, tuple)):
        items = [map_tensors(function, *parts) for parts in zip(*values)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def walk_tensors(value: Any, name: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield the tensors of a structure with their places, in order."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk_tensors(part, f"{name}.{key}" if name else str(key))


def named_tensors(forward: Callable, args: tuple, kwargs: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """Return the tensors of a call by the names of forward's arguments, in their order."""
    names = list(inspect.signature(forward).parameters)
    names += [str(place) for place in range(len(names), len(args))]
    given = {**dict(zip(names, args)), **kwargs}
    ordered = {name: given[name] for name in names if name in given}
    return dict(walk_tensors({**ordered, **given}))


def num_micro_batches(options: Options) -> int:
    """Return the micro-batches of one call."""
    return options.device_iterations * options.Training.gradient_accumulation * options.replication_factor


def check_divisible(tensors: Dict[str, torch.Tensor], options: Options) -> None:
    """Refuse a combined batch that does not cut into equal micro-batches."""
    factor = num_micro_batches(options)
    for name, tensor in tensors.items():
        rows = tensor.shape[0] if tensor.dim() else 1
        if rows % factor:
            raise Error(
                f"Invalid batch dimension: {name} has {rows} rows, expected a multiple of "
                f"{options.device_iterations} device iterations x {options.Training.gradient_accumulation} gradient "
                f"accumulation x {options.replication_factor} replicas = {factor}"
            )


def cut(inputs: Any, options: Options, place: int) -> Any:
    """Return one micro-batch of a combined batch, its floating inputs in float32."""

    def rows(tensor):
        size = tensor.shape[0] // num_micro_batches(options) if tensor.dim() else 0
        tensor = tensor.detach().narrow(0, place * size, size) if tensor.dim() else tensor.detach()
        return tensor.float() if tensor.is_floating_point() else tensor

    return map_tensors(rows, inputs)


def join(outputs: List[Any], mode: OutputMode, num_replicas: int, half: bool) -> Any:
    """Return what the host gets of the outputs of all micro-batches.

    Args:
        outputs: of each micro-batch, in the order of the combined batch.
        mode: Final for the last micro-batch of each replica, All, or Sum for a sum on each replica.
        half: give back float16, but for losses, which the model computed in float32.

    Returns:
        the same structure; rows one after the other, numbers as a vector, or bare if there is only one.
    """

    def join_tensors(*parts):
        if mode is OutputMode.Final:
            parts = parts[-num_replicas:]
        elif mode is OutputMode.Sum:
            parts = [sum(parts[replica::num_replicas]) for replica in range(num_replicas)]
        if parts[0].dim() == 0:
            return parts[0].clone() if len(parts) == 1 else torch.stack(list(parts))
        joined = torch.cat(list(parts))
        return joined.half() if half and joined.is_floating_point() else joined

    return map_tensors(join_tensors, *outputs)


def round_to_half(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 to float16 stochastically: up with the probability of the distance from the lower neighbour.

    Returns:
        float32 values that float16 can hold; their expectation is the argument.
    """
    exponents = torch.frexp(values).exponent.clamp(min=-13)  # the smallest normal number of float16 is 0.5 x 2^-13
    spacing = torch.ldexp(torch.ones_like(values, dtype=torch.float64), exponents - 11)
    noise = torch.rand(values.shape, generator=generator, dtype=torch.float64)
    rounded = torch.floor(values.double() / spacing + noise) * spacing
    return torch.where(torch.isfinite(values), rounded, values.double()).half().float()
