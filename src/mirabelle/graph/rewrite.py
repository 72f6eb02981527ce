"""The edit that replaces a model by its rewritten program, used if the model's own code does not work with new widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from mirabelle.errors import UserError
from mirabelle.graph.example_signature import ExampleSignature
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.trace import Program, traced
from mirabelle.model.edits import Edit, Slices, damaged, indices_of, table_of_tables
from mirabelle.model.value_names import keep_names


@dataclass(frozen=True)
class Rewrite(Edit):
    """Replaces a model by its traced program without the removed units.

    Args:
        inputs: shapes and dtypes of the example inputs of the trace (`ExampleSignature`), as plain data.
        why: reason in words why the module's own code does not work with the new widths.
        slices: name of a tensor -> dimension, as text -> the kept indices, as written by `ranges`.
        least: the fewest samples that the program takes; 2 if the model's code treats a single sample in another way.
        unsaved: tensors that the model holds outside of its state dict, and that the program saves.
    """

    inputs: Mapping[str, Any]
    why: str
    slices: Slices = field(default_factory=dict)
    least: int = 1
    unsaved: tuple[str, ...] = ()

    def replay(self, model: nn.Module) -> nn.Module:
        args, kwargs = ExampleSignature.from_data(self.inputs).example()
        program = traced(model, args, kwargs)
        flow = propagated(program)
        lacking = [name for name in self.unsaved if name not in program.tensors]
        if lacking:
            message = (
                f'the program reads "{lacking[0]}", which an attribute of the model held when it was cut and does not hold now'
            )
            raise UserError(
                "E140", message, "give the model in the state in which it was cut, for example after its first call"
            )
        rewritten: nn.Module = Rewritten(program, flow, self._kept(program, flow), self.least, self.unsaved)
        keep_names(rewritten, model)
        return rewritten

    def _kept(self, program: Program, flow: Flow) -> Kept:
        """The units that are kept.

        Raises:
            UserError: E140 if the slices do not fit the model.
        """
        alive = np.ones(flow.units.count, bool)
        axes = axes_of_tensors(program, flow)
        for name, dimensions in self.slices.items():
            for dimension, text in dimensions.items():
                axis, size = axes[name][int(dimension)] if len(axes.get(name, ())) > int(dimension) else (None, 0)
                left = np.array(indices_of(text), int)
                if axis is None or not len(left) or left[-1] >= size:
                    message = f'architecture.json cuts "{name}", which the model does not have in that form'
                    raise UserError("E140", message, "give the model of this file")
                alive[axis] = False
            for dimension, text in dimensions.items():
                alive[axes[name][int(dimension)][0][indices_of(text)]] = True  # type: ignore[index]  # checked above
        alive[0] = True
        return Kept(flow.units, alive)

    def to_data(self) -> dict[str, Any]:
        slices = {name: dict(dimensions) for name, dimensions in self.slices.items()}
        data: dict[str, Any] = {"inputs": dict(self.inputs), "why": self.why, "slices": slices}
        data |= {"least": self.least} if self.least != 1 else {}
        return data | ({"unsaved": list(self.unsaved)} if self.unsaved else {})

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Rewrite:
        if not isinstance(data.get("inputs"), Mapping):
            raise damaged("a program without its inputs")
        least = data.get("least", 1)
        if least not in (1, 2):
            raise damaged(f"a program for at least {least} samples")
        return Rewrite(
            data["inputs"],
            str(data.get("why", "")),
            table_of_tables(data, "slices"),
            int(least),
            _names(data.get("unsaved", [])),
        )

    def slices_of(self, tensor: str) -> Mapping[str, str]:
        return self.slices.get(tensor, {})

    @property
    def rewritten(self) -> str | None:
        return self.why


def _names(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise damaged("a program with names that are no texts")
    return tuple(data)
