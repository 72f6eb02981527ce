"""Attributes of modules are changed where they are widths, whatever else carries the same name or the same number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from proof import difference, half_of
from torch import nn

from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced
from mirabelle.model.architecture import architecture_of

NAMES = [
    "groups",
    "num_groups",
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "num_features",
    "normalized_shape",
    "hidden_size",
    "num_heads",
    "embed_dim",
    "embedding_dim",
    "weights",
    "running",
    "num_parameters",
]
VALUES = ("encoder", (2, 4), [1, 2], None, {"a": 24}, 0.5, True, nn.Identity(), nn.ModuleList([nn.Identity()]), torch.ones(3))


@torch.no_grad()
def cut_by_half(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """The model without half of the units of every group, compared with the masked program."""
    model.eval()
    program = traced(model, inputs)
    flow = propagated(program)
    groups = groups_of(program, flow)
    assert groups
    kept = kept_without(flow, half_of(groups))
    smaller = cut(model, program, flow, kept, (inputs, {})).eval()
    assert difference([smaller(*inputs)], run_masked(program, flow, kept, inputs)) < 1e-5
    return smaller


class Carrier(nn.Module):
    """Two layers, and attributes that mean nothing to them."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 24), nn.Linear(24, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_name_says_nothing_about_the_attribute_of_another_class(value: Any) -> None:
    smaller = cut_by_half(Carrier({name: copy.deepcopy(value) for name in NAMES}), torch.randn(2, 7))
    assert isinstance(smaller, Carrier)
    assert smaller.first.out_features == smaller.last.in_features == 12
    for name in NAMES:
        kept = getattr(smaller, name)
        assert torch.equal(kept, value) if isinstance(value, torch.Tensor) else type(kept) is type(value)


class Staged(nn.Module):
    """Stages called `groups`, as in some vision transformers, and called one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList([nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for group in self.groups:
            x = group(x)
        return x


def test_a_list_of_layers_may_be_called_groups() -> None:
    smaller = cut_by_half(Staged(), torch.randn(2, 7))
    assert isinstance(smaller, Staged)
    assert [smaller.groups[0].out_features, smaller.groups[2].in_features] == [12, 12]


class Reshaping(nn.Module):
    """`width` is read by the code; another number is equal to it by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.epochs = 12, 12
        self.conv, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12 * 25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().reshape(-1, self.width * 25))


def test_only_numbers_that_the_code_needs_as_widths_are_changed() -> None:
    smaller = cut_by_half(Reshaping(), torch.randn(2, 3, 7, 7))
    assert isinstance(smaller, Reshaping)
    assert (smaller.width, smaller.epochs) == (6, 12)
    (edit,) = architecture_of(smaller).edits
    assert edit.attributes[""] == {"width": 6}


class ManyLinear(nn.Linear):
    """One matrix for each of several branches, under the class and the attribute names of a single one."""

    def __init__(self, branches: int, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(torch.randn(branches, outputs, inputs))
        self.bias = nn.Parameter(torch.randn(branches, 1, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class ScaledLinear(nn.Linear):
    """Its weight is one vector."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias


class NamedLinear(nn.Linear):
    """`in_features` are names."""

    def __init__(self, names: list[str], outputs: int) -> None:
        super().__init__(len(names), outputs)
        self.in_features = names  # type: ignore[assignment]


@pytest.mark.parametrize(
    "middle",
    [
        nn.Sequential(nn.Unflatten(1, (1, 24)), ManyLinear(1, 24, 10), nn.Flatten()),
        ScaledLinear(24),
        NamedLinear(list("a" * 24), 10),
    ],
    ids=["matrices", "vector", "names"],
)
def test_a_class_that_gives_its_tensors_another_meaning_is_cut_by_its_program_or_its_own_code(middle: nn.Module) -> None:
    torch.manual_seed(0)
    width = 24 if isinstance(middle, ScaledLinear) else 10
    if isinstance(middle, nn.Sequential):  # one row of branches for the whole batch
        middle = nn.Sequential(nn.Unflatten(1, (1, 24)), Transposed(), middle[1], Transposed(), nn.Flatten())
    model = nn.Sequential(nn.Linear(7, 24), nn.Tanh(), middle, nn.Tanh(), nn.Linear(width, 3))
    smaller = cut_by_half(model, torch.randn(2, 7))
    assert smaller.state_dict()["0.weight"].shape == (12, 7)


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1)


class Shared(nn.Module):
    """One layer with several parents, as the relative positions of CoaT."""

    def __init__(self) -> None:
        super().__init__()
        common = nn.Linear(12, 12)
        self.enter = nn.Linear(7, 12)
        self.blocks = nn.ModuleList(Block(common, literal) for literal in (False, True))
        self.common = common
        self.leave = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(self.common(x))


class Block(nn.Module):
    def __init__(self, common: nn.Module, literal: bool) -> None:
        super().__init__()
        self.literal, self.common, self.own = literal, common, nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.common(x) + self.own(x))
        return x.reshape(-1, 12) if self.literal else x


@pytest.mark.parametrize("literal", [False, True])
def test_a_module_with_several_parents_is_cut_once(literal: bool) -> None:
    model = Shared()
    for block in model.blocks:
        block.literal = literal
    smaller = cut_by_half(model, torch.randn(2, 7))
    assert isinstance(smaller, Rewritten) == literal
    assert {name: value.shape for name, value in smaller.state_dict().items()}.keys() == model.state_dict().keys()
    assert sum(p.numel() for p in smaller.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


class Crossed(nn.Module):
    """Three parents of two shared layers, so that the order of all names is not that of first names."""

    def __init__(self) -> None:
        super().__init__()
        one, other = nn.Linear(7, 12), nn.Linear(12, 12)
        self.a, self.b, self.c = nn.ModuleDict({"s": one}), nn.ModuleDict({"t": other}), nn.ModuleDict({"s": one, "t": other})
        self.leave = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b["t"](torch.tanh(self.a["s"](x)))
        return self.leave(self.c["t"](x.reshape(-1, 12)))


def test_a_rewritten_program_has_the_first_names_of_the_model() -> None:
    model = Crossed()
    smaller = cut_by_half(model, torch.randn(2, 7))
    assert isinstance(smaller, Rewritten)
    assert [name for name, _ in smaller.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert list(smaller.state_dict()) == list(model.state_dict())


class RepeatsWhenExported(nn.Module):
    """Grouped queries: fused attention repeats keys by itself; an export repeats them by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.query, self.key = nn.Linear(7, 24), nn.Linear(24, 24), nn.Linear(24, 12)
        self.leave, self.head, self.repeats = nn.Linear(24, 24), nn.Linear(24, 3), 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key = (layer(x).unflatten(-1, (-1, 6)).transpose(1, 2) for layer in (self.query, self.key))
        if torch.compiler.is_exporting():
            batch, heads, length, depth = key.shape
            key = key[:, :, None].expand(batch, heads, self.repeats, length, depth).reshape(batch, -1, length, depth)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=not torch.compiler.is_exporting())
        return self.head(self.leave(out.transpose(1, 2).flatten(2)))


def test_an_attribute_that_only_an_export_reads_is_changed_too() -> None:
    model, x = RepeatsWhenExported(), torch.randn(2, 5, 7)
    program = traced(model.eval(), (x,))
    flow = propagated(program)
    groups = [group for group in groups_of(program, flow) if len(group) == 2]
    assert len(groups) == 2, "heads of keys, and the queries of each"
    kept = kept_without(flow, half_of(groups))
    smaller = cut(model, program, flow, kept, ((x,), {})).eval()
    assert isinstance(smaller, RepeatsWhenExported)
    assert smaller.repeats == 1
    with torch.no_grad():
        exported = torch.export.export(smaller, (x,), strict=False).module()
        assert difference([exported(x)], [smaller(x)]) < 1e-5
        assert difference([smaller(x)], run_masked(program, flow, kept, [x])) < 1e-5
