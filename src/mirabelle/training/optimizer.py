"""The optimizer of a training, and its state out to plain data and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mirabelle.training.settings import Training


def optimizer_for(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that ask for a gradient, in torch's fused form."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(trained, training.lr, training.momentum, weight_decay=training.weight_decay, fused=True)
    return torch.optim.AdamW(trained, training.lr, weight_decay=training.weight_decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state: "3.exp_avg" is what it holds for its fourth parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{position}.{key}": value
        for position, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the state back, each tensor in the strides of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        position, _, key = name.partition(".")
        parameter = parameters[int(position)]
        like = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][key] = like.copy_(value)
