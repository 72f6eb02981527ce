"""A causal mask of −inf is part of a model that works: nothing takes it for a model that broke."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, Training, prune, quantize
from mirabelle.distill.reinitialized import redrawn
from mirabelle.errors import UserError
from mirabelle.inspection import sensitivity_of
from mirabelle.job.dry_run import try_one_batch
from mirabelle.objectives import L1, L2, SoftTargets, TaskLoss
from mirabelle.prune.weight_masks import weights_to_prune, why_not_pruned
from mirabelle.scores import Taylor
from mirabelle.scores.score import covered
from mirabelle.training import fit
from mirabelle.training.divergence import NewlyNotFinite

TOKENS = 6


class Causal(nn.Module):
    """Attention over six tokens, each of which sees those before it; the mask is a buffer or a parameter."""

    def __init__(self, *, parameter: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(1, 8), nn.Linear(8, 24), nn.Linear(8 * TOKENS, 2)
        mask = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
        if parameter:
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x.unsqueeze(-1))).chunk(3, -1)
        return self.out((torch.softmax(q @ k.transpose(1, 2) / 8**0.5 + self.mask, -1) @ v).flatten(1))


@pytest.fixture
def task() -> Task:
    x = torch.randn(160, TOKENS, generator=torch.Generator().manual_seed(0))
    return Task(train=(x[:80], (x[:80, 0] > 0).long()), test=(x[80:], (x[80:, 0] > 0).long()))


@pytest.fixture
def causal(request: pytest.FixtureRequest) -> Causal:
    torch.manual_seed(0)
    return Causal(parameter=getattr(request, "param", "buffer") == "parameter")


either = pytest.mark.parametrize("causal", ["buffer", "parameter"], indirect=True)
TRAINING = Training(epochs=2, batch_size=20, lr=0.01)


@either
def test_it_trains_and_the_mask_stays(causal: Causal, task: Task, run: Run) -> None:
    mask = causal.mask.clone()
    objective = TaskLoss() + 0.5 * SoftTargets() + 1e-3 * L1() + 1e-3 * L2()
    training = Training(epochs=2, batch_size=20, lr=0.01, weight_decay=0.1, clip=1.0, objective=objective)
    trained = fit(causal, task.with_teacher(Causal()), training, run)
    assert torch.equal(trained.mask, mask)
    assert all(bool(tensor.isfinite().all()) for name, tensor in trained.state_dict().items() if name != "mask")


@either
def test_a_weight_that_breaks_is_still_found(causal: Causal, task: Task, run: Run) -> None:
    with pytest.raises(UserError, match=r"E201.*rolled back to the last finite weights, of step 0"):
        fit(causal, task, Training(steps=1, batch_size=20, lr=1e39, optimizer="sgd", lr_schedule="constant"), run)
    assert causal.out.weight.isfinite().all()


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (-torch.inf, -torch.inf, False),
        (torch.nan, torch.nan, False),
        (-torch.inf, 1.0, False),
        (-torch.inf, torch.nan, True),
        (-torch.inf, torch.inf, True),
        (torch.nan, torch.inf, True),
        (1.0, -torch.inf, True),
    ],
)
def test_what_counts_is_what_changed(before: float, after: float, *, found: bool) -> None:
    model = nn.BatchNorm1d(3)
    model.running_mean[1] = before
    newly = NewlyNotFinite(model)
    model.running_mean[1] = after
    assert newly.any() is found


def test_a_whole_run_prunes_and_quantizes_it(task: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5, train=TRAINING), quantize.Static(samples=40)]
    result = mirabelle.compress(Causal(), task, steps, out=tmp_path / "run", baseline=TRAINING)
    assert all(gate.passed for gate in result.gates.values())
    assert torch.equal(result.model.mask, Causal().mask)
    assert float(result.model(task.test.inputs).isfinite().float().mean()) == 1.0


@pytest.mark.parametrize("causal", ["parameter"], indirect=True)
def test_a_mask_is_no_weight(causal: Causal, task: Task, run: Run) -> None:
    """Magnitudes and gradients times −inf would be infinite or NaN, and −inf times 0 is NaN."""
    assert "mask" not in covered(Taylor(), causal)
    step = prune.Weights(sparsity=0.9)
    assert "mask" not in weights_to_prune(step._removed(), causal)
    assert why_not_pruned(step._removed(), causal)["mask"] == "it has infinite numbers, as a mask has"
    pruned = step(causal, task, run)
    assert torch.equal(pruned.mask, causal.mask)
    assert pruned(task.test.inputs).isfinite().all()
    named = sensitivity_of(causal, task, sparsities=(0.5,), groups=False)
    assert sorted(curve.name for curve in named.curves) == ["embed.weight", "out.weight", "qkv.weight"]
    for term, power in ((L1(), 1), (L2(), 2)):
        value = term.bind(causal, task, task.example())(None).item()
        weights = (causal.embed.weight, causal.qkv.weight, causal.out.weight)
        assert value == pytest.approx(sum(float(weight.detach().abs().pow(power).sum()) for weight in weights), rel=1e-6)


@pytest.mark.parametrize("causal", ["parameter"], indirect=True)
def test_new_weights_are_drawn_beside_it(causal: Causal) -> None:
    fresh = redrawn(causal, 1)
    assert torch.equal(fresh.mask, causal.mask)
    assert not torch.equal(fresh.out.weight, causal.out.weight)


def test_a_model_that_is_broken_elsewhere_names_that_place(causal: Causal, task: Task) -> None:
    with torch.no_grad():
        causal.out.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r'E121.*NaN or infinite values; its tensor "out.bias" is not finite either'):
        try_one_batch(causal, task)
