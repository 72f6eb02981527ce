"""Units by a score: sums over all that a unit takes with it, and the damage of losing the first of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle import Task
from mirabelle.graph.groups import groups_of
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import traced
from mirabelle.prune.ranking import Ranking, ranked
from mirabelle.scores import BatchNormScale, Hessian, Magnitude, Score, Taylor


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False))


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 4, generator=generator), torch.arange(40) % 2
    return Task(train=(x, y), test=(x, y))


def ranking_of(score: Score, model: nn.Module, task: Task) -> Ranking | None:
    program = traced(model, (task.example().inputs,))
    flow = propagated(program)
    (ranking,) = ranked(score, model, task, groups_of(program, flow), program=program, flow=flow, seed=0)
    return ranking


def test_a_unit_has_all_weights_that_it_takes_with_it(model: nn.Sequential, task: Task) -> None:
    ranking = ranking_of(Magnitude(), model, task)
    assert ranking is not None
    squares = (model[0].weight.square().sum(1) + model[1].weight.square().sum(0)).detach()
    rising = squares.sqrt().sort().values
    np.testing.assert_allclose(ranking.scores, rising.numpy(), rtol=1e-6)
    shares = 1 - np.concatenate([[0.0], np.cumsum(ranking.scores**2)]) / float(squares.sum())
    np.testing.assert_allclose(ranking.damage[:-1], -2 * np.log(shares[:-1]), rtol=1e-5, atol=1e-12)
    assert ranking.damage[-1] > 20, "a group without any unit is a destroyed layer"


def test_the_gradient_of_a_unit_is_squared_part_by_part(model: nn.Sequential, task: Task) -> None:
    ranking = ranking_of(Taylor(samples=24, parts=3), model, task)
    assert ranking is not None
    drawn = task.train.drawn(24, 0)
    expected = torch.zeros(5)
    for part in range(3):
        model.zero_grad()
        F.cross_entropy(model(drawn.inputs[part::3]), drawn.targets[part::3]).backward()
        products = [layer.weight * layer.weight.grad for layer in model]
        expected += (products[0].sum(1) + products[1].sum(0)).square() / 3
    np.testing.assert_allclose(ranking.scores, expected.sort().values.detach().numpy(), rtol=1e-4)


def test_with_the_hessian_score_a_unit_that_others_tell_goes_first(model: nn.Sequential, task: Task) -> None:
    with torch.no_grad():
        model[0].weight[3] = 2 * model[0].weight[1] - model[0].weight[0]
    ranking = ranking_of(Hessian(damping=1e-6), model, task)
    assert ranking is not None
    assert len(ranking.units) == 5
    assert ranking.damage[1] < 1e-3 < ranking.damage[3], "the outputs of 4 units of 4 inputs tell the fifth"
    assert (np.diff(ranking.damage) >= 0).all()


def test_a_group_of_which_a_score_does_not_speak_has_no_ranking(model: nn.Sequential, task: Task) -> None:
    assert ranking_of(BatchNormScale(), model, task) is None
