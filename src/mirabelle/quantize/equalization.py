"""Cross-layer equalization: channels between two layers are scaled so that both weights have equal ranges there.

Source: Nagel, van Baalen, Blankevoort, Welling 2019, arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mirabelle.quantize.batch_norm_folding import folded
from mirabelle.quantize.dense_layers import weight_of
from mirabelle.quantize.surroundings import Pair

_SWEEPS = 20  # most times that all pairs are gone through: a layer in the middle belongs to two
_ENOUGH = 1e-3  # a sweep that changes no scale by more than this share is the last one


@torch.no_grad()
def equalize(model: nn.Module, pairs: Sequence[Pair]) -> dict[tuple[str, str], Tensor]:
    """Scale the channels between the layers of each pair, in place.

    With the largest magnitudes r1_i of the weights that make channel i, and r2_i of those that read it, and
    s_i = √(r1_i · r2_i) / r2_i, the first are divided by s_i, with their biases, and the second are multiplied by s_i. Both
    then have the range √(r1_i · r2_i). What lies between gives s · f(x / s) = f(x), so the model computes the same function,
    up to rounding. A channel of which one side is all zeros keeps its scale.

    Args:
        model: its weights are changed; those of a batch norm between the layers instead of the first layer's.
        pairs: as `Flow.pairs` finds them.

    Returns:
        Pair of names -> the product of its scales over all sweeps, (channels,).
    """
    found: dict[tuple[str, str], Tensor] = {}
    for _ in range(_SWEEPS):
        most = 0.0
        for pair in pairs:
            scale = _scale(model, pair)
            _divide(model, pair, scale)
            most = max(most, float(scale.log().abs().max()))
            key = pair.first, pair.second
            found[key] = found.get(key, torch.ones_like(scale)) * scale
        if most < _ENOUGH:
            break
    return found


def _scale(model: nn.Module, pair: Pair) -> Tensor:
    """s, (channels,), in float64."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    made = first if pair.norm is None else folded(first, model.get_submodule(pair.norm))
    given = weight_of(made).double().flatten(1).abs().amax(1)
    read = _by_channel(weight_of(second).double(), _groups(second)).abs().amax((0, 2))
    open_ = (given > 0) & (read > 0)
    return torch.where(open_, (given * read).sqrt() / read.where(open_, torch.ones_like(read)), torch.ones_like(given))


def _divide(model: nn.Module, pair: Pair, scale: Tensor) -> None:
    """Divide what makes the channels by their scales, and multiply what reads them."""
    maker = model.get_submodule(pair.norm or pair.first)
    weight, bias = maker.weight, maker.bias
    assert isinstance(weight, Tensor), "pairs have weights"
    weight.copy_(weight.double() / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    if isinstance(bias, Tensor):
        bias.copy_(bias.double() / scale)
    second = model.get_submodule(pair.second)
    weight = second.weight
    assert isinstance(weight, Tensor), "pairs have weights"
    groups = _groups(second)
    by_channel = _by_channel(weight.double(), groups) * scale[:, None]
    weight.copy_(_from_channels(by_channel, weight, groups))


def _groups(layer: nn.Module) -> int:
    groups = getattr(layer, "groups", 1)
    assert isinstance(groups, int), "a number of convolutions"
    return groups


def _by_channel(weight: Tensor, groups: int) -> Tensor:
    """A weight, (out, in / groups, …), as (out / groups, in, …), by the input channels that it reads."""
    out, inside = weight.shape[:2]
    parts = weight.reshape(groups, out // groups, inside, -1)
    return parts.transpose(0, 1).reshape(out // groups, groups * inside, -1)


def _from_channels(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The inverse of `_by_channel`, for a weight of this shape."""
    out, inside = weight.shape[:2]
    return values.reshape(out // groups, groups, inside, -1).transpose(0, 1).reshape(weight.shape)
