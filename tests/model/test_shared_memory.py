"""Copies on the same parameters share their memory and nothing else; loaded models share none with the dense module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mirabelle import Run, Task, load, quantize, save
from mirabelle.model.state import memory_of, on_same_parameters, take_apart


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def test_a_copy_on_the_same_parameters_has_its_own_modes_buffers_and_gradients() -> None:
    model = Tied()
    copy = on_same_parameters(model).eval()
    assert [memory_of(one) for one in copy.parameters()] == [memory_of(one) for one in model.parameters()]
    assert copy.last.weight is copy.first.weight
    copy(torch.ones(2, 4)).sum().backward()
    copy.norm.running_mean.add_(1)
    assert model.training
    assert all(one.grad is None for one in model.parameters())
    assert not model.norm.running_mean.any()


def test_taken_apart_a_copy_keeps_its_values_and_ties() -> None:
    model = Tied()
    copy = on_same_parameters(model)
    take_apart(copy, model)
    assert copy.last.weight is copy.first.weight
    assert all(torch.equal(*pair) for pair in zip(copy.parameters(), model.parameters(), strict=True))
    assert not {memory_of(one) for one in copy.parameters()} & {memory_of(one) for one in model.parameters()}


def test_a_loaded_model_shares_no_memory_with_the_dense_module_it_was_made_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    x, y = torch.randn(40, 8), torch.arange(40) % 2
    quantized = quantize.Dynamic(exclude=("3",))(dense, Task(train=(x, y), test=(x, y)), Run(tmp_path))
    with torch.no_grad():
        quantized[3].weight.fill_(1.0)
    save(quantized, tmp_path / "saved")
    loaded = load(dense, tmp_path / "saved")
    assert torch.equal(loaded[3].weight, torch.ones(2, 8))
    assert torch.equal(loaded(x), quantized(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
