"""What is not understood stays whole under its name; everything else is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from proof import difference, half_of
from torch import nn

from mirabelle.graph import rules
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import frozen_in, groups_of, kept_whole
from mirabelle.graph.interpret import kept_without, run_cut, run_masked, sliced
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced


@torch.library.custom_op("mirabelle_tests::ranked", mutates_args=())
def ranked(x: torch.Tensor) -> torch.Tensor:
    """Values by their rank, which no rule knows."""
    return x.sort(-1).values


@ranked.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class WithUnknown(nn.Module):
    """The middle width meets an operator that no rule knows; two other widths do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.after, self.head = (
            nn.Linear(7, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 20),
            nn.Linear(20, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.after(ranked(self.middle(self.first(x).relu()))).relu())


class Sampling(nn.Module):
    """Heads in the batch of a sampled map: both operands of the sampling have them."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.places = nn.Conv2d(3, 24, 1), nn.Linear(3, 4 * 5 * 2)
        self.conv, self.head = nn.Conv2d(24, 16, 1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = x.shape[0]
        grid = torch.tanh(self.places(x.mean((2, 3)))).view(b * 4, 1, 5, 2)
        sampled = F.grid_sample(self.value(x).view(b * 4, 6, *x.shape[2:]), grid, align_corners=False)
        return self.head(F.relu(self.conv(sampled.view(b, 24, 1, 5))).mean((2, 3)))


def cut_by_half(model: nn.Module, x: torch.Tensor) -> tuple[Program, Flow, float]:
    model = model.double().eval()
    program = traced(model, (x.double(),))
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    with torch.no_grad():
        masked = run_masked(program, flow, kept, [x.double()])
        return program, flow, difference(run_cut(program, flow, kept, sliced(program, flow, kept), [x.double()]), masked)


def reasons(program: Program, flow: Flow) -> dict[str, tuple[str, ...]]:
    return {f"{one.name}:{one.dimension}": one.reasons for one in frozen_in(program, flow)}


def test_an_operator_without_a_rule_freezes_its_group_and_is_named_with_its_module() -> None:
    program, flow, worst = cut_by_half(nn.Sequential(nn.Linear(5, 7), WithUnknown()), torch.randn(2, 5))
    assert worst < 1e-9
    assert {group.name: len(group) for group in groups_of(program, flow)} == {
        "0.weight:0": 7,
        "1.first.weight:0": 16,
        "1.after.weight:0": 20,
    }
    assert flow.unknown == {"mirabelle_tests.ranked": 1}
    (why,) = reasons(program, flow)["1.middle.weight:0"]
    assert why == 'operator "mirabelle_tests.ranked" in 1 is not supported'


def test_a_sampled_map_and_its_places_have_one_batch() -> None:
    program, flow, worst = cut_by_half(Sampling(), torch.randn(2, 3, 7, 9))
    assert worst < 1e-9
    assert flow.unknown == {}
    assert {len(group) for group in groups_of(program, flow)} == {4, 6, 16}


def grid_without_batch(flow: Flow, call: Any) -> Any:
    """A rule that forgets what the two batches have to do with each other."""
    return (*flow.of(call["input"])[:2], None, None)


def fails(flow: Flow, call: Any) -> Any:
    raise IndexError("a call that the rule did not foresee")


@pytest.mark.parametrize("rule", [grid_without_batch, fails])
def test_an_operator_that_could_not_run_on_its_axes_is_kept_whole_and_named(monkeypatch: pytest.MonkeyPatch, rule: Any) -> None:
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "grid_sampler": rule})
    program, flow, worst = cut_by_half(Sampling(), torch.randn(2, 3, 7, 9))
    assert worst < 1e-9
    assert flow.unknown == {"grid_sampler": 1}
    assert [group.name for group in groups_of(program, flow)] == ["conv.weight:0"]
    assert any(why.startswith('operator "grid_sampler" is called in a way') for why in reasons(program, flow)["value.weight:0"])


class Joined(nn.Module):
    """A residual stream to which the input itself, or a table that is neither parameter nor buffer, is added."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self.table = torch.randn(1, 7, dtype=torch.float64) if table else None
        self.first, self.expand, self.project, self.head = nn.Linear(7, 7), nn.Linear(7, 16), nn.Linear(16, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + (x if self.table is None else self.table)
        return self.head(x + self.project(self.expand(x).relu()))


@pytest.mark.parametrize(("table", "cause"), [(False, 'the input "args_0"'), (True, 'the constant "table"')])
def test_a_reason_names_the_tensor_from_which_it_comes(table: bool, cause: str) -> None:
    program, flow, _ = cut_by_half(Joined(table=table), torch.randn(2, 7))
    why = reasons(program, flow)
    assert (
        why["first.weight:0"]
        == why["project.weight:0"]
        == (f'operator "add" joins its elements with {cause}, which stays whole',)
    )
    assert kept_whole(frozen_in(program, flow))[0] == f"first.weight and 3 more: {why['first.weight:0'][0]}"


class Ring(nn.Module):
    """Every channel is added to its neighbour, so that all of them hang together."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.expand, self.head = nn.Linear(7, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.head(self.expand(x + x.roll(1, -1)).relu())


def test_elements_that_are_all_tied_to_each_other_are_no_group_and_the_operator_is_named() -> None:
    program, flow, worst = cut_by_half(nn.Sequential(Ring()), torch.randn(2, 7))
    assert worst < 1e-9
    assert [group.name for group in groups_of(program, flow)] == ["0.expand.weight:0"]
    assert reasons(program, flow)["0.enter.weight:0"] == ('operator "add" in 0 ties its elements to each other',)


def unequal_halves(flow: Flow, call: Any) -> Any:
    """A rule that loses how two widths are tied, where both could be cut by half without an error."""
    return flow.of(call["self"])


def test_widths_that_are_equal_only_by_accident_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "add": unequal_halves})

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.one(x) + self.other(x))

    program = traced(Sum().eval(), (torch.randn(2, 7),))
    flow = propagated(program)
    assert flow.unknown == {"add": 1}
    assert groups_of(program, flow) == []
