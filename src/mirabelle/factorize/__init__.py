"""Steps that factorize layers: products of smaller layers in their places, of a rank that pays."""

from typing import TYPE_CHECKING

from mirabelle.factorize.linear import Linear
from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.factorize.low_rank_linear import LowRankLinear

__all__ = [
    "Linear",
    "LowRankLinear",
]
__getattr__ = lazily(
    "mirabelle.factorize",
    {
        "low_rank_linear": ["LowRankLinear"],
    },
)
