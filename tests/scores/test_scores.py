"""Contract of the family of scores, run over its door, and what each says of weights that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import scores
from mirabelle.errors import UserError
from mirabelle.records.record import to_data
from mirabelle.scores import (
    ActivationNorm,
    BatchNormScale,
    Evidence,
    Fisher,
    Hessian,
    Magnitude,
    Movement,
    Random,
    Score,
    Taylor,
)  # fmt: skip
from mirabelle.scores.score import covered, score_from_data

KINDS = [
    getattr(scores, name)
    for name in scores.__all__
    if name != "Score" and issubclass(getattr(scores, name), Score)
]  # fmt: skip
SETTINGS = [*(kind() for kind in KINDS), Magnitude(order=1), Random(seed=4), Hessian(damping=0.1, samples=7)]


def evidence_of(tensor: torch.Tensor, name: str = "a.weight") -> Evidence:
    """Everything that can be known, drawn."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 9, tensor.shape[1], generator=generator)
    moments = inputs.transpose(1, 2) @ inputs / 9
    gradient = torch.randn(tensor.shape, generator=generator)
    return Evidence(name, gradient, gradient.square() + 1, moments, moments.diagonal(dim1=1, dim2=2).sqrt())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_score_has_the_tensors_shape_and_is_the_same_twice(kind: type[Score]) -> None:
    tensor = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    one, two = (kind()(tensor, evidence_of(tensor)) for _ in range(2))
    assert one.shape == tensor.shape
    assert one.dtype == tensor.dtype
    assert torch.equal(one, two)
    assert bool((one >= 0).all()) or kind is Movement  # which alone has both signs
    assert bool(torch.isfinite(one).all())


@pytest.mark.parametrize("score", SETTINGS, ids=str)
def test_a_unit_scores_by_the_sum_of_what_its_weights_contribute(score: Score) -> None:
    tensor = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    contributions = score.contributions(tensor, evidence_of(tensor))
    assert contributions.shape == tensor.shape
    units = score.unit(contributions.double().sum(1).numpy())
    assert units.shape == (5,)
    assert bool((units >= 0).all()) or isinstance(score, Movement)
    assert bool(np.isfinite(units).all())


@pytest.mark.parametrize("score", SETTINGS, ids=str)
def test_every_score_goes_through_plain_data(score: Score) -> None:
    assert score_from_data(to_data(score)) == score
    assert score_from_data(type(score).__name__) == type(score)()


def test_magnitude_is_the_absolute_value_and_a_norm_for_units() -> None:
    tensor = torch.tensor([[-3.0, 4.0]])
    assert Magnitude()(tensor, Evidence("w")).tolist() == [[3.0, 4.0]]
    for order, expected in ((1, 7.0), (2, 5.0)):
        score = Magnitude(order=order)
        assert score.unit(score.contributions(tensor, Evidence("w")).double().sum(1).numpy()).tolist() == [expected]


def test_random_differs_by_seed_and_by_parameter() -> None:
    tensor = torch.ones(100)
    draws = [Random(seed=seed)(tensor, Evidence(name)) for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_terms_of_opposite_sign_cancel_in_the_taylor_score_of_a_unit_and_add_up_in_the_fisher_score() -> None:
    tensor, gradient = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, -2.0], [1.0, 2.0]])
    evidence = Evidence("w", gradient, gradient.square())
    taylor, fisher = Taylor(), Fisher()
    assert taylor(tensor, evidence).tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert taylor.unit(taylor.contributions(tensor, evidence).double().sum(1).numpy()).tolist() == [0.0, 16.0]
    assert fisher.unit(fisher.contributions(tensor, evidence).double().sum(1).numpy()).tolist() == [4.0, 4.0]


def test_scores_speak_of_weights_norms_of_scales_and_layers_of_what_they_multiply() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "linear": nn.Linear(4, 4),
            "conv": nn.Conv1d(4, 4, 3),
            "back": nn.ConvTranspose1d(4, 4, 3),
            "norm": nn.LayerNorm(4),
            "batch_norm": nn.BatchNorm1d(4),
        }
    )
    weights = ["embedding.weight", "linear.weight", "conv.weight", "back.weight"]
    assert list(covered(Magnitude(), model)) == list(covered(Fisher(), model)) == weights
    assert list(covered(Hessian(), model)) == list(covered(ActivationNorm(), model)) == ["linear.weight", "conv.weight"]
    assert list(covered(BatchNormScale(), model)) == ["norm.weight", "batch_norm.weight"]


def test_the_hessian_score_is_the_rise_of_the_error_when_the_other_weights_make_up_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    targets = torch.randn(50, 2, generator=generator, dtype=torch.float64)

    def solved(columns: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Least squares over some of the columns: weights, and the mean squared error of each output."""
        weights = torch.linalg.lstsq(inputs[:, columns], targets).solution
        return weights.T, (inputs[:, columns] @ weights - targets).square().mean(0)

    weight, least = solved(list(range(6)))
    found = Hessian(damping=1e-13)(weight, Evidence("w", input_moments=(inputs.T @ inputs / 50).unsqueeze(0)))
    for column in range(6):
        _, error = solved([other for other in range(6) if other != column])
        assert found[:, column].tolist() == pytest.approx((error - least).tolist(), rel=1e-6)


def test_inputs_that_never_are_leave_nothing_to_lose() -> None:
    moments = torch.zeros(1, 3, 3)
    assert Hessian()(torch.ones(2, 3), Evidence("w", input_moments=moments)).max() < 1e-30
    moments[0, 0, 0] = 1.0
    assert Hessian()(torch.ones(2, 3), Evidence("w", input_moments=moments)).argmax(1).tolist() == [0, 0]


def test_what_is_no_score_is_refused() -> None:
    for name in ("Evidence", "Magnitud", ""):
        with pytest.raises(UserError, match="E106"):
            score_from_data(name)


def test_settings_out_of_range_are_refused() -> None:
    for data in ({"use": "Magnitude", "order": 3}, {"use": "Hessian", "damping": 0.0}, {"use": "Fisher", "samples": 0}):
        with pytest.raises(UserError, match=r"E1(03|10)"):
            score_from_data(data)
