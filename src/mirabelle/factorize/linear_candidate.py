"""A linear layer as a candidate for factors."""

from __future__ import annotations

import math

from torch import nn

from mirabelle.factorize.candidate import Candidate, Cost, Ranks
from mirabelle.factorize.low_rank_linear import LowRankLinear, weight_of
from mirabelle.factorize.seen_inputs import Seen
from mirabelle.numerics.low_rank import decomposed
from mirabelle.runtime.timing import Operator


def linear_candidate(name: str, dense: nn.Module, seen: Seen, batch: int) -> Candidate:
    """A linear layer as a candidate.

    Args:
        name: of the layer.
        dense: a linear layer, or `Conv1D` of transformers.
        seen: its inputs; with moments, the factors are closest on these inputs.
        batch: number of samples of a measured call.
    """
    weight = weight_of(dense)
    out, inputs = weight.shape
    centred = seen.moments is not None and getattr(dense, "bias", None) is not None
    moments = None if seen.moments is None else seen.centred() if centred else seen.plain()
    found = decomposed(weight, moments)
    rows = [math.prod(shape[:-1]) for shape in seen.shapes]

    def cost(ranks: Ranks) -> Cost:
        sizes = [(inputs, out)] if not ranks else [(inputs, ranks[0]), (ranks[0], out)]
        weights = sum(math.prod(size) for size in sizes)
        each = [max(1, round(count / seen.samples * batch)) for count in rows]
        operators = tuple(Operator("MatMul", (count, size[0]), size) for count in each for size in sizes)
        return Cost(weights, weights * sum(rows) // seen.samples, operators)

    def made(ranks: Ranks) -> LowRankLinear:
        return LowRankLinear.factorized(dense, found, ranks[0], seen.mean() if centred else None)

    return Candidate(name, (found.lost().numpy(),), cost, made)
