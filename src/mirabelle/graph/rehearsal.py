"""Tries a cut on shapes alone, to find operators whose axes were not understood, before anything is planned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mirabelle.graph.call import number_of, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import NodeError, kept_without, run_cut, sliced
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array

_PARTS = 4  # of each group, one to three quarters are removed
_OF_VALUES = (  # shapes alone do not tell what an operator gives
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)


def misunderstood(program: Program, flow: Flow) -> fx.Node | None:
    """The first node that cannot run, or gives other sizes than its axes say, without a part of every group.

    Only shapes are computed. Groups lose different fractions of their units, so that axes that are equal by accident, and not
    tied, show as different. None also if an operator's sizes depend on values, so that shapes alone say nothing.
    """
    removed = _parts_of_all(program, flow)
    if not len(removed):
        return None
    node = _failing(program, flow, kept_without(flow, removed))
    if node is None or _failing(program, flow, kept_without(flow, np.zeros(0, int))) is not None:
        return None
    return node


def _parts_of_all(program: Program, flow: Flow) -> Array:
    """Units to remove: of each group another fraction, of groups that must lose equally many the half."""
    equal = {int(unit) for axes in flow.equal for axis in axes if axis is not None for unit in np.unique(flow.units.find(axis))}
    removed = [np.zeros(0, int)]
    for position, group in enumerate(groups_of(program, flow)):
        share = 2 if equal.intersection(group.units.tolist()) else 1 + position % (_PARTS - 1)
        removed.append(group.units[: max(len(group) * share // _PARTS, 1)] if len(group) > 1 else group.units[:0])
    return np.concatenate(removed)


def _failing(program: Program, flow: Flow, kept: Kept) -> fx.Node | None:
    """The first node at which the cut program fails on shapes."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        tensors = {name: _empty(tensor) for name, tensor in program.tensors.items()}
        inputs = [
            _example(value_of(node))
            for node in program.graph.nodes
            if node.op == "placeholder" and program.sources[node.name].kind == "input"
        ]
        try:
            run_cut(program, flow, kept, sliced(program, flow, kept, tensors), inputs)
        except NodeError as error:
            return None if isinstance(error.__cause__, _OF_VALUES) else error.node
    return None


def _example(value: object) -> object:
    """An input of the sizes of the trace."""
    if isinstance(value, Tensor):
        return _empty(value)
    return number_of(value) if isinstance(value, torch.SymInt) else value


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(sizes_of(tensor), dtype=tensor.dtype)
