"""How much to remove from which part of a model, for a given sparsity or under one or several budgets."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.allocation.knapsack import Constraint, allocate
    from mirabelle.allocation.plan import Item, Limit, within_limits

__all__ = [
    "Constraint",
    "Item",
    "Limit",
    "allocate",
    "within_limits",
]
__getattr__ = lazily(
    "mirabelle.allocation",
    {
        "knapsack": ["Constraint", "allocate"],
        "plan": ["Item", "Limit", "within_limits"],
    },
)
