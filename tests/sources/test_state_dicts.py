"""State dicts of torch as weights: on demand, as tensors alone, under other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.model.state import load_tensors
from mirabelle.recipe.file import read_recipe
from mirabelle.sources import load_weights
from mirabelle.sources.models.weights import StateDict

RECIPE = """
schema = 1
[model]
from = "./net.py:net"
weights = WEIGHTS
[task]
data = "digits"
[[step]]
use = "quantize.Dynamic"
"""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
"""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """As scripts for several devices saved it once: a prefix, beside other things, without the counters of norms."""
    state = {f"module.{name}": tensor for name, tensor in net().state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state, "epoch": 3, "best": 0.9}, tmp_path / "net.th")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.th"


def test_tensors_come_under_the_names_of_the_model(saved: Path) -> None:
    model = net()
    nn.init.zeros_(model[2].weight)
    load_weights(model, StateDict(pickle="net.th", prefixes={"module.": ""}), saved.parent)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), net().parameters(), strict=True))
    with pytest.raises(UserError, match=r"E140.*missing.*2\.weight.*extra module\."):
        load_weights(model, StateDict(pickle="net.th"), saved.parent)


def test_a_recipe_asks_for_a_pickle_by_its_name(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = saved.parent / "recipe.toml"
    recipe.write_text(RECIPE.replace("WEIGHTS", '{ pickle = "net.th", prefixes = { "module." = "" } }'))
    found = read_recipe(recipe)
    assert found.model.weights == StateDict(pickle=str(saved.resolve()), prefixes={"module.": ""})
    assert torch.equal(found.build_model()[2].weight, net()[2].weight)
    assert main.run(["run", str(recipe), "--out", str(saved.parent / "run")]) in (0, 3)
    capsys.readouterr()
    assert main.run(["check", str(saved.parent / "run" / "recipe.toml")]) == 0
    recipe.write_text(RECIPE.replace("WEIGHTS", '"net.th"'))
    assert main.run(["check", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert "is a pickle, which may contain code" in told
    assert 'weights = { pickle = "net.th" }' in told


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


def test_code_in_a_pickle_does_not_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    torch.save({"weight": Evil()}, saved)
    with pytest.raises(UserError, match=r"E143.*contains more than tensors"):
        load_weights(net(), StateDict(pickle="net.th"), saved.parent)
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"no archive", "net.th", "E14[13].*net.th"),
        ({"epoch": 3}, "net.th", "E141.*contains no state dict"),
        (b"", "net.safetensors", "E143.*is not a pickle"),
        (None, "other.th", "E130.*no weights at"),
    ],
)
def test_what_is_no_state_dict_is_told(content: Any, name: str, words: str, saved: Path) -> None:
    if isinstance(content, bytes):
        (saved.parent / name).write_bytes(content)
    elif content is not None:
        torch.save(content, saved.parent / name)
    with pytest.raises(UserError, match=words):
        load_weights(net(), StateDict(pickle=name), saved.parent)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (tied, {"1.weight": torch.zeros(3, 3)}, r"0\.weight and 1\.weight differ, the model has one tensor for both"),
        (tied, {"0.bias": torch.zeros(3, dtype=torch.int8)}, r"0\.bias is torch\.int8, the model has torch\.float32"),
        (tied, {"0.bias": torch.zeros(2)}, r"0\.bias is \(2,\), the model has \(3,\)"),
        (tied, {"2.bias": torch.zeros(2)}, r"extra 2\.bias"),
    ],
)
def test_weights_of_another_model_are_refused(make: Any, change: dict[str, Any], words: str) -> None:
    model = make()
    before = [tensor.clone() for tensor in model.parameters()]
    with pytest.raises(UserError, match=words):
        load_tensors(model, {**model.state_dict(), **change})
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    load_tensors(model, {**model.state_dict(), "1.weight": model[0].weight.clone()})  # equal values are no contradiction


def test_a_prefix_that_all_names_have_is_in_the_remedy() -> None:
    with pytest.raises(UserError, match=r'E140.*\n.*remove "module\."'):
        load_tensors(net(), {f"module.{name}": tensor for name, tensor in net().state_dict().items()})
