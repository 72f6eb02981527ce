"""`prune.Channels`: smaller layers, chosen by score, saved and loaded, and one line for what cannot be done."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, compress, load, prune, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import multiply_accumulates
from mirabelle.model.architecture import architecture_of


class Net(nn.Module):
    """A residual block between a stem and a head; the stem's channels go together with the block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(20, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_units_of_lowest_score_go_and_what_reads_them_follows(net: Net, images: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        net.inner.weight[[1, 4, 5, 17]] *= 0.01
        net.outer.weight[:, [1, 4, 5, 17]] *= 0.01
    before = copy.deepcopy(net.state_dict())
    smaller = prune.Channels(sparsity=0.2, exclude=("stem",))(net, images, Run(tmp_path))
    kept = [k for k in range(20) if k not in (1, 4, 5, 17)]
    assert torch.equal(smaller.inner.weight, net.inner.weight[kept])
    assert torch.equal(smaller.outer.weight, net.outer.weight[:, kept])
    assert (smaller.inner.out_channels, smaller.outer.in_channels) == (16, 16)
    assert smaller.stem.weight.shape == net.stem.weight.shape
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    x = images.test.first(4).inputs
    with torch.no_grad():
        assert (smaller.eval()(x) - net.eval()(x)).abs().max() < 0.01, "what went had hardly a part in the outputs"


@pytest.mark.parametrize(
    ("widths", "kept"), [({"inner.weight": 7}, (12, 7)), ({"stem": 5, "inner.weight:0": 20}, (5, 20)), ({"*": 3}, (3, 3))]
)
def test_widths_are_given_by_name(
    widths: dict[str, int], kept: tuple[int, int], net: Net, images: Task, tmp_path: Path
) -> None:
    smaller = prune.Channels(widths=widths)(net, images, Run(tmp_path))
    assert (smaller.stem.out_channels, smaller.inner.out_channels) == kept
    order = net.inner.weight.detach().square().sum((1, 2, 3)) + net.outer.weight.detach().square().sum((0, 2, 3))
    if kept[0] == 12:
        assert torch.equal(smaller.inner.weight, net.inner.weight[order.topk(7).indices.sort().values])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"widths": {"inner.weight": 21}}, "E110.*has 20 units; asked are 21"),
        ({"widths": {"outer": 5}}, 'E112.*"outer" matches nothing'),
        ({"widths": {"inner.weight": 5, "inner.*": 6}}, r"E111.*several widths: inner.weight = 5, inner.\* = 6"),
        ({"widths": {}}, "E111.*widths without names"),
        ({"widths": {"inner.weight": 5}, "macs": "50%"}, "E111.*widths and macs"),
        ({"widths": {"inner.weight": 0}}, "E110.*a table, each value a whole number from 1"),
    ],
)
def test_widths_that_cannot_be(settings: dict[str, Any], told: str, net: Net, images: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        prune.Channels(**settings)(net, images, Run(tmp_path))


def test_only_the_groups_that_are_meant_are_cut(net: Net, images: Task, tmp_path: Path) -> None:
    smaller = prune.Channels(sparsity=0.5, include=("inner.*",))(net, images, Run(tmp_path))
    assert (smaller.stem.out_channels, smaller.inner.out_channels) == (12, 10)
    with pytest.raises(UserError, match=r'E112.*pattern "head.\*" matches nothing'):
        prune.Channels(sparsity=0.5, include=("head.*",))(net, images, Run(tmp_path))


def test_what_is_left_is_a_multiple_and_no_less_than_the_minimum(net: Net, images: Task, tmp_path: Path) -> None:
    smaller = prune.Channels(sparsity=0.6, multiple=8)(net, images, Run(tmp_path))
    assert (smaller.stem.out_channels, smaller.inner.out_channels) == (8, 8)
    smaller = prune.Channels(sparsity=0.9, minimum=3)(net, images, Run(tmp_path))
    assert (smaller.stem.out_channels, smaller.inner.out_channels) == (3, 3)
    smaller = prune.Channels(sparsity=0.99, multiple=64)(net, images, Run(tmp_path))
    assert (smaller.stem.out_channels, smaller.inner.out_channels) == (12, 20), "no group is wider than it was"


def test_ranked_together_the_weaker_group_loses_more(net: Net, images: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        net.inner.weight[:15] *= 0.01
        net.outer.weight[:, :15] *= 0.01
    smaller = prune.Channels(sparsity=0.46, scope="global")(net, images, Run(tmp_path))
    assert smaller.inner.out_channels == 6
    assert smaller.stem.out_channels == 12


def test_layers_of_a_stacked_lstm_keep_equally_many(images: Task, tmp_path: Path) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 10, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(20, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x[:, 0])[0][:, -1])

    torch.manual_seed(0)
    model = Stacked()
    with torch.no_grad():
        model.rnn.weight_hh_l1 *= 3.0
    for step in (prune.Channels(sparsity=0.5), prune.Channels(sparsity=0.5, scope="global")):
        smaller = step(model, images, Run(tmp_path))
        assert smaller.rnn.hidden_size == smaller.rnn.weight_hh_l1.shape[1] == smaller.rnn.weight_hh_l0_reverse.shape[1] < 10
        assert smaller(images.test.first(3).inputs).shape == (3, 3)


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize(("name", "share"), [("macs", 0.5), ("parameters", 0.4), ("size", 0.4)])
def test_a_goal_is_reached_and_little_more_is_taken(
    net: Net, images: Task, tmp_path: Path, *, scope: str, name: str, share: float
) -> None:
    smaller = prune.Channels(scope=scope, **{name: f"{share:.0%}"})(net, images, Run(tmp_path))

    def cost(model: nn.Module) -> float:
        count = sum(parameter.numel() for parameter in model.parameters())
        return multiply_accumulates(model, images.example()) if name == "macs" else count

    assert 0.85 * share < cost(smaller) / cost(net) <= share


def test_several_goals_hold_at_once(net: Net, images: Task, tmp_path: Path) -> None:
    smaller = prune.Channels(macs="60%", parameters=1200)(net, images, Run(tmp_path))
    assert multiply_accumulates(smaller, images.example()) <= 0.6 * multiply_accumulates(net, images.example())
    assert sum(parameter.numel() for parameter in smaller.parameters()) <= 1200


def test_the_plan_of_a_goal_does_the_least_damage(net: Net, images: Task, tmp_path: Path) -> None:
    step = prune.Channels(macs="55%", multiple=4)
    cutting = step._plan(net, images, Run(tmp_path))
    (stem, inner), items = cutting.groups, cutting._items()
    counts = [len(stem) - len(cutting.removed[0]), len(inner) - len(cutting.removed[1])]

    def macs(one: int, other: int) -> int:
        return 64 * 9 * (one + 2 * one * other) + 3 * one

    def damage(one: int, other: int) -> float:
        return float(items[0].damage[12 - one] + items[1].damage[20 - other])

    allowed = [(a, b) for a in items[0].allowed for b in items[1].allowed if macs(a, b) <= 0.55 * macs(12, 20)]
    assert damage(*counts) <= min(damage(*pair) for pair in allowed) * 1.002
    assert tuple(counts) in allowed


@pytest.mark.slow
def test_milliseconds_are_measured_and_what_was_decided_is_taken_again(net: Net, images: Task, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    step = prune.Channels(latency="90%", multiple="measured", batch=64)
    smaller = step(net, images, run)
    kept = [smaller.stem.out_channels, smaller.inner.out_channels]
    assert run.journal.decisions["kept"] == " ".join(map(str, kept))
    assert run.journal.decisions["multiple"] in {1, 2, 4, 8, 16, 32}
    assert kept < [12, 20]
    run.journal.decisions["kept"] = "8 4"
    again = step(net, images, run)
    assert (again.stem.out_channels, again.inner.out_channels) == (8, 4)


@pytest.mark.parametrize("score", ["Taylor", "Fisher", "BatchNormScale", "ActivationNorm", "Hessian", "Random"])
def test_every_score_ranks_units(net: Net, images: Task, score: str, tmp_path: Path) -> None:
    smaller = prune.Channels(sparsity=0.5, score=score)(net, images, Run(tmp_path))
    assert smaller.stem.out_channels == 6
    assert smaller.inner.out_channels == (20 if score == "BatchNormScale" else 10), "no norm speaks of the inner channels"


def test_what_is_cut_is_made_up_for_without_labels(net: Net, images: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        net.inner.weight[10:] = 0.3 * net.inner.weight[:10]  # channels that others tell
        net.inner.bias[10:] = 0.3 * net.inner.bias[:10]
    x = images.test.first(50).inputs
    missed = {}
    for recover in ("nothing", "least-squares"):
        step = prune.Channels(sparsity=0.5, exclude=("stem",), score="Hessian", recover=recover)
        smaller = step(net, images, Run(tmp_path))
        with torch.no_grad():
            missed[recover] = float((smaller.eval()(x) - net.eval()(x)).norm())
    assert missed["least-squares"] < 0.05 * missed["nothing"]


def test_constant_channels_are_cut_without_a_change(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    ).eval()
    silent = [1, 3, 5, 6]
    with torch.no_grad():
        net[1].weight[silent], net[1].bias[silent] = 0.0, torch.tensor([4.0, 3.0, 5.0, 2.0])
        net[0].weight[silent] *= 1e-3
    x = torch.randn(40, 1, 8, 8)
    task = Task(train=(x, torch.arange(40) % 4), test=(x, torch.arange(40) % 4))
    smaller = prune.Channels(sparsity=0.5, include=("0.*",))(net, task, Run(tmp_path)).eval()
    assert torch.equal(smaller[0].weight, net[0].weight[[0, 2, 4, 7]])
    with torch.no_grad():
        assert (smaller(x) - net(x)).norm() / net(x).norm() < 1e-5


def test_norms_get_their_statistics_again(net: Net, images: Task, tmp_path: Path) -> None:
    smaller = prune.Channels(sparsity=0.5, recover="batch-norm", samples=100)(net, images, Run(tmp_path, seed=3))
    x = images.train.drawn(100, 3).inputs
    with torch.no_grad():
        mean = smaller.stem(x).mean((0, 2, 3))
    torch.testing.assert_close(smaller.norm.running_mean, mean, atol=1e-5, rtol=1e-5)


def test_a_run_with_training_and_integers_passes_its_gates_and_loads_again(net: Net, images: Task, tmp_path: Path) -> None:
    train = Training(epochs=2, batch_size=20, lr=0.01, precision="float32")
    result = compress(
        net, images, [prune.Channels(sparsity=0.5, train=train), quantize.Static()], out=tmp_path / "run", baseline=train
    )
    assert all(gate.passed for gate in result.gates.values())
    assert result.profile.parameters < 0.35 * result.start.parameters
    assert result.profile.macs < 0.35 * result.start.macs
    again = load(Net, tmp_path / "run")
    x = images.test.first(5).inputs
    assert torch.equal(again(x), result.model.eval()(x))
    assert set(architecture_of(again).edits[0].slices) >= {"stem.weight", "inner.weight", "head.weight"}


STRANGERS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.heads = nn.Linear(8, 24), 4
        self.qkv, self.out, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x[:, 0])
        q, k, v = self.qkv(x).view(x.shape[0], 8, 3, self.heads, WIDTH).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.head((x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], 8, -1))).mean(1))
"""
LOADING = """
import sys
import torch
import mirabelle
from net import Net

model = mirabelle.load(Net, sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.parametrize(
    "width",
    [
        pytest.param("-1", marks=pytest.mark.slow, id="the module itself"),
        pytest.param("6", marks=pytest.mark.slow, id="the rewritten program"),
    ],
)
def test_a_strangers_own_module_is_cut_and_loaded_in_another_process(
    images: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    (tmp_path / "net.py").write_text(STRANGERS.replace("WIDTH", width))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    factory = importlib.import_module("net").Net
    torch.manual_seed(0)
    train = Training(epochs=1, batch_size=20, precision="float32")
    result = compress(factory(), images, [prune.Channels(sparsity=0.5, train=train)], out=tmp_path / "run", baseline=train)
    assert all(gate.passed for gate in result.gates.values())
    assert (architecture_of(result.model).rewritten is not None) == (width == "6")
    assert result.profile.parameters < 0.6 * result.start.parameters
    x = images.test.first(6).inputs
    torch.save(x, tmp_path / "x.pt")
    (tmp_path / "loading.py").write_text(LOADING)
    command = [sys.executable, "loading.py", "run", "x.pt", "y.pt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), result.model.eval()(x))


def test_a_preview_names_every_group(net: Net, images: Task, tmp_path: Path) -> None:
    preview = prune.Channels(sparsity=0.5).preview(net, images, Run(tmp_path))
    assert preview.description[:3] == (
        "16 of 32 units in 2 groups are cut",
        "stem.weight:0: 12 become 6 (10 dimensions of tensors)",
        "inner.weight:0: 20 become 10 (3 dimensions of tensors)",
    )
    assert preview.model.stem.out_channels == 6


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        (prune.Channels(sparsity=0.5, exclude=("stemm",)), "E112", 'pattern "stemm" matches nothing'),
        (prune.Channels(sparsity=0.5, exclude=("*",)), "E112", "no channel, neuron or head can be cut"),
        (prune.Channels(macs=100), "E114", "macs of at most 100 cannot be reached: the least possible is 1,731"),
        (prune.Channels(parameters="1%", minimum=8), "E114", "parameters of at most .* cannot be reached"),
        (
            prune.Channels(sparsity=0.5, score="BatchNormScale", exclude=("stem*",)),
            "E112",
            "BatchNormScale applies to no tensor",
        ),
    ],
)
def test_what_cannot_be_done_is_told(
    net: Net, images: Task, tmp_path: Path, *, step: prune.Channels, code: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"{code}.*{words}"):
        step(net, images, Run(tmp_path))


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({}, "E111", "give either a sparsity or limits for macs, parameters, size, latency; got neither"),
        ({"sparsity": 0.5, "macs": "50%"}, "E111", "got both"),
        ({"macs": "5 elephants"}, "E113", "macs cannot be read; got '5 elephants'"),
        ({"latency": "5 kB"}, "E113", "latency cannot be read"),
    ],
)
def test_how_much_is_told_in_one_way(settings: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{code}.*{words}"):
        prune.Channels(**settings)


def test_a_model_that_cannot_be_traced_is_told(images: Task, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))

    with pytest.raises(UserError, match=r"E121.*cannot be traced"):
        prune.Channels(sparsity=0.5)(Branching(), images, Run(tmp_path))


def test_the_same_units_are_chosen_again(net: Net, images: Task, tmp_path: Path) -> None:
    one, other = (prune.Channels(sparsity=0.5)._plan(net, images, Run(tmp_path)) for _ in range(2))
    assert [units.tolist() for units in one.removed] == [units.tolist() for units in other.removed]
