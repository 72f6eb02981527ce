"""What is proved of one architecture, in float64, as numbers: the tests hold them, and docs/zoo.py writes them down.

Cut half of every group: the sliced program gives what the whole one gives when it is masked where it sums. Let the units of
a group change places: the outputs stay. Compare the groups with those derived by hand, since neither of the two can see
an engine that ties or freezes too much.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from zoo import made
from zoo.expected import EXPECTED

from mirabelle.graph.costs import parameters_left
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup, Frozen, axes_of_tensors, frozen_in, groups_of
from mirabelle.graph.interpret import kept_without, run_cut, run_masked, sliced
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced

EXACT = 1e-9  # relative; float64, sums in another order
# Constants or known indices tell units apart: a rotation's frequency, a fixed order, what a shift leaves behind.
TOLD_APART = {
    ("borrowed_channels", "fc1.weight:0"),
    ("funnel", "model.funnel.encoder.blocks.0.0.attention.r_kernel:0"),
    ("funnel", "model.funnel.encoder.blocks.1.0.attention.r_kernel:0"),
    ("shifted_channels", "conv1.weight:0"),
    ("symmetric_weight", "enter.weight:0"),
    ("shift_mlp", "blocks.0.before.weight:0"),
    ("shift_mlp", "blocks.1.before.weight:0"),
    ("slices_assigned", "enter.weight:0"),
    ("conditional_queries", "around.weight:1"),
    ("deformable_detr", "level:0"),
    ("conditional_detr", "model.model.input_projection.weight:0"),
    ("conditional_detr", "model.model.decoder.layers.0.encoder_attn.q_pos_sine_proj.weight:1"),
    ("deformable_detr_of_package", "model.model.level_embed:1"),
    ("detr", "model.model.input_projection.weight:0"),
}


@dataclass(frozen=True)
class Proof:
    """What came out; differences are relative to the largest output.

    Args:
        traced: between the program with nothing gone and the model itself.
        cut: between the program cut by half and the one masked by half.
        moved: by group: between outputs before and after its units changed places.
        change: what masking by half does to the outputs; were it nothing, nothing would be shown.
        missing: groups that were derived by hand and not found.
        groups: how many were found.
        removed: the share of the parameters that go with half of every group.
        frozen: what cannot be cut, and why.
        unknown: operators that were not understood.
        narrowed: nodes that make float32 of float64, and so would hide what is below 1e-7.
    """

    traced: float
    cut: float
    moved: dict[str, float]
    change: float
    missing: list[Any]
    groups: int
    removed: float
    frozen: list[Frozen]
    unknown: dict[str, int]
    narrowed: list[str]

    @property
    def worst(self) -> float:
        return max([self.traced, self.cut, *self.moved.values()])

    def faults(self) -> list[str]:
        """What does not hold, in words."""
        found = [] if self.traced <= EXACT else [f"the program gives other outputs than the model: {self.traced:.1e}"]
        if not self.cut <= EXACT:
            found.append(f"cut and masked differ: {self.cut:.1e}")
        if self.groups and not self.change > 1e-6:
            found.append("what was cut had no part in the outputs, so nothing was shown")
        found += [f"units of {name} cannot change places: {d:.1e}" for name, d in self.moved.items() if not d <= EXACT]
        found += [f"{node} is computed in float32" for node in self.narrowed]
        return found + [f"no such group was found: {group}" for group in self.missing]


@torch.no_grad()
def proved(name: str) -> Proof:
    """The proof for an architecture of the zoo."""
    return proved_of(name, *made(name))


@torch.no_grad()
def proved_of(name: str, model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Proof:
    """The proof for a model in float64 on these inputs."""
    program = traced(model, positional, named)
    flow = propagated(program)
    groups = groups_of(program, flow)
    inputs = pytree.tree_leaves((positional, named))
    whole = list(tensors_of(model(*positional, **named)))
    nothing, kept = kept_without(flow, np.zeros(0, int)), kept_without(flow, half_of(groups))
    masked = run_masked(program, flow, kept, inputs)
    moved = {}
    for group in groups:
        if (name, group.name) not in TOLD_APART:
            permuted = with_units_moved(program, flow, group)
            moved[group.name] = difference(run_cut(program, flow, nothing, permuted, inputs), whole)
    return Proof(
        traced=difference(run_masked(program, flow, nothing, inputs), whole),
        cut=difference(run_cut(program, flow, kept, sliced(program, flow, kept), inputs), masked),
        moved=moved,
        change=difference(masked, whole),
        missing=missing_from(name, program, groups),
        groups=len(groups),
        removed=1 - parameters_left(program, flow, kept) / parameters_left(program, flow, nothing),
        frozen=frozen_in(program, flow),
        unknown=flow.unknown,
        narrowed=narrowed(program.exported),
    )


def tensors_of(outputs: Any) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


def narrowed(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the nodes that make float32 of float64, and so hide what is below 1e-7."""

    def is_of(node: torch.fx.Node, dtype: torch.dtype) -> bool:
        return getattr(node.meta.get("val"), "dtype", None) is dtype

    return [
        node.name
        for node in program.graph.nodes
        if is_of(node, torch.float32) and any(is_of(source, torch.float64) for source in node.all_input_nodes)
    ]


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
