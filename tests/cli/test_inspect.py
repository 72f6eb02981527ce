"""`mirabelle inspect` as a person types it: groups, what is frozen, what each part is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mirabelle.cli.arguments import example_of
from mirabelle.errors import UserError

ZOO = "mirabelle.sources.zoo"
CUT = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = { epochs = 1, batch_size = 64, lr = 1e-2 }
[[step]]
use = "prune.Channels"
sparsity = 0.5
"""
NET = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(10, 6), nn.Linear(6, 3)
    def forward(self, words, mask):
        return self.out((self.table(words) * mask.unsqueeze(-1)).sum(1))

class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 10)
    def forward(self, inputs):
        flat = inputs.flatten(1)
        return self.inner(flat) if flat.sum() > 0 else self.inner(-flat)

def single():
    return nn.Linear(8, 3)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)


def test_groups_and_what_is_frozen_are_tables(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", f"{ZOO}:digits_cnn", "--input", "1x8x8", "--groups") == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert told == [
        ["group", "kind", "members", "units", "parameters/unit", "MACs/unit"],
        ["conv1.weight:0", "channels of a convolution", "conv1.weight:0, conv1.bias:0, conv2.weight:1", "32", "586", "37,440"],
        ["conv2.weight:0", "channels of a convolution", "conv2.weight:0, conv2.bias:0, fc1.weight:1", "64", "1,089", "19,232"],
        ["fc1.weight:0", "neurons of a layer", "fc1.weight:0, fc1.bias:0, fc2.weight:1", "50", "1,035", "1,034"],
        [],
        ["frozen", "elements", "why"],
        ["conv1.weight:2, conv1.weight:3, conv2.weight:2 and 1 more", "3 of 3", "kernel positions are never removed"],
        ["fc2.weight:0, fc2.bias:0", "10 of 10", "it is an output of the model"],
    ]
    assert call("inspect", f"{ZOO}:digits_cnn", "--data", "digits", "--groups", "-v") == 0
    assert "conv2.weight:2, conv2.weight:3  3 of 3" in capsys.readouterr().out


@pytest.mark.usefixtures("net")
def test_several_inputs_by_position_and_by_name(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for inputs in (("5:int64", "5"), ("mask=5", "words=5:int64")):
        options = [part for text in inputs for part in ("--input", text)]
        assert call("inspect", "./net.py:Words", *options, "--groups", "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
        assert call("inspect", "./net.py:Words", *options) == 0
        assert "18" in capsys.readouterr().out  # MACs of the last layer
    (group,) = told[0]["groups"]
    assert told[0]["groups"] == told[1]["groups"]
    assert group["members"] == ["table.weight:1", "out.weight:1"]
    assert (group["units"], group["parameters"], group["macs"]) == (6, 13, 3)
    assert told[0]["frozen"][0] == {
        "name": "table.weight", "dimension": 0, "elements": 10, "size": 10, "reasons": ["any row of the table may be looked up"]
    }  # fmt: skip


@pytest.mark.usefixtures("net")
def test_no_group_is_a_mistake_after_its_reasons(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no channel, neuron or head can be removed: it is an output of the model") as raised:
        call("inspect", "./net.py:single", "--input", "8", "--groups")
    assert raised.value.code == "E112"
    assert "weight:0, bias:0  3 of 3" in capsys.readouterr().out


def test_the_module_of_a_run_has_groups_and_brings_its_data(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(CUT)
    assert call("run", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--quiet") == 0
    capsys.readouterr()
    assert call("inspect", tmp_path / "run", "--groups", "--sensitivity", "--samples", "20", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(group["name"], group["units"]) for group in told["groups"]] == [("fc1.weight:0", 8)]
    assert {(curve["name"], curve["size"]) for curve in told["sensitivity"]["curves"]} == {
        ("fc1.weight:0", 8), ("fc1.weight", 8 * 64), ("fc2.weight", 80)
    }  # fmt: skip
    assert call("inspect", tmp_path / "run", "--input", "1x8x8", "--groups") == 0
    for wrong in (("--weights", "w.safetensors", "--groups"), ("--data", "digits")):
        with pytest.raises(UserError) as raised:
            call("inspect", tmp_path / "run", *wrong)
        assert raised.value.code == "E111"


@pytest.mark.usefixtures("net")
def test_sensitivity_is_a_table_and_a_document(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data", "digits", "--sensitivity", "--samples", "60")
    assert call("inspect", f"{ZOO}:digits_mlp", *options) == 0
    head, *lines, _, footer = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["part", "name", "kind", "units"]
    assert head.split()[-8:] == ["10%", "25%", "50%", "75%", "90%", "accuracy", "at", "50%"]
    assert {tuple(line.split()[:2]) for line in lines} == {
        ("group", "fc1.weight:0"), ("layer", "fc1.weight"), ("layer", "fc2.weight")
    }  # fmt: skip
    assert "loss on 60 validation samples" in footer
    assert call("inspect", f"{ZOO}:digits_mlp", *options, "--groups", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"groups", "frozen", "unknown", "sensitivity"}
    curves = told["sensitivity"]["curves"]
    assert [curve["name"] for curve in curves] == [line.split()[1] for line in lines]
    assert [f"{point['loss']:.4f}" for point in curves[0]["points"]] == lines[0].split()[-6:-1]


@pytest.mark.usefixtures("net")
def test_layers_alone_are_measured_where_nothing_can_be_traced(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", "digits", "--sensitivity", "--samples", "20")
    assert call("inspect", "./net.py:Decides", *options) == 0
    out, told = capsys.readouterr()
    assert out.splitlines()[1].split()[:2] == ["layer", "inner.weight"]
    assert "its control flow depends on values of tensors, at " in told.replace("\n", " ")
    assert "net.py:18" in told.replace("\n", "")
    with pytest.raises(UserError, match="cannot be traced"):
        call("inspect", "./net.py:Decides", *options, "--groups")


def test_inputs_are_read_as_they_are_written() -> None:
    assert example_of([]) is None
    batch = example_of(["3x4"])
    assert batch is not None
    assert batch.inputs.shape == (2, 3, 4)
    named = example_of(["ids=7:int64", "mask=7:bool"])
    assert named is not None
    assert {name: str(tensor.dtype) for name, tensor in named.inputs.items()} == {"ids": "torch.int64", "mask": "torch.bool"}
    for wrong, code in ((["8,8x8"], "E110"), (["8:integer"], "E110"), (["x=8", "8"], "E111"), (["x=8", "x=8"], "E111")):
        with pytest.raises(UserError) as raised:
            example_of(wrong)
        assert raised.value.code == code
