"""Structured pruning of traced models: finds which dimensions must be removed together, and removes them."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.graph.groups import AxisGroup, groups_of
    from mirabelle.graph.propagate import propagated
    from mirabelle.graph.rewrite import Rewrite
    from mirabelle.graph.surgery import cut
    from mirabelle.graph.trace import traced

__all__ = [
    "AxisGroup",
    "Rewrite",
    "cut",
    "groups_of",
    "propagated",
    "traced",
]
__getattr__ = lazily(
    "mirabelle.graph",
    {
        "groups": ["AxisGroup", "groups_of"],
        "propagate": ["propagated"],
        "rewrite": ["Rewrite"],
        "surgery": ["cut"],
        "trace": ["traced"],
    },
)
