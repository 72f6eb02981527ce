"""Wanda, SparseGPT and patterns through the step: amounts, outputs, layers that cannot be pruned in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, compress, load, prune
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.scores import SparseGPT, Wanda
from mirabelle.scores.evidence import evidence_for
from small_pictures import distance, small_network, small_pictures


@pytest.fixture
def pictures() -> Task:
    return small_pictures()


def test_sparse_gpt_keeps_the_outputs_closer_than_magnitude(pictures: Task, tmp_path: Path) -> None:
    apart = {}
    for score in ("Magnitude", "SparseGPT"):
        pruned = prune.Weights(sparsity=0.5, score=score)(small_network(), pictures, Run(tmp_path / score))
        assert all(
            int((weight == 0).sum()) == weight.numel() // 2 for name, weight in pruned.named_parameters() if weight.ndim > 1
        )
        apart[score] = distance(small_network(), pruned, pictures)
    assert apart["SparseGPT"] < 0.6 * apart["Magnitude"]


def test_wanda_keeps_half_of_each_row_by_the_inputs_that_pruned_layers_give(pictures: Task, tmp_path: Path) -> None:
    dense, pruned = small_network(), prune.Weights(sparsity=0.5, score="Wanda")(small_network(), pictures, Run(tmp_path))
    with torch.no_grad():
        given = pruned[:5](pictures.train.inputs)[pictures.train.order(Run(tmp_path).seed_for("score"))[:128]]
    scores = dense[5].weight.abs() * given.square().mean(0).sqrt()
    for row, kept in zip(scores.detach().numpy(), pruned[5].weight.detach().numpy(), strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(row)[288:])
    mask = pruned[5].weight != 0
    assert torch.equal(pruned[5].weight[mask], dense[5].weight[mask])


@pytest.mark.parametrize("score", ["Magnitude", "Wanda", "SparseGPT"])
def test_a_pattern_keeps_two_of_four_and_is_recorded(score: str, pictures: Task, tmp_path: Path) -> None:
    result = compress(small_network(), pictures, [prune.Weights(pattern="2:4", score=score)], out=tmp_path / "run")
    weight = load(small_network, tmp_path / "run")[5].weight
    assert bool(((weight != 0).reshape(64, 144, 4).sum(2) == 2).all())
    assert "5.weight" in architecture_of(result.model).pruned


def test_layers_that_share_a_weight_or_run_twice_are_pruned_by_all_their_inputs(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.other.weight = self.one.weight
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.other(self.one(self.again(self.again(x)).relu())))

    torch.manual_seed(0)
    x = torch.randn(60, 16)
    task = Task(train=(x, torch.arange(60) % 3), test=(x, torch.arange(60) % 3))
    model = prune.Weights(sparsity=0.5, score=SparseGPT(samples=60))(Odd(), task, Run(tmp_path))
    assert set(architecture_of(model).pruned) == {"again.weight", "one.weight", "out.weight"}
    assert all(int((weight == 0).sum()) == weight.numel() // 2 for weight in model.parameters() if weight.ndim > 1)
    assert model.other.weight is model.one.weight


def test_a_unit_costs_what_the_inverse_says() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(50, 5)
    task = Task(train=(x, torch.arange(50) % 4), test=(x, torch.arange(50) % 4))
    score = SparseGPT(damping=1e-6, samples=50)
    evidence = evidence_for(score, layer, task)["weight"]
    x = task.train.inputs
    inverse = np.linalg.inv((x.T @ x / len(x)).double().numpy())
    expected = layer.weight.detach().double().numpy() ** 2 / (2 * np.diag(inverse))
    np.testing.assert_allclose(score(layer.weight, evidence).detach().numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"sparsity": 0.5, "scope": "global", "score": "Wanda"}, "E111"),
        ({"threshold": 0.1, "score": SparseGPT()}, "E111"),
        ({"pattern": "4:2"}, "E110"),
        ({"pattern": "two of four"}, "E110"),
        ({"pattern": "2:4", "sparsity": 0.5}, "E111"),
        ({"pattern": "2:4", "schedule": "cubic"}, "E111"),
        ({"sparsity": 0.5, "schedule": "cubic", "score": Wanda()}, "E111"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError, match=code):
        prune.Weights(**settings)


def test_nan_inputs_are_refused_by_the_name_of_the_layer(pictures: Task, tmp_path: Path) -> None:
    model = small_network()
    with torch.no_grad():
        model[2].bias[3] = torch.nan
    with pytest.raises(UserError, match=r'E131.*inputs of layer "5" are NaN'):
        prune.Weights(sparsity=0.5, score="Wanda")(model, pictures, Run(tmp_path))
