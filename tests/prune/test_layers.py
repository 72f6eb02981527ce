"""`prune.Layers`: residual layers that are really gone, chosen by what the loss says, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, compress, load, prune
from mirabelle.errors import UserError
from mirabelle.inspection.measure import multiply_accumulates
from mirabelle.prune import layer_plan
from mirabelle.runtime.latency import Ratio


class Block(nn.Module):
    """Two convolutions beside their input, which is added in place."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.norm(self.first(x)).relu())
        y += x
        return y.relu()


class Net(nn.Module):
    """A stem, two blocks, a convolution that keeps its shape without being residual, two more blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(Block(8, 8), Block(8, 12), nn.Conv2d(8, 8, 1), Block(8, 16), Block(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def kinds(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model.body]


def test_layers_that_do_nothing_go_first_and_the_model_computes_the_same(net: Net, images: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        for k in (1, 4):
            net.body[k].second.weight.zero_()
            net.body[k].second.bias.zero_()
    before = copy.deepcopy(net.state_dict())
    smaller = prune.Layers(sparsity=0.5)(net, images, Run(tmp_path))
    assert kinds(smaller) == ["Block", "Skipped", "Conv2d", "Block", "Skipped"]
    x = images.test.first(4).inputs
    with torch.no_grad():
        assert torch.equal(smaller.eval()(x), net.eval()(x))
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(name.startswith(("body.1.", "body.4.")) for name, _ in smaller.named_parameters())


def test_a_goal_drops_what_does_least_damage(net: Net, images: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        net.body[1].second.weight.zero_()
        net.body[1].second.bias.zero_()
    preview = prune.Layers(macs="75%").preview(net, images, Run(tmp_path))
    assert kinds(preview.model) == ["Block", "Skipped", "Conv2d", "Block", "Block"]
    macs = [multiply_accumulates(model, images.example()) for model in (net, preview.model)]
    assert macs[1] <= 0.75 * macs[0]
    assert preview.description[0] == "1 of 4 residual layers are dropped"
    assert preview.description[2].startswith("body.1: dropped (the loss rises by 0 ")


@pytest.mark.slow
def test_a_run_cuts_layers_then_channels_and_loads_again(net: Net, images: Task, tmp_path: Path) -> None:
    train = Training(epochs=1, batch_size=20, lr=0.01, precision="float32")
    steps = [prune.Layers(parameters="70%", train=train), prune.Channels(sparsity=0.5, recover="least-squares")]
    result = compress(net, images, steps, out=tmp_path / "run", baseline=train)
    assert all(gate.passed for gate in result.gates.values())
    assert result.profile.parameters < 0.5 * result.start.parameters
    again = load(Net, tmp_path / "run")
    assert kinds(again) == kinds(result.model)
    x = images.test.first(5).inputs
    assert torch.equal(again(x), result.model.eval()(x))


def test_layers_of_a_transformer_are_found_whatever_they_give_back(images: Task, tmp_path: Path) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
            read = self.norm(hidden)
            hidden = hidden + self.attention(read, read, read, attn_mask=mask, need_weights=False)[0]
            return hidden + self.mlp(hidden), None

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(Layer() for _ in range(4)), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = x[:, 0]
            for layer in self.layers:
                hidden, _ = layer(hidden=hidden, mask=None)
            return self.head(hidden.mean(1))

    torch.manual_seed(0)
    smaller = prune.Layers(sparsity=0.5)(Encoder(), images, Run(tmp_path))
    assert sum(type(layer).__name__ == "Skipped" for layer in smaller.layers) == 2
    assert smaller(images.test.first(3).inputs).shape == (3, 3)


def test_a_layer_that_runs_twice_stays(images: Task, tmp_path: Path) -> None:
    class Shared(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.body[0](self.stem(x).relu())).mean((2, 3)))

    torch.manual_seed(0)
    preview = prune.Layers(sparsity=0.9).preview(Shared(), images, Run(tmp_path))
    assert preview.description[0] == "2 of 3 residual layers are dropped"
    assert kinds(preview.model)[0] == "Block"


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        (prune.Layers(sparsity=0.5, exclude=("bodyy*",)), "E112", 'pattern "bodyy\\*" matches nothing'),
        (prune.Layers(sparsity=0.5, exclude=("body*",)), "E112", "no layer can be dropped: `exclude` leaves none"),
        (prune.Layers(macs="1%"), "E114", "macs of at most .* cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_told(
    net: Net, images: Task, tmp_path: Path, *, step: prune.Layers, code: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"{code}.*{words}"):
        step(net, images, Run(tmp_path))


def test_a_model_without_residual_layers_is_told(images: Task, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(UserError, match=r"E112.*no layer can be dropped: none of the model's modules adds its input"):
        prune.Layers(sparsity=0.5)(plain, images, Run(tmp_path))


class Watch:
    """A stopwatch for a runtime in which the block of 12 channels costs five times what any other does."""

    start_ms = 10.0

    def __init__(self, model: nn.Module, task: Task, batch: int) -> None:
        del model, task, batch

    def ratio(self, model: nn.Module) -> Ratio:
        saved = sum(5.0 if k == 1 else 1.0 for k, kind in enumerate(kinds(model)) if kind == "Skipped")
        return Ratio(median=1 - saved / 10, low=1 - saved / 10, high=1 - saved / 10)

    def __call__(self, model: nn.Module) -> float:
        return self.start_ms * self.ratio(model).high


def test_milliseconds_are_those_that_layers_of_a_size_save(
    net: Net, images: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By multiply-accumulates the block of 16 channels would go first."""
    monkeypatch.setattr(layer_plan, "Stopwatch", Watch)
    monkeypatch.setattr(layer_plan, "rises_of_loss", lambda *_: [1.0, 1.0, 1.0, 1.0])
    step = prune.Layers(latency="55%")
    assert kinds(step(net, images, Run(tmp_path / "run"))) == ["Block", "Skipped", "Conv2d", "Block", "Block"]
