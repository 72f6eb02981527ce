"""The amount of a recipe meets its budget without training, and is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from mirabelle import Task, Training, pack, prune, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import onnx_file
from mirabelle.job.fitting import Limit, cost_of, fitted, previewed
from mirabelle.job.techniques import OpenRecipe

TRAIN = Training(epochs=1, batch_size=32, lr=0.01)
PRUNED = OpenRecipe("prune", lambda amount: [prune.Weights(sparsity=0.99 * amount, train=TRAIN)])
CUT = OpenRecipe("cut", lambda amount: [prune.Channels(sparsity=0.9 * amount, train=TRAIN)])


@pytest.fixture
def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 200), nn.ReLU(), nn.Linear(200, 60), nn.ReLU(), nn.Linear(60, 3))


def test_limits_are_absolute_or_shares_of_the_model(wide: nn.Module, blobs: Task) -> None:
    weights = 8 * 200 + 200 + 200 * 60 + 60 + 60 * 3 + 3
    assert Limit.of("size", "9 kB", wide, blobs).value == 9000
    assert Limit.of("size", "10%", wide, blobs).value == pytest.approx(0.1 * 4 * weights, rel=0.02)  # and names of tensors
    assert Limit.of("macs", "50%", wide, blobs).value == (8 * 200 + 200 * 60 + 60 * 3) / 2
    assert Limit.of("macs", 1000, wide, blobs).value == 1000
    assert Limit.of("latency", "0.5 ms", wide, blobs).value == 0.5
    assert Limit.of("size", "10%", wide, blobs).in_words == "10% of the bytes"
    assert Limit.of("latency", "0.5 ms", wide, blobs).in_words == "0.5 ms"
    with pytest.raises(UserError, match="E113"):
        Limit.of("size", "10 apples", wide, blobs)


@pytest.mark.parametrize(("kind", "recipe"), [("size", PRUNED), ("macs", CUT)])
def test_the_smallest_amount_that_meets_a_limit(
    kind: str, recipe: OpenRecipe, wide: nn.Module, blobs: Task, tmp_path: Path
) -> None:
    limit = Limit.of(kind, "20%", wide, blobs)  # type: ignore[arg-type]
    found = fitted(recipe, limit, wide, blobs, tmp_path / "amount.json")
    assert 0 < found.amount < 1
    assert 0.9 * limit.value <= found.cost <= limit.value
    assert found.steps == recipe.steps(found.amount)
    model = previewed(found.steps, wide, blobs)
    again = len(pack(onnx_file(model, blobs))) if kind == "size" else cost_of("macs", model, blobs)
    assert again == found.cost


def costs(monkeypatch: pytest.MonkeyPatch, of_amounts: dict[float, float]) -> OpenRecipe:
    """A recipe whose cost is that of the next lower amount of these; nothing else of it is used."""

    def cost_of(_kind: object, model: float, _task: object) -> float:
        return next(cost for amount, cost in sorted(of_amounts.items(), reverse=True) if amount <= model)

    monkeypatch.setattr("mirabelle.job.fitting.previewed", lambda steps, *_: steps[0].sparsity)
    monkeypatch.setattr("mirabelle.job.fitting.cost_of", cost_of)
    return OpenRecipe("prune", lambda amount: [prune.Weights(sparsity=0.99 * amount)])


def test_room_is_left_for_bytes_that_a_training_adds(
    wide: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for case, of_amounts in enumerate([
        {0.0: 300.0, 0.3: 99.0, 0.5: 96.0, 0.7: 60.0},
        {0.0: 300.0, 0.3: 99.0, 0.7: 60.0},  # no amount comes close: what is within the limit is taken
        {0.0: 300.0, 0.3: 120.0, 0.7: 60.0},
        {0.0: 300.0, 0.99: 99.0},  # no amount reaches less
        {0.0: 99.0, 0.99: 98.0},
        {0.0: 99.0, 0.99: 99.0},
        {0.0: 99.0, 0.3: 96.0, 0.99: 50.0},  # as it is, there would be no room
    ]):  # fmt: skip
        recipe = costs(monkeypatch, of_amounts)
        size, macs = (
            fitted(recipe, limit, wide, blobs, tmp_path / f"{limit.kind}-{case}.json").cost
            for limit in (Limit("size", "100 B", 100.0), Limit("macs", "100", 100.0))
        )
        found.append((size, macs))
    assert [size for size, _ in found] == [96.0, 99.0, 60.0, 99.0, 98.0, 99.0, 96.0]
    assert [macs for _, macs in found] == [99.0, 99.0, 60.0, 99.0, 99.0, 99.0, 99.0], "operations do not change in a training"


def test_what_needs_no_compression_gets_none(wide: nn.Module, blobs: Task, tmp_path: Path) -> None:
    found = fitted(PRUNED, Limit.of("size", "900%", wide, blobs), wide, blobs, tmp_path / "amount.json")
    assert found.amount == 0


def test_an_amount_is_kept_and_belongs_to_its_comparison(
    wide: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, limit = tmp_path / "amount.json", Limit.of("size", "20%", wide, blobs)
    found = fitted(PRUNED, limit, wide, blobs, path)
    monkeypatch.setattr("mirabelle.job.fitting.cost_of", None)  # nothing is measured again
    assert fitted(PRUNED, limit, wide, blobs, path) == found
    assert json.loads(path.read_text())["amount"] == found.amount
    with pytest.raises(UserError, match="E150"):
        fitted(CUT, limit, wide, blobs, path)
    with pytest.raises(UserError, match="E150"):
        fitted(PRUNED, Limit("size", "19%", 0.95 * limit.value), wide, blobs, path)


def test_a_limit_out_of_reach_tells_how_far_it_can_go(wide: nn.Module, blobs: Task, tmp_path: Path) -> None:
    for _ in range(2):  # the second time from the file
        with pytest.raises(UserError, match=r"E114.*prune reaches .* bytes at the least") as caught:
            fitted(PRUNED, Limit.of("size", "100 B", wide, blobs), wide, blobs, tmp_path / "amount.json")
    least = len(pack(onnx_file(previewed(PRUNED.steps(1.0), wide, blobs), blobs)))
    assert f"{least:,}" in caught.value.message
    fixed = OpenRecipe("as it is", lambda _: [quantize.Static()], fixed=True)
    with pytest.raises(UserError, match=r"E114.*as it is reaches"):
        fitted(fixed, Limit.of("size", "100 B", wide, blobs), wide, blobs, tmp_path / "fixed.json")
