"""Batch norms of several processes with common statistics, as if one process had the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.run.process_group import Group


@contextmanager
def synchronized(model: nn.Module, group: Group | None) -> Iterator[None]:
    """A context in which the batch norms of a model in training have the statistics of the samples of all processes.

    With μ and σ² of a channel over all samples and places of all processes:

        y = γ (x − μ) / √(σ² + ε) + β

    The running statistics are those of all samples, too. Gradients flow through the statistics, as in a single process.

    Args:
        model: its modules of torch's `BatchNorm` classes are meant.
        group: of the processes; None changes nothing.

    Source: Ioffe, Szegedy 2015, "Batch Normalization", arXiv:1502.03167, algorithm 1.
    """
    norms: list[Any] = []
    if group is not None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.forward = partial(_forward, norm, norm.forward, group)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: Any, own: Callable[[Tensor], Tensor], group: Group, x: Tensor) -> Tensor:
    if not norm.training:
        return own(x)
    channels = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    values = x.float()
    count = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)
    variance, mean = (one.double() for one in torch.var_mean(values, channels, correction=0))
    own_sums = torch.cat([count, count * mean, count * (variance + mean**2)])
    sums: Tensor = all_reduce(own_sums, group=group.reductions)  # type: ignore[no-untyped-call]
    total, first, second = sums[:1], sums[1 : 1 + x.shape[1]], sums[1 + x.shape[1] :]
    mean, second = first / total, second / total
    variance = (second - mean**2).clamp_min(0)
    _update(norm, mean.detach(), variance.detach(), float(total))
    scale = (variance + norm.eps).rsqrt().float()
    normal: Tensor = (values - mean.float().view(shape)) * scale.view(shape)
    if norm.weight is not None:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(x.dtype)


@torch.no_grad()
def _update(norm: Any, mean: Tensor, variance: Tensor, count: float) -> None:
    """Update the running statistics, with the unbiased variance, as torch does."""
    if not norm.track_running_stats or norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    unbiased = variance * (count / max(count - 1, 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
