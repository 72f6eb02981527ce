"""Steps that factorize layers: products of smaller layers in their places, of a rank that pays."""

from typing import TYPE_CHECKING

from mirabelle.factorize.conv import Conv
from mirabelle.factorize.embedding import Embedding
from mirabelle.factorize.linear import Linear
from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.factorize.low_rank_conv import SeparatedConv, TuckerConv
    from mirabelle.factorize.low_rank_embedding import LowRankEmbedding
    from mirabelle.factorize.low_rank_linear import LowRankLinear

__all__ = [
    "Conv",
    "Embedding",
    "Linear",
    "LowRankEmbedding",
    "LowRankLinear",
    "SeparatedConv",
    "TuckerConv",
]
__getattr__ = lazily(
    "mirabelle.factorize",
    {
        "low_rank_conv": ["SeparatedConv", "TuckerConv"],
        "low_rank_embedding": ["LowRankEmbedding"],
        "low_rank_linear": ["LowRankLinear"],
    },
)
