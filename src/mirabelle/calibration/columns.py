"""What the weights of a layer are multiplied by: inputs unfolded into columns, and their second moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NUMBERS_AT_ONCE = 1 << 22  # of unfolded inputs


def multiplies_inputs(module: nn.Module, tensor: Tensor) -> bool:
    """Whether the tensor is the weight of a linear layer or of a convolution that is not transposed."""
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and tensor is module.weight


def columns_of(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What the columns of a layer's weight are multiplied by, place by place, a bounded part at a time.

    Args:
        module: a linear layer, or a convolution of any stride, dilation, padding and groups.
        inputs: of one call.

    Returns:
        Tensors (groups, places, columns): weight.reshape(groups, -1, columns) times their transpose is the layer's output
        without bias.
    """
    if isinstance(module, nn.Linear):
        for part in torch.split(inputs.reshape(-1, module.in_features), max(1, _NUMBERS_AT_ONCE // module.in_features)):
            yield part.unsqueeze(0)
        return
    assert isinstance(module, _CONVOLUTIONS), "covers lets nothing else through"
    padded = _padded(module, inputs if inputs.ndim == module.weight.ndim else inputs.unsqueeze(0))
    per_sample = _windows(module, padded[:1]).numel()
    for part in torch.split(padded, max(1, _NUMBERS_AT_ONCE // per_sample)):
        windows = _windows(module, part)  # (samples, channels, *places, *kernel)
        space = module.weight.ndim - 2
        by_group = torch.unflatten(windows, 1, (module.groups, -1)).movedim(
            1, 0
        )  # (groups, samples, channels, *places, *kernel)
        yield by_group.movedim(2, 2 + space).flatten(2 + space).flatten(1, -2)


def _padded(module: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs with the layer's own padding, as many numbers as its forward puts around them."""
    around = module._reversed_padding_repeated_twice
    mode = module.padding_mode
    assert isinstance(around, (list, tuple)), "every convolution keeps its padding so"
    return F.pad(inputs, list(around), mode="constant" if mode == "zeros" else str(mode))


def _windows(module: nn.Module, padded: Tensor) -> Tensor:
    """Every place of the kernel over the padded inputs, as a view: (samples, channels, *places, *kernel)."""
    assert isinstance(module, _CONVOLUTIONS), "only these have kernels"
    padded = padded.contiguous()
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    places = [
        (size - step * (width - 1) - 1) // jump + 1
        for size, width, jump, step in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    apart = padded.stride()
    jumps = [own * jump for own, jump in zip(apart[2:], stride, strict=True)]
    steps = [own * step for own, step in zip(apart[2:], dilation, strict=True)]
    return padded.as_strided((*padded.shape[:2], *places, *kernel), (*apart[:2], *jumps, *steps), padded.storage_offset())


class Moments:
    """E[x xᵀ], or its diagonal alone, over all that is added.

    Args:
        whole: keep the matrix (groups, columns, columns), else its diagonal (groups, columns).
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._sum: Tensor | None = None
        self._places = 0

    def add(self, columns: Tensor) -> None:
        """Take in (groups, places, columns)."""
        columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
        sums = columns.transpose(1, 2) @ columns if self._whole else columns.square().sum(1)
        self._sum = sums if self._sum is None else self._sum.add_(sums)
        self._places += columns.shape[1]

    def mean(self) -> Tensor | None:
        """None where nothing was added."""
        return None if self._sum is None or not self._places else self._sum / self._places
