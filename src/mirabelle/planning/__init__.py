"""Automatic compression: measure a model, plan within limits, carry the plan out, and plan again."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.planning.plan import Plan
    from mirabelle.planning.search import Attempt, Found, auto

__all__ = ["Attempt", "Found", "Plan", "auto"]
__getattr__ = lazily("mirabelle.planning", {"search": ["Attempt", "Found", "auto"], "plan": ["Plan"]})
