"""What a model computes from its weights and keeps outside of its state dict is saved with a rewritten program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, Training, compress, load, prune
from mirabelle.artifact.folder import save
from mirabelle.errors import UserError
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewrite import Rewrite
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import with_other_weights

SIDE = 5


class Attending(nn.Module):
    """Four heads of six, written down; biases of attention by distance from a table, which evaluation looks up once."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.kept = place, {}
        self.query, self.key, self.value, self.leave = (nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 5))
        self.biases = nn.Parameter(torch.randn(4, SIDE))
        self.register_buffer("index", (torch.arange(SIDE)[:, None] - torch.arange(SIDE)).abs(), persistent=False)
        if place == "buffer":
            self.register_buffer("table", torch.zeros(4, SIDE, SIDE), persistent=False)

    @torch.no_grad()
    def train(self, mode: bool = True) -> Attending:
        super().train(mode)
        looked_up = None if mode else self.biases[:, self.index]
        if self.place == "dict":
            self.kept["table"] = looked_up
        elif self.place == "attribute" or looked_up is not None:
            self.table = looked_up
        return self

    def looked_up(self) -> Tensor:
        if self.training:
            return self.biases[:, self.index]
        return self.kept["table"] if self.place == "dict" else self.table

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], SIDE, 4, 6).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-1, -2) + self.looked_up()).softmax(-1)
        return self.leave((weights @ value).transpose(1, 2).flatten(2)).mean(1)


class FirstCall(nn.Module):
    """Keeps what its first call computes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.scale, self.leave = nn.Linear(8, 12), nn.Parameter(torch.rand(12)), nn.Linear(12, 5)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None and not torch.compiler.is_compiling():
            self.kept = self.scale.detach() ** 2
        scale = self.scale**2 if self.kept is None else self.kept
        return self.leave((self.enter(x).view(-1, 12)).relu()).view(-1, SIDE, 5).mean(1) + scale.sum()


def cut_by_half(model: nn.Module, x: Tensor) -> nn.Module:
    program = traced(model, (x,))
    flow = propagated(program)
    gone = np.concatenate([group.units[: len(group) // 2] for group in groups_of(program, flow)])
    return cut(model, program, flow, kept_without(flow, gone), ((x,), {})).eval()


def made(place: str, seed: int) -> Attending:
    torch.manual_seed(seed)
    return Attending(place).eval()


@pytest.mark.parametrize("place", ["attribute", "dict", "buffer"])
def test_a_program_is_loaded_into_a_model_that_was_made_anew(place: str, tmp_path: Path) -> None:
    x = torch.randn(3, SIDE, 8)
    smaller = cut_by_half(made(place, 0), x)
    assert isinstance(smaller, Rewritten)
    save(smaller, tmp_path)
    loaded = load(made(place, 1), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), smaller(x))
        assert not torch.equal(made(place, 1)(x), made(place, 0)(x))


@pytest.mark.slow
def test_a_run_with_a_training_is_loaded_into_a_model_that_was_made_anew(tmp_path: Path) -> None:
    x = torch.randn(40, SIDE, 8)
    task = Task(train=(x, torch.arange(40) % 5), test=(x, torch.arange(40) % 5))
    step = prune.Channels(sparsity=0.5, train=Training(steps=2))
    result = compress(made("attribute", 0), task, [step], out=tmp_path / "run")
    assert result.gates["saved_loaded"].passed
    loaded = load(made("attribute", 1), tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model.eval()(x))
    assert result.profile.parameters == sum(map(torch.numel, result.model.parameters())), "what is looked up is no parameter"


def test_the_edit_names_what_it_saves() -> None:
    edit = architecture_of(cut_by_half(made("attribute", 0), torch.randn(3, SIDE, 8))).edits[-1]
    assert isinstance(edit, Rewrite)
    assert edit.unsaved == ("table",)
    assert Rewrite.from_data(edit.to_data()) == edit
    with pytest.raises(UserError, match="E14"):
        Rewrite.from_data({**edit.to_data(), "unsaved": [1]})


def test_a_cache_that_a_model_made_anew_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    model, x = FirstCall().eval(), torch.randn(3, SIDE, 8)
    model(x)
    smaller = cut_by_half(model, x)
    assert isinstance(smaller, Rewritten)
    save(smaller, tmp_path)
    with pytest.raises(UserError, match=r'E140.*the program reads "kept", which an attribute of the model held'):
        load(FirstCall, tmp_path)
    other = FirstCall().eval()
    other(x)
    with torch.no_grad():
        assert torch.equal(load(other, tmp_path)(x), smaller(x))


def test_constants_that_the_code_writes_are_not_saved() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.enter(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])

    assert traced(Written(), (torch.randn(2, 3),)).unsaved == ()


def test_a_copy_with_other_weights_shares_no_value() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other = with_other_weights(model).state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert not (tensor == other[name]).any()
