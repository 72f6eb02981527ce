"""Samples come in batches of bounded size, however they were given, and rows are drawn from all of them alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.calibration import samples as module
from mirabelle.calibration.samples import CalibrationSamples, DrawnRows, SampleBatches
from mirabelle.errors import UserError
from mirabelle.task.batch import Batch
from mirabelle.task.samples import Samples


def test_how_samples_are_given_does_not_matter() -> None:
    x = torch.arange(20.0).reshape(10, 2)
    given = [{"x": x[:3], "y": x[:3, 0]}, Batch({"x": x[3:4], "y": x[3:4, 0]}, torch.zeros(1)), {"x": x[4:], "y": x[4:, 0]}]
    samples = CalibrationSamples.of(part for part in given)
    batches = SampleBatches(samples, 4)
    for _ in range(2):
        parts = list(batches)
        assert [len(part["x"]) for part in parts] == [3, 3, 4]
        assert torch.equal(torch.cat([part["x"] for part in parts]), x)
        assert torch.equal(torch.cat([part["y"] for part in parts]), x[:, 0])
    assert batches.rows_in_all(21) == 70


def test_drawn_samples_are_those_that_data_draw() -> None:
    data = Samples(torch.arange(50.0)[:, None])
    drawn = CalibrationSamples.drawn(data, 20, seed=3)
    assert len(drawn) == 20
    assert torch.equal(drawn.inputs(0, 20), data.drawn(20, seed=3).inputs)


@pytest.mark.parametrize(
    "batches",
    [[torch.ones(2, 2), torch.ones(2, 3)], [torch.ones(2, 2), {"x": torch.ones(2, 2), "y": torch.ones(2)}],
     [(torch.ones(2, 2), torch.ones(3, 2))], [torch.tensor(1.0)]],
    ids=["shapes", "structure", "lengths", "scalar"],
)  # fmt: skip
def test_batches_that_do_not_fit_together_are_refused(batches: list[object]) -> None:
    with pytest.raises(UserError, match=r"E131.*have different shapes"):
        CalibrationSamples.of(batches)


def test_a_batch_holds_what_the_largest_result_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    monkeypatch.setattr(module, "_BYTES_OF_A_BATCH", 4 * 100 * 8)  # eight samples of a hundred numbers
    monkeypatch.setattr(module, "_BYTES_OF_ALL", 4 * 100 * 29)
    samples = CalibrationSamples.of([torch.zeros(30, 4)])
    assert np.diff(samples.for_model(model).bounds).tolist() == [7, 8, 7, 8]
    monkeypatch.setattr(module, "_BYTES_OF_ALL", 4 * 100 * 30)
    assert samples.for_model(model).bounds == [0, 30]
    assert CalibrationSamples.of([torch.zeros(1, 4)]).for_model(model).bounds == [0, 1]


def test_one_pass_may_take_more_memory_than_a_pass_for_each_layer() -> None:
    """300 results of 256 KiB are 75 MiB: above the limit of 64, below that of 512."""
    model, samples = nn.Linear(1, 1 << 16), CalibrationSamples.of([torch.randn(300, 1)])
    assert len(samples.for_model(model)) > 3
    assert len(samples.for_model(model, pass_for_each_layer=True)) == 1


@pytest.mark.parametrize("most", [1000, 10])
def test_rows_are_drawn_alike_from_all_and_given_out_batch_by_batch(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHUFFLED", most)
    drawn = DrawnRows.draw(100, 30, seed=1)
    assert torch.equal(drawn.numbers, DrawnRows.draw(100, 30, seed=1).numbers)
    assert not torch.equal(drawn.numbers, DrawnRows.draw(100, 30, seed=2).numbers)
    assert len(set(drawn.numbers.tolist())) == 30
    assert torch.equal(drawn.numbers, drawn.numbers.sort().values)
    found = torch.cat([start + drawn.next(rows) for start, rows in ((0, 7), (7, 50), (57, 0), (57, 43))])
    assert torch.equal(found, drawn.numbers)
    assert drawn.given == 30
    assert torch.equal(DrawnRows.draw(20, 30, seed=1).numbers, torch.arange(20))


def test_the_draw_of_rows_stays_torch_s_permutation() -> None:
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(5))
    assert torch.equal(DrawnRows.draw(1000, 300, seed=5).numbers, order[:300].sort().values)
