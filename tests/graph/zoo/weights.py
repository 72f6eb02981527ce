"""Weights under which a scrambled or forgotten axis shows in the outputs."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

EMBEDDING_DEVIATION = 0.5
SHIFT_DEVIATION = 0.3
POWER_ITERATIONS = 30


@torch.no_grad()
def randomized(model: nn.Module, seed: int) -> nn.Module:
    """The same module; every float parameter and running statistic is drawn anew, tied tensors stay tied.

    | tensor | law |
    |---|---|
    | weight of two or more dimensions | normal, deviation 1/√fan-in |
    | embedding | normal, deviation 0.5 |
    | bias, shift of a norm, running mean | normal, deviation 0.3 |
    | scale of a norm, running variance | uniform in [0.5, 1.5] |
    | layer scale, token, three numbers or fewer, anything else | ± uniform in [0.2, 0.8] |
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            value = value_of(module, name, tensor, generator)
            if value is not None and id(tensor) not in drawn:
                tensor.copy_(value)
                drawn.add(id(tensor))
    settle_power_iterations(model)
    return model


def value_of(module: nn.Module, name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """None: a buffer that is no statistic, or a tensor without real numbers."""
    is_norm = "Norm" in type(module).__name__ and not parametrize.is_parametrized(module)
    is_buffer = not isinstance(tensor, nn.Parameter)
    if not tensor.is_floating_point() or (
        is_buffer and not (is_norm and name in {"running_mean", "running_var", "weight", "bias"})
    ):
        return None
    is_shift = name == "running_mean" or (tensor.dim() == 1 and ("bias" in name or is_norm))
    if name == "running_var" or (is_norm and name in {"weight", "gamma", "scale"}):
        return uniform(tensor.shape, 0.5, 1.5, generator)
    if is_shift and tensor.numel() > 3:  # a few draws may come near 0, or near one another
        return SHIFT_DEVIATION * torch.randn(tensor.shape, generator=generator)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return EMBEDDING_DEVIATION * torch.randn(tensor.shape, generator=generator)
    if sum(size > 1 for size in tensor.shape) < 2:
        return signed(tensor.shape, generator)
    return torch.randn(tensor.shape, generator=generator) / math.sqrt(fan_in_of(module, tensor))


def fan_in_of(module: nn.Module, tensor: torch.Tensor) -> int:
    """How many products are summed into one output element."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        windows = math.prod(size / stride for size, stride in zip(tensor.shape[2:], module.stride, strict=True))
        return max(1, round(tensor.shape[0] / module.groups * windows))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return math.prod(tensor.shape[1:])
    return tensor.shape[-1]


def uniform(shape: torch.Size, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def signed(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Sizes evenly spread over [0.2, 0.8], no two alike, each with a sign."""
    count = shape.numel()
    sizes = 0.2 + 0.6 * (torch.randperm(count, generator=generator) + 0.5) / count
    signs = 2.0 * torch.randint(0, 2, (count,), generator=generator) - 1.0
    return (signs * sizes).view(shape)


def settle_power_iterations(model: nn.Module) -> None:
    """Spectral norms divide by an estimate that belongs to the weights before; reading a weight in training improves it."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            was_training = module.training
            module.train()
            for name in module.parametrizations:
                for _ in range(POWER_ITERATIONS):
                    getattr(module, name)
            module.train(was_training)
