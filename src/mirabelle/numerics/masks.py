"""Masks that keep the elements with the highest scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1e-9  # of a product of fractions and a size


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """Boolean mask that is False for the floor(sparsity · n) elements with the lowest scores.

    Among equal scores, elements with a lower index are removed first.

    Args:
        scores: any shape, n elements.
        sparsity: fraction to remove, in [0, 1).

    Example:
        >>> keep_highest(torch.tensor([3.0, 1.0, 2.0, 4.0]), sparsity=0.5)
        tensor([ True, False, False,  True])
    """
    return keep_but(scores, int(sparsity * scores.numel()))


def keep_but(scores: Tensor, removed: int) -> Tensor:
    """Boolean mask that is False for so many elements with the lowest scores; any shape."""
    return _but_lowest(scores, removed).reshape(scores.shape)


def keep_highest_of_each(scores: Tensor, kept: int, columns: int) -> Tensor:
    """Boolean mask of the highest scores of each row's groups of neighbouring columns (an N:M pattern).

    Args:
        scores: (rows, n).
        kept: number of elements that each group keeps.
        columns: of a group. A last group with fewer columns loses columns − kept elements, too, or all it has.

    Example:
        >>> keep_highest_of_each(torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0]]), kept=2, columns=4)
        tensor([[False,  True,  True, False, False]])
    """
    rows, size = scores.shape
    padded = torch.full((rows, -(-size // columns) * columns), math.inf, dtype=scores.dtype, device=scores.device)
    padded[:, :size] = scores
    lowest = padded.reshape(rows, -1, columns).argsort(dim=2, stable=True)[:, :, : columns - kept]
    mask = torch.ones(rows, padded.shape[1] // columns, columns, dtype=torch.bool, device=scores.device)
    return mask.scatter_(2, lowest, value=False).reshape(rows, -1)[:, :size]


def blocks(scores: Tensor, block: tuple[int, int]) -> Tensor:
    """The mean score of each block of a matrix.

    Args:
        scores: (rows, columns).
        block: rows and columns of a block; those at the ends may be smaller.

    Returns:
        (blocks along the rows, blocks along the columns).

    Example:
        >>> blocks(torch.tensor([[1.0, 1.0, 3.0], [1.0, 1.0, 0.0]]), (2, 2))
        tensor([[1.0000, 1.5000]])
    """
    (rows, columns), (high, wide) = scores.shape, block
    padding = (0, -columns % wide, 0, -rows % high)

    def summed(numbers: Tensor) -> Tensor:
        return F.pad(numbers, padding).unfold(0, high, high).unfold(1, wide, wide).sum((2, 3))

    return summed(scores) / summed(torch.ones_like(scores))


def of_blocks(mask: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """The mask of a matrix from that of its blocks, with the given shape; see `blocks`."""
    rows = shape[0]
    whole = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return whole[:rows, : shape[1:].numel()].reshape(shape)


def keep_highest_by_row(scores: Tensor, sparsity: float) -> Tensor:
    """Boolean mask that is False for the floor(sparsity · n) lowest of the n elements of each row; (rows, n).

    Example:
        >>> keep_highest_by_row(torch.tensor([[3.0, 1.0], [0.5, 0.1]]), sparsity=0.5)
        tensor([[ True, False],
                [ True, False]])
    """
    lowest = scores.argsort(dim=1, stable=True)[:, : int(sparsity * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, value=False)


def keep_highest_together(scores: Sequence[Tensor], sparsity: float, floor: float = 0.0) -> list[Tensor]:
    """`keep_highest` with a single ranking of the elements of all tensors; returns one mask per tensor.

    Args:
        scores: any shapes.
        sparsity: fraction of all elements to remove, in [0, 1).
        floor: each tensor of n elements keeps at least ⌈floor · (1 − sparsity) · n⌉, in [0, 1]; others lose more instead.

    Example:
        >>> small, large = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
        >>> keep_highest_together([small, large], sparsity=0.5)[0].tolist()
        [False, False, False, False]
        >>> keep_highest_together([small, large], sparsity=0.5, floor=0.5)[0].tolist()
        [False, False, False, True]

    Source: Gupta, Camci, Keneta, Vaidyanathan, Kanodia, Foo, Wu, Lin 2022, arXiv:2209.14624 (a least number of weights of each
    layer in a global ranking).
    """
    sizes = [score.numel() for score in scores]
    flat = torch.cat([score.flatten() for score in scores])
    removed = int(sparsity * flat.numel())
    if floor > 0:
        least = [math.ceil(floor * (1 - sparsity) * size - _ROUNDING) for size in sizes]
        stays = torch.cat([_but_lowest(score, size - own) for score, size, own in zip(scores, sizes, least, strict=True)])
        flat, removed = flat.masked_fill(stays, math.inf), min(removed, int((~stays).sum()))
    mask = _but_lowest(flat, removed)
    return [part.reshape(score.shape) for part, score in zip(torch.split(mask, sizes), scores, strict=True)]


def keep_by_erdos_renyi(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """`keep_highest` of each tensor, with a sparsity by its sizes; returns one mask per tensor.

    A tensor with sizes d₁, d₂, … keeps ε · Σ dᵢ of its Π dᵢ elements, at most all of them; ε is such that the tensors
    together keep the fraction 1 − sparsity. So narrow layers, and small kernels, lose less.

    Args:
        scores: any shapes.
        sparsity: fraction of all elements to remove, in [0, 1).

    Example:
        >>> wide, narrow = torch.rand(40, 40), torch.rand(4, 40)
        >>> [int(mask.sum()) for mask in keep_by_erdos_renyi([wide, narrow], sparsity=0.9)]
        [114, 62]

    Source: Mocanu et al. 2018, arXiv:1707.04780; Evci et al. 2020, arXiv:1911.11134 (kernels).
    """
    sizes, widths = [score.numel() for score in scores], [max(1, sum(score.shape)) for score in scores]
    kept, left = [0.0] * len(scores), sum(sizes) - int(sparsity * sum(sizes))
    open_ = [place for place, size in enumerate(sizes) if size]
    while open_:
        share = left / sum(widths[place] for place in open_)
        full = [place for place in open_ if share * widths[place] >= sizes[place]]
        for place in full or open_:
            kept[place] = min(float(sizes[place]), share * widths[place])
        left -= sum(sizes[place] for place in full)
        open_ = [place for place in open_ if place not in full] if full else []
    counts = _rounded(kept, sum(sizes) - int(sparsity * sum(sizes)))
    return [keep_but(score, size - count) for score, size, count in zip(scores, sizes, counts, strict=True)]


def _rounded(numbers: Sequence[float], total: int) -> list[int]:
    """Integers near numbers whose sum is `total`: rounded down, and one more where most was lost."""
    found = [math.floor(number + _ROUNDING) for number in numbers]
    order = sorted(range(len(found)), key=lambda place: found[place] - numbers[place])
    for place in order[: total - sum(found)]:
        found[place] += 1
    return found


def lamp(score: Tensor) -> Tensor:
    """s² divided by the sum of the squares of all scores of the tensor that are not smaller, for a ranking over layers.

    It bounds what the removal of a weight does to the output of its layer, relative to the weights that are left. Equal scores
    are taken in their order, so that those removed first have the smaller result. The highest one gets 1, unless all are 0.
    Negative scores count as 0, infinite ones stay infinite.

    Args:
        score: any shape.

    Example:
        >>> lamp(torch.tensor([3.0, 1.0, 2.0]))
        tensor([1.0000, 0.0714, 0.3077])

    Source: Lee, Park, Mo, Ahn, Shin 2021, arXiv:2010.07611 (LAMP).
    """
    flat = score.flatten().double().clamp(min=0)
    order = flat.argsort(stable=True)
    squares = flat[order].square().where(flat[order].isfinite(), torch.zeros_like(flat))
    left = squares.flip(0).cumsum(0).flip(0)
    found = torch.empty_like(flat)
    found[order] = torch.where(left > 0, squares / left, torch.zeros_like(left))
    return found.masked_fill(flat.isinf(), math.inf).to(torch.promote_types(score.dtype, torch.float32)).reshape(score.shape)


def keep_above(scores: Tensor, threshold: float) -> Tensor:
    """Boolean mask that is True where the score is above the threshold.

    Example:
        >>> keep_above(torch.tensor([0.1, 0.5]), threshold=0.2)
        tensor([False,  True])
    """
    return scores > threshold


def _but_lowest(scores: Tensor, removed: int) -> Tensor:
    """A flat mask of all but the lowest scores."""
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    if removed:
        mask[_lowest(scores.flatten(), removed)] = False
    return mask


def _lowest(flat: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest values; of equal values, those with the lowest indices."""
    threshold = flat.kthvalue(count).values
    below = (flat < threshold).nonzero().flatten()
    equal = (flat == threshold).nonzero().flatten()
    return torch.cat([below, equal[: count - below.numel()]])
