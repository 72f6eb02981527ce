"""Modules and tensors with several names are one thing through edits, files and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import artifact
from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, replace_module, replayed
from mirabelle.model.edits import Cut, Replace
from mirabelle.model.state import copied, load_tensors, tensors_of_module
from mirabelle.model.ties import Tie, all_names, tie
from mirabelle.prune.weight_masks import RemovedWeights, WeightMasks
from mirabelle.quantize.layers import TokenLayer
from mirabelle.records.patterns import selected
from mirabelle.records.schedules import Gradual
from mirabelle.scores import Magnitude


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


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("kept", torch.zeros(4))
        self.register_buffer("passing", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(torch.relu(self.a(x))) + self.kept + self.passing
        return found


def in_one_memory() -> TwoLayers:
    """The layers are tied by `.data`: two parameters, one memory."""
    model = TwoLayers()
    model.b.weight.data = model.a.weight.data
    model.passing.data = model.kept.data
    return model


def transposed() -> TwoLayers:
    """A tied autoencoder: the second weight is the first one's transpose, in its memory."""
    model = TwoLayers()
    model.b.weight = nn.Parameter(model.a.weight.detach().t())
    return model


def test_copies_keep_tensors_in_one_memory() -> None:
    model = in_one_memory()
    twin = copied(model)
    assert twin.a.weight is twin.b.weight  # trained once
    assert twin.a.weight.data_ptr() != model.a.weight.data_ptr()
    assert sorted(tensors_of_module(twin)) == ["a.bias", "a.weight", "b.bias", "kept"]
    assert twin.kept.data_ptr() == twin.passing.data_ptr()
    turned = copied(transposed())
    with torch.no_grad():
        turned.a.weight[0, 1] = 7.0
    assert turned.b.weight[1, 0] == 7.0
    assert turned.b.weight.requires_grad
    names = {names[0]: names[1:] for names in all_names(turned).values()}
    assert names == {"a.weight": ("b.weight",), "a.bias": (), "b.bias": (), "kept": (), "passing": ()}


@pytest.mark.parametrize("make", [in_one_memory, transposed])
def test_tensors_in_one_memory_are_saved_once_and_loaded_as_one(make: type[TwoLayers], tmp_path: Path) -> None:
    model = make().eval()
    artifact.save(model, tmp_path)
    assert "b.weight" not in tensors_of_module(model)
    loaded = artifact.load(make, tmp_path)
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), model(x))
    with torch.no_grad():
        loaded.a.weight.fill_(2.0)
    assert bool((loaded.b.weight == 2.0).all())


@pytest.mark.parametrize("make", [in_one_memory, transposed])
def test_values_that_differ_do_not_fit_one_tensor(make: type[TwoLayers]) -> None:
    model = make()
    before = tensors_of_module(copied(model))
    given = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_tensors(model, given)  # equal values under both names fit
    given["b.weight"][0, 1] += 1
    with pytest.raises(UserError, match=r"a.weight and b.weight differ, the model has one tensor for both"):
        load_tensors(model, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of_module(model).items())


def test_a_tie_is_recorded_and_replayed(tmp_path: Path) -> None:
    model = tie(TwoLayers().eval(), ["a.weight", "b.weight"])
    model = tie(model, ["a.bias", "kept"])  # a buffer becomes the parameter
    assert architecture_of(model).edits == (Tie(("a.weight", "b.weight")), Tie(("a.bias", "kept")))
    assert Architecture.from_data(architecture_of(model).to_data()) == architecture_of(model)
    artifact.save(model, tmp_path)
    loaded = artifact.load(TwoLayers, tmp_path)
    assert loaded.a.weight is loaded.b.weight
    assert loaded.a.bias is loaded.kept
    assert sorted(tensors_of_module(loaded)) == ["a.weight", "b.bias", "kept"]
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), model(x))


def test_ties_stay_ties_when_they_are_cut() -> None:
    model = tie(TwoLayers(), ["a.weight", "b.weight"])
    cut = Cut.of({"a.weight": {1: [0, 2]}}, {}).replay(model)
    assert cut.a.weight is cut.b.weight
    assert cut.b.weight.shape == (4, 2)


def test_a_parameter_may_become_a_buffer_and_wrong_ties_are_refused() -> None:
    model = tie(TwoLayers(), ["kept", "a.bias"])
    assert model.a.bias is model.kept
    assert "a.bias" not in dict(model.named_parameters())
    for names, said in ((("a.weight", "c.weight"), "does not have"), (("a.weight", "kept"), r"\(4, 4\)")):
        with pytest.raises(UserError, match=said) as caught:
            tie(TwoLayers(), names)
        assert caught.value.code == "E140"
    with pytest.raises(UserError, match="fewer than two"):
        Architecture.from_data({"schema": 2, "pruned": [], "edits": [{"edit": "model.Tie", "tensors": ["a"]}]})


def test_a_shared_parameter_is_selected_by_each_of_its_names() -> None:
    model = tie(TwoLayers(), ["a.weight", "b.weight"])
    for pattern in ("a.weight", "b.weight", "b"):
        assert "a.weight" in selected(model, (pattern,))
        assert "a.weight" not in selected(model, (), (pattern,), by_default=["a.weight", "a.bias", "b.bias", "kept"])
    masked = WeightMasks(RemovedWeights("sparsity", 0.5, Magnitude(), Gradual.named("constant"), include=("b.weight",)), model)
    masked.prune(model, 0.5)
    assert architecture_of(model).pruned == ("a.weight",)
    assert int((model.b.weight == 0).sum()) == 8
