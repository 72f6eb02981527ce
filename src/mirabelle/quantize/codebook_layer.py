"""The layer whose weights share the values of a codebook."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.codecs.shortest import FEW
from mirabelle.model.replacement import Replacement
from mirabelle.numerics.codebook import Start, codebook_of, nearest_entries
from mirabelle.quantize.dense_layers import WEIGHTED, applied_of, as_in_dense, bias_of, weight_of
from mirabelle.runtime.codebook_operators import look_up, looked_up

_TRAINED = ("values", "bias")
_MOST_CODES = 256  # of a byte


class CodebookLayer(Replacement):
    """A layer whose weights are values of a codebook: y = layer(x, values[code], bias).

    Buffers: codes, uint8, with the shape of the weight; values, (codebooks, entries); bias, (out,), if any; values
    and bias are rounded to bfloat16, and in a training they are parameters. Output r belongs to codebook r // group_size. The
    first value of each codebook is 0 and stays 0 in a training: code 0 is that of pruned weights. If no weight is 0, no code is
    0, and an ONNX file lacks this value. A codebook with fewer values than the longest one repeats its last value. Layers that
    shared a weight share codes and values.

    Args:
        dense: the layer to replace: Linear, Conv1d, Conv2d, Conv3d, Embedding, or Conv1D of transformers.
        entries: values of a codebook, with the 0, 1 to 256.
        group_size: outputs (for an embedding, rows) that share a codebook; 0 for all.
        bias: add a bias although the dense layer has none.
        numbers: an ONNX file stores the weights themselves instead of codes and values.
    """

    codes: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(
        self, dense: nn.Module, entries: int, group_size: int = 0, *, bias: bool = False, numbers: bool = False
    ) -> None:
        other = {"group_size": group_size, "bias": bias, "numbers": numbers}
        super().__init__({"entries": entries, **{key: value for key, value in other.items() if value}})
        weight, has_bias = weight_of(dense, WEIGHTED), bias or bias_of(dense) is not None
        self.applied = None if isinstance(dense, nn.Embedding) else applied_of(dense)
        self.kind, self._numbers = type(dense).__name__, numbers
        self.group = group_size or len(weight)
        self.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.uint8))
        self.register_buffer("values", torch.zeros(-(-len(weight) // self.group), entries))
        self.register_buffer("bias", weight.new_zeros(len(weight)) if has_bias else None)

    @classmethod
    @torch.no_grad()
    def shared(cls, dense: nn.Module, bits: int, group_size: int = 0, *, start: Start = "exact", seed: int = 0) -> Self:
        """Let the weights of a layer share the values of codebooks.

        Args:
            dense: the layer.
            bits: a codebook has up to 2^bits values.
            group_size: outputs that share a codebook; 0 for all.
            start: how k-means begins; see `numerics.codebook`.
            seed: of a start at random.
        """
        weight = weight_of(dense, WEIGHTED)
        codes, books = shared_values(weight, bits, group_size, start=start, seed=seed)
        layer = cls(dense, books.shape[1], group_size)
        layer.codes.copy_(codes)
        layer.values.copy_(books)
        bias = bias_of(dense)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(_stored(bias))
        return layer

    @classmethod
    @torch.no_grad()
    def of_levels(cls, dense: nn.Module, levels: Tensor, step: Tensor, bias: Tensor | None) -> Self:
        """A layer whose values are multiples of a step, rounded to bfloat16.

        An ONNX file stores up to 4,096 weights as such: in a packed file they are coded as multiples of the step, and a table
        of values and the nodes that read it would take more than that.

        Args:
            dense: the layer to replace.
            levels: integers within ±127 in floating point, with the shape of the weight.
            step: a scalar.
            bias: (out,), if the layer has one, or gets one.
        """
        used = torch.unique(levels[levels != 0])
        new_bias, few = bias is not None and bias_of(dense) is None, levels.numel() <= FEW
        layer = cls(dense, 1 + len(used), bias=new_bias, numbers=few)
        layer.codes.copy_(torch.where(levels == 0, 0, torch.searchsorted(used, levels.contiguous()) + 1))
        layer.values.copy_(_stored(torch.cat([used.new_zeros(1), used]) * step))
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            weight: Tensor = look_up(self.codes, self.values, self.group, self._numbers)
            return F.embedding(inputs, weight) if self.applied is None else self.applied(inputs, weight, self.bias)
        if self.applied is None:
            return F.embedding(inputs, self._weight())
        return self.applied(inputs, self._weight(), self.bias)

    def stored_tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes} if self.bias is None else {"codes": self.codes, "bias": self.bias}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        weight = as_in_dense(self._weight(), self.kind)
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias}

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, values={tuple(self.values.shape)}"

    def _weight(self) -> Tensor:
        found: Tensor = _LookedUp.apply(  # type: ignore[no-untyped-call]
            self.codes, F.pad(self.values[:, 1:], (1, 0)), self.group
        )  # no gradient moves the 0
        return found


class _LookedUp(torch.autograd.Function):
    """`looked_up`; gradients of weights that share a value are added in their order: on a CPU, equal seeds give equal bits."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, values: Tensor, group: int) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.shape, ctx.group = values.shape, group
        return looked_up(codes, values, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (codes,), (gradient,) = ctx.saved_tensors, gradients
        books, entries = ctx.shape
        first = torch.arange(len(codes), device=codes.device) // ctx.group * entries
        places = first.reshape(-1, *[1] * (codes.ndim - 1)) + codes
        total = torch.bincount(places.flatten(), gradient.flatten().double(), books * entries)
        return None, total.to(gradient.dtype).reshape(ctx.shape), None


def with_parameters(model: nn.Module) -> nn.Module:
    """Make parameters of the values and biases of all codebook layers, in place, for a training."""
    made: dict[int, nn.Parameter] = {}
    for layer in _layers(model):
        for name in _TRAINED:
            tensor = layer._buffers.pop(name)  # not `delattr`: a layer without a bias answers with that of its plain weights
            layer._parameters[name] = None if tensor is None else made.setdefault(id(tensor), nn.Parameter(tensor))
    return model


@torch.no_grad()
def with_buffers(model: nn.Module) -> nn.Module:
    """Undo `with_parameters`, in place; values and biases are rounded to bfloat16, as they are stored."""
    made: dict[int, Tensor] = {}
    for layer in _layers(model):
        for name in _TRAINED:
            parameter = layer._parameters.pop(name)
            if parameter is not None:
                layer._buffers[name] = made.setdefault(id(parameter), _stored(parameter))
            else:
                layer._buffers[name] = None
    return model


def _layers(model: nn.Module) -> list[CodebookLayer]:
    return [module for module in model.modules() if isinstance(module, CodebookLayer)]


def shared_values(
    weight: Tensor, bits: int, group_size: int = 0, *, start: Start = "exact", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Codes and codebooks of a weight: k-means for each group of outputs, with zeros kept.

    Args:
        weight: finite, with its outputs on the first axis.
        bits: a codebook has up to 2^bits values; one of them is 0 if some weight is 0. With 8 bits it has up to 255 others.
        group_size: outputs that share a codebook; 0 for all.
        start: how k-means begins.
        seed: of a start at random.

    Returns:
        Codes, uint8, with the shape of the weight, 0 for weights of 0 alone; and values, float32 rounded to bfloat16,
        (codebooks, entries), of which the first is 0.
    """
    rows = weight.detach().flatten(1).float().cpu().numpy()
    size = group_size or len(rows)
    most = min(2**bits - bool((rows == 0).any()), _MOST_CODES - 1)
    books, codes = [], []
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        kept = part[part != 0]
        found: Any = codebook_of(kept, most, start, seed) if kept.size else np.zeros(0)
        book = np.unique(_stored(torch.from_numpy(np.asarray(found, np.float32))).numpy())
        book = book[book != 0]
        places = nearest_entries(part, book) + 1 if len(book) else np.zeros(part.shape, np.intp)
        codes.append(np.where(part == 0, 0, places))
        books.append(np.concatenate([np.zeros(1), book]))
    entries = max(map(len, books))
    filled = np.stack([np.pad(book, (0, entries - len(book)), mode="edge") for book in books])
    found_codes = torch.from_numpy(np.concatenate(codes).astype(np.uint8)).reshape(weight.shape)
    return found_codes, torch.from_numpy(filled.astype(np.float32))


def _stored(values: Tensor) -> Tensor:
    return values.bfloat16().float()
