"""The pass over a program: creates units for every parameter and applies the rule of every operator."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_free, name_of, sizes_of, tensors_in, value_of
from mirabelle.graph.flow import Axes, Flow, Results, untouched
from mirabelle.graph.rehearsal import misunderstood
from mirabelle.graph.rules import rule_for
from mirabelle.graph.rules.labels import VIEWS
from mirabelle.graph.rules.layout import kept_sizes, shuffled, there_and_back
from mirabelle.graph.trace import Program, described
from mirabelle.graph.whole_tensors import WholeTensors

_CLAIMS = ("_assert", "sym_constrain_range")  # assertions of the trace, without a result
_FILLS = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
_ALWAYS_CONSTANT = ("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
_MIXING = {*VIEWS, "repeat", "tile"}
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_NUMBERS = (*_SYMBOLS, int, float, bool)
_OUTPUTS = "it is an output of the model"
_NOT_READ = "the model does not read it in evaluation mode"


def propagated(program: Program) -> Flow:
    """Find the axes of all tensors in a program.

    Args:
        program: of the model.

    Returns:
        The axes and how they are tied, which operands to mask, and which arguments depend on widths. Inputs and outputs of the
        model are frozen, and all tensors of operators that could not run on the sizes that their axes say.
    """
    frozen: set[fx.Node] = set()
    while True:
        flow = _in_one_pass(program, frozen)
        node = misunderstood(program, flow)
        if node is None or node in frozen:
            return flow
        frozen.add(node)


def _in_one_pass(program: Program, frozen: set[fx.Node]) -> Flow:
    """The result of one pass; all tensors of the frozen nodes stay whole."""
    flow = Flow()
    axes_by_name: dict[str, Axes] = {}
    whole = WholeTensors(flow, program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            flow.axes[node] = _placeholder(flow, program, node, axes_by_name)
        elif node.op == "output":
            for result in _tensors(node.args):
                if result in flow.axes:
                    flow.freeze(_every_axis(flow.axes[result]), _OUTPUTS)
        elif node.op == "call_function" and node not in flow.axes:
            flow.units.reason = described(node) + whole.joined(node)
            _operator(flow, node, frozen)
        elif node not in flow.axes:
            flow.axes[node] = untouched(value_of(node))
        if node.op != "output":
            whole.note(node)
    return flow


def _is_read(program: Program, name: str) -> bool:
    """Whether any operator reads a parameter or buffer."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return any(node.users for node in nodes if program.sources[node.name].name == name)


def _operator(flow: Flow, node: fx.Node, frozen: set[fx.Node]) -> None:
    """Record the axes of the result of an operator, or of several that are read as one."""
    if node in frozen:
        flow.axes[node] = _kept_whole(flow, Call.of(node), "is called in a way that is not supported")
    elif not (name_of(node) in VIEWS and frozen.isdisjoint(there_and_back(node)) and shuffled(flow, node)):
        flow.axes[node] = _called(flow, node)


def _placeholder(flow: Flow, program: Program, node: fx.Node, axes_by_name: dict[str, Axes]) -> Results:
    source, value = program.sources[node.name], value_of(node)
    if not isinstance(value, Tensor):
        flow.constants[node] = value
        return ()
    flow.kinds[node] = source.kind
    if source.kind in ("parameter", "buffer") and value.is_floating_point():
        if source.name not in axes_by_name:
            axes_by_name[source.name] = tuple(flow.fresh(size) for size in sizes_of(value))
            if not _is_read(program, source.name):
                flow.freeze(axes_by_name[source.name], _NOT_READ)
        return axes_by_name[source.name]
    if source.kind in ("buffer", "constant") and not value.is_floating_point() and source.name not in program.updates.values():
        flow.constants[node] = program.tensors[source.name]
    return untouched(value)


def _called(flow: Flow, node: fx.Node) -> Results:
    if node.target is operator.getitem:
        source, place = node.args
        assert isinstance(source, fx.Node), "a list comes from a node"
        results = flow.axes[source]
        if source in flow.constants:
            flow.constants[node] = flow.constants[source][place]
        return results[place] if isinstance(results, list) else untouched(value_of(node))  # type: ignore[index]
    if isinstance(value_of(node), _NUMBERS):
        value = value_of(node)
        flow.constants[node] = value.node.hint if isinstance(value, _SYMBOLS) else value
        return ()
    call = Call.of(node)
    if call.name.startswith(_CLAIMS):
        return untouched(value_of(node))
    nodes = [part for part in node.all_input_nodes if value_of(part) is not None]
    if call.name in _FILLS and any(map(_holds_more_than_batch, value_of(node).shape)):
        return _filled(flow, call)
    if call.name in _ALWAYS_CONSTANT or (
        all(part in flow.constants for part in nodes) and not _mixes_in_free_size(call, nodes)
    ):
        return _constant(flow, call)
    return _ruled(flow, call)


def _mixes_in_free_size(call: Call, nodes: Sequence[fx.Node]) -> bool:
    """Whether a view merges a dimension of a constant with one of dynamic size; removed elements are then dropped before it."""
    values = [value_of(node) for node in nodes]
    return (
        call.name in _MIXING
        and any(isinstance(value, _SYMBOLS) for value in values)
        and any(isinstance(value, Tensor) for value in values)
    )


def _ruled(flow: Flow, call: Call) -> Results:
    """Apply the rule of an operator; without a rule, or if the rule cannot handle the call, freeze all its tensors."""
    rule = rule_for(call)
    if rule is None:
        return _kept_whole(flow, call, "is not supported")
    try:
        return rule(flow, call)
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
    ) as error:  # arguments that the rule does not expect
        return _kept_whole(flow, call, f"is called in a way that is not supported ({type(error).__name__})")


def _kept_whole(flow: Flow, call: Call, why: str) -> Results:
    """Freeze all tensors of an operator that is not understood."""
    flow.unknown[call.name] = flow.unknown.get(call.name, 0) + 1
    flow.units.reason = f"operator {described(call.node)} {why}"
    return flow.freeze_all(call)


def _holds_more_than_batch(size: Any) -> bool:
    """Whether a free size is a product or a sum, such as batch × heads."""
    return is_free(size) and not size.node.expr.is_Symbol


def _filled(flow: Flow, call: Call) -> Results:
    """A tensor of one number with a dimension of free size: it is made with the sizes that are kept."""
    value = value_of(call.node)
    axes, sizes = tuple(flow.fresh(size) for size in sizes_of(value)), sizes_of(value)
    flow.rewrite(call, None, size=lambda kept: kept_sizes(kept, axes, sizes, call["size"]))
    return axes


def _constant(flow: Flow, call: Call) -> Results:
    """Evaluate a node that depends on no input and no parameter; its readers may select elements of the result.

    Along a dimension of free size, which has other elements in another batch, nothing can be selected.
    """
    value = value_of(call.node)
    flow.constants[call.node] = _evaluated(flow, call)
    if isinstance(value, Tensor) and value.is_floating_point():
        return tuple(None if is_free(own) else flow.fresh(size) for own, size in zip(value.shape, sizes_of(value), strict=True))
    return untouched(value)


def _evaluated(flow: Flow, call: Call) -> Any:
    def real(part: Any) -> Any:
        if isinstance(part, fx.Node):
            value = value_of(part)
            return flow.constants[part] if part in flow.constants else torch.empty(0, dtype=value.dtype, device="cpu")
        if isinstance(part, (list, tuple)):
            return [real(inner) for inner in part]
        return part.node.hint if isinstance(part, _SYMBOLS) else part

    arguments: Mapping[str, Any] = {name: real(value) for name, value in call.node.kwargs.items()}
    return call.node.target(*[real(value) for value in call.node.args], **arguments)  # type: ignore[operator]


def _tensors(value: Any) -> list[fx.Node]:
    return tensors_in(list(value))


def _every_axis(results: Results) -> list[Any]:
    parts = results if isinstance(results, list) else [results]
    return [axis for part in parts for axis in part]
