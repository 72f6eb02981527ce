"""Runs a program with units gone, in two ways that must agree: masked, on the whole tensors, and cut, on what stays.

Masked is the meaning: every operator that sums over an axis gets zeros where elements go, every statistic is taken over what
stays, and all other operators run as they are. Cut is what ships: sliced parameters, and literals that follow the widths.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_known, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept, Place, Share
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array

SKIPPED = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size", "sym_constrain_range")


def kept_without(flow: Flow, gone: Array) -> Kept:
    """What stays when these units go."""
    alive = np.ones(flow.units.count, bool)
    alive[gone] = False
    alive[0] = True
    return Kept(flow.units, alive)


def sliced(program: Program, flow: Flow, kept: Kept, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Parameters and buffers without what goes, by name; those that lose nothing as they are."""
    given = program.tensors if tensors is None else tensors
    found = {name: given[name] for name in program.tensors}
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, size) in enumerate(axes):
            stays = kept.of(axis, size)
            if not stays.all():
                index = torch.from_numpy(np.flatnonzero(stays)).to(found[name].device)
                found[name] = found[name].detach().index_select(dimension, index)
    return found


def run_masked(program: Program, flow: Flow, kept: Kept, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the whole program in which elements that go count as nothing where they would be read.

    Args:
        program: of the model.
        flow: of the program.
        kept: which units stay.
        inputs: all user inputs in the order of the program's placeholders.
    """

    def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        called = Call.of(node)
        arguments = _substituted(dict(called.arguments), known)
        for masking in flow.maskings.get(node, ()):
            stays = kept.of(masking.axis, _size_at(called, masking.operand, masking.dimension))
            arguments = _changed(arguments, masking.operand, partial(_zeroed, dimension=masking.dimension, stays=stays))
        if node in flow.statistics:
            return _over_kept(flow, kept, called, arguments)
        if called.name in ("view", "_unsafe_view"):  # strides may be others than those of the trace
            return arguments["self"].reshape(arguments["size"])
        return result_of(node.target, arguments)

    return _run(program, program.tensors, inputs, call)


def run_cut(program: Program, flow: Flow, kept: Kept, tensors: Mapping[str, Tensor], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the program on sliced tensors, every literal that follows a width rewritten.

    Args:
        program: of the model.
        flow: of the program.
        kept: which units stay.
        tensors: parameters and buffers as `sliced` gives them.
        inputs: as for `run_masked`.
    """

    def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        if node in flow.inside:
            return None
        constant = node in flow.constants
        target, arguments = written(flow, kept, node)
        read = known if constant else _Picked(flow, kept, known)
        result = result_of(target, _substituted(arguments, read))
        if not constant:
            _check_sizes(flow, kept, node, result)
        return result

    return _run(program, tensors, inputs, call)


def result_of(target: Any, arguments: Mapping[str, Any]) -> Any:
    """What an operator gives; numbers are computed by Python's own, whose arguments have no names."""
    return target(**arguments) if isinstance(target, torch._ops.OpOverload) else target(*arguments.values())


def written(flow: Flow, kept: Kept, node: fx.Node) -> tuple[Any, dict[str, Any]]:
    """The operator and the arguments of a node when units are gone; constants are computed whole."""
    arguments = dict(Call.of(node).arguments)
    rewriting = None if node in flow.constants else flow.rewritings.get(node)
    if rewriting is None:
        return node.target, arguments
    changed = dict(rewriting.arguments(kept))
    return (rewriting.target, changed) if rewriting.target is not None else (node.target, {**arguments, **changed})


class _Picked(Mapping[fx.Node, Any]):
    """Values of nodes, those of constants without the elements that go."""

    def __init__(self, flow: Flow, kept: Kept, known: Mapping[fx.Node, Any]) -> None:
        self._flow, self._kept, self._known = flow, kept, known

    def __getitem__(self, node: fx.Node) -> Any:
        value = self._known[node]
        if node not in self._flow.constants or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        for dimension, axis in enumerate(self._flow.of(node)):
            stays = self._kept.of(axis, value.shape[dimension])
            if not stays.all():
                value = value.index_select(dimension, torch.from_numpy(np.flatnonzero(stays)))
        return value

    def __iter__(self) -> Any:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _run(
    program: Program,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Any],
    call: Callable[[fx.Node, Mapping[fx.Node, Any]], Any],
) -> list[Any]:
    known: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            source = program.sources[node.name]
            known[node] = next(given) if source.kind == "input" else tensors[source.name]
        elif node.op == "output":
            outputs = program.exported.graph_signature.user_outputs
            return [_substituted(part, known) for part in node.args[0] if isinstance(part, fx.Node) and part.name in outputs]
        elif node.target is operator.getitem:
            known[node] = known[node.args[0]][node.args[1]]
        elif Call.of(node).name not in SKIPPED:
            known[node] = call(node, known)
    raise AssertionError("a program has an output")


def _substituted(value: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, Share):
        return known[value.node] * value.stays // value.of
    if isinstance(value, Mapping):
        return {name: _substituted(part, known) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_substituted(part, known) for part in value]
    return value


def _changed(arguments: Mapping[str, Any], place: Place, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Arguments with the tensor at a place changed."""
    name, *inner = place
    value = arguments[str(name)]
    if inner:
        position = int(inner[0])
        value = [change(part) if k == position else part for k, part in enumerate(value)]
    else:
        value = change(value)
    return {**arguments, str(name): value}


def _size_at(call: Call, place: Place, dimension: int) -> int:
    name, *inner = place
    node = call[str(name)][int(inner[0])] if inner else call[str(name)]
    return sizes_of(value_of(node))[dimension]


def _zeroed(tensor: Tensor, dimension: int, stays: Array) -> Tensor:
    """Zero where elements go, whatever stood there."""
    if stays.all():
        return tensor
    gone = torch.from_numpy(~stays).reshape([-1 if k == dimension else 1 for k in range(tensor.ndim)])
    return tensor.masked_fill(gone, 0)


def _over_kept(flow: Flow, kept: Kept, call: Call, arguments: dict[str, Any]) -> Any:
    """A statistic over what stays of its dimensions; elsewhere the result is zero, and nothing reads it."""
    name = "self" if "self" in arguments else "input"
    whole, node = arguments[name], call[name]
    axes = flow.of(node)
    index = {d: torch.from_numpy(np.flatnonzero(kept.of(axes[d], whole.shape[d]))) for d in flow.statistics[call.node]}
    for d, places in index.items():
        arguments[name] = arguments[name].index_select(d, places)
    affine: list[Tensor] = []
    if "normalized_shape" in arguments:
        affine = list(index.values())
        arguments["normalized_shape"] = [len(places) for places in affine]
    elif "num_groups" in arguments and 1 in index:
        affine = [index[1]]
    for extra in ("weight", "bias"):
        if isinstance(arguments.get(extra), Tensor):
            for k, places in enumerate(affine):
                arguments[extra] = arguments[extra].index_select(k, places)
    part = call.node.target(**arguments)  # type: ignore[operator]
    first, *rest = part if isinstance(part, (list, tuple)) else [part]
    if _first_sizes(call) != sizes_of(value_of(node)):
        return part  # the dimensions are gone
    result = torch.zeros_like(whole)
    mesh = np.ix_(*[index[d].numpy() if d in index else np.arange(whole.shape[d]) for d in range(whole.ndim)])
    result[tuple(torch.from_numpy(np.asarray(places)) for places in mesh)] = first
    return [result, *rest] if isinstance(part, (list, tuple)) else result


def _first_sizes(call: Call) -> tuple[int, ...]:
    value = value_of(call.node)
    return sizes_of(value[0] if isinstance(value, (list, tuple)) else value)


def _check_sizes(flow: Flow, kept: Kept, node: fx.Node, result: Any) -> None:
    """What a cut operator gives has the sizes that its axes say."""
    traced, axes = value_of(node), flow.axes[node]
    if not isinstance(result, Tensor) or not isinstance(axes, tuple):
        return
    due = tuple(
        kept.count(axis, size) if is_known(free) else own
        for axis, size, free, own in zip(axes, sizes_of(traced), traced.shape, result.shape, strict=True)
    )
    assert tuple(result.shape) == due, f"{node.name}: {tuple(result.shape)} instead of {due}"
