"""Factorize, cut, prune, quantize, pack: the legal order through a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, Training, compress, factorize, load, prune, quantize
from mirabelle.factorize import LowRankEmbedding, LowRankLinear
from mirabelle.model.left_alone import LeftAlone
from mirabelle.run.journal import read_events


class Encoder(nn.Module):
    """A small transformer encoder over words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 32)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.table(ids)).mean(1))


@pytest.mark.slow
def test_a_run_in_the_legal_order_gives_one_model_in_all_forms(tmp_path: Path) -> None:
    ids = torch.randint(0, 50, (90, 5), generator=torch.Generator().manual_seed(0))
    task = Task(train=(ids, (ids[:, 0] > 25).long()), test=(ids, (ids[:, 0] > 25).long()))
    steps = [
        factorize.Embedding(rank=8),
        factorize.Linear(ratio=0.25, keep="smaller", train=Training(steps=3)),
        prune.Channels(sparsity=0.2, include=("layers.layers.0.linear*",)),
        prune.Weights(sparsity=0.3),
        quantize.Dynamic(granularity="tensor"),
    ]
    result = compress(Encoder(), task, steps, out=tmp_path)
    assert all(gate.passed for gate in result.gates.values())
    back = load(Encoder, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(back(ids), result.model.eval()(ids))
    assert isinstance(back.table, LowRankEmbedding)
    factors = back.layers.layers[0].linear1
    assert isinstance(factors, LowRankLinear)
    assert {type(factors.reduce).__name__, type(factors.expand).__name__} == {"DynamicLayer"}
    reasons = {
        LeftAlone.from_data(part).why
        for event in read_events(tmp_path)
        if event["event"] == "left alone"
        for part in event["parts"]
    }
    assert "factors of rank 2 would have 68 weights, the layer has 64" in reasons
    assert isinstance(back.layers.layers[0].self_attn.q_proj, LowRankLinear)
    notes = [event["text"] for event in read_events(tmp_path) if event["event"] == "note"]
    assert any(note.startswith("layers.layers.0.linear1: rank 8 of 32 keeps ") for note in notes)
