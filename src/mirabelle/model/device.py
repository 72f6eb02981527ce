"""The device of models and batches, the CPU alone so far."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from mirabelle.errors import UserError

CPU = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), CPU)


def check_device(model: nn.Module, what: str = "the model") -> None:
    """Raise unless all parameters and buffers of a model are on the CPU, where its batches are, and its parameters float32.

    Args:
        model: that will be run.
        what: its name in the message.

    Raises:
        UserError: E121 naming the first tensor on another device, or the first parameter in another precision.

    Example:
        >>> check_device(nn.Linear(2, 2))
        >>> check_device(nn.Linear(2, 2, device="meta"))
        Traceback (most recent call last):
        mirabelle.errors.UserError: error[E121]: "weight" of the model is on device "meta"; models are compressed on the CPU
        help: load its weights, which "meta" does not hold
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != CPU.type:
            place = tensor.device
            remedy = 'load its weights, which "meta" does not hold' if tensor.is_meta else 'move it: model.to("cpu")'
            raise UserError("E121", f'"{name}" of {what} is on device "{place}"; models are compressed on the CPU', remedy)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            message = f'"{name}" of {what} is {tensor.dtype}; models are compressed in float32'
            raise UserError("E121", message, "convert it: model.float()")
