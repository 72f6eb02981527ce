"""Structured optimal brain surgery: its damages are those that least squares attains, unit by unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle.graph import AxisGroup, groups_of, propagated, traced
from mirabelle.prune.structured_obs import Removal, structured_obs


class Branched(nn.Module):
    """Seven units that two layers read, one of them a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 7, 1)
        self.wide, self.narrow = nn.Conv2d(7, 4, 3, padding=1, bias=False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).tanh()
        return self.wide(x), self.narrow(x.movedim(1, 3))


def removals(model: nn.Module, x: Tensor, **settings: float) -> tuple[list[AxisGroup], list[Removal | None]]:
    program = traced(model, (x[:3],))
    flow = propagated(program)
    groups = groups_of(program, flow)
    return groups, structured_obs(model, program, flow, groups, [x], **settings)


def shares(read: Tensor, due: Tensor, kept: list[int]) -> float:
    """What is missed of the outputs when they are fitted to the kept units, (rows, units, columns)."""
    x = read[:, kept].flatten(1)
    return float((due - x @ torch.linalg.lstsq(x, due).solution).square().sum() / due.square().sum())


def test_damage_is_what_the_best_weights_of_all_readers_miss() -> None:
    torch.manual_seed(0)
    model, x = Branched().double(), torch.randn(40, 2, 5, 6).double()
    (group,), (removal,) = removals(model, x, ridge=1e-9)
    assert removal.readers == ("wide", "narrow")
    assert sorted(removal.order) == sorted(group.units)
    assert removal.damage[0] == 0
    assert (np.diff(removal.damage) >= 0).all()
    assert removal.damage[-1] == pytest.approx(2.0, abs=1e-6), "all of what both give is lost"
    with torch.no_grad():
        inner = model.first(x).tanh()
        patches = nn.functional.unfold(inner, 3, padding=1).transpose(1, 2).reshape(-1, 7, 9)
        wide = model.wide(inner).flatten(2).transpose(1, 2).reshape(-1, 4)
        tokens = inner.movedim(1, 3).reshape(-1, 7, 1)
        tokens, narrow = tokens - tokens.mean(0), model.narrow(inner.movedim(1, 3)).reshape(-1, 3)
    narrow = narrow - narrow.mean(0)
    place = {unit: k for k, unit in enumerate(group.units.tolist())}
    order = [place[unit] for unit in removal.order.tolist()]
    for gone in range(7):
        kept = sorted(order[gone:])
        expected = [shares(patches, wide, [*kept[:k], *kept[k + 1 :]]) + shares(tokens, narrow, [*kept[:k], *kept[k + 1 :]])
                    for k in range(len(kept))]  # fmt: skip
        assert kept[int(np.argmin(expected))] == order[gone], "the one that hurts least"
        assert removal.damage[gone + 1] == pytest.approx(min(expected), abs=1e-6)


def test_channels_behind_a_flatten_and_groups_without_a_reader() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2))
    with torch.no_grad():
        model[3].weight[:, 12:24] = 0.0
    groups, (removal,) = removals(model, torch.randn(50, 1, 5, 6))
    assert removal.order[0] == groups[0].units[1], "nothing reads its twelve places"
    assert removal.damage[1] < 1e-9

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    groups, found = removals(Attention(), torch.randn(30, 5, 8))
    read = {len(group): removal.readers if removal else None for group, removal in zip(groups, found, strict=True)}
    assert len(groups) == 3
    assert read[2] == ("out",), "heads"
    assert [removal is None for removal in found].count(True) == 1, "places that queries and keys compare"


def test_the_same_order_again_and_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Branched().train(), torch.randn(40, 2, 5, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (one,), (other,) = (removals(model, x)[1] for _ in range(2))
    assert one.order.tolist() == other.order.tolist()
    assert one.damage.tolist() == other.damage.tolist()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert model.training
