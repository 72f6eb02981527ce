"""What the check of a cut computes once, and what it computes anew."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle.graph.acceptance import Acceptance
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_cut
from mirabelle.graph.propagate import propagated
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced


class Chosen(nn.Module):
    """Takes rows by a buffer of integers, which no draw fills."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.body, self.head = 12, nn.Linear(6, 12), nn.Linear(12, 5)
        self.register_buffer("rows", torch.tensor([0, 1, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[:, self.rows].reshape(-1, 3, self.width))


def test_the_program_runs_once_for_each_number_of_samples_and_anew_for_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []

    def counted(*args: Any) -> list[Any]:
        samples.append(len(args[-1][0]))
        return run_cut(*args)

    monkeypatch.setattr("mirabelle.graph.acceptance.run_cut", counted)
    model, x = Chosen(), torch.randn(2, 4, 6)
    program = traced(model, (x,))
    flow = propagated(program)
    (group,) = groups_of(program, flow)
    kept = kept_without(flow, group.units[:5])
    smaller = cut(model, program, flow, kept, ((x,), {}))
    assert smaller.width == 7
    assert smaller(x).shape == (2, 3, 5)
    assert samples == [2, 3, 1]
    acceptance, ends = Acceptance(model, program, flow, kept, ((x,), {})), []
    for rows in ([0, 1, 1], [0, 1, 1], [0, 1, 2]):
        other = copy.deepcopy(smaller)
        other.rows.copy_(torch.tensor(rows))
        acceptance.compare(other)
        ends.append(len(samples))
    assert ends == [4, 4, 5]
