"""Runs a program without the removed units in two ways that must agree: masked and cut.

The masked run uses the full tensors and defines what a cut means: every operator that sums over an axis gets zeros in place of
removed elements, every statistic is computed over the kept elements, and all other operators run unchanged. The cut run uses
sliced parameters and arguments adapted to the new widths, as the exported model does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept, Place, Share
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.sizes import FreeSizes
from mirabelle.graph.trace import Program, described
from mirabelle.graph.units import Array
from mirabelle.numerics.arrays import to_numpy

SKIPPED = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size", "sym_constrain_range")


class NodeError(RuntimeError):
    """An operator of a program fails; the message names it, and the cause is its own exception."""

    def __init__(self, node: fx.Node, error: Exception) -> None:
        super().__init__(f"{described(node)}: {' '.join(str(error).split())}")
        self.node = node


def kept_without(flow: Flow, removed: Array) -> Kept:
    """The units that are kept when these units are removed."""
    alive = np.ones(flow.units.count, bool)
    alive[removed] = False
    alive[0] = True
    return Kept(flow.units, alive)


def sliced(program: Program, flow: Flow, kept: Kept, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Parameters and buffers by name, without the removed elements; tensors that lose nothing are not copied.

    Args:
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        tensors: full tensors by name; None: those of the program.
    """
    full = program.tensors if tensors is None else tensors
    result = {name: full[name] for name in program.tensors}
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, size) in enumerate(axes):
            stays = kept.of(axis, size)
            if not stays.all():
                index = torch.from_numpy(np.flatnonzero(stays)).to(result[name].device)
                result[name] = result[name].detach().index_select(dimension, index)
    return result


def run_masked(program: Program, flow: Flow, kept: Kept, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the full program in which removed elements count as zero wherever they are read.

    Args:
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        inputs: all user inputs in the order of the program's placeholders.
    """

    def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        called = Call.of(node)
        arguments = substituted(dict(called.arguments), known)
        for masking in flow.maskings.get(node, ()):
            stays = kept.of(masking.axis, _size_at(called, masking.operand, masking.dimension))
            arguments = _changed(arguments, masking.operand, partial(_zeroed, dimension=masking.dimension, stays=stays))
        if node in flow.statistics:
            return _over_kept(flow, kept, called, arguments)
        if called.name in ("view", "_unsafe_view"):  # strides may differ from those of the trace
            return arguments["self"].reshape(arguments["size"])
        return result_of(node.target, arguments)

    return run_nodes(program, program.tensors, inputs, call)


def run_cut(program: Program, flow: Flow, kept: Kept, tensors: Mapping[str, Tensor], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the program on sliced tensors, with all arguments adapted to the new widths.

    Args:
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        tensors: parameters and buffers as returned by `sliced`.
        inputs: all user inputs in the order of the program's placeholders.
    """

    free = FreeSizes(program, inputs)

    def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        if node in flow.inside:
            return None
        constant = node in flow.constants
        target, arguments = written(flow, kept, node)
        read = known if constant else _Picked(flow, kept, known)
        result = result_of(target, substituted(arguments, read))
        if not constant:
            _check_sizes(flow, kept, node, result, free)
        return result

    return run_nodes(program, tensors, inputs, call, flow.inside)


def result_of(target: Any, arguments: Mapping[str, Any]) -> Any:
    """Call an operator; operators of Python, which compute sizes, take positional arguments only."""
    return target(**arguments) if isinstance(target, torch._ops.OpOverload) else target(*arguments.values())


def written(flow: Flow, kept: Kept, node: fx.Node) -> tuple[Any, dict[str, Any]]:
    """The operator and the arguments of a node after the cut; constants are computed in full."""
    arguments = dict(Call.of(node).arguments)
    rewriting = None if node in flow.constants else flow.rewritings.get(node)
    if rewriting is None:
        return node.target, arguments
    changed = dict(rewriting.arguments(kept))
    return (rewriting.target, changed) if rewriting.target is not None else (node.target, {**arguments, **changed})


class _Picked(Mapping[fx.Node, Any]):
    """The values of nodes, where constants are read without the removed elements."""

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


def run_nodes(
    program: Program,
    tensors: Mapping[str, Any],
    inputs: Sequence[Any],
    call: Callable[[fx.Node, Mapping[fx.Node, Any]], Any],
    inside: Collection[fx.Node] = (),
) -> list[Any]:
    """The outputs of a program, node by node.

    Args:
        program: of the model.
        tensors: parameters, buffers and constants by name, or what stands for them.
        inputs: all user inputs in the order of the program's placeholders.
        call: gives the result of a node from the results of those before it.
        inside: nodes whose work is done by a later node.

    Raises:
        NodeError: if a node fails.
    """
    known: dict[fx.Node, Any] = {}
    remaining = iter(inputs)
    ended = _last_readers(program, inside)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            source = program.sources[node.name]
            known[node] = next(remaining) if source.kind == "input" else tensors[source.name]
        elif node.op == "output":
            outputs = program.exported.graph_signature.user_outputs
            return [substituted(part, known) for part in node.args[0] if isinstance(part, fx.Node) and part.name in outputs]
        elif Call.of(node).name not in SKIPPED:
            try:
                known[node] = known[node.args[0]][node.args[1]] if node.target is operator.getitem else call(node, known)
            except Exception as error:
                raise NodeError(node, error) from error
        for past in ended.get(node, ()):  # memory holds what is still read, not all that was computed
            known.pop(past, None)
    raise AssertionError("a program has an output")


def _last_readers(program: Program, inside: Collection[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose results nothing reads after it. What nodes `inside` read, the node after them reads."""
    last: dict[fx.Node, fx.Node] = {}
    through: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        read = [*node.all_input_nodes, *(part for own in node.all_input_nodes for part in through.get(own, ()))]
        if node in inside:
            through[node] = read
        last |= dict.fromkeys((node, *read), node)
    ended: dict[fx.Node, list[fx.Node]] = {}
    for part, node in last.items():
        ended.setdefault(node, []).append(part)
    return ended


def substituted(value: Any, known: Mapping[fx.Node, Any]) -> Any:
    """Arguments with the results of nodes in place of the nodes."""
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, Share):
        return known[value.node] * value.stays // value.of
    if isinstance(value, Mapping):
        return {name: substituted(part, known) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [substituted(part, known) for part in value]
    return value


def _changed(arguments: Mapping[str, Any], place: Place, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A copy of the arguments in which the tensor at `place` is changed."""
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
    """The tensor with zeros in place of removed elements, also where it was NaN or infinite."""
    if stays.all():
        return tensor
    removed = torch.from_numpy(~stays).reshape([-1 if k == dimension else 1 for k in range(tensor.ndim)])
    return tensor.masked_fill(removed, 0)


def _over_kept(flow: Flow, kept: Kept, call: Call, arguments: dict[str, Any]) -> Any:
    """A statistic over the kept elements of its dimensions; the result is zero elsewhere, where nothing reads it."""
    name = "self" if "self" in arguments else "input"
    whole, node = arguments[name], call[name]
    axes = flow.of(node)
    index = {d: torch.from_numpy(np.flatnonzero(kept.of(axes[d], whole.shape[d]))) for d in flow.statistics[call.node]}
    for d, positions in index.items():
        arguments[name] = arguments[name].index_select(d, positions)
    affine: list[Tensor] = []
    if "normalized_shape" in arguments:
        affine = list(index.values())
        arguments["normalized_shape"] = [len(positions) for positions in affine]
    elif "num_groups" in arguments and 1 in index:
        affine = [index[1]]
    for extra in ("weight", "bias"):
        if isinstance(arguments.get(extra), Tensor):
            for k, positions in enumerate(affine):
                arguments[extra] = arguments[extra].index_select(k, positions)
    part = call.node.target(**arguments)  # type: ignore[operator]
    first, *rest = part if isinstance(part, (list, tuple)) else [part]
    if _first_sizes(call) != sizes_of(value_of(node)):
        return part  # the dimensions were reduced
    result = torch.zeros_like(whole)
    mesh = np.ix_(*[to_numpy(index[d]) if d in index else np.arange(whole.shape[d]) for d in range(whole.ndim)])
    result[tuple(torch.from_numpy(np.asarray(positions)) for positions in mesh)] = first
    return [result, *rest] if isinstance(part, (list, tuple)) else result


def _first_sizes(call: Call) -> tuple[int, ...]:
    value = value_of(call.node)
    return sizes_of(value[0] if isinstance(value, (list, tuple)) else value)


def _check_sizes(flow: Flow, kept: Kept, node: fx.Node, result: Any, free: FreeSizes) -> None:
    """Assert that the result of a cut operator has the sizes that its axes predict, for inputs of any batch size."""
    traced, axes = value_of(node), flow.axes[node]
    if not isinstance(result, Tensor) or not isinstance(axes, tuple):
        return
    expected = []
    for axis, size, whole, own in zip(axes, traced.shape, sizes_of(traced), result.shape, strict=True):
        here = free.of(size)
        expected.append(own if here is None else kept.count(axis, whole) * here // whole if whole else here)
    assert list(result.shape) == expected, f"{node.name}: {tuple(result.shape)} instead of {tuple(expected)}"
