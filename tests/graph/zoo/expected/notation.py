"""How groups are written down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Units that touch the same places, each place written as `parameter.name:dimension`."""

    units: int
    members: str
    optional: bool = False  # to leave these units alone would also be right: a statistic, or an operator few will know

    @property
    def places(self) -> frozenset[tuple[str, int]]:
        """Parameter name and dimension of each member."""
        pairs = (member.rsplit(":", 1) for member in self.members.split())
        return frozenset((name, int(dimension)) for name, dimension in pairs)


def cut(units: int, *members: str) -> Group:
    return Group(units, " ".join(members))


def may(units: int, *members: str) -> Group:
    return Group(units, " ".join(members), optional=True)


def rows(modules: str) -> str:
    """What a layer with a bias, or a norm, has of each output channel."""
    return " ".join(f"{module}.weight:0 {module}.bias:0" for module in modules.split())


def filters(modules: str) -> str:
    """What a layer without bias has of each output channel."""
    return " ".join(f"{module}.weight:0" for module in modules.split())


def columns(modules: str) -> str:
    """What a layer has of each input channel, or an embedding of each channel."""
    return " ".join(f"{module}.weight:1" for module in modules.split())


def normed(modules: str) -> str:
    """Convolution without bias, then its norm."""
    return " ".join(f"{module}.conv.weight:0 {module}.norm.weight:0 {module}.norm.bias:0" for module in modules.split())


def read(modules: str) -> str:
    """The input channels of such a pair."""
    return " ".join(f"{module}.conv.weight:1" for module in modules.split())


def gates(module: str, suffix: str = "l0") -> str:
    """The hidden units of one layer and direction of a recurrent network."""
    names = (
        f"weight_ih_{suffix}:0",
        f"weight_hh_{suffix}:0",
        f"weight_hh_{suffix}:1",
        f"bias_ih_{suffix}:0",
        f"bias_hh_{suffix}:0",
    )
    return " ".join(f"{module}.{name}" for name in names)


def heads(query: str, key: str, value: str, out: str, *, sizes: tuple[int, int] = (4, 6), also: str = "") -> tuple[Group, ...]:
    """Heads, the width over which queries meet keys, and the width of the values; layers with biases."""
    number, depth = sizes
    return (
        cut(number, rows(f"{query} {key} {value}"), columns(out), also),
        cut(depth, rows(f"{query} {key}")),
        cut(depth, rows(value), columns(out)),
    )
