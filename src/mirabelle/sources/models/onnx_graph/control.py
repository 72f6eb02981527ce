"""ONNX operators with graphs inside them, computed step by step: If, Loop, Scan, SequenceMap.

A branch whose condition is known when the file is read has taken the place of its If before (`branches.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph.computing import computed
from mirabelle.sources.models.onnx_graph.nodes import Block, Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, integers, integers_of, is_integers, tensor_of

_SAMPLE_AXIS = 8  # Scan of this operator set has a batch axis


@operator("If")
def branch(node: Node, condition: Value, *outer: Value) -> list[Value]:
    chosen = "then_branch" if _holds(node, condition, "the branch") else "else_branch"
    return _run(node[chosen], _named(node, outer))


@operator("Loop")
def loop(node: Node, count: Value, condition: Value, *values: Value) -> list[Value]:
    """Repeats its body while its condition holds, at most `count` times; further outputs are collected along a new axis."""
    body, (own, around) = node["body"], _own(node, values)
    states = list(own)
    if isinstance(count, Tensor):
        node.need_values("the number of steps")
    most = None if count is None else integers_of(count)[0]
    if isinstance(most, torch.SymInt):
        raise node.depends_on("the number of steps", "the number of samples")
    step, collected = 0, _Collected(len(body.outputs) - 1 - len(states))
    while (most is None or step < most) and (condition is None or _holds(node, condition, "the number of steps")):
        condition, *given = _run(body, {**around, **dict(zip(body.inputs, (integers(step), condition, *states), strict=True))})
        states, step = given[: len(states)], step + 1
        collected.add(given[len(states) :])
    return [*states, *collected.stacked(node)]


@operator("Scan")
def scan(node: Node, *values: Value) -> list[Value]:
    """Repeats its body over the slices of its last inputs along an axis; further outputs are collected along an axis."""
    if node.version <= _SAMPLE_AXIS:
        raise node.refuse("operator set 8")
    body, (own, around) = node["body"], _own(node, values)
    number = node["num_scan_inputs"]
    states, scanned = list(own[:-number]), [tensor_of(part) for part in own[-number:]]
    axes = node["scan_input_axes"] or [0] * number
    rows = [part.unbind(axis) for part, axis in zip(scanned, axes, strict=True)]
    rows = [
        part[::-1] if turned else part for part, turned in zip(rows, node["scan_input_directions"] or [0] * number, strict=True)
    ]
    collected = _Collected(len(body.outputs) - len(states))
    for slices in zip(*rows, strict=True):
        given = _run(body, {**around, **dict(zip(body.inputs, (*states, *slices), strict=True))})
        states = given[: len(states)]
        collected.add(given[len(states) :])
    return [*states, *collected.stacked(node, node["scan_output_axes"], node["scan_output_directions"])]


@operator("SequenceMap")
def each(node: Node, first: tuple[Value, ...], *values: Value) -> list[Value]:
    """Runs its body on every element of a sequence; other sequences are read in step, tensors as a whole."""
    body, (more, around) = node["body"], _own(node, values)
    results = []
    for k, part in enumerate(first):
        items = (part, *(other[k] if isinstance(other, tuple) else other for other in more))
        results.append(_run(body, {**around, **dict(zip(body.inputs, items, strict=True))}))
    return [tuple(parts) for parts in zip(*results, strict=True)] if results else [()] * len(body.outputs)


class _Collected:
    """What the steps of a loop give in addition to their states."""

    def __init__(self, count: int) -> None:
        self._parts: list[list[Tensor]] = [[] for _ in range(count)]

    def add(self, values: list[Value]) -> None:
        for parts, value in zip(self._parts, values, strict=True):
            parts.append(tensor_of(value))

    def stacked(self, node: Node, axes: Any = None, turned: Any = None) -> list[Tensor]:
        if any(not parts for parts in self._parts):
            raise node.refuse("no step at all, while outputs of its steps are collected")
        return [
            torch.stack(parts[::-1] if turned and turned[k] else parts, axes[k] if axes else 0)
            for k, parts in enumerate(self._parts)
        ]


def _run(block: Block, values: Mapping[str, Value]) -> list[Value]:
    """The outputs of a graph inside a node."""
    known: dict[str, Value] = {**values, "": None}
    for node in block.nodes:
        found = computed(node, [known[name] for name in node.inputs])
        known.update(zip(node.outputs, found if isinstance(found, list) else [found], strict=False))
    return [known[name] for name in block.outputs]


def _own(node: Node, values: tuple[Value, ...]) -> tuple[tuple[Value, ...], dict[str, Value]]:
    """The node's own inputs, and by name the values of the graph around it that its body reads."""
    count = len(values) - len(node["outer"])
    return values[:count], _named(node, values[count:])


def _named(node: Node, outer: tuple[Value, ...]) -> dict[str, Value]:
    return dict(zip(node["outer"], outer, strict=True))


def _holds(node: Node, condition: Value, what: str) -> bool:
    if not is_integers(condition):
        if condition.numel() != 1:
            raise node.refuse("a condition for each sample")
        node.need_values(what)
    elif isinstance(condition.flat[0], torch.SymBool):  # a trace assumes more than one sample, so it could be wrong for one
        raise node.depends_on(what, "the number of samples")
    return bool(condition.flat[0] if is_integers(condition) else condition)
