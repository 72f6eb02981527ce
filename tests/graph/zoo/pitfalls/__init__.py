"""One tiny network for each way in which structured pruning has gone wrong elsewhere."""

from __future__ import annotations

from zoo.architecture import Architecture

from . import attention, computed, convolutions, joined, literals, parameters, recurrent, reordering, sharing, statistics

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    architecture
    for module in (literals, joined, convolutions, parameters, sharing, attention, recurrent, statistics, reordering, computed)
    for architecture in module.ARCHITECTURES
)
