"""`factorize.Embedding`: the optimum of a rank, tables that have other holders, and what later steps do with factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, Training, factorize, load, quantize, save
from mirabelle.errors import UserError
from mirabelle.factorize import LowRankEmbedding
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model.architecture import replaced_module_names
from mirabelle.sources.models.native import plain_tensors
from mirabelle.testing import check_replacement, check_step


class Words(nn.Module):
    """The mean of the rows of words, and a head that may share their table."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(60, 16, padding_idx=0), nn.Linear(16, 60, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


def words() -> Task:
    draw = torch.Generator().manual_seed(0)
    ids = (torch.rand(80, 5, generator=draw).square() * 60).long()  # low numbers are frequent
    return Task(train=(ids, ids[:, 0]), test=(ids, ids[:, 0]))


def test_rows_are_projected_with_the_least_error_and_padding_stays_zero(tmp_path: Path) -> None:
    dense, task = Words(), words()
    small = factorize.Embedding(rank=5)(dense, task, Run(tmp_path))
    table = dense.table.weight.detach()
    error = (small.table.plain_tensors()["weight"] - table).detach().square().sum()
    due = (np.linalg.svd(table.double().numpy(), compute_uv=False)[5:] ** 2).sum()
    assert float(error) == pytest.approx(float(due), rel=1e-5)
    assert not small.table(torch.zeros(1, dtype=torch.long)).any()
    assert count_parameters(small)[0] == 5 * (60 + 16) + 16 * 60
    assert multiply_accumulates(small, task.example()) == 5 * 5 * 16 + 16 * 60
    assert plain_tensors(small)["table.weight"].shape == (60, 16)
    assert (small.table.num_embeddings, small.table.embedding_dim, small.table.padding_idx) == (60, 16, 0)


def test_frequent_rows_are_closer_when_they_count_more(tmp_path: Path) -> None:
    task = words()
    ids = task.train.inputs
    errors = {}
    for method in ("svd", "whitened"):
        small = factorize.Embedding(rank=4, method=method, samples=len(ids))(Words(), task, Run(tmp_path / method))
        errors[method] = float((small.table(ids) - Words().table(ids)).detach().square().sum())
    assert errors["whitened"] < 0.97 * errors["svd"]
    counts = np.bincount(ids.flatten().numpy(), minlength=60) + 1.0
    table = Words().table.weight.detach().double().numpy()
    due = (np.linalg.svd(table * np.sqrt(counts)[:, None], compute_uv=False)[4:] ** 2).sum()
    own = ((small.table.plain_tensors()["weight"].detach().double().numpy() - table) ** 2).sum(1) @ counts
    assert own == pytest.approx(due, rel=1e-5)


def test_a_limit_holds_and_it_keeps_the_contracts(tmp_path: Path) -> None:
    task = words()
    small = factorize.Embedding(size="80%", multiple=1)(Words(), task, Run(tmp_path))
    assert 0.75 * 2 * 960 < count_parameters(small)[0] <= 0.8 * 2 * 960
    check_step(factorize.Embedding(rank=4, method="whitened"), Words(), task)
    check_step(factorize.Embedding(rank=4, train=Training(steps=2)), Words(), task)
    dense = Words().table
    with torch.no_grad():
        dense.weight.copy_(small.table.plain_tensors()["weight"])
    assert isinstance(small.table, LowRankEmbedding)
    check_replacement(small.table, dense, task.test.inputs)


def test_a_table_with_another_holder_or_a_norm_is_left_alone_and_told(tmp_path: Path) -> None:
    preview = factorize.Embedding(rank=4).preview(Words(tied=True), words(), Run(tmp_path))
    assert not replaced_module_names(preview.model)
    assert "table.weight" in " ".join(preview.description)
    assert "it shares its weight with head" in " ".join(preview.description)
    bound = Words()
    bound.table.max_norm = 1.0
    preview = factorize.Embedding(rank=4).preview(bound, words(), Run(tmp_path))
    assert "its `max_norm` changes it while it is read" in " ".join(preview.description)
    with pytest.raises(UserError, match=r"E111.*limits for parameters, size; got none"):
        factorize.Embedding()


def test_the_narrow_table_is_quantized_like_any_other(tmp_path: Path) -> None:
    task = words()
    factors = factorize.Embedding(rank=8)(Words(), task, Run(tmp_path / "factors"))
    model = quantize.Weights()(factors, task, Run(tmp_path / "weights"))
    save(model, tmp_path / "saved")
    back = load(Words, tmp_path / "saved")
    assert {"table.rows", "table.expand", "head"} <= {*replaced_module_names(model)}
    with torch.no_grad():
        assert torch.equal(back(task.test.inputs), model.eval()(task.test.inputs))
