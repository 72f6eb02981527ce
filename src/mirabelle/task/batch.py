"""Batches of inputs and targets, and how a model is called on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError

Inputs: TypeAlias = Any  # a tensor, or a tuple, list or dict of tensors
Outputs: TypeAlias = Any  # a tensor, or a tuple of tensors, each (batch, ...)


@dataclass(frozen=True)
class Batch:
    """A batch of samples.

    Args:
        inputs: inputs of the model.
        targets: (batch, ...).
        index: indices of the samples in their data set, (batch,); None for a stream.
        view: the seed of the augmentation that made these inputs; 0 for samples without augmentation.
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor | None = None
    view: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the indices of its samples stay on the CPU."""
        if self.targets.device == device and all(tensor.device == device for tensor in tensors_of(self.inputs)):
            return self
        return replace(self, inputs=on_device(self.inputs, device), targets=self.targets.to(device, non_blocking=True))


def map_tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to every tensor of the inputs and keep their structure."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(part, change) for name, part in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(part, change) for part in inputs)
    raise UserError(
        "E131", f"inputs must be tensors; got {type(inputs).__name__}", "give a tensor, or a tuple or dict of tensors"
    )


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors of the inputs, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(inputs, keep)
    return found


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments with which a model is called on inputs; a dict gives keyword arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs with all tensors on a device."""
    return map_tensors(inputs, lambda tensor: tensor.to(device, non_blocking=True))


def place_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer; None for a model without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call the model on inputs, a tuple as positional arguments and a dict as keyword arguments, and return its outputs.

    Inputs are brought to the device of the model, where the outputs are, too.
    """
    device = place_of(model) if isinstance(model, nn.Module) else None
    if device is not None and device.type != "cpu":
        inputs = on_device(inputs, device)
    args, kwargs = arguments_of(inputs)
    return as_outputs(model(*args, **kwargs))


def as_outputs(given: Any) -> Outputs:
    """The return value of a model as outputs: a list of tensors becomes a tuple, a list or tuple of one tensor that tensor."""
    if isinstance(given, (tuple, list)) and given and all(isinstance(part, Tensor) for part in given):
        return tuple(given) if len(given) > 1 else given[0]
    return given


def parts_of(outputs: Outputs) -> tuple[Tensor, ...]:
    """The outputs as a tuple of tensors, also if there is a single one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def in_float32(outputs: Outputs) -> Outputs:
    """The outputs as float32 for a loss; in a tuple of outputs, integer tensors stay unchanged."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return tuple(part.float() if part.is_floating_point() else part for part in outputs)


def joined(batches: Sequence[Outputs]) -> Outputs:
    """The outputs of all batches, concatenated along the batch dimension."""
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
