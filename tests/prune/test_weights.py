"""prune.Weights: how much goes, which, when, and that it never comes back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Gradual, Run, Task, Training, prune, scores
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.step import step_from_data, step_to_data


def zeros(model: nn.Sequential) -> list[int]:
    return [int((parameter == 0).sum()) for parameter in model.parameters()]


def test_each_layer_loses_its_smallest_weights(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    model = prune.Weights(sparsity=0.75)(mlp, blobs, run)
    assert zeros(model) == [96, 0, 36, 0]
    for position in (0, 2):
        before, after = mlp[position].weight.detach().abs(), model[position].weight
        assert before[after == 0].max() <= before[after != 0].min()
        assert torch.equal(after[after != 0], mlp[position].weight[after != 0])
    assert zeros(mlp) == [0, 0, 0, 0]
    assert architecture_of(model).pruned == ("0.weight", "2.weight")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": Training(epochs=1, batch_size=32)},
        {"train": Training(epochs=1, batch_size=32), "schedule": "cubic"},
        {"train": Training(epochs=1, batch_size=32), "rounds": 2, "rewind": "weights"},
    ],
)
def test_pruned_weights_have_no_sign(settings: dict[str, Any], mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    """−0.0 is equal to 0.0, but a packed file holds it: a bit for each pruned weight."""
    pruned = prune.Weights(sparsity=0.7, **settings)(mlp, blobs, run)
    for parameter in (one for one in pruned.parameters() if one.dim() > 1):
        gone = parameter.detach() == 0
        assert gone.any()
        assert not torch.signbit(parameter.detach()[gone]).any()


def test_a_global_ranking_takes_where_weights_are_small(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    with torch.no_grad():
        mlp[0].weight.mul_(1000)
    assert zeros(prune.Weights(sparsity=0.25, scope="global")(mlp, blobs, run)) == [0, 0, 44, 0]


def test_a_threshold_takes_all_at_or_below_it(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    model = prune.Weights(threshold=0.1)(mlp, blobs, run)
    for position in (0, 2):
        assert torch.equal(model[position].weight == 0, mlp[position].weight.abs() <= 0.1)


def test_quality_is_a_multiple_of_each_layers_standard_deviation(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    model = prune.Weights(quality=0.8)(mlp, blobs, run)
    for position in (0, 2):
        dense = mlp[position].weight.detach()
        deviation = float(((dense - dense.mean()) ** 2).mean().sqrt())
        assert torch.equal(model[position].weight == 0, dense.abs() <= 0.8 * deviation)


def test_targets_may_be_biases_and_a_bias_of_zeros_is_left_to_learn(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    with torch.no_grad():
        mlp[2].bias.zero_()
    model = prune.Weights(sparsity=0.5, include=("*.bias",))(mlp, blobs, run)
    assert zeros(model) == [0, 8, 0, 3]
    assert architecture_of(model).pruned == ("0.bias",)


def test_ignored_parameters_are_left_alone(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    assert zeros(prune.Weights(sparsity=0.5, exclude=("2",))(mlp, blobs, run)) == [64, 0, 0, 0]


def test_the_control_of_scores_is_random(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    model = prune.Weights(sparsity=0.5, score=scores.Random())(mlp, blobs, run)
    removed = mlp[0].weight.detach().abs()[model[0].weight == 0]
    assert zeros(model) == [64, 0, 24, 0]
    assert removed.max() > mlp[0].weight.abs().median()


@pytest.mark.parametrize(
    ("schedule", "half_way"),
    [("constant", 0.8), ("linear", 0.8 * 0.5 / 0.6), ("cubic", 0.8 * (1 - (1 / 6) ** 3)), (Gradual(begin=0.5, end=0.9), 0.0)],
)
def test_sparsity_follows_its_schedule(mlp: nn.Sequential, blobs: Task, run: Run, schedule: Any, half_way: float) -> None:
    if isinstance(schedule, Gradual):
        schedule = Gradual(begin=schedule.begin, end=schedule.end, frequency=1)
    step = prune.Weights(sparsity=0.8, schedule=schedule, train=Training(epochs=1))
    (control,) = step.prepare(mlp, blobs, run).controls(mlp)
    seen = {}
    for k in range(1, 1001):
        control(mlp, k / 1000)
        seen[k] = float((mlp[0].weight == 0).float().mean())
    assert seen[500] == pytest.approx(half_way, abs=0.03)  # the last change may lie 50 calls back
    assert seen[1000] == int(0.8 * 128) / 128
    assert list(seen.values()) == sorted(seen.values())


@pytest.mark.parametrize("steps", [30, 300, 3000])
def test_growth_is_gradual_however_short_the_training(mlp: nn.Sequential, blobs: Task, run: Run, steps: int) -> None:
    step = prune.Weights(sparsity=0.8, schedule="linear", train=Training(epochs=1))
    (control,) = step.prepare(mlp, blobs, run).controls(mlp)
    changes, sparsities = 0, []
    for k in range(1, steps + 1):
        changes += control(mlp, k / steps)
        sparsities += [float((mlp[0].weight == 0).float().mean())]
    assert min(17, 0.55 * steps) <= changes <= 102
    assert max(after - before for before, after in pairwise(sparsities)) <= 0.06


def test_changes_come_at_the_frequency_that_was_asked_for(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    step = prune.Weights(sparsity=0.8, schedule=Gradual(begin=0.0, end=0.5, frequency=10), train=Training(epochs=1))
    (control,) = step.prepare(mlp, blobs, run).controls(mlp)
    changed = [k for k in range(1, 101) if control(mlp, k / 100)]
    assert changed == [10, 20, 30, 40, 50]
    assert [control.settled(progress) for progress in (0.49, 0.5, 1.0)] == [False, True, True]


def test_what_the_schedule_removed_never_comes_back(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    masks: list[torch.Tensor] = []

    step = prune.Weights(sparsity=0.9, schedule=Gradual(end=0.8, frequency=3), train=Training(epochs=6, batch_size=32, lr=0.05))
    prepared = step.prepare(mlp, blobs, run)
    model = prepared.model
    model.register_forward_pre_hook(
        lambda module, inputs: masks.append((module[0].weight != 0).clone()) if module.training else None
    )
    from mirabelle.training import fit

    fit(model, blobs, step.train, run, controls=prepared.controls(model))
    assert len(masks) >= 72  # 12 steps an epoch, and those that were timed
    for before, after in zip(masks[-60:], masks[-59:], strict=False):
        assert not bool((after & ~before).any())
    assert float((model[0].weight == 0).float().mean()) == int(0.9 * 128) / 128


@pytest.mark.parametrize("kind", [{"threshold": 0.2}, {"quality": 1.0}])
def test_thresholds_may_grow_too(mlp: nn.Sequential, blobs: Task, run: Run, kind: Mapping[str, float]) -> None:
    training = Training(epochs=4, batch_size=32, lr=0.005)
    model = prune.Weights(**kind, schedule="linear", train=training)(mlp, blobs, run)
    assert 10 < zeros(model)[0] < 128


def test_one_shot_prunes_before_training(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    model = prune.Weights(sparsity=0.5, train=Training(epochs=3, batch_size=32, lr=0.02))(mlp, blobs, run)
    expected = prune.Weights(sparsity=0.5)(mlp, blobs, run)
    assert torch.equal(model[0].weight == 0, expected[0].weight == 0)
    assert not torch.equal(model[0].weight, expected[0].weight)


def test_the_best_model_is_chosen_only_when_the_pruning_is_done(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    training = Training(epochs=5, batch_size=32, lr=0.05, lr_schedule="constant")
    model = prune.Weights(sparsity=0.97, schedule=Gradual(begin=0.0, end=0.9, frequency=1), train=training)(mlp, blobs, run)
    assert zeros(model)[0] == int(0.97 * 128)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "E111"),
        ({"sparsity": 0.5, "threshold": 0.1}, "E111"),
        ({"sparsity": 1.0}, "E110"),
        ({"sparsity": -0.1}, "E110"),
        ({"threshold": 0.0}, "E110"),
        ({"quality": 0}, "E110"),
        ({"quality": 1.0, "scope": "global"}, "E111"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Mapping[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        prune.Weights(**settings)
    assert caught.value.code == code


def test_a_gradual_schedule_needs_a_training(mlp: nn.Module, blobs: Task, run: Run) -> None:
    with pytest.raises(UserError, match="needs a training"):
        prune.Weights(sparsity=0.5, schedule="cubic")(mlp, blobs, run)


def test_it_goes_through_plain_data() -> None:
    step = prune.Weights(
        sparsity=0.9, schedule=Gradual(begin=0.1), score=scores.Random(seed=3), train=Training(epochs=2), include=("fc*",)
    )
    assert step_from_data(step_to_data(step)) == step


def test_the_control_takes_up_where_it_was(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    step = prune.Weights(sparsity=0.8, schedule=Gradual(end=0.5, frequency=7), train=Training(epochs=1))
    (control,) = step.prepare(mlp, blobs, run).controls(mlp)
    for k in range(1, 31):
        control(mlp, k / 100)
    other = copy.deepcopy(mlp)
    other.__dict__.pop("_mirabelle_architecture")
    (again,) = step.prepare(other, blobs, run).controls(other)
    again.load_state_dict(control.state_dict())
    assert architecture_of(other).pruned == ("0.weight", "2.weight")
    for k in range(31, 101):
        assert control(mlp, k / 100) == again(other, k / 100)
    assert torch.equal(mlp[0].weight, other[0].weight)


@pytest.mark.parametrize("scope", ["erk", "lamp"])
@pytest.mark.parametrize("schedule", ["one-shot", "cubic"])
def test_a_sparsity_divided_among_layers_is_the_same_in_all(
    scope: str, schedule: str, cnn: nn.Module, images: Task, run: Run
) -> None:
    train = Training(epochs=2, lr=1e-3, precision="float32") if schedule == "cubic" else None
    pruned = prune.Weights(sparsity=0.8, scope=scope, schedule=schedule, train=train)(cnn, images, run)
    weights = [parameter for parameter in pruned.parameters() if parameter.dim() > 1]
    total, kept = sum(one.numel() for one in weights), [int(one.count_nonzero()) for one in weights]
    assert sum(kept) == total - int(0.8 * total)
    shares = [count / one.numel() for count, one in zip(kept, weights, strict=True)]
    assert max(shares) > 1.1 * min(shares), "not the same in each layer"
    if scope == "erk" and schedule == "one-shot":
        expected = [sum(one.shape) / one.numel() for one in weights]
        assert shares.index(max(shares)) == expected.index(max(expected))
    with pytest.raises(UserError, match=f'scope = "{scope}" ranks weights, but threshold does not rank'):
        prune.Weights(threshold=0.1, scope=scope)
