"""Parameters that only training reads stay whole, and a cut module is not returned if one of its modes fails."""

from __future__ import annotations

import torch
from proof import difference, half_of
from torch import nn

from mirabelle.graph.groups import frozen_in, groups_of
from mirabelle.graph.interpret import kept_without, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced


class Cached(nn.Module):
    """Biases by head, looked up in every training step and kept for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head, self.kept = nn.Linear(7, 12), nn.Linear(12, 3), None
        self.biases = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("index", torch.arange(3) * 4)

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        self.kept = None if mode else self.biases[:, self.index].detach()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        biases = self.biases[:, self.index] if self.training else self.kept
        return self.head((self.enter(x).view(-1, 4, 3) + biases).flatten(1).relu())


@torch.no_grad()
def test_what_only_training_reads_stays_whole_and_both_modes_run() -> None:
    model, x = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 7), Cached()).eval(), torch.randn(2, 5)
    program = traced(model, (x,))
    flow = propagated(program)
    assert {group.name for group in groups_of(program, flow)} == {"0.weight:0", "2.weight:0"}
    reasons = {(one.name, one.dimension): one.reasons for one in frozen_in(program, flow)}
    assert reasons["3.biases", 0] == reasons["3.biases", 1] == ("the model does not read it in evaluation mode",)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    smaller = cut(model, program, flow, kept, ((x,), {}))
    assert difference([smaller.eval()(x)], run_masked(program, flow, kept, [x])) < 1e-5
    assert smaller.train()(x).shape == (2, 3)


class Causal(nn.Module):
    """A transformer layer of torch, whose fast path takes a mask of −inf in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 16), nn.Linear(16, 2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.layer(self.enter(x), src_mask=self.mask, is_causal=True)
        left: torch.Tensor = self.leave(attended[:, -1])
        return left


@torch.no_grad()
def test_layers_with_a_causal_mask_in_a_buffer_are_cut() -> None:
    model, x = Causal().eval(), torch.randn(3, 6, 4)
    program = traced(model, (x,))
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    smaller = cut(model, program, flow, kept, ((x,), {}))
    assert difference([smaller(x)], run_masked(program, flow, kept, [x])) < 1e-5
    assert torch.equal(smaller.get_buffer("mask"), model.mask)
    assert sum(one.numel() for one in smaller.parameters()) < 0.4 * sum(one.numel() for one in model.parameters())
