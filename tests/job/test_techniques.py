"""Techniques by name are the recipes that they say, and what makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from mirabelle import Training
from mirabelle.errors import UserError
from mirabelle.job.techniques import recipe_of_techniques
from mirabelle.objectives import TaskLoss
from mirabelle.recipe.comparison import TECHNIQUES
from mirabelle.recipe.recipe import Recipe
from mirabelle.step import use_of

TRAIN = Training(epochs=2, lr=1e-2)
MODEL = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))


def made(name: str, amount: float = 0.5, limit: Any = "size") -> list[Any]:
    return list(recipe_of_techniques(name, MODEL, limit, TRAIN, guides=True).steps(amount))


@pytest.mark.parametrize(
    ("name", "limit", "steps"),
    [
        ("distill", "size", ["distill.Student"]),
        ("prune", "size", ["prune.Weights"]),
        ("prune", "macs", ["prune.Channels"]),
        ("prune", "latency", ["prune.Channels"]),
        ("quantize", "size", ["quantize.Aware"]),
        ("quantize", "latency", ["quantize.Aware"]),
        ("factorize", "latency", ["factorize.Conv", "factorize.Linear"]),
        ("share", "size", ["quantize.Codebook"]),
        ("share + prune", "size", ["prune.Weights", "quantize.Codebook"]),
        ("distill + prune", "macs", ["prune.Channels"]),
        ("quantize + factorize", "size", ["factorize.Conv", "factorize.Linear", "quantize.Aware"]),
    ],
)
def test_a_name_is_a_recipe_in_a_valid_order(name: str, limit: str, steps: list[str]) -> None:
    found = made(name, limit=limit)
    assert [use_of(step) for step in found] == steps
    Recipe(found)


def test_the_amount_is_what_is_removed() -> None:
    assert [made("prune", amount)[0].sparsity for amount in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.4975, 0.995])
    assert [made("distill", amount)[0].width for amount in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.51, 0.02])
    assert [made("share", amount)[0].bits for amount in (0.0, 0.5, 1.0)] == [8, 5, 2]
    assert [made("quantize", amount)[0].weight_bits for amount in (0.0, 0.5, 1.0)] == [8, 5, 2]
    assert [made("prune + share", amount)[1].bits for amount in (0.0, 1.0)] == [5, 5]
    assert [made("factorize", amount)[0].ratio for amount in (0.0, 1.0)] == pytest.approx([1.0, 0.02])


def test_with_distill_the_teacher_guides_and_without_it_the_data_alone() -> None:
    assert made("prune")[0].train.objective == 1.0 * TaskLoss()
    assert made("distill + prune")[0].train.objective is None  # the default, in which the teacher has 0.9 of the weight
    assert made("distill")[0].train.objective is None
    assert made("distill")[0].start == "random"
    pruned, shared = made("prune + share")
    assert (pruned.train.lr, shared.train.lr) == (1e-2, 1e-3)


@pytest.mark.parametrize(
    ("name", "limit", "code"),
    [
        ("prune", "size", ""),
        ("prun", "size", "E106"),
        ("prune + prune", "size", "E111"),
        ("quantize + share", "size", "E111"),
        ("share", "latency", "E111"),
        ("share", "macs", "E111"),
        ("quantize", "macs", "E111"),
        ("prune + share", "latency", "E111"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, limit: Any, code: str) -> None:
    if not code:
        assert made(name, limit=limit)
        return
    with pytest.raises(UserError, match=code):
        made(name, limit=limit)


def test_a_task_without_classes_has_no_distillation_and_a_model_without_layers_no_factors() -> None:
    for name in ("distill", "distill + prune"):
        with pytest.raises(UserError, match="E111"):
            recipe_of_techniques(name, MODEL, "size", TRAIN, guides=False)
    recipe = recipe_of_techniques("factorize", nn.Sequential(nn.BatchNorm1d(3)), "size", TRAIN, guides=False)
    with pytest.raises(UserError, match="E112"):
        recipe.steps(0.5)
    assert set(TECHNIQUES) == {"distill", "prune", "quantize", "factorize", "share"}
