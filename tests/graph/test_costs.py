"""What a cut costs, told without running it: as counted on the cut model itself."""

from __future__ import annotations

import pytest
import torch
from proof import half_of
from test_zoo import chosen, made_or_skipped
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode
from zoo import ARCHITECTURES

from mirabelle.graph.costs import costs_of, multiply_accumulates, parameters_left
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_cut, sliced
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import traced
from mirabelle.model.counting import macs_of
from mirabelle.task.batch import Batch


@pytest.mark.parametrize("name", chosen(["lenet", "resnet_bottleneck", "resnext", "gan_generator", "mlp_mixer"]))
@torch.no_grad()
def test_costs_are_those_of_the_cut_program(name: str) -> None:
    model, positional, named = made_or_skipped(name)
    program = traced(model, positional, named)
    flow = propagated(program)
    inputs = pytree.tree_leaves((positional, named))
    for gone in (half_of(groups_of(program, flow)), half_of([])):
        kept = kept_without(flow, gone)
        tensors = sliced(program, flow, kept)
        with FlopCounterMode(display=False) as counter:
            run_cut(program, flow, kept, tensors, inputs)
        assert multiply_accumulates(flow, kept, batch=1) == counter.get_total_flops() // 2
        parameters = {source.name for source in program.sources.values() if source.kind == "parameter"}
        assert parameters_left(program, flow, kept) == sum(tensors[name].numel() for name in parameters)


# Of the zoo, one has samples on another axis, one compares the samples of a batch with each other, and one begins a recurrence
# with a stored state: its first product is one of stored numbers alone where time steps are single operators.
OTHER_BATCHES = {"stacked_gru", "given_state", "clip"}
COUNTED_FAST = {"lenet", "lstm", "torch_encoder", "einsum_attention", "weight_norm", "literal_widths"}
COUNTED = [
    pytest.param(name, marks=() if name in COUNTED_FAST else pytest.mark.slow)
    for name in sorted({*ARCHITECTURES} - OTHER_BATCHES)
]


@pytest.mark.parametrize("name", COUNTED)
def test_the_traced_program_costs_what_the_module_costs_when_it_runs(name: str) -> None:
    model, positional, named = made_or_skipped(name)
    if positional and named:
        pytest.skip("a batch has either positional or named inputs")
    first = next(iter((*positional, *named.values())))
    example = Batch(named or (positional[0] if len(positional) == 1 else positional), torch.zeros(len(first)))
    flow = propagated(traced(model, positional, named))
    assert multiply_accumulates(flow, kept_without(flow, half_of([])), batch=len(first)) == macs_of(model, example).total


def test_a_unit_costs_what_it_takes_with_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    program = traced(model, (torch.randn(2, 4),))
    (cost,) = costs_of(program, propagated(program), batch=2)
    assert (cost.name, cost.units, cost.parameters, cost.macs) == ("0.weight:0", 6, 4 + 1 + 3, 4 + 3)
    assert cost.members == ("0.weight:0", "0.bias:0", "2.weight:1")


class Products(torch.nn.Module):
    """Attention of 3 heads over 5 places of width 4, values of width 6; then every pair of places compared."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.einsum("bhqd,bhkd->bqk", mixed, v)


def test_attention_and_einsum_are_counted_by_hand() -> None:
    shapes = ((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6))
    flow = propagated(traced(Products(), tuple(torch.randn(shape) for shape in shapes)))
    whole = kept_without(flow, half_of([]))
    assert multiply_accumulates(flow, whole, batch=2) == 3 * 5 * 5 * (4 + 6) + 3 * 5 * 5 * 6
