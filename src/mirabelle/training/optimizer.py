"""The optimizer of a training, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mirabelle.training.settings import Training

FUSED = ("cpu", "cuda", "mps", "xpu")  # types of devices for which torch has fused optimizers


def optimizer_for(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """AdamW or SGD for the parameters that require a gradient, in torch's fused implementation."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type in FUSED for parameter in trained)
    if training.optimizer == "sgd":
        return torch.optim.SGD(trained, training.lr, training.momentum, weight_decay=training.weight_decay, fused=fused)
    return torch.optim.AdamW(trained, training.lr, weight_decay=training.weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer as named tensors: "3.exp_avg" belongs to the fourth parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{position}.{key}": value
        for position, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state of the optimizer, each tensor with the strides of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        position, _, key = name.partition(".")
        parameter = parameters[int(position)]
        whole = value.shape == parameter.shape
        place = parameter.device if whole or parameter.device.type in FUSED else value.device  # that of the counted steps
        like = torch.empty_like(parameter, dtype=value.dtype) if whole else torch.empty_like(value, device=place)
        optimizer.state[parameter][key] = like.copy_(value)
