from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, attach, replaced_module_names, replayed
from mirabelle.model.edits import Replace
from mirabelle.model.state import fingerprint, load_tensors, tensors_of_module


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


def test_tied_tensors_are_kept_once_and_stay_tied() -> None:
    one, other = Tied(), Tied()
    tensors = tensors_of_module(one)
    assert list(tensors) == ["embed.weight"]
    load_tensors(other, tensors)
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, one.embed.weight)


def test_loading_keeps_the_memory_layout() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strides = model.weight.stride()
    load_tensors(model, {name: tensor.contiguous() for name, tensor in nn.Conv2d(3, 4, 3).state_dict().items()})
    assert model.weight.stride() == strides


def test_weights_that_do_not_fit_are_named_and_nothing_is_copied(mlp: nn.Sequential) -> None:
    before = fingerprint(mlp)
    tensors = {**mlp.state_dict(), "0.weight": torch.zeros(2, 2), "more": torch.zeros(1)}
    del tensors["2.bias"]
    with pytest.raises(UserError, match=r"missing 2.bias; extra more; 0.weight is \(2, 2\), the model has \(16, 8\)"):
        load_tensors(mlp, tensors)
    assert fingerprint(mlp) == before


def test_a_fingerprint_sees_one_changed_value(mlp: nn.Sequential) -> None:
    other = copy.deepcopy(mlp)
    assert fingerprint(mlp) == fingerprint(other)
    with torch.no_grad():
        other[2].bias[0] += 1e-6
    assert fingerprint(mlp) != fingerprint(other)


def test_the_record_travels_with_the_model_and_comes_back_from_data(mlp: nn.Sequential) -> None:
    attach(mlp, Architecture().with_pruned(["2.weight", "0.weight"]))
    twin = copy.deepcopy(mlp)
    assert architecture_of(twin).pruned == ("0.weight", "2.weight")
    assert Architecture.from_data(architecture_of(twin).to_data()) == architecture_of(twin)


def test_replaying_makes_the_replacements_on_a_fresh_module(mlp: nn.Sequential) -> None:
    replaced = Replace("0", "quantize.DynamicLayer", {"weight_bits": 8})
    record = Architecture().with_pruned(["0.weight"]).with_edit(replaced)
    model = replayed(mlp, record)
    assert type(model[0]).__name__ == "DynamicLayer"
    assert type(mlp[0]) is nn.Linear
    assert architecture_of(model).pruned == ()  # the tensor is gone with its module
    assert replaced_module_names(model) == ["0"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "E141"),
        ({"schema": "1"}, "E141"),
        ({"schema": 99, "pruned": [], "modules": {}}, "E142"),
        ({"schema": 1, "pruned": 3, "modules": {}}, "E141"),
        ({"schema": 1, "pruned": [], "modules": {"0": {"use": "os.system"}}}, "E141"),
        ({"schema": 1, "pruned": [], "modules": {"0": {"use": "quantize.Static"}}}, "E141"),
        ({"schema": 1, "pruned": [], "modules": {"0": {"use": "quantize.Nothing"}}}, "E106"),
        ({"schema": 1, "pruned": [], "modules": {"9": {"use": "quantize.StaticLayer", "weight_bits": 8}}}, "E140"),
        ({"schema": 1, "pruned": [], "modules": {"0": {"use": "quantize.StaticLayer", "oops": 8}}}, "E141"),
        ({"schema": 1, "pruned": [], "modules": {"1": {"use": "quantize.StaticLayer", "weight_bits": 8}}}, "E140"),
    ],
)
def test_a_record_that_cannot_be_is_refused(mlp: nn.Sequential, data: object, code: str) -> None:
    with pytest.raises(UserError) as caught:
        replayed(mlp, Architecture.from_data(data))
    assert caught.value.code == code
