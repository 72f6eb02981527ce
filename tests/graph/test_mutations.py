"""The checker checked: rules made wrong on purpose, one at a time, and each seen on a small architecture.

The same architectures have no fault under the rules as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from proof import proved

from mirabelle.graph import propagate
from mirabelle.graph.call import Call
from mirabelle.graph.flow import Flow, Kept, Results
from mirabelle.graph.rules import RULES, contraction, convolution, elementwise, joining, labels, layout, recurrent
from mirabelle.graph.units import product

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? self.*assigned during export:UserWarning")
Patch = pytest.MonkeyPatch
CUT, MOVED, MISSING, CRASH = "cut and masked differ", "cannot change places", "no such group was found", "it breaks"


def after(patch: Patch, name: str, change: Callable[[Flow, Call, Results], Results | None]) -> None:
    """Something more happens after the rule of an operator."""
    rule = RULES[name]

    def changed(flow: Flow, call: Call) -> Results:
        result = rule(flow, call)
        other = change(flow, call, result)
        return result if other is None else other

    patch.setitem(RULES, name, changed)  # type: ignore[arg-type]  # a dict


def operands_are_not_tied(patch: Patch) -> None:
    patch.setattr(elementwise, "broadcast", lambda flow, nodes, out: flow.of(max(nodes, key=lambda node: len(flow.of(node)))))


def heads_and_places_change_roles(patch: Patch) -> None:
    right = labels._viewed

    def viewed(sizes: Sequence[int], dimension: int, out: Sequence[int]) -> torch.Tensor:
        if len(out) <= len(sizes):
            return right(sizes, dimension, out)
        return right(sizes, dimension, [*out[:-2], out[-1], out[-2]]).transpose(-1, -2)

    patch.setattr(labels, "_viewed", viewed)


def groups_of_inputs_and_outputs_are_not_one(patch: Patch) -> None:
    def grouped(flow: Flow, call: Call, channels: tuple[Any, int], weight: list[Any], *, transposed: bool) -> Any:
        groups = int(call["groups"])
        flow.unify(channels[0], product([(flow.fresh(groups), groups), (weight[1], len(channels[0]) // groups)]))
        flow.mask(call, "input", channels[1], channels[0])
        return weight[0]

    patch.setattr(convolution, "_grouped", grouped)


def a_statistic_is_forgotten(patch: Patch) -> None:
    after(patch, "layer_norm", lambda flow, call, _: flow.statistics.pop(call.node, None) and None)


def a_mean_is_taken_for_a_sum(patch: Patch) -> None:
    after(patch, "mean", lambda flow, call, _: flow.statistics.pop(call.node, None) and None)


def the_scale_follows_the_width(patch: Patch) -> None:
    def forget(flow: Flow, call: Call, _: Results) -> None:
        flow.rewritings.pop(call.node, None)

    after(patch, "scaled_dot_product_attention", forget)


def parts_lie_in_another_order(patch: Patch) -> None:
    right = joining._layer_by_layer
    patch.setattr(joining, "_layer_by_layer", lambda parts: right(parts[::-1]))


def literals_are_matched_as_numbers(patch: Patch) -> None:
    become: dict[Kept, dict[int, int]] = {}

    def sizes(kept: Kept, axes: Sequence[Any], sizes: Sequence[int], literal: Any) -> list[int]:
        numbers = become.setdefault(kept, {})
        for axis, size in zip(axes, sizes, strict=True):
            if kept.count(axis, size) < size:
                numbers.setdefault(size, kept.count(axis, size))
        return [numbers.get(size, size) if isinstance(size, int) else size for size in literal]

    patch.setattr(layout, "_sizes", sizes)


def gates_lie_unit_by_unit(patch: Patch) -> None:
    patch.setattr(recurrent.np, "tile", lambda units, times: np.repeat(units, times[0], axis=0))


def repeated_heads_lie_in_another_order(patch: Patch) -> None:
    def swapped(parts: Sequence[tuple[Any, int]]) -> Any:
        return product(parts[::-1])

    patch.setattr(contraction, "product", swapped)


def halves_are_not_tied(patch: Patch) -> None:
    def glu(flow: Flow, call: Call) -> Results:
        axes = list(flow.of(call["self"]))
        d = int(call.get("dim", -1)) % len(axes)
        axes[d] = axes[d][: len(axes[d]) // 2]
        return tuple(axes)

    patch.setitem(RULES, "glu", glu)  # type: ignore[arg-type]


def a_sum_is_not_masked(patch: Patch) -> None:
    after(patch, "sum", lambda flow, call, _: flow.maskings.pop(call.node, None) and None)


def a_convolution_ties_what_goes_in_and_out(patch: Patch) -> None:
    def tie(flow: Flow, call: Call, result: Results) -> None:
        flow.unify(flow.of(call["input"])[1], result[1])  # type: ignore[arg-type]

    after(patch, "conv2d", tie)


def a_split_is_not_understood(patch: Patch) -> None:
    for name in ("split", "chunk", "split_with_sizes"):
        patch.setitem(RULES, name, lambda flow, call: flow.freeze_all(call))  # type: ignore[arg-type]


MUTATIONS = (
    (heads_and_places_change_roles, "grouped_queries", CUT),
    (groups_of_inputs_and_outputs_are_not_one, "group_conv", CRASH),
    (a_mean_is_taken_for_a_sum, "root_mean_square_norm", CUT),
    (the_scale_follows_the_width, "chunked_qkv", CUT),
    (parts_lie_in_another_order, "cat_of_cat", CUT),
    (gates_lie_unit_by_unit, "lstm", CUT),
    (halves_are_not_tied, "gated_linear_unit", CUT),
    (a_split_is_not_understood, "chunked_qkv", MISSING),
    (operands_are_not_tied, "resnet_basic", CUT),
    (a_statistic_is_forgotten, "mlp_mixer", CUT),
    (literals_are_matched_as_numbers, "torch_encoder", CRASH),
    (repeated_heads_lie_in_another_order, "built_in_grouped_queries", CUT),
    (a_sum_is_not_masked, "sum_over_channels", CUT),
    (a_convolution_ties_what_goes_in_and_out, "group_norm", MISSING),
)


def faults_of(name: str) -> list[str]:
    """What the proof finds; a run that breaks is found, too."""
    try:
        return proved(name).faults()
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        return [f"{CRASH}: {error}"]


FAST = 8
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] if place >= FAST else (), id=case[0].__name__)
    for place, case in enumerate(MUTATIONS)
]


@pytest.mark.parametrize(("mutate", "name", "words"), CASES)
def test_a_wrong_rule_is_seen(mutate: Callable[[Patch], None], name: str, words: str, monkeypatch: Patch) -> None:
    assert faults_of(name) == []
    mutate(monkeypatch)
    monkeypatch.setattr(propagate, "misunderstood", lambda *_: None)  # which keeps whole what it finds wrong on shapes
    assert words in "; ".join(faults_of(name))
