"""Layers as matrix products: the inputs of a linear layer, or the unfolded inputs of a convolution (im2col)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NUMBERS_AT_ONCE = 1 << 22  # most values of unfolded inputs in one tensor


@dataclass(frozen=True)
class Columns:
    """A layer as a matrix product of its weight and rows of unfolded inputs.

    A row is the input of the layer at one position: a sample, a token, or a position of the kernel. Rows are numbered by
    sample, then by the first spatial dimension, the second, and so on. For a row x of a group, (columns,), the layer computes

        weight.reshape(groups, -1, columns)[group] · x + bias

    Args:
        layer: a linear layer, or a convolution with any stride, dilation, padding and groups; not a transposed one.

    Example:
        >>> columns = Columns(nn.Conv1d(1, 1, kernel_size=2))
        >>> next(columns.of(torch.tensor([[[1.0, 2.0, 3.0]]])))
        tensor([[[1., 2.],
                 [2., 3.]]])
    """

    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

    @property
    def groups(self) -> int:
        """The number of groups: 1 except for a grouped convolution."""
        return 1 if isinstance(self.layer, nn.Linear) else self.layer.groups

    @property
    def width(self) -> int:
        """The number of columns: the number of products that are summed to one output."""
        return self.layer.weight[0].numel()

    def weight(self) -> Tensor:
        """The weight as (groups, outputs of a group, columns), in float64."""
        return self.layer.weight.detach().double().reshape(self.groups, -1, self.width)

    def has_batch(self, inputs: Tensor) -> bool:
        """Whether the inputs have a batch dimension."""
        return inputs.ndim >= 2 if isinstance(self.layer, nn.Linear) else inputs.ndim == self.layer.weight.ndim  # noqa: PLR2004

    def rows_in(self, inputs: Tensor) -> int:
        """The number of rows of the inputs of one call, which must have a batch dimension."""
        return len(inputs) * self._places(inputs)

    def of(self, inputs: Tensor) -> Iterator[Tensor]:
        """All rows of the inputs of one call, as tensors (groups, rows, columns) of bounded size."""
        inputs = inputs if isinstance(self.layer, nn.Linear) or self.has_batch(inputs) else inputs.unsqueeze(0)
        if isinstance(self.layer, nn.Linear):
            for part in torch.split(inputs.reshape(-1, self.width), max(1, _NUMBERS_AT_ONCE // self.width)):
                yield part.unsqueeze(0)
            return
        for samples in torch.split(inputs, max(1, _NUMBERS_AT_ONCE // (self._places(inputs) * self.width * self.groups))):
            windows = self._windows(samples)  # (samples, *positions, channels, *kernel)
            yield windows.flatten(0, windows.ndim // 2 - 1).reshape(-1, self.groups, self.width).transpose(0, 1)

    def at(self, inputs: Tensor, rows: Tensor) -> Iterator[Tensor]:
        """Some rows of the inputs of one call, as tensors (groups, rows, columns) of bounded size.

        Args:
            inputs: with a batch dimension.
            rows: ascending row numbers.
        """
        places, most = self._places(inputs), max(1, _NUMBERS_AT_ONCE // (self.width * self.groups))
        if isinstance(self.layer, nn.Linear):
            flat = inputs.reshape(-1, self.width)
            for part in torch.split(rows, most):
                yield flat[part].unsqueeze(0)
            return
        at_once, shape = max(1, _NUMBERS_AT_ONCE // inputs[0].numel()), self._shape(inputs)
        for first in range(0, len(inputs), at_once):
            bounds = torch.tensor([first * places, (first + at_once) * places])
            low, high = torch.searchsorted(rows.contiguous(), bounds).tolist()
            if low == high:
                continue
            windows = self._windows(inputs[first : first + at_once])
            for part in torch.split(rows[low:high] - first * places, most):
                found = windows[torch.unravel_index(part, (windows.shape[0], *shape))]  # (rows, channels, *kernel)
                yield found.reshape(len(part), self.groups, -1).transpose(0, 1)

    def outputs_at(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The outputs of the layer for some rows, (rows, outputs)."""
        if isinstance(self.layer, nn.Linear):
            return outputs.reshape(-1, outputs.shape[-1])[rows]
        flat = outputs.flatten(2)
        return flat[rows // flat.shape[2], :, rows % flat.shape[2]]

    def _shape(self, inputs: Tensor) -> list[int]:
        """The number of kernel positions along each spatial dimension."""
        assert isinstance(self.layer, _CONVOLUTIONS), "only convolutions have kernels"
        padding, layer = _padding(self.layer), self.layer
        totals = [before + after for before, after in zip(padding[::2], padding[1::2], strict=True)][::-1]
        return [
            (size + total - dilation * (width - 1) - 1) // stride + 1
            for size, total, dilation, width, stride in zip(
                inputs.shape[2:], totals, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        ]

    def _places(self, inputs: Tensor) -> int:
        """The number of rows of one sample."""
        return prod(inputs.shape[1:-1]) if isinstance(self.layer, nn.Linear) else prod(self._shape(inputs))

    def _windows(self, inputs: Tensor) -> Tensor:
        """The padded inputs under every kernel position, as a view (samples, *positions, channels, *kernel)."""
        layer = self.layer
        assert isinstance(layer, _CONVOLUTIONS), "only convolutions have kernels"
        mode = "constant" if layer.padding_mode == "zeros" else str(layer.padding_mode)
        padded = F.pad(inputs, _padding(layer), mode=mode).contiguous()
        samples, channels, *strides = padded.stride()
        between_positions = [own * stride for own, stride in zip(strides, layer.stride, strict=True)]
        within_kernel = [own * dilation for own, dilation in zip(strides, layer.dilation, strict=True)]
        shape = (len(padded), *self._shape(inputs), padded.shape[1], *layer.kernel_size)
        return padded.as_strided(shape, (samples, *between_positions, channels, *within_kernel), padded.storage_offset())


def columns_of(module: nn.Module | None) -> Columns | None:
    """A linear layer or convolution as a matrix product; None for any other module.

    The forward of the layer must be torch's own, and its weight a parameter.
    """
    for kind in (nn.Linear, *_CONVOLUTIONS):
        if isinstance(module, kind) and type(module).forward is kind.forward and isinstance(module.weight, nn.Parameter):
            return Columns(module)
    return None


def multiplies_inputs(module: nn.Module, tensor: Tensor) -> bool:
    """Whether the tensor is the weight of a linear layer or of a convolution that is not transposed."""
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and tensor is module.weight


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """The padding of the layer in the order of `torch.nn.functional.pad`: last dimension first, before and after."""
    padding = layer._reversed_padding_repeated_twice
    assert isinstance(padding, (list, tuple)), "torch stores the padding in this form"
    return list(padding)
