"""Convolutions as sequences of smaller ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.replacement import Replacement
from mirabelle.numerics.low_rank import Decomposition, tucker

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _ConvFactors(Replacement, ABC):
    """A convolution as a sequence of convolutions, its parts, which run one after the other; the last one has the bias."""

    def forward(self, inputs: Tensor) -> Tensor:
        for part in self.children():
            inputs = part(inputs)
        return inputs

    def plain_tensors(self) -> dict[str, Tensor]:
        """Kernel and bias of the dense layer."""
        found, bias = {"weight": self._kernel()}, None
        for part in self.children():  # a part before the last one has a bias if constants of its inputs were cut
            weight, own = part.weight, part.bias
            assert isinstance(weight, Tensor), "convolutions have a weight"
            if bias is not None:
                bias = weight.flatten(2).sum(2) @ bias
            if isinstance(own, Tensor):
                bias = own if bias is None else bias + own
        return found if bias is None else {**found, "bias": bias}

    @abstractmethod
    def _kernel(self) -> Tensor:
        """The kernel of the dense layer, as the product of the parts."""


class TuckerConv(_ConvFactors):
    """A convolution as reduce (1 × 1), core (the kernel's size) and expand (1 × 1).

    Without a rank for the inputs there is no `reduce`, without one for the outputs no `expand`.

    Args:
        dense: a convolution with one group.
        outputs: rank of the output channels; None for all of them.
        inputs: rank of the input channels; None for all of them.
    """

    def __init__(self, dense: nn.Module, outputs: int | None = None, inputs: int | None = None) -> None:
        super().__init__({"outputs": outputs, "inputs": inputs})
        conv, shape = _conv(dense), _conv(dense).weight.shape
        width = inputs or shape[1]
        if inputs is not None:
            self.reduce = _empty(conv, (inputs, shape[1]), {}, bias=False)
        last = outputs is None
        self.core = _empty(conv, (outputs or shape[0], width), _geometry(conv), bias=last and conv.bias is not None)
        if outputs is not None:
            self.expand = _empty(conv, (shape[0], outputs), {}, bias=conv.bias is not None)
        self.train(dense.training)

    @classmethod
    @torch.no_grad()
    def factorized(cls, dense: nn.Module, outputs: int | None, inputs: int | None) -> Self:
        """Factorize a layer with the ranks given, closest in the weights."""
        layer, conv = cls(dense, outputs, inputs), _conv(dense)
        left, core, right = tucker(conv.weight, outputs or conv.weight.shape[0], inputs or conv.weight.shape[1])
        if outputs is None:
            core = torch.tensordot(left, core, 1)
        else:
            layer.expand.weight.copy_(left.reshape(layer.expand.weight.shape))
        if inputs is None:
            core = torch.tensordot(right, core.transpose(0, 1), 1).transpose(0, 1)
        else:
            layer.reduce.weight.copy_(right.t().reshape(layer.reduce.weight.shape))
        layer.core.weight.copy_(core)
        _give_bias(layer, conv.bias)
        return layer

    @classmethod
    @torch.no_grad()
    def of_outputs(cls, dense: nn.Module, found: Decomposition, outputs: int, mean: Tensor | None = None) -> Self:
        """Factorize the output channels by a decomposition of the kernel as (out, in · kernel).

        Args:
            dense: the layer.
            found: the decomposition.
            outputs: rank.
            mean: (in · kernel,), the mean of the unfolded inputs, if the decomposition is one of centred moments.
        """
        layer, conv = cls(dense, outputs), _conv(dense)
        left, right = found.factors(outputs)
        layer.expand.weight.copy_(left.reshape(layer.expand.weight.shape))
        layer.core.weight.copy_(right.reshape(layer.core.weight.shape))
        bias = conv.bias
        if bias is not None and mean is not None:
            lost = (conv.weight.flatten(1).double() - left @ right) @ mean.double()
            bias = bias.double() + lost
        _give_bias(layer, bias)
        return layer

    def _kernel(self) -> Tensor:
        parts: dict[str, Any] = dict(self.named_children())
        kernel: Tensor = parts["core"].weight
        if "reduce" in parts:
            kernel = torch.tensordot(kernel.movedim(1, -1), parts["reduce"].weight.flatten(1), 1).movedim(-1, 1)
        return torch.tensordot(parts["expand"].weight.flatten(1), kernel, 1) if "expand" in parts else kernel


class SeparatedConv(_ConvFactors):
    """A two-dimensional convolution as one along the first spatial dimension and one along the second.

    W[o, i, h, w] ≈ Σ_r along[o, r, w] across[r, i, h].

    Args:
        dense: a Conv2d with one group.
        rank: number of channels between the two.
    """

    def __init__(self, dense: nn.Module, rank: int) -> None:
        super().__init__({"rank": rank})
        conv = _conv(dense)
        if not isinstance(conv, nn.Conv2d):
            raise _not_this(dense)
        out, inputs = conv.weight.shape[:2]
        self.across = _empty(conv, (rank, inputs), _geometry(conv, only=0), bias=False)
        self.along = _empty(conv, (out, rank), _geometry(conv, only=1), bias=conv.bias is not None)
        self.train(dense.training)

    @classmethod
    @torch.no_grad()
    def factorized(cls, dense: nn.Module, found: Decomposition, rank: int) -> Self:
        """Factorize a layer by a decomposition of its kernel as a matrix, see `as_matrix`."""
        layer, conv = cls(dense, rank), _conv(dense)
        out, inputs, height, width = conv.weight.shape
        left, right = found.factors(rank)
        layer.along.weight.copy_(left.reshape(out, width, 1, rank).permute(0, 3, 2, 1))
        layer.across.weight.copy_(right.reshape(rank, inputs, height, 1))
        _give_bias(layer, conv.bias)
        return layer

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """A kernel (out, in, height, width) as the matrix (out · width, in · height)."""
        out, inputs, height, width = weight.shape
        return weight.permute(0, 3, 1, 2).reshape(out * width, inputs * height)

    def _kernel(self) -> Tensor:
        across, along = self.across.weight.squeeze(3), self.along.weight.squeeze(2)
        return torch.einsum("rih,orw->oihw", across, along)


def _conv(dense: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    if not isinstance(dense, CONVOLUTIONS) or dense.groups != 1:
        raise _not_this(dense)
    return dense


def _not_this(dense: nn.Module) -> UserError:
    message = f"{type(dense).__name__} has no low-rank form of this kind"
    return UserError("E140", message, "give the dense module from which the model was made")


def _geometry(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, only: int | None = None) -> dict[str, Any]:
    """Kernel size, stride, padding and dilation of a convolution, in all dimensions or in one of them."""

    def of(values: Any, neutral: int) -> Any:
        if isinstance(values, str):
            return values
        return tuple(value if only in (None, place) else neutral for place, value in enumerate(values))

    return {
        "kernel_size": of(conv.kernel_size, 1),
        "stride": of(conv.stride, 1),
        "padding": of(conv.padding, 0),
        "dilation": of(conv.dilation, 1),
        "padding_mode": conv.padding_mode,
    }


def _empty(like: nn.Conv1d | nn.Conv2d | nn.Conv3d, channels: tuple[int, int], geometry: dict[str, Any], *, bias: bool) -> Any:
    """A convolution of zeros of the same class, (out, in) channels, 1 × 1 without a geometry; draws no random numbers."""
    kind: Any = next(kind for kind in CONVOLUTIONS if isinstance(like, kind))
    out, inputs = channels
    weight = like.weight
    layer = kind(inputs, out, **{"kernel_size": 1, **geometry}, bias=bias, dtype=weight.dtype, device="meta")
    layer = layer.to_empty(device=weight.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _give_bias(layer: nn.Module, bias: Tensor | None) -> None:
    """Give the last part its bias."""
    if bias is not None:
        last: Any = list(layer.children())[-1]
        last.bias.copy_(bias)
