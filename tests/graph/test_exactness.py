"""The proof, on every architecture of the zoo, in float64.

Cut half of every group: the sliced program gives what the whole one gives when it is masked where it sums. Let the units of
a group change places: the outputs stay. Compare the groups with those derived by hand, since neither of the two can see
an engine that ties or freezes too much.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from test_zoo import chosen, degenerate, made_or_skipped, narrowed, tensors_of
from torch.utils import _pytree as pytree
from zoo import ARCHITECTURES
from zoo.expected import EXPECTED

from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup, axes_of_tensors, groups_of
from mirabelle.graph.interpret import kept_without, run_cut, run_masked, sliced
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? self.*assigned during export:UserWarning")
EXACT = 1e-9  # relative; float64, sums in another order
# Constants or known indices tell units apart: a rotation's frequency, a fixed order, what a shift leaves behind.
TOLD_APART = {
    ("borrowed_channels", "fc1.weight:0"),
    ("funnel", "model.funnel.encoder.blocks.0.0.attention.r_kernel:0"),
    ("funnel", "model.funnel.encoder.blocks.1.0.attention.r_kernel:0"),
    ("detr", "model.model.input_projection.weight:0"),
}


@pytest.mark.parametrize("name", chosen(ARCHITECTURES))
@torch.no_grad()
def test_what_is_cut_is_what_was_masked(name: str) -> None:
    model, positional, named = made_or_skipped(name)
    assert degenerate(model) == []
    program = traced(model, positional, named)
    assert narrowed(program.exported) == []
    flow = propagated(program)
    groups = groups_of(program, flow)
    inputs = pytree.tree_leaves((positional, named))
    whole = list(tensors_of(model(*positional, **named)))
    assert all(output.std() > 0.01 * output.abs().mean() for output in whole)
    nothing = kept_without(flow, np.zeros(0, int))
    assert difference(run_masked(program, flow, nothing, inputs), whole) < EXACT
    kept = kept_without(flow, half_of(groups))
    masked = run_masked(program, flow, kept, inputs)
    assert difference(run_cut(program, flow, kept, sliced(program, flow, kept), inputs), masked) < EXACT
    assert not groups or difference(masked, whole) > 1e-6, "what was cut had no part in the outputs, so nothing was shown"
    for group in groups:
        if (name, group.name) not in TOLD_APART:
            permuted = with_units_moved(program, flow, group)
            assert difference(run_cut(program, flow, nothing, permuted, inputs), whole) < EXACT, group
    assert missing_from(name, program, groups) == []


def half_of(groups: list[AxisGroup], seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    halves = [draw.permutation(group.units)[: len(group) // 2] for group in groups]
    return np.concatenate([np.zeros(0, int), *halves]).astype(int)


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


def with_units_moved(program: Program, flow: Flow, group: AxisGroup) -> dict[str, torch.Tensor]:
    """All tensors, with the units of a group in another order: each element goes where the term of its units has gone."""
    moved = dict(zip(group.units.tolist(), np.random.default_rng(1).permutation(group.units).tolist(), strict=True))
    tensors = dict(program.tensors)
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, _) in enumerate(axes):
            if axis is not None and np.isin(axis, group.units).any():
                places: dict[Any, list[int]] = defaultdict(list)
                for place, row in enumerate(map(tuple, axis.tolist())):
                    places[row].append(place)
                seen: Counter[Any] = Counter()
                source = np.zeros(len(axis), int)
                for place, row in enumerate(map(tuple, axis.tolist())):
                    target = tuple(moved.get(unit, unit) for unit in row)
                    source[places[target][seen[row]]] = place
                    seen[row] += 1
                tensors[name] = tensors[name].index_select(dimension, torch.from_numpy(source))
    return tensors


def missing_from(name: str, program: Program, groups: list[AxisGroup]) -> list[Any]:
    """Groups that were derived by hand and not found."""
    parameters = {source.name for source in program.sources.values() if source.kind == "parameter"}
    found = {
        (len(group), frozenset((member.name, member.dimension) for member in group.members if member.name in parameters))
        for group in groups
    }
    return [group for group in EXPECTED.get(name, ()) if not group.optional and (group.units, group.places) not in found]
