"""The units of a model, and the squares of what each takes with it, as a differentiable sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.graph.groups import AxisGroup, axes_of_tensors, groups_of
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import traced
from mirabelle.records.patterns import every_pattern_matches, matches
from mirabelle.task.batch import arguments_of
from mirabelle.task.task import Task


@dataclass(frozen=True)
class _Line:
    """A dimension of a parameter, by whose elements its squares are summed."""

    parameter: nn.Parameter
    dimension: int
    columns: int  # how many units take an element with them


class UnitSquares:
    """Σ w² of every unit over the parameters that it takes with it; an element that it takes twice counts twice.

    The units of all groups are numbered one after the other. One call reads each parameter once for each of its dimensions
    that can be cut; what it gives is differentiable.

    Args:
        model: traced on the task's example, and left as it is; its parameters are read anew in every call.
        task: gives the example.
        include: patterns of parameter names; groups that touch one of them count, by default all.
        exclude: patterns of parameter names; groups that touch one of them do not count.

    Raises:
        UserError: E112 a pattern that matches nothing, or no group left; E121 a model that cannot be traced.
    """

    def __init__(self, model: nn.Module, task: Task, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        names = [name for name, _ in model.named_parameters()]
        every_pattern_matches("include", include, names)
        every_pattern_matches("exclude", exclude, names)
        program = traced(model, *arguments_of(task.example().inputs))
        flow = propagated(program)
        self.groups = [group for group in groups_of(program, flow) if _chosen(group, include, exclude)]
        if not self.groups:
            message = "`include` without `exclude` leaves no group of channels, neurons or heads"
            raise UserError("E112", message, "see `mirabelle inspect MODEL --groups` for those that there are")
        units = np.concatenate([group.units for group in self.groups])
        places = np.full(flow.units.count, len(units))  # what is in no group of ours goes to one place behind all others
        places[units] = np.arange(len(units))
        self._lines: list[_Line] = []
        found = []
        for name, axes in axes_of_tensors(program, flow).items():
            parameter = program.tensors[name]
            for dimension, (axis, _) in enumerate(axes if isinstance(parameter, nn.Parameter) else ()):
                rows = None if axis is None else places[axis]
                if rows is not None and (rows < len(units)).any():
                    self._lines.append(_Line(parameter, dimension, rows.shape[1]))  # type: ignore[arg-type]
                    found.append(rows.T.reshape(-1))
        self._index = torch.from_numpy(np.concatenate(found))
        self.counts = self._summed([torch.ones_like(line.parameter, requires_grad=False) for line in self._lines])

    def __len__(self) -> int:
        """How many units there are."""
        return sum(map(len, self.groups))

    def __call__(self) -> Tensor:
        """Σ w² of each unit, (units,)."""
        squares: dict[nn.Parameter, Tensor] = {}
        for line in self._lines:
            if line.parameter not in squares:
                squares[line.parameter] = line.parameter.square()
        return self._summed([squares[line.parameter] for line in self._lines])

    def _summed(self, tensors: list[Tensor]) -> Tensor:
        """The sums over each unit of tensors that lie as the lines' parameters do."""
        parts = []
        for line, tensor in zip(self._lines, tensors, strict=True):
            others = [d for d in range(tensor.ndim) if d != line.dimension]
            parts.append((tensor.sum(others) if others else tensor).repeat(line.columns))
        values = torch.cat(parts)
        return values.new_zeros(len(self) + 1).index_add(0, self._index.to(values.device), values)[:-1]


def _chosen(group: AxisGroup, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    names = [member.name for member in group.members]
    wanted = not include or any(matches(name, include) for name in names)
    return wanted and not any(matches(name, exclude) for name in names)
