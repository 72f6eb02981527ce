"""Iterative pruning: what each round prunes, with which weights it begins, and that a killed one ends with the same bits."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, prune, scores
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import fingerprint
from mirabelle.prune import rounds
from mirabelle.prune.rounds import sparsity_of_round
from mirabelle.training import fit
from mirabelle.training.checkpoint import CHECKPOINT, remove_checkpoints

TRAIN = Training(epochs=2, lr=0.01, batch_size=16, precision="float32", keep="last")


def test_each_round_prunes_the_same_share_of_what_is_left() -> None:
    left = [1 - sparsity_of_round(0.9, place, 4) for place in range(5)]
    assert left[0] == 1
    assert left[-1] == pytest.approx(0.1)
    assert [after / before for before, after in itertools.pairwise(left)] == pytest.approx([0.1**0.25] * 4)


def by_hand(model: nn.Module, task: Task, run: Run, sparsities: list[float], given: nn.Module | None) -> nn.Module:
    """Rounds written out: prune by magnitude, go back to given weights if there are any, train."""
    model = copy.deepcopy(model)
    for place, sparsity in enumerate(sparsities):
        if sparsity:
            model = prune.Weights(sparsity=sparsity)(model, task, run)
            if given is not None:
                zeros = {name: parameter == 0 for name, parameter in model.named_parameters()}
                pruned = architecture_of(model).pruned
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        parameter.copy_(dict(given.named_parameters())[name])
                        if name in pruned:
                            parameter[zeros[name]] = 0
        model = fit(model, task, TRAIN, run.within(f"round-{place + 1}"))
    return model


@pytest.mark.parametrize(
    ("rewind", "sparsities"), [("learning-rate", [0.5, 0.75]), ("weights", [0.0, 0.5, 0.75])]
)  # fmt: skip
def test_the_rounds_are_those_written_out(
    rewind: Any, sparsities: list[float], mlp: nn.Sequential, blobs: Task, tmp_path: Path
) -> None:
    expected = by_hand(mlp, blobs, Run(tmp_path / "expected"), sparsities, mlp if rewind == "weights" else None)
    before = fingerprint(mlp)
    found = prune.Weights(sparsity=0.75, rounds=2, rewind=rewind, train=TRAIN)(mlp, blobs, Run(tmp_path / "found"))
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert fingerprint(mlp) == before
    assert [int((parameter == 0).sum()) for parameter in found.parameters()] == [96, 0, 36, 0]


def test_a_score_that_needs_data_is_computed_in_each_round(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    step = prune.Weights(sparsity=0.75, rounds=3, score=scores.Taylor(), train=TRAIN)
    found = step(mlp, blobs, Run(tmp_path))
    assert [int((parameter == 0).sum()) for parameter in found.parameters()] == [96, 0, 36, 0]


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize(("fatal", "rewind"), list(itertools.product(range(4), ["learning-rate", "weights"])))
def test_killed_rounds_go_on_and_end_with_the_same_bits(  # noqa: PLR0917 (fixtures)
    fatal: int, rewind: Any, mlp: nn.Sequential, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = prune.Weights(sparsity=0.75, rounds=3, rewind=rewind, train=TRAIN)
    expected = fingerprint(step(mlp, blobs, Run(tmp_path / "whole")))
    trained: list[str] = []

    def dies(model: nn.Module, task: Task, training: Training, run: Run) -> nn.Module:
        trained.append(run.folder.name)
        if len(trained) == fatal + 1:
            raise KilledError
        return fit(model, task, training, run)

    monkeypatch.setattr(rounds, "fit", dies)
    trainings = 3 + (rewind == "weights")
    if fatal < trainings:
        with pytest.raises(KilledError):
            step(mlp, blobs, Run(tmp_path / "killed"))
    assert fingerprint(step(mlp, blobs, Run(tmp_path / "killed"))) == expected
    names = [f"round-{place + 1}" for place in range(trainings)]
    assert trained == (names[: fatal + 1] + names[fatal:] if fatal < trainings else names)
    left = {path.parts[-3 if path.parent.name == "beginning" else -2] for path in (tmp_path / "killed").rglob(CHECKPOINT)}
    assert left == {names[-1]}
    remove_checkpoints(tmp_path / "killed")
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.is_dir()]


def test_the_preview_trains_as_long_as_all_rounds(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    preview = prune.Weights(sparsity=0.75, rounds=3, rewind="weights", train=TRAIN).preview(mlp, blobs, run)
    assert preview.training.epochs == 4 * 2
    steps = prune.Weights(sparsity=0.75, rounds=3, train=Training(steps=5)).preview(mlp, blobs, run).training
    assert (steps.steps, steps.epochs) == (15, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparsity": 0.5}, "no training"),
        ({"threshold": 0.5, "train": TRAIN}, "threshold"),
        ({"sparsity": 0.5, "train": TRAIN, "schedule": "cubic"}, "a gradual schedule"),
    ],
)
@pytest.mark.parametrize("how", [{"rounds": 2}, {"rewind": "weights"}])
def test_rounds_need_a_sparsity_and_a_training(settings: Any, said: str, how: Any) -> None:
    with pytest.raises(UserError, match=f"rounds prune a share of what is left and then train; got {said}") as caught:
        prune.Weights(**settings, **how)
    assert caught.value.code == "E111"
