"""A cut model at other numbers of samples, and trained: its code or its rewritten program is right there, or refuses."""

from __future__ import annotations

import pytest
import torch
from proof import half_of
from torch import nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced


def half_cut(model: nn.Module, *args: torch.Tensor) -> nn.Module:
    """The model with half of every group cut."""
    program = traced(model, args)
    flow = propagated(program)
    return cut(model, program, flow, kept_without(flow, half_of(groups_of(program, flow))), (args, {})).eval()


class HeadsInTheBatch(nn.Module):
    """Heads become samples for a while; a full slice, a table of zeros and one head of each sample are taken from them."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.a, self.o, self.variant = nn.Linear(7, 24), nn.Linear(24, 3), variant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        h = self.a(x).view(batch, time, 4, 6).transpose(1, 2).reshape(batch * 4, time, 6)
        if self.variant == "full slice":
            h = h.softmax(1)[:, :, 0:] * h.mean(1, keepdim=True)[:]
        elif self.variant == "zeros":
            h = torch.zeros(batch * 4, time, 6) + h
        elif self.variant == "new zeros":
            h = h.new_zeros(batch * 4, time + 1, 6)[:, 1:] + h
        elif self.variant == "slice assignment":
            out = torch.zeros_like(h)
            out[:, 1:] = h[:, :-1]
            h = out
        elif self.variant == "flip":
            h = h.flip(0)
        elif self.variant == "all but the last":
            h = torch.cat([h[:-4], h[-4:] * 2])
        elif self.variant == "expand":
            h = h + h[:1].mean().expand(batch * 4, time, 6)
        return self.o(h.view(batch, 4, time, 6).transpose(1, 2).reshape(batch, time, 24)).mean(1)


VARIANTS = ["full slice", "zeros", "new zeros", "slice assignment", "flip", "all but the last", "expand"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_free_size_stays_free(variant: str) -> None:
    torch.manual_seed(0)
    model, example, other = HeadsInTheBatch(variant).eval(), torch.randn(2, 5, 7), torch.randn(5, 5, 7)
    program = traced(model, (example,))
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    smaller = cut(model, program, flow, kept, ((example,), {})).eval()
    there = traced(model, (other,))  # the same units are cut in a program of the other batch, whose numbers are its own
    flow_there = propagated(there)
    kept_there = kept_without(flow_there, half_of(groups_of(there, flow_there)))
    with torch.no_grad():
        (due,) = run_masked(there, flow_there, kept_there, [other])
        assert torch.allclose(smaller(other), due, atol=1e-5)
        for count in (1, 3, 8):
            given = smaller(other[torch.arange(count) % 5])
            assert given.shape == (count, 3)
            if variant not in ("flip", "all but the last", "expand"):  # which mix samples
                assert torch.allclose(given, due[torch.arange(count) % 5], atol=1e-5)


class Shifted(nn.Module):
    """Slice assignment, and a width written into the code, so that the rewritten program is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        out = torch.zeros_like(h)
        out[:, 1:, :4] = h[:, :-1, :4]
        out[:, :, 4:] = h[:, :, 4:]
        return self.c(self.b(out).relu()).mean(1)


def test_a_program_with_slice_assignment_trains() -> None:
    torch.manual_seed(0)
    smaller, x = half_cut(Shifted().eval(), torch.randn(2, 5, 6)), torch.randn(4, 5, 6)
    assert isinstance(smaller, Rewritten)
    smaller.train()(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in smaller.parameters())


class Branches(nn.Module):
    """Widths written into the code, and another result for many samples."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.a, self.o, self.most = nn.Linear(7, 24), nn.Linear(24, 3), most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu().reshape(-1, 24)
        return self.o(2 * h if x.shape[0] > self.most else h)


def test_a_program_that_holds_for_few_samples_is_refused_and_never_returned() -> None:
    with pytest.raises(UserError, match=r"E121.*its program holds for 2 to 4 samples only"):
        half_cut(Branches(4).eval(), torch.randn(2, 7))


class TreatsOneAlone(nn.Module):
    """A single sample is computed in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(7, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu().reshape(-1, 24)
        return self.o(3 * h if x.shape[0] == 1 else h)


def test_a_program_refuses_a_single_sample_that_its_code_treats_apart() -> None:
    smaller = half_cut(TreatsOneAlone().eval(), torch.randn(2, 7))
    assert smaller(torch.randn(9, 7)).shape == (9, 3)
    with pytest.raises(ValueError, match="holds for inputs of the sizes"):
        smaller(torch.randn(1, 7))


class FailsInTraining(nn.Module):
    """Training runs a reshape of the old width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(7, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        return self.o(h.reshape(-1, 24) if self.training else h)


def test_a_module_that_fails_in_training_alone_is_replaced_by_its_program() -> None:
    smaller = half_cut(FailsInTraining().eval(), torch.randn(2, 7))
    assert isinstance(smaller, Rewritten)
    assert smaller.train()(torch.randn(4, 7)).shape == (4, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_module_of_its_own_code_is_compared_with_its_masked_program(count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)).eval()
    x = torch.randn(count, 3, 5, 5)
    program = traced(model, (torch.randn(2, 3, 5, 5),))
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    smaller = cut(model, program, flow, kept, ((torch.randn(2, 3, 5, 5),), {})).eval()
    with torch.no_grad():
        due = run_masked(program, flow, kept, pytree.tree_leaves((x,)))
        assert torch.allclose(smaller(x), due[0], atol=1e-5)
