"""Structured pruning of traced models: finds which dimensions must be removed together, and removes them."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.graph.groups import AxisGroup, groups_of
    from mirabelle.graph.propagate import propagated
    from mirabelle.graph.surgery import cut, remade
    from mirabelle.graph.trace import traced

__all__ = [
    "AxisGroup",
    "cut",
    "groups_of",
    "propagated",
    "remade",
    "traced",
]
__getattr__ = lazily(
    "mirabelle.graph",
    {
        "groups": ["AxisGroup", "groups_of"],
        "propagate": ["propagated"],
        "surgery": ["cut", "remade"],
        "trace": ["traced"],
    },
)
