"""A model with first weights again."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import copied


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights are drawn as its modules draw theirs when they are made.

    A module draws its own with `reset_parameters`, statistics of norms included; a parameter of a module that cannot is drawn
    from a normal distribution with its present mean and deviation.

    Args:
        model: left as it is.
        seed: of the drawing.

    Raises:
        UserError: E111 when the model is a rewritten program, whose norms are no modules any more.
    """
    if architecture_of(model).rewritten is not None:
        message = "the model runs as a rewritten program, whose statistics cannot begin anew"
        raise UserError("E111", message, 'start = "teacher", or give the student by its factory')
    fresh = copied(model)
    drawn: set[int] = set()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for parameter in fresh.parameters():
            if id(parameter) not in drawn and parameter.is_floating_point():
                deviation, mean = torch.std_mean(parameter.float(), correction=0)
                parameter.copy_(mean + deviation * torch.randn(parameter.shape))
    return fresh
