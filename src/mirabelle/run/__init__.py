"""A run: its folder, seed, journal, decisions and callbacks. All side effects of a compression go through this package."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.run.journal import Callback, Stop
    from mirabelle.run.run import Run

__all__ = [
    "Callback",
    "Run",
    "Stop",
]
__getattr__ = lazily(
    "mirabelle.run",
    {
        "journal": ["Callback", "Stop"],
        "run": ["Run"],
    },
)
