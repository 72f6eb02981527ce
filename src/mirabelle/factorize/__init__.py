"""Steps that factorize layers: products of smaller layers in their places, of a rank that pays."""

from typing import TYPE_CHECKING

from mirabelle.factorize.conv import Conv
from mirabelle.factorize.linear import Linear
from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.factorize.low_rank_conv import SeparatedConv, TuckerConv
    from mirabelle.factorize.low_rank_linear import LowRankLinear

__all__ = [
    "Conv",
    "Linear",
    "LowRankLinear",
    "SeparatedConv",
    "TuckerConv",
]
__getattr__ = lazily(
    "mirabelle.factorize",
    {
        "low_rank_conv": ["SeparatedConv", "TuckerConv"],
        "low_rank_linear": ["LowRankLinear"],
    },
)
