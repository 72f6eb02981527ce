"""What named layers gave is kept: the right tensors, with gradients, and nothing is left on the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.taps import Taps, features_of
from mirabelle.task.batch import Batch


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        weights = (self.score(x) @ x.transpose(1, 2)).softmax(-1)
        return weights @ x, None, weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attending, self.again, self.head = Attending(), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _, _ = self.attending(self.again(x))
        out: Tensor = self.head(self.again(x).mean(1))
        return out


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_taps_keep_what_layers_gave_with_its_gradient(x: Tensor) -> None:
    net = Net()
    with Taps(net, ["attending", "attending[1]", "again", "head:input"]) as taps:
        outputs = net(x)
        found = taps.taken()
        assert torch.equal(net.head(found["again"].mean(1)), outputs), "of two runs the last counts"
        assert torch.equal(torch.tanh(found["attending"]), found["again"])
        assert torch.equal(found["head:input"], found["again"].mean(1))
        assert torch.allclose(found["attending[1]"].sum(-1), torch.ones(3, 5))
        found["attending"].sum().backward()
        assert net.attending.score.weight.grad is not None
        with pytest.raises(UserError, match=r'E112.*"attending" returned no tensor'):
            taps.taken()
    assert not any(module._forward_hooks for module in net.modules())


def test_every_layer_is_seen_in_the_order_in_which_it_is_done(x: Tensor) -> None:
    net = Net().train()
    found = features_of(net, Batch(x, torch.zeros(3)))
    assert list(found) == ["attending.score", "attending", "attending[1]", "again", "head", ""]
    assert found["head"].shape == (3, 2)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_what_a_later_layer_changes_in_place_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    with Taps(net, ["0"]) as taps:
        net(torch.randn(2, 4))
        with pytest.raises(UserError, match=r'E111.*output of layer "0" is changed in place'):
            taps.taken()


@pytest.mark.parametrize(("name", "words"), [("heed", 'no layer "heed".*head'), ("attending.unused", "returned no tensor")])
def test_layers_that_are_not_there_are_named(name: str, words: str, x: Tensor) -> None:
    net = Net()

    def taken() -> dict[str, Tensor]:
        with Taps(net, [name]) as taps:
            net(x)
            return taps.taken()

    with pytest.raises(UserError, match=f"(?s)E112.*{words}"):
        taken()
