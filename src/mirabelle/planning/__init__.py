"""Automatic compression: measure a model, plan within limits, carry the plan out, and plan again."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.planning.found import Attempt, Found
    from mirabelle.planning.plan import Plan
    from mirabelle.planning.search import auto
    from mirabelle.planning.trials import TrialSettings

__all__ = ["Attempt", "Found", "Plan", "TrialSettings", "auto"]
__getattr__ = lazily(
    "mirabelle.planning",
    {"found": ["Attempt", "Found"], "plan": ["Plan"], "search": ["auto"], "trials": ["TrialSettings"]},
)
