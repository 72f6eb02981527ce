"""Pruning steps, which remove the weights, channels or layers that matter least."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.prune.channels import Channels
from mirabelle.prune.layers import Layers
from mirabelle.prune.weights import Weights

if TYPE_CHECKING:
    from mirabelle.prune.skipped import Skipped

__all__ = [
    "Channels",
    "Layers",
    "Skipped",
    "Weights",
]
__getattr__ = lazily(
    "mirabelle.prune",
    {
        "skipped": ["Skipped"],
    },
)
