"""Layers as what they are at each place: a linear map of one row of inputs; convolutions unfolded where they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_AT_ONCE = 16_384  # rows unfolded at a time
_LEAST = 10_000  # rows of a layer, where there are so many


@dataclass(frozen=True)
class Unfolding:
    """How a layer reads its inputs and gives its outputs, row by row.

    A row is one place: a sample, a token, a position of an image; rows count sample by sample, then along the image's lines.

    Args:
        layer: a Linear, Conv1d or Conv2d whose forward is torch's own.
    """

    layer: nn.Linear | nn.Conv1d | nn.Conv2d

    @property
    def groups(self) -> int:
        return 1 if isinstance(self.layer, nn.Linear) else self.layer.groups

    @property
    def columns(self) -> int:
        """How many inputs one output sums over."""
        return self.layer.weight[0].numel()

    def has_batch(self, inputs: Tensor) -> bool:
        """Whether the inputs have samples in front."""
        return inputs.ndim >= 2 if isinstance(self.layer, nn.Linear) else inputs.ndim == 2 + len(self.layer.kernel_size)  # noqa: PLR2004

    def count(self, outputs: Tensor) -> int:
        """How many rows there are."""
        return outputs.numel() // self.layer.weight.shape[0]

    def drawn(self, outputs: Tensor, rows_per_column: int, seed: int) -> Tensor:
        """Rising numbers of some rows: enough for the columns, the same for the same seed."""
        count = max(_LEAST, rows_per_column * self.columns)
        order = torch.randperm(self.count(outputs), generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values

    def outputs(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """(rows, outputs): what the layer gave there."""
        if isinstance(self.layer, nn.Linear):
            return outputs.reshape(-1, outputs.shape[-1])[rows]
        flat = outputs.flatten(2)
        return flat[rows // flat.shape[2], :, rows % flat.shape[2]]

    def inputs(self, inputs: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What the layer reads there, (groups, rows, columns) in the order of its weights, with the rows; some at a time."""
        source = inputs if isinstance(self.layer, nn.Linear) else _padded(self.layer, inputs)
        for part in torch.split(rows, _AT_ONCE):
            yield part, self._unfolded(source, part)

    def weight(self) -> Tensor:
        """(groups, outputs of each, columns), in float64."""
        return self.layer.weight.detach().double().reshape(self.groups, -1, self.columns)

    def _unfolded(self, source: Tensor, rows: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return source.reshape(-1, source.shape[-1])[rows][None]
        (high, wide), (down, right), (apart, beside) = map(_two, (layer.kernel_size, layer.stride, layer.dilation))
        lines = (source.shape[2] - apart * (high - 1) - 1) // down + 1
        places = (source.shape[3] - beside * (wide - 1) - 1) // right + 1
        sample, place = rows // (lines * places), rows % (lines * places)
        y, x = place // places * down, place % places * right
        read = [source[sample, :, y + i * apart, x + j * beside] for i in range(high) for j in range(wide)]
        return torch.stack(read, 2).reshape(len(rows), layer.groups, -1).transpose(0, 1)


def unfolding_of(module: nn.Module | None) -> Unfolding | None:
    """The unfolding of a layer whose forward is torch's own and whose weight is a parameter; None for any other module."""
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d):
        if isinstance(module, kind) and type(module).forward is kind.forward and isinstance(module.weight, nn.Parameter):
            return Unfolding(module)
    return None


@dataclass(frozen=True)
class Moments:
    """Second moments of the rows of a layer; about the means where a bias takes these up, else about zero.

    Args:
        gram: (groups, columns, columns), of the inputs.
        cross: (groups, columns, outputs), of inputs with what the outputs miss.
        power: mean square of the outputs that are due.
        missed: mean square of what is missed.
        inputs: (groups, 1, columns), means that were taken off; zero without a bias.
        offset: (groups, 1, outputs), the same of what is missed.
    """

    gram: Tensor
    cross: Tensor
    power: float
    missed: float
    inputs: Tensor
    offset: Tensor

    def damped(self, ridge: float) -> Tensor:
        """The Gram matrix with `ridge` times the mean of its diagonal added to the diagonal."""
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1)
        added = torch.where(mean > 0, ridge * mean, torch.ones_like(mean))
        return self.gram + added[:, None, None] * torch.eye(self.gram.shape[1], dtype=self.gram.dtype, device=self.gram.device)


def moments(unfolding: Unfolding, inputs: Tensor, rows: Tensor, due: Tensor) -> Moments:
    """Moments over some rows, in float64.

    Args:
        unfolding: of the layer.
        inputs: of the layer.
        rows: to look at.
        due: (rows, outputs), what the layer should give there.
    """
    layer, weight, groups = unfolding.layer, unfolding.weight(), unfolding.groups
    targets = due.double().reshape(len(rows), groups, -1).transpose(0, 1)
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().reshape(groups, 1, -1)
    count, start = len(rows), 0
    gram, cross, total, offset = (torch.zeros((), dtype=torch.float64, device=inputs.device) for _ in range(4))
    square = gram
    for part, read in unfolding.inputs(inputs, rows):
        x = read.double()
        missed = targets[:, start : start + len(part)] - (x @ weight.transpose(1, 2) + bias)
        gram, cross = gram + x.transpose(1, 2) @ x / count, cross + x.transpose(1, 2) @ missed / count
        total, offset = total + x.sum(1, keepdim=True) / count, offset + missed.sum(1, keepdim=True) / count
        square, start = square + missed.square().sum() / due.numel(), start + len(part)
    if layer.bias is None:
        return Moments(gram, cross, float(targets.square().mean()), float(square), 0 * total, 0 * offset)
    power = (targets - targets.mean(1, keepdim=True)).square().mean()
    centred = gram - total.transpose(1, 2) @ total, cross - total.transpose(1, 2) @ offset
    return Moments(*centred, float(power), float(square), total, offset)


def _two(value: Any) -> tuple[int, int]:
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _padded(layer: Any, inputs: Tensor) -> Tensor:
    """What the convolution slides over, always with lines and places."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    return padded.unsqueeze(2) if isinstance(layer, nn.Conv1d) else padded
