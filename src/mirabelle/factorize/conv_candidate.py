"""A convolution as a candidate for factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mirabelle.factorize.candidate import Candidate, Cost, Ranks
from mirabelle.factorize.low_rank_conv import SeparatedConv, TuckerConv
from mirabelle.factorize.seen_inputs import Seen
from mirabelle.model.replacement import Replacement
from mirabelle.numerics.low_rank import decomposed, lost_by_channels
from mirabelle.runtime.timing import Operator

Form = Literal["tucker", "channels", "separated"]


def why_no_factors(dense: nn.Module, form: Form) -> str | None:
    """Why a convolution has no factors of a form; None if it has."""
    conv: Any = dense
    if conv.groups != 1:
        return f"its {conv.groups} groups are small kernels already"
    if form == "separated" and min(conv.kernel_size) == 1:
        return f"a kernel of {' x '.join(map(str, conv.kernel_size))} cannot be separated"
    return None


def conv_candidate(name: str, dense: nn.Module, seen: Seen, form: Form, batch: int) -> Candidate:
    """A convolution as a candidate.

    Args:
        name: of the layer.
        dense: a convolution with one group.
        seen: its inputs; with moments, the factors of the form "channels" are closest on these inputs.
        form: of the factors; a kernel of one element has those of "channels" instead of "tucker".
        batch: number of samples of a measured call.
    """
    conv: Any = dense
    if form == "separated":
        factors = _separated(conv)
    elif form == "channels" or math.prod(conv.kernel_size) == 1:
        factors = _channels(conv, seen)
    else:
        factors = _tucker(conv)

    def cost(ranks: Ranks) -> Cost:
        return _cost(list(factors.shaped(ranks).children()) if ranks else [conv], seen, batch)

    return Candidate(name, tuple(lost.numpy() for lost in factors.lost), cost, factors.made)


@dataclass(frozen=True)
class _Factors:
    """A form of factors of one layer: what ranks lose in each mode, modules of given ranks, and those with their weights."""

    lost: tuple[Tensor, ...]
    shaped: Callable[[Ranks], Replacement]
    made: Callable[[Ranks], Replacement]


def _separated(conv: Any) -> _Factors:
    found = decomposed(SeparatedConv.as_matrix(conv.weight))
    return _Factors(
        (found.lost(),),
        lambda ranks: SeparatedConv(conv, ranks[0]),
        lambda ranks: SeparatedConv.factorized(conv, found, ranks[0]),
    )


def _channels(conv: Any, seen: Seen) -> _Factors:
    centred = seen.moments is not None and conv.bias is not None
    moments = None if seen.moments is None else seen.centred() if centred else seen.plain()
    found = decomposed(conv.weight.flatten(1), moments)
    mean = seen.mean() if centred else None
    return _Factors(
        (found.lost(),),
        lambda ranks: TuckerConv(conv, ranks[0]),
        lambda ranks: TuckerConv.of_outputs(conv, found, ranks[0], mean),
    )


def _tucker(conv: Any) -> _Factors:
    def sides(ranks: Ranks) -> list[int | None]:
        return [None if rank == full else rank for rank, full in zip(ranks, conv.weight.shape, strict=False)]

    return _Factors(
        (lost_by_channels(conv.weight, 0), lost_by_channels(conv.weight, 1)),
        lambda ranks: TuckerConv(conv, *sides(ranks)),
        lambda ranks: TuckerConv.factorized(conv, *sides(ranks)),
    )


def _cost(parts: Sequence[Any], seen: Seen, batch: int) -> Cost:
    """The cost of convolutions that run one after the other on what a layer has seen."""
    macs, operators = 0, []
    for shape in seen.shapes:
        sizes = shape[-(parts[0].weight.ndim - 2) :]
        for part in parts:
            pads = _pads(part)
            operators.append(
                Operator(
                    "Conv",
                    (batch, part.in_channels, *sizes),
                    tuple(part.weight.shape),
                    (
                        ("strides", tuple(part.stride)),
                        ("pads", (*pads[::2], *pads[1::2])),
                        ("dilations", tuple(part.dilation)),
                        ("group", 1),
                    ),
                )
            )
            sizes = tuple(
                (size + before + after - dilation * (width - 1) - 1) // stride + 1
                for size, before, after, dilation, width, stride in zip(
                    sizes, pads[::2], pads[1::2], part.dilation, part.kernel_size, part.stride, strict=True
                )
            )
            macs += part.weight.numel() * math.prod(sizes)
    return Cost(sum(part.weight.numel() for part in parts), macs, tuple(operators))


def _pads(part: Any) -> list[int]:
    """The padding before and after each spatial dimension, the first dimension first."""
    reverse = list(part._reversed_padding_repeated_twice)
    return [value for place in range(len(reverse) - 2, -1, -2) for value in reverse[place : place + 2]]
