"""The squared norm of every removable unit (channel, neuron, head) of a model, as a differentiable function."""

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
    """A parameter, and the dimension along which its squares are assigned to units."""

    parameter: nn.Parameter
    dimension: int
    columns: int  # number of units that an index of this dimension belongs to


class UnitSquares:
    """Σ w² over all weights that are removed with a unit, for every unit; differentiable, of shape (units,).

    A weight that belongs to a unit in two dimensions counts twice. The units of all groups are numbered consecutively.

    Args:
        model: traced on the task's example and not changed; its parameters are read anew in every call.
        task: gives the example batch.
        include: patterns of parameter names; only groups with a matching parameter are used, by default all.
        exclude: patterns of parameter names; groups with a matching parameter are not used.

    Raises:
        UserError: E112 if a pattern matches no parameter, or no group is left; E121 if the model cannot be traced.
    """

    def __init__(self, model: nn.Module, task: Task, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        names = [name for name, _ in model.named_parameters()]
        every_pattern_matches("include", include, names)
        every_pattern_matches("exclude", exclude, names)
        program = traced(model, *arguments_of(task.example().inputs))
        flow = propagated(program)
        self.groups = [group for group in groups_of(program, flow) if _chosen(group, include, exclude)]
        if not self.groups:
            message = "no group of channels, neurons or heads is selected by `include` and `exclude`"
            raise UserError("E112", message, "`mirabelle inspect MODEL --groups` lists the groups of a model")
        units = np.concatenate([group.units for group in self.groups])
        places = np.full(flow.units.count, len(units))  # units outside the selected groups share one index, the last
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
        """The number of units."""
        return sum(map(len, self.groups))

    def __call__(self) -> Tensor:
        """Σ w² of each unit, (units,)."""
        squares: dict[nn.Parameter, Tensor] = {}
        for line in self._lines:
            if line.parameter not in squares:
                squares[line.parameter] = line.parameter.square()
        return self._summed([squares[line.parameter] for line in self._lines])

    def _summed(self, tensors: list[Tensor]) -> Tensor:
        """The sum over each unit of tensors that have the shapes of the parameters in `_lines`."""
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
