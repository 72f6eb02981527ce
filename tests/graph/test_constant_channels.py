"""A channel that is the same for every input can be cut without a change: its constant goes to the layers that read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirabelle.graph.constant_channels import ConstantsCut, constants_cut
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced

GONE = [1, 2, 5]


def without(model: nn.Module, x: Tensor, name: str, gone: list[int] = GONE) -> tuple[nn.Module, ConstantsCut]:
    """The model without some units of the group of a tensor, and what was said of their constants."""
    example = ((x,), {})
    program = traced(model, *example)
    flow = propagated(program)
    group = next(own for own in groups_of(program, flow) if any(member.name == name for member in own.members))
    kept = kept_without(flow, group.units[np.array(gone)])
    smaller = cut(model, program, flow, kept, example)
    constants = constants_cut(program, flow, kept, example)
    constants.give_to(smaller, program, flow, kept)
    return smaller.eval(), constants


def silent(norm: nn.Module, gone: list[int] = GONE) -> nn.Module:
    """A normalization whose given channels are constant and large."""
    with torch.no_grad():
        norm.weight[gone] = 0.0
        norm.bias.copy_(torch.linspace(-3, 5, len(norm.bias)))
    return norm


class Residual(nn.Module):
    """The sum of two branches, both constant in the same channels, read by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one, self.other = nn.Conv2d(2, 8, 3), silent(nn.BatchNorm2d(8)), silent(nn.BatchNorm2d(8))
        self.left, self.right = nn.Conv2d(8, 3, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = F.gelu(self.one(x) + self.other(x.sigmoid()))
        return self.left(x).mean((2, 3)) + self.right(x).amax((2, 3))


class Joined(nn.Module):
    """A concatenation of the channels with those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.beside = nn.Conv2d(2, 8, 1), silent(nn.BatchNorm2d(8)), nn.Conv2d(2, 5, 1)
        self.leave = nn.Conv2d(13, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.beside(x), self.norm(self.enter(x)).relu()], 1)
        return self.leave(F.max_pool2d(joined, 2)).flatten(1)


class Attending(nn.Module):
    """Attention whose values are constant in some positions of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.leave = (nn.Linear(8, 8) for _ in range(4))
        with torch.no_grad():
            self.value.weight[GONE] = 0.0
            self.value.bias.copy_(torch.linspace(-3, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))


def dead(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight[GONE] = 0.0
        layer.bias.copy_(torch.linspace(-1, 3, 8))
    return layer


def grouped() -> nn.GroupNorm:
    norm = nn.GroupNorm(4, 8)
    return silent(norm, [2, 3, 4, 5])


BEGIN = partial(nn.Conv2d, 2, 8, 3)
MAPS, ROWS, TOKENS = (3, 2, 9, 9), (5, 4), (3, 6, 8)
EXACT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, list[int]]] = {
    "batch norm": (
        lambda: nn.Sequential(BEGIN(), silent(nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 3, 3)), MAPS, "0.weight", GONE
    ),
    "a reader without a bias": (
        lambda: nn.Sequential(
            BEGIN(bias=False), silent(nn.BatchNorm2d(8)), nn.SiLU(), nn.Conv2d(8, 3, 3, bias=False), nn.BatchNorm2d(3)
        ), MAPS, "0.weight", GONE,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3), silent(nn.BatchNorm2d(8)), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1)
        ), MAPS, "0.weight", GONE,
    ),
    "depthwise with padding, then a mean": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3), silent(nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        ), MAPS, "0.weight", GONE,
    ),
    "flattened": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, stride=3), silent(nn.BatchNorm2d(8)), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
        ), MAPS, "0.weight", GONE,
    ),
    "residual": (Residual, MAPS, "enter.weight", GONE),
    "concatenation": (Joined, MAPS, "enter.weight", GONE),
    "rows of zeros": (lambda: nn.Sequential(dead(nn.Linear(4, 8)), nn.GELU(), nn.Linear(8, 3)), ROWS, "0.weight", GONE),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), grouped(), nn.ReLU(), nn.Conv2d(8, 3, 3)), MAPS, "0.weight", [1, 2]
    ),
    "attention": (Attending, TOKENS, "value.weight", GONE),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_a_cut_of_constant_channels_changes_nothing(case: str) -> None:
    make, shape, name, gone = EXACT[case]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    smaller, constants = without(model, x, name, gone)
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, model.parameters()))
    assert list(constants.sentences()) == []
    other = torch.randn(shape, dtype=torch.float64) * 3
    with torch.no_grad():
        expected, actual = model(other), smaller(other)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-9


def test_a_bias_worked_out_by_hand() -> None:
    """Channel 1 is relu(2) = 2 everywhere; a kernel of 1.5 and one of −1 add 3 and −2 to the biases 10 and 20."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 2.0]))
        model[2].weight.copy_(torch.tensor([[4.0, 1.5], [5.0, -1.0]]))
        model[2].bias.copy_(torch.tensor([10.0, 20.0]))
    smaller, _ = without(model, torch.tensor([[1.0], [2.0], [-1.0]]), "0.weight", [1])
    assert smaller[2].bias.tolist() == [13.0, 18.0]


def test_a_factor_that_is_tiny_beside_its_offset_counts_as_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), silent(nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    with torch.no_grad():
        model[1].weight[GONE] = 1e-8
    x = torch.randn(MAPS)
    smaller, _ = without(model, x, "0.weight")
    with torch.no_grad():
        assert float((smaller(x) - model(x)).abs().max() / model(x).abs().max()) < 1e-5


def test_the_constant_of_a_layer_norm_goes_to_the_bias_though_statistics_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), silent(nn.LayerNorm(8)), nn.Linear(8, 3)).eval()
    smaller, _ = without(model, torch.randn(ROWS), "0.weight")
    expected = model[2].bias + model[2].weight[:, GONE] @ model[1].bias[GONE]
    assert torch.allclose(smaller[2].bias, expected, atol=1e-6)


def test_a_padding_hides_part_of_the_constant_and_it_is_told() -> None:
    """All ones, a kernel of 3 × 3, a map of 3 × 3: the center sees 9, four sides 6, four corners 4; the mean is 49 / 9."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3, padding=1)).eval()
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = 0.0, 1.0
        model[2].weight.fill_(1.0)
        model[2].bias.fill_(0.0)
    smaller, constants = without(model, torch.randn(2, 1, 3, 3), "0.weight", [1])
    assert smaller[2].bias.item() == pytest.approx(49 / 9)
    (sentence,) = constants.sentences()
    assert sentence.startswith("2 reads channels that are constant")
    assert "40% between positions" in sentence  # (9 − 49 / 9) / 9


def test_a_constant_that_no_bias_can_take_is_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(dead(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3, bias=False))
    _, constants = without(model, torch.randn(ROWS), "0.weight")
    (sentence,) = constants.sentences()
    assert sentence.startswith("2 reads channels that are constant and cut; their constant is lost: it has no bias of its own")


def test_a_bias_that_several_layers_share_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.twice = dead(nn.Linear(8, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.enter(x).relu()) + self.twice(x)

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(5, 8)
    with torch.no_grad():
        program = traced(model, (x,))
        flow = propagated(program)
        found = constants_cut(program, flow, kept_without(flow, np.arange(1, flow.units.count)), ((x,), {}))
    assert "twice.bias" not in found.added


def test_what_varies_is_not_taken_for_a_constant() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    smaller, constants = without(model, torch.randn(ROWS), "0.weight", [3, 4])
    assert constants.added == {}
    assert torch.equal(smaller[2].bias, model[2].bias)
