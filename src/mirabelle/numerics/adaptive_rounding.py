"""Adaptive rounding (AdaRound): whether each weight is rounded down or up is learned from what the layer gives.

Source: Nagel, Amjad, van Baalen, Louizos, Blankevoort 2020, arXiv:2004.10568, equations 21 to 25.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STRETCH, _LOWER = 1.2, -0.1  # h(V) = clip(1.2 σ(V) − 0.1, 0, 1) reaches both 0 and 1
_FIRST_BETA, _LAST_BETA = 20.0, 2.0
_FREE = 0.2  # of the steps, without the regularizer
_WEIGHT = 10.0  # of the regularizer, whose mean is at most 1, against the error in units of that of the nearest codes
_RATE = 0.05


def output_error(values: Tensor, moments: Tensor, cross: Tensor) -> Tensor:
    """E(ŵ x)² − 2 E[y ŵ x] of each output: its mean squared error E(ŵ x − y)² without E y², which no rounding changes.

    Args:
        values: ŵ, (groups, rows, columns).
        moments: E[x xᵀ], (groups, columns, columns).
        cross: E[y xᵀ], (groups, rows, columns).

    Returns:
        (groups, rows).

    Example:
        >>> x, y, w = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0], [2.0]]]), torch.tensor([[[0.5]]])
        >>> float(output_error(w, x.mT @ x / 2, y.mT @ x / 2)), float((0.5 * x - y).square().mean() - y.square().mean())
        (-2.75, -2.75)
    """
    return (values * (values @ moments - 2 * cross)).sum(-1)


@torch.enable_grad()
def adaptive_codes(weight: Tensor, scale: Tensor, high: int, moments: Tensor, cross: Tensor, *, steps: int) -> Tensor:
    """Codes ⌊w / s⌋ or ⌊w / s⌋ + 1, whichever gives the smaller error of the layer's outputs.

    V is learned by Adam from h(V) = w / s − ⌊w / s⌋, where the loss is the error of the outputs with the codes ⌊w / s⌋ + h(V),
    plus the mean of 1 − |2 h(V) − 1|^β, with β falling from 20 to 2, which drives h(V) to 0 or 1. Since the error is quadratic
    in the weight, the moments of the inputs stand for all samples. A code of a weight of 0 stays 0.

    Args:
        weight: (groups, rows, columns).
        scale: steps of the codes, broadcastable to the weight.
        high: codes are within ± this.
        moments: E[x xᵀ] of the inputs as the layer gets them, (groups, columns, columns).
        cross: E[y xᵀ] with the outputs y that are due, (groups, rows, columns).
        steps: of the optimizer.

    Returns:
        The codes, with the shape of the weight; those of an output whose error they do not lower are the nearest ones.
    """
    down = torch.floor(weight / scale)
    nearest = torch.round(weight / scale).clamp(-high, high)
    rounding = nearest * scale - weight
    unit = float((rounding * (rounding @ moments)).sum())
    if not unit > 0:
        return nearest
    part = weight / scale - down
    logits = -torch.log(_STRETCH / (part - _LOWER) - 1)
    logits = logits.detach().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=_RATE)
    free = round(_FREE * steps)
    for step in range(steps):
        soft = (_STRETCH * torch.sigmoid(logits) + _LOWER).clamp(0, 1)
        loss = output_error((down + soft).clamp(-high, high) * scale, moments, cross).sum() / unit
        if step >= free:
            beta = _FIRST_BETA + (_LAST_BETA - _FIRST_BETA) * (step - free) / max(steps - free - 1, 1)
            loss = loss + _WEIGHT * (1 - (2 * soft - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
    codes = (down + (logits.detach() >= 0)).clamp(-high, high)
    codes = torch.where(weight == 0, torch.zeros_like(codes), codes)
    better = output_error(codes * scale, moments, cross) < output_error(nearest * scale, moments, cross)
    return torch.where(better[..., None], codes, nearest)
