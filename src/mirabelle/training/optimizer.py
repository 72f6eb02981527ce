"""The optimizer of a training, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.training.settings import Training
from mirabelle.training.shards import as_shard, is_shard

FUSED = ("cpu", "cuda", "mps", "xpu")  # types of devices for which torch has fused optimizers
PLACES = "places"  # key of a group of parameters: the places of these among all parameters


def optimizer_for(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """AdamW or SGD for the parameters that require a gradient, in torch's fused implementation."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type in FUSED for parameter in trained)
    groups: list[dict[str, Any]] = []  # torch's kernels take either shards or whole tensors
    for of_shards in (True, False):
        places = [k for k, parameter in enumerate(trained) if is_shard(parameter) == of_shards]
        groups += [{"params": [trained[k] for k in places], PLACES: places}] if places else []
        if places and of_shards and training.optimizer == "sgd":
            groups[-1]["fused"] = False  # torch has no fused SGD of shards
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, training.lr, training.momentum, weight_decay=training.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, training.lr, weight_decay=training.weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer as named tensors: "3.exp_avg" belongs to the fourth parameter."""
    return {
        f"{position}.{key}": value
        for position, parameter in sorted(_by_place(optimizer).items())
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore some of the state of the optimizer, each tensor with the strides of its parameter, or divided as that is."""
    parameters = _by_place(optimizer)
    for name, value in tensors.items():
        position, _, key = name.partition(".")
        parameter = parameters[int(position)]
        whole = value.shape == parameter.shape
        if whole and is_shard(parameter):
            optimizer.state[parameter][key] = as_shard(value, parameter)
            continue
        place = parameter.device if whole or parameter.device.type in FUSED else value.device  # that of the counted steps
        like = torch.empty_like(parameter, dtype=value.dtype) if whole else torch.empty_like(value, device=place)
        optimizer.state[parameter][key] = like.copy_(value)


def _by_place(optimizer: torch.optim.Optimizer) -> dict[int, nn.Parameter]:
    """All parameters by their places."""
    return {
        place: parameter
        for group in optimizer.param_groups
        for place, parameter in zip(group[PLACES], group["params"], strict=True)
    }
