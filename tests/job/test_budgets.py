"""What a comparison at several budgets says: leaders, neighbours, sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Task, prune
from mirabelle.job.budgets import AtLimit, Budgets, compare_at
from mirabelle.job.comparison_results import Budget, Comparison, Outcome
from mirabelle.job.fitting import Limit, previewed
from mirabelle.job.learned import Standing
from mirabelle.job.techniques import OpenRecipe
from mirabelle.task.constant import Constant
from mirabelle.task.metric import Metric
from mirabelle.task.profile import MeasuredMetric

SAMPLES = 400


def outcome(seed: int, share: float, size: int = 100, milliseconds: float | None = None) -> Outcome:
    """A result whose first samples are right."""
    scores = (np.arange(SAMPLES) < round(share * SAMPLES)).astype(float)
    return Outcome(seed, float(scores.mean()), scores, 10.0, 5, size, 7, milliseconds)


def at(asked: str, shares: Mapping[str, Sequence[float]], kind: str = "size", **sizes: int) -> AtLimit:
    outcomes = {
        name: [outcome(seed, share, sizes.get(name, 100)) for seed, share in enumerate(row)] for name, row in shares.items()
    }
    limit = Limit(kind, asked, 100.0)  # type: ignore[arg-type]
    found = Comparison(Metric.of("accuracy"), "test", next(iter(shares)), Budget(size_bytes=100), outcomes)
    return AtLimit(limit, found, {})


CLEAR = {"prune": (0.90, 0.91, 0.90), "distill": (0.80, 0.82, 0.80)}
LEVEL = {"prune": (0.90, 0.91, 0.90), "distill": (0.91, 0.90, 0.90)}


def test_who_leads() -> None:
    assert at("10%", CLEAR).leaders == ("prune",)
    assert set(at("10%", LEVEL).leaders) == {"prune", "distill"}
    assert at("10%", CLEAR, prune=103).leaders == ("distill",), "what is over the budget does not lead"
    assert at("10%", {"prune": (0.9, 0.9), "share": (0.8975, 0.8975)}).leaders == ("prune", "share"), "one sample of 400"


def test_neighbours_are_compared_with_the_next_one() -> None:
    rows = at("10%", {**CLEAR, "share": (0.85, 0.86, 0.85)}).neighbours()
    assert [row.name for row, _, _ in rows] == ["prune", "share", "distill"]
    (_, first, p_value), _, (_, last, none) = rows
    assert first is not None
    assert p_value is not None
    assert first[0] == pytest.approx(0.05)
    assert p_value < 1e-3
    assert (last, none) == (None, None)


def test_the_verdict_names_who_is_ahead_where() -> None:
    small = {"prune": CLEAR["distill"], "distill": CLEAR["prune"]}
    found = Budgets((at("10%", CLEAR), at("5%", CLEAR), at("3%", small), at("2%", LEVEL)), 3)
    first, second, third = found.verdict().split(". ")
    assert first.startswith("From 10% to 5% of the bytes prune is 9.67 points (+")
    assert first.endswith(") ahead of distill")
    assert second.startswith("At 3% of the bytes distill is 9.67 points")
    assert third == "At 2% of the bytes no difference is shown between distill and prune."
    assert "With one seed" in Budgets((at("10%", {name: row[:1] for name, row in CLEAR.items()}),), 1).verdict()
    assert Budgets((at("10%", {"prune": (0.9, 0.9)}),), 2).verdict() == "At 10% of the bytes only prune is within the budget."


def test_nothing_is_ahead_if_nothing_is_within_the_budget() -> None:
    found = at("10%", CLEAR, prune=103, distill=104)
    assert found.leaders == ()
    assert Budgets((found,), 3).verdict() == "At 10% of the bytes no candidate is within the budget after its training."


def test_a_result_no_better_than_a_constant_answer_is_called_so() -> None:
    metric = MeasuredMetric("accuracy", 0.95, 0.94, 0.96, SAMPLES)
    start = Standing(metric, Constant("class 0", 0.92, torch.zeros(1, 3)), learned=True)
    found = at("10%", CLEAR)
    found = AtLimit(found.limit, dataclasses.replace(found.comparison, start=start), {})
    assert found.leaders == ("prune",), "it is within the budget all the same"
    assert "prune (not better than the same answer for every input) is 9.67 points" in Budgets((found,), 3).verdict()
    assert "not above 0.9200" in Budgets((found,), 3).table()


def test_kinds_of_budgets_are_not_mixed() -> None:
    sentences = Budgets((at("50%", CLEAR, kind="latency"), at("10%", CLEAR)), 3).verdict().split(". ")
    assert [sentence.split(" prune")[0] for sentence in sentences] == ["At 50% of the milliseconds", "At 10% of the bytes"]


def test_the_table_and_the_data_agree() -> None:
    found = Budgets((at("10%", CLEAR),), 3)
    assert "| prune | 0.9033 (" in found.table()
    (limit,) = found.to_data()["limits"]
    assert [row["name"] for row in limit["candidates"]] == ["prune", "distill"]
    assert limit["candidates"][0]["ahead"] in found.table()
    assert limit["in_points"] is True


@pytest.mark.slow
def test_what_grows_above_its_bytes_in_a_training_is_fitted_again(
    blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare` tells sizes of our own: the pruned network grows by 6 %, the fixed recipe is too large."""
    model = nn.Sequential(nn.Linear(8, 80), nn.ReLU(), nn.Linear(80, 30), nn.ReLU(), nn.Linear(30, 3))
    limit = Limit.of("size", "25%", model, blobs)

    def cost(_kind: str, one: nn.Module, _task: Task) -> float:
        return float(100 + sum(4 * tensor.count_nonzero() for tensor in one.state_dict().values()))

    monkeypatch.setattr("mirabelle.job.fitting.cost_of", cost)  # exports take a second each
    ran: list[dict[str, float]] = []

    def compared(_model: object, _task: object, recipes: Mapping[str, Sequence[Any]], *, out: Path, **_: object) -> Comparison:
        ran.append({name: steps[0].sparsity for name, steps in recipes.items()})
        outcomes = {}
        for name, steps in recipes.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            size = cost("size", previewed(steps, model, blobs), blobs)
            grown = {"prune": 1.06, "fixed": 1.5, "steady": 1.0}[name]
            outcomes[name] = [outcome(seed, 0.9, int(grown * size)) for seed in range(2)]
        return Comparison(Metric.of("accuracy"), "test", "prune", Budget(size_bytes=int(limit.value)), outcomes)

    monkeypatch.setattr("mirabelle.job.budgets.compare", compared)
    monkeypatch.setattr("mirabelle.job.budgets._conditions", lambda *_: "")
    pruned = lambda name: OpenRecipe(name, lambda amount: [prune.Weights(sparsity=0.99 * amount)])  # noqa: E731
    candidates = {
        "prune": lambda _: pruned("prune"),
        "steady": lambda _: pruned("steady"),
        "fixed": lambda _: OpenRecipe("fixed", lambda _: [prune.Weights(sparsity=0.8)], fixed=True),
    }
    told: list[str] = []
    given: dict[str, Any] = {"out": tmp_path, "seeds": (0, 1), "budget": Budget(steps=1), "judge": "test", "tell": told.append}
    found = compare_at(model, blobs, candidates, [limit], **given)
    first, second = ran
    assert first["prune"] == first["steady"] == second["steady"] < second["prune"]
    assert first["fixed"] == second["fixed"] == 0.8
    rows = {row.name: row for row in found.found[0].comparison.rows()}
    assert 0.95 * limit.value < rows["prune"].size_bytes <= limit.value
    assert not rows["prune"].over
    assert rows["fixed"].over
    assert any("prune takes 6.0% more after its training" in line for line in told)
    place = tmp_path / "size-25%"
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == [
        "amounts", "fixed", "prune", "prune (above the budget, 1)", "steady",
    ]  # fmt: skip
    compare_at(model, blobs, candidates, [limit], **given)
    assert ran[2:] == [second], "continued, it begins with the amount that was found"
