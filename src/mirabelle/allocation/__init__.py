"""How much to take from where under one or several budgets."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.allocation.knapsack import Budget, allocate
    from mirabelle.allocation.plan import Item, Limit, within_limits

__all__ = [
    "Budget",
    "Item",
    "Limit",
    "allocate",
    "within_limits",
]
__getattr__ = lazily(
    "mirabelle.allocation",
    {
        "knapsack": ["Budget", "allocate"],
        "plan": ["Item", "Limit", "within_limits"],
    },
)
