"""What the columns of a layer's weight are multiplied by: its inputs, unfolded into columns for a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NUMBERS_AT_ONCE = 1 << 22  # of unfolded inputs


@dataclass(frozen=True)
class Columns:
    """A layer as a matrix product: how its inputs become rows that its weight is multiplied by.

    A row is one place at which the layer is applied: a sample, a token, a position of the kernel. Rows are numbered sample by
    sample, then along the first dimension of space, the second, and so on. For row x of a group, (columns), the layer gives

        weight.reshape(groups, -1, columns)[group] · x + bias

    Args:
        layer: linear, or a convolution of any stride, dilation, padding and groups that is not transposed.

    Example:
        >>> columns = Columns(nn.Conv1d(1, 1, kernel_size=2))
        >>> next(columns.of(torch.tensor([[[1.0, 2.0, 3.0]]])))
        tensor([[[1., 2.],
                 [2., 3.]]])
    """

    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

    @property
    def groups(self) -> int:
        """1 but for a grouped convolution."""
        return 1 if isinstance(self.layer, nn.Linear) else self.layer.groups

    @property
    def width(self) -> int:
        """The number of columns: how many products each output is a sum of."""
        return self.layer.weight[0].numel()

    def weight(self) -> Tensor:
        """The weight as (groups, outputs of a group, columns), in float64."""
        return self.layer.weight.detach().double().reshape(self.groups, -1, self.width)

    def has_batch(self, inputs: Tensor) -> bool:
        """Whether the inputs have a dimension of samples in front."""
        return inputs.ndim >= 2 if isinstance(self.layer, nn.Linear) else inputs.ndim == self.layer.weight.ndim  # noqa: PLR2004

    def rows_in(self, inputs: Tensor) -> int:
        """How many rows there are in the inputs of one run, which have a batch."""
        return len(inputs) * self._places(inputs)

    def of(self, inputs: Tensor) -> Iterator[Tensor]:
        """All rows of the inputs of one run, as tensors (groups, rows, columns) of bounded size."""
        inputs = inputs if isinstance(self.layer, nn.Linear) or self.has_batch(inputs) else inputs.unsqueeze(0)
        if isinstance(self.layer, nn.Linear):
            for part in torch.split(inputs.reshape(-1, self.width), max(1, _NUMBERS_AT_ONCE // self.width)):
                yield part.unsqueeze(0)
            return
        for samples in torch.split(inputs, max(1, _NUMBERS_AT_ONCE // (self._places(inputs) * self.width * self.groups))):
            windows = self._windows(samples)  # (samples, *places, channels, *kernel)
            yield windows.flatten(0, windows.ndim // 2 - 1).reshape(-1, self.groups, self.width).transpose(0, 1)

    def at(self, inputs: Tensor, rows: Tensor) -> Iterator[Tensor]:
        """Some rows of the inputs of one run, as tensors (groups, rows, columns) of bounded size.

        Args:
            inputs: have a batch.
            rows: rising numbers.
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
        """What the layer gave at some rows, (rows, outputs)."""
        if isinstance(self.layer, nn.Linear):
            return outputs.reshape(-1, outputs.shape[-1])[rows]
        flat = outputs.flatten(2)
        return flat[rows // flat.shape[2], :, rows % flat.shape[2]]

    def _shape(self, inputs: Tensor) -> list[int]:
        """In how many positions the kernel is put, along each dimension of space."""
        assert isinstance(self.layer, _CONVOLUTIONS), "only these have kernels"
        around, layer = _padding(self.layer), self.layer
        ends = [before + after for before, after in zip(around[::2], around[1::2], strict=True)][::-1]
        return [
            (size + end - apart * (width - 1) - 1) // stride + 1
            for size, end, apart, width, stride in zip(
                inputs.shape[2:], ends, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        ]

    def _places(self, inputs: Tensor) -> int:
        """Rows of one sample."""
        return prod(inputs.shape[1:-1]) if isinstance(self.layer, nn.Linear) else prod(self._shape(inputs))

    def _windows(self, inputs: Tensor) -> Tensor:
        """Every position of the kernel over the padded inputs, a view: (samples, *places, channels, *kernel)."""
        layer = self.layer
        assert isinstance(layer, _CONVOLUTIONS), "only these have kernels"
        mode = "constant" if layer.padding_mode == "zeros" else str(layer.padding_mode)
        padded = F.pad(inputs, _padding(layer), mode=mode).contiguous()
        samples, channels, *apart = padded.stride()
        jumps = [own * stride for own, stride in zip(apart, layer.stride, strict=True)]
        steps = [own * dilation for own, dilation in zip(apart, layer.dilation, strict=True)]
        shape = (len(padded), *self._shape(inputs), padded.shape[1], *layer.kernel_size)
        return padded.as_strided(shape, (samples, *jumps, channels, *steps), padded.storage_offset())


def columns_of(module: nn.Module | None) -> Columns | None:
    """The columns of a layer whose forward is torch's own and whose weight is a parameter; None for any other module."""
    for kind in (nn.Linear, *_CONVOLUTIONS):
        if isinstance(module, kind) and type(module).forward is kind.forward and isinstance(module.weight, nn.Parameter):
            return Columns(module)
    return None


def multiplies_inputs(module: nn.Module, tensor: Tensor) -> bool:
    """Whether the tensor is the weight of a linear layer or of a convolution that is not transposed."""
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and tensor is module.weight


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """How many numbers the layer puts around its inputs, as `torch.nn.functional.pad` takes them: last dimension first."""
    around = layer._reversed_padding_repeated_twice
    assert isinstance(around, (list, tuple)), "every convolution keeps its padding so"
    return list(around)
