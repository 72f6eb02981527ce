"""The groups of units of a model: which units are removed together, what they cost, and which cannot be removed and why."""

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
    """A group of equivalent units: removing one of them removes a slice of every tensor that the group is part of.

    Args:
        kind: description of the units, such as "channels of a convolution"; "units" if the program does not show it clearly.
        cost: name, number of units, tensors concerned, and the parameters and multiply-accumulates of one unit.
    """

    kind: str
    cost: GroupCost

    def to_data(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.cost.to_data()}


@dataclass(frozen=True)
class Structure:
    """Which parts of a model can be removed, and which cannot.

    Args:
        groups: the groups of removable units, in the order of the model's parameters.
        fixed: the dimensions that cannot be changed, with reasons, in the same order.
        unknown: operators without a rule, which freeze the dimensions of their tensors: name and number of occurrences.
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
        """Raise an error if no unit can be removed.

        Raises:
            UserError: E112, with the reasons.
        """
        if not self.groups:
            why = why_nothing_goes(self.fixed)
            raise UserError("E112", f"no channel, neuron or head can be removed: {why}", "prune single weights: prune.Weights")


def structure_of(model: nn.Module, example: Batch) -> Structure:
    """The groups of removable units of a model, with the cost of one unit of each, and the dimensions that cannot be changed.

    Args:
        model: on any device; it is traced in evaluation mode, not run, and not changed.
        example: inputs of at least two samples.

    Raises:
        UserError: E121 if the model cannot be traced.

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
    """The groups of removable units of a traced program, and the dimensions that cannot be changed.

    A group of buffers alone, without parameters and costs, is left out.

    Args:
        program: the traced model.
        flow: the program's axes.
        batch: number of samples that the program was traced with.
    """
    groups = groups_of(program, flow)
    described = zip(groups, kinds_of(program, flow, groups), costs_of(program, flow, batch), strict=True)
    return Structure(
        tuple(Group(kind, cost) for _, kind, cost in described if cost.parameters or cost.macs),
        tuple(frozen_in(program, flow)),
        dict(flow.unknown),
    )
