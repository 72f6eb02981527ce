"""Contract of the family of scores, run over its door."""

from __future__ import annotations

import pytest
import torch

from mirabelle import scores
from mirabelle.errors import UserError
from mirabelle.plain import to_data
from mirabelle.scores import Evidence, Magnitude, Random, Score
from mirabelle.scores.score import score_from_data

KINDS = [
    getattr(scores, name) for name in scores.__all__ if name != "Score" and issubclass(getattr(scores, name), Score)
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_score_has_the_tensors_shape_and_is_the_same_twice(kind: type[Score]) -> None:
    tensor = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    one, two = kind()(tensor, Evidence("a.weight")), kind()(tensor, Evidence("a.weight"))
    assert one.shape == tensor.shape
    assert torch.equal(one, two)
    assert bool((one >= 0).all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_score_goes_through_plain_data(kind: type[Score]) -> None:
    assert score_from_data(to_data(kind())) == kind()
    assert score_from_data(kind.__name__) == kind()


def test_magnitude_is_the_absolute_value() -> None:
    assert Magnitude()(torch.tensor([-2.0, 1.0]), Evidence("w")).tolist() == [2.0, 1.0]


def test_random_differs_by_seed_and_by_parameter() -> None:
    tensor = torch.ones(100)
    draws = [Random(seed=seed)(tensor, Evidence(name)) for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_what_is_no_score_is_refused() -> None:
    for name in ("Evidence", "Magnitud", ""):
        with pytest.raises(UserError, match="E106"):
            score_from_data(name)
