"""The axis groups of a model in words and numbers: what is cut together, what it costs, and what cannot be cut and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mirabelle.errors import UserError
from mirabelle.graph.costs import GroupCost, costs_of
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import Frozen, frozen_in, groups_of, why_nothing_goes
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced
from mirabelle.inspection.kinds import kinds_of
from mirabelle.task.batch import Batch, arguments_of


@dataclass(frozen=True)
class Group:
    """Units that are cut together, one as good as another.

    Args:
        kind: what they are, such as "channels of a convolution"; "units" where the program leaves a doubt.
        cost: name, number of units, members, parameters and multiply-accumulates that one takes with it.
    """

    kind: str
    cost: GroupCost

    def to_data(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.cost.to_data()}


@dataclass(frozen=True)
class Structure:
    """What of a model can be cut, and what cannot.

    Args:
        groups: in the order of the model's parameters.
        fixed: in the same order.
        unknown: names of the operators that are not understood, which hold what they touch, with how often.
    """

    groups: tuple[Group, ...]
    fixed: tuple[Frozen, ...]
    unknown: Mapping[str, int]

    def to_data(self) -> dict[str, Any]:
        return {
            "groups": [group.to_data() for group in self.groups],
            "frozen": [asdict(fixed) for fixed in self.fixed],
            "unknown": dict(self.unknown),
        }

    def check_any_group(self) -> None:
        """Raise unless there is a group.

        Raises:
            UserError: E112 with what holds the model.
        """
        if not self.groups:
            why = why_nothing_goes(self.fixed)
            raise UserError("E112", f"no channel, neuron or head can be cut: {why}", "prune single weights: prune.Weights")


def structure_of(model: nn.Module, example: Batch) -> Structure:
    """The groups of a model, with what one unit of each costs, and what is frozen.

    Args:
        model: on any device; it is traced in eval mode, not run, and stays as it is.
        example: inputs of at least two samples.

    Raises:
        UserError: E121 when the model cannot be traced.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> structure = structure_of(model, Batch(torch.zeros(2, 4), torch.zeros(2)))
        >>> [(group.kind, group.cost.units, group.cost.parameters) for group in structure.groups]
        [('neurons of a layer', 6, 8)]
        >>> structure.fixed[1].name, structure.fixed[1].dimension, structure.fixed[1].reasons
        ('2.weight', 0, ('it is an output of the model',))
    """
    args, kwargs = arguments_of(example.inputs)
    program = traced(model, args, kwargs)
    return structure_of_program(program, propagated(program), len(example))


def structure_of_program(program: Program, flow: Flow, batch: int) -> Structure:
    """The same of a program that is at hand, traced on so many samples; buffers alone make no group."""
    groups = groups_of(program, flow)
    told = zip(groups, kinds_of(program, flow, groups), costs_of(program, flow, batch), strict=True)
    return Structure(
        tuple(Group(kind, cost) for _, kind, cost in told if cost.parameters or cost.macs),
        tuple(frozen_in(program, flow)),
        dict(flow.unknown),
    )
