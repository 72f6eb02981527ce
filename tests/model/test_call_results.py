"""Results of function calls that pass through modules of their own: numbering, reloading, and refusal of other code."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirabelle.errors import UserError
from mirabelle.model import Architecture, Replacement, architecture_of, copied, replayed, with_call_results
from mirabelle.model.call_results import calls_of
from mirabelle.model.watch import watch


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.layer(x))
        inner += x
        return torch.cat([functional.relu(inner), x * x], 1)[:, :4]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Sigmoid(), Block())


INPUTS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
CALLS = ("relu", "add", "relu", "mul", "cat", "sigmoid", "relu", "add", "relu", "mul", "cat")


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


def test_calls_are_numbered_in_the_order_of_the_code_and_nothing_changes_at_first(model: nn.Module) -> None:
    assert calls_of(model, INPUTS) == CALLS
    with_modules = with_call_results(copied(model), CALLS, [1, 10])
    assert torch.equal(with_modules(INPUTS), model(INPUTS))
    assert (type(with_modules).__name__, len(with_modules), with_modules[-1] is with_modules[2]) == ("Sequential", 3, True)
    assert [name for name, _ in with_modules.call_results.named_children()] == ["add_1", "cat_10"]


def test_a_module_changes_the_result_that_the_code_goes_on_with(model: nn.Module) -> None:
    changed = with_call_results(copied(model), CALLS, [10])
    changed.call_results.cat_10 = Halved()
    assert torch.equal(changed(INPUTS), model(INPUTS) * 0.5)
    for again in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert torch.equal(again(INPUTS), changed(INPUTS))


def test_the_record_makes_the_same_model_again(model: nn.Module) -> None:
    changed = with_call_results(copied(model), CALLS, [0, 10])
    record = Architecture.from_data(architecture_of(changed).to_data())
    assert record == architecture_of(changed)
    again = replayed(model, record)
    assert again.state_dict().keys() == changed.state_dict().keys()
    assert torch.equal(again(INPUTS), model(INPUTS))


def test_code_that_calls_other_functions_is_refused(model: nn.Module) -> None:
    changed = with_call_results(copied(model), CALLS, [10])
    changed[1] = nn.ReLU()
    with pytest.raises(UserError, match=r'E140.*call 5 is of "relu"'):
        changed(INPUTS)
    changed[1] = nn.Identity()
    with pytest.raises(UserError, match="E140"):
        changed(INPUTS)


@pytest.mark.parametrize("numbers", [[3], "0", [True], None])
def test_a_damaged_record_is_refused(numbers: Any) -> None:
    data = {"schema": 2, "pruned": [], "edits": [{"edit": "model.CallResults", "calls": "add add", "numbers": numbers}]}
    with pytest.raises(UserError, match="E141"):
        Architecture.from_data(data)


class Doubling(Replacement):
    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.inner = dense

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.inner(x))


def test_calls_of_replacements_and_observers_do_not_count(model: nn.Module) -> None:
    changed = with_call_results(copied(model), CALLS, [10])
    changed[0].layer = Doubling(changed[0].layer)
    seen: list[Tensor] = []
    watch(changed, [INPUTS], {"0": changed[0]}, after=lambda run: seen.append(run.output + 1))  # type: ignore[operator]  # a tensor
    assert len(seen) == 1
    assert changed(INPUTS).shape == (3, 4)
