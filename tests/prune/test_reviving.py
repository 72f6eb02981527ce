"""Weights that return during a training, by magnitude and by movement, and weights pruned in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kills import KilledAt, KilledError
from mirabelle import Gradual, Run, Task, Training, prune, quantize
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import fingerprint
from mirabelle.prune.reviving import RevivingMasks, with_hidden_weights, without_hidden_weights
from mirabelle.training import Joint, fit
from mirabelle.training.checkpoint import Checkpoint

EACH_STEP = Gradual(begin=0.0, end=0.8, initial=0.5, power=1.0, frequency=1)


def regression() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=draw)
    return x, x @ torch.linspace(-2, 2, 8)[:, None]


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 1, bias=False))


@pytest.mark.parametrize("kind", ["Magnitude", "Movement"])
def test_the_weights_are_those_of_the_algorithm_written_out(kind: str) -> None:
    """Plain torch: v learns by the gradient at m · v and fades where m = 0, and m is found from |v|, or from −Σ g v."""
    (x, y), steps, rate = regression(), 30, 0.05
    step = prune.Weights(sparsity=0.75, revive=True, schedule=EACH_STEP, score=kind)  # type: ignore[arg-type]
    model = with_hidden_weights(net(), step._removed())
    control = RevivingMasks(step._removed(), model)
    v, m, s = net()[0].weight.detach().clone(), torch.ones(1, 8), torch.zeros(1, 8)
    returned = 0
    for k in range(1, int(0.8 * steps) + 1):  # until the schedule ends
        model.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        with torch.no_grad():
            model[0].weight.sub_(rate * model[0].weight.grad)
        control(model, k / steps)

        w = (m * v).requires_grad_()
        ((x @ w.t() - y) ** 2).mean().backward()
        assert w.grad is not None
        s -= w.grad * v
        v = torch.where(m == 1, v, 0.99 * v) - rate * w.grad
        amount = 0.75 + (0.5 - 0.75) * (1 - min(1.0, k / steps / 0.8))
        lowest = (v.abs() if kind == "Magnitude" else s).flatten().argsort(stable=True)[: int(amount * 8 + 1e-9)]
        before, m = m, torch.ones(1, 8)
        m[0, lowest] = 0
        returned += int(((before == 0) & (m == 1)).sum())
        torch.testing.assert_close(model[0].weight.detach(), m * v, msg=f"step {k}")
    assert returned
    assert int((model[0].weight == 0).sum()) == 6
    assert architecture_of(model).pruned == ("0.weight",)
    assert [name for name, _ in without_hidden_weights(model).named_buffers()] == []


def test_a_small_weight_that_is_needed_returns_where_it_may(tmp_path: Path) -> None:
    x, y = regression()
    task = Task(train=(x, y), test=(x, y), loss="mse")
    train = Training(
        epochs=60, batch_size=16, optimizer="sgd", momentum=0.0, lr=0.1, weight_decay=0.0, precision="float32", keep="last"
    )
    errors, kept = {}, {}
    for revive in (False, True):
        model = net()
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[0.01, 0.01, 0.5, 0.5, 0.5, 0.5, 0.01, 0.01]]))  # the ends are needed most
        step = prune.Weights(sparsity=0.5, schedule=Gradual(initial=0.5, begin=0.0, end=0.5), revive=revive, train=train)
        pruned = step(model, task, Run(tmp_path / str(revive)))
        kept[revive] = (pruned[0].weight != 0).flatten().tolist()  # type: ignore[index, union-attr, operator]
        with torch.no_grad():
            errors[revive] = float(((pruned(x) - y) ** 2).mean())
    assert sum(kept[True]) == sum(kept[False]) == 4
    assert kept[True][0]
    assert kept[True][7]
    assert errors[True] < 0.7 * errors[False]


def test_what_an_earlier_step_pruned_stays_zero(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    once = prune.Weights(sparsity=0.4)(mlp, blobs, Run(tmp_path / "a"))
    gone = [parameter == 0 for name, parameter in once.named_parameters() if name.endswith("weight")]
    train = Training(epochs=4, batch_size=16, lr=1e-2, precision="float32")
    step = prune.Weights(sparsity=0.7, schedule="cubic", revive=True, train=train)
    twice = step(once, blobs, Run(tmp_path / "b"))
    for before, weight in zip(gone, (p for n, p in twice.named_parameters() if n.endswith("weight")), strict=True):
        assert not weight[before].any()
        assert int((weight == 0).sum()) == int(0.7 * weight.numel())
    assert not list(twice.named_buffers())


def test_a_killed_training_ends_with_the_same_bits(
    mlp: nn.Sequential, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "due", property(lambda _: True))
    step = prune.Weights(sparsity=0.7, schedule=EACH_STEP, revive=True, score="Movement")  # type: ignore[arg-type]
    training = Training(epochs=3, batch_size=16, lr=1e-2, precision="float32")

    def trained(folder: str, killed: list[Any]) -> nn.Module:
        prepared = step.prepare(mlp, blobs, Run(tmp_path / folder))
        controls = [*prepared.controls(prepared.model), *killed]
        return prepared.finish(fit(prepared.model, blobs, training, Run(tmp_path / folder), controls=controls))

    whole = trained("whole", [KilledAt(0)])
    for moment in (2, 7):
        with pytest.raises(KilledError):
            trained(f"killed-{moment}", [KilledAt(moment)])
        assert fingerprint(trained(f"killed-{moment}", [KilledAt(0)])) == fingerprint(whole)


def test_blocks_are_kept_or_pruned_as_a_whole_by_their_mean_score(run: Run) -> None:
    torch.manual_seed(0)
    images, classes = torch.randn(40, 3, 4, 4), torch.arange(40) % 10
    blobs = Task(train=(images, classes), test=(images, classes))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 10))
    pruned = prune.Weights(sparsity=0.5, block=(4, 5))(model, blobs, run)
    for position in (0, 2):
        before, after = (one[position].weight.detach().flatten(1) for one in (model, pruned))  # type: ignore[index, union-attr, operator]
        means, empty = [], []
        for row in range(0, len(before), 4):
            for column in range(0, before.shape[1], 5):
                means.append(float(before[row : row + 4, column : column + 5].abs().mean()))
                part = after[row : row + 4, column : column + 5]
                assert bool(part.all()) or not bool(part.any())
                empty.append(not bool(part.any()))
        assert sum(empty) == len(empty) // 2
        order = sorted(range(len(means)), key=means.__getitem__)
        assert all(empty[k] for k in order[: len(order) // 2])


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.5, "revive": True},
        {"threshold": 0.1, "block": (2, 2)},
        {"sparsity": 0.5, "block": (2, 2), "score": "Wanda"},
        {"sparsity": 0.5, "schedule": "cubic", "score": "Movement"},
        {"sparsity": 0.5, "schedule": "cubic", "score": "Fisher", "revive": True},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        prune.Weights(**settings)
    assert caught.value.code == "E111"


def test_weights_return_in_layers_that_another_step_replaces(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    train = Training(epochs=6, batch_size=16, lr=1e-2, precision="float32")
    steps = (prune.Weights(sparsity=0.6, schedule="cubic", revive=True), quantize.EntropyConstrained(rate=0.01))
    model: Any = Joint(steps=steps, train=train)(mlp, blobs, run)
    assert min(float((model[place].codes == 0).float().mean()) for place in (0, 2)) > 0.55
