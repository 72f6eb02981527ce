"""A copy of a model with newly initialized weights."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.plain_weights import with_plain_weights
from mirabelle.model.state import copied
from mirabelle.numerics.draws import global_draws


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model with newly initialized weights.

    A weight that is computed from others, for example by weight norm, becomes a plain parameter first.

    A module with the method `reset_parameters` is initialized by it, including the running statistics of normalization layers.
    All other parameters are drawn from a normal distribution with their present mean and standard deviation, except for those
    with infinite values, such as the mask of an attention.

    Args:
        model: is not changed.
        seed: of the random numbers.

    Raises:
        UserError: E111 if the model is a rewritten program, whose normalization layers are not modules any more.
    """
    if architecture_of(model).rewritten is not None:
        message = "the model runs as a rewritten program, whose running statistics cannot be initialized again"
        raise UserError("E111", message, 'use start = "teacher", or give the student by a factory')
    fresh = copied(with_plain_weights(model))
    drawn: set[int] = set()
    with torch.no_grad(), global_draws(seed):
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for parameter in fresh.parameters():
            if id(parameter) not in drawn and parameter.is_floating_point() and bool(parameter.isfinite().all()):
                deviation, mean = torch.std_mean(parameter.float(), correction=0)
                parameter.copy_(mean + deviation * torch.randn(parameter.shape))
    return fresh
