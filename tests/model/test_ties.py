"""Modules and tensors with several names are one thing through edits, files and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import artifact
from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, replace_module, replayed
from mirabelle.model.edits import Replace
from mirabelle.model.state import tensors_of_module
from mirabelle.quantize.layers import TokenLayer


class TwoParents(nn.Module):
    """One layer under two parents, and in a list that torch does not know."""

    def __init__(self, *, shared: bool = True) -> None:
        super().__init__()
        layer = nn.Linear(6, 6)
        self.one = nn.Sequential(layer)
        self.other = nn.ModuleDict({"x": layer if shared else nn.Linear(6, 6)})
        self.listed = [{"layer": self.one[0]}]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.listed[0]["layer"](torch.relu(self.other["x"](torch.relu(self.one(x)))))
        return found


@pytest.mark.parametrize("name", ["one.0", "other.x"])
def test_a_shared_module_is_replaced_under_all_its_names(name: str, tmp_path: Path) -> None:
    model = TwoParents()
    model = replace_module(model, name, TokenLayer.quantized(model.get_submodule(name), 8)).eval()
    assert isinstance(model.one[0], TokenLayer)
    assert model.one[0] is model.other["x"] is model.listed[0]["layer"]
    assert architecture_of(model).edits == (Replace("one.0", "quantize.TokenLayer", {"weight_bits": 8}, ("other.x",)),)
    assert Architecture.from_data(architecture_of(model).to_data()) == architecture_of(model)
    assert sorted(tensors_of_module(model)) == ["one.0.bias", "one.0.codes", "one.0.scale"]
    artifact.save(model, tmp_path)
    loaded = artifact.load(TwoParents, tmp_path)
    assert loaded.one[0] is loaded.other["x"] is loaded.listed[0]["layer"]
    x = torch.randn(4, 6)
    assert torch.equal(model(x), loaded(x))


def test_a_record_of_one_module_does_not_fit_two() -> None:
    record = Architecture((Replace("one.0", "quantize.TokenLayer", {"weight_bits": 8}, ("other.x",)),))
    with pytest.raises(UserError, match=r'"one.0" and "other.x" are two modules') as caught:
        replayed(TwoParents(shared=False), record)
    assert caught.value.code == "E140"


def test_zeros_of_a_replaced_module_are_forgotten_under_each_of_its_names() -> None:
    edit = Replace("one.0", "quantize.TokenLayer", {}, ("other.x",))
    assert Architecture().with_pruned(["other.x.weight", "out.weight"]).with_edit(edit).pruned == ("out.weight",)
