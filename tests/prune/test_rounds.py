"""Iterative pruning: what each round prunes, with which weights it begins, and that a killed one ends with the same bits."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Stop, Task, Training, prune, scores
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import fingerprint
from mirabelle.prune import rounds
from mirabelle.prune.rounds import sparsity_of_round
from mirabelle.training import fit
from mirabelle.training.checkpoint import CHECKPOINT, Checkpoint, remove_checkpoints, seconds_in

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


@pytest.mark.parametrize(("fatal", "rewind"), list(itertools.product(range(3), ["learning-rate", "weights"])))
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
    with pytest.raises(KilledError):
        step(mlp, blobs, Run(tmp_path / "killed"))
    assert fingerprint(step(mlp, blobs, Run(tmp_path / "killed"))) == expected
    names = [f"round-{place + 1}" for place in range(trainings)]
    assert trained == names[: fatal + 1] + names[fatal:]
    left = {path.parts[-3 if path.parent.name == "beginning" else -2] for path in (tmp_path / "killed").rglob(CHECKPOINT)}
    assert left == {names[-1]}
    remove_checkpoints(tmp_path / "killed")
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.is_dir()]


@pytest.mark.parametrize("rewind", ["learning-rate", "weights"])
@pytest.mark.parametrize("fatal", [1, 2, 4, 5])
def test_a_round_killed_in_its_training_goes_on_in_any_memory_layout(
    rewind: Any, fatal: int, cnn: nn.Module, images: Task, tmp_path: Path
) -> None:
    cnn = cnn.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = prune.Weights(sparsity=0.75, rounds=3, rewind=rewind, train=TRAIN)
    expected = fingerprint(step(cnn, images, Run(tmp_path / "whole")))
    epochs: list[int] = []

    def dies(event: Any) -> None:
        epochs.extend([1] * (event["event"] == "epoch"))
        if len(epochs) == fatal:
            raise KilledError

    with pytest.raises(KilledError):
        step(cnn, images, Run(tmp_path / "killed", callbacks=[dies]))
    assert fingerprint(step(cnn, images, Run(tmp_path / "killed"))) == expected


def test_rounds_of_other_settings_or_another_model_do_not_go_on(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    prune.Weights(sparsity=0.5, rounds=2, train=TRAIN)(mlp, blobs, Run(tmp_path))
    for other in (
        {"sparsity": 0.9, "rounds": 2}, {"sparsity": 0.5, "rounds": 2, "exclude": ("0*",)},
        {"sparsity": 0.5, "rounds": 2, "rewind": "weights"},
    ):  # fmt: skip
        with pytest.raises(UserError, match="another training") as caught:
            prune.Weights(**other, train=TRAIN)(mlp, blobs, Run(tmp_path))
        assert caught.value.code == "E150"
    changed = copy.deepcopy(mlp)
    with torch.no_grad():
        changed[0].weight.add_(1)
    with pytest.raises(UserError, match="given"):
        prune.Weights(sparsity=0.5, rounds=2, train=TRAIN)(changed, blobs, Run(tmp_path))


def test_a_damaged_beginning_is_named_with_a_remedy(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    step = prune.Weights(sparsity=0.5, rounds=2, train=TRAIN)
    step(mlp, blobs, Run(tmp_path))
    (tmp_path / "round-2" / "beginning" / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(UserError, match="not an intact") as caught:
        step(mlp, blobs, Run(tmp_path))
    assert caught.value.code == "E141"
    assert str(tmp_path / "round-2") in caught.value.remedy


@pytest.mark.parametrize("rewind", ["learning-rate", "weights"])
def test_a_callback_that_stops_gets_the_final_sparsity_at_once(
    rewind: Any, mlp: nn.Sequential, blobs: Task, tmp_path: Path
) -> None:
    seen: list[str] = []

    def stops(event: Any) -> Stop | None:
        seen.append(event["event"])
        return Stop("enough") if event["event"] == "round" and event["round"] > 1 else None

    step = prune.Weights(sparsity=0.75, rounds=4, rewind=rewind, train=TRAIN)
    found = step(mlp, blobs, Run(tmp_path, callbacks=[stops]))
    assert [int((parameter == 0).sum()) for parameter in found.parameters()] == [96, 0, 36, 0]
    assert seen.count("epoch") == TRAIN.epochs


def test_scores_of_both_signs_prune_what_is_left(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    step = prune.Weights(sparsity=0.75, rounds=4, score=scores.Movement(), train=TRAIN)
    found = step(mlp, blobs, Run(tmp_path))
    assert [int((parameter == 0).sum()) for parameter in found.parameters()] == [96, 0, 36, 0]


def test_without_a_sparsity_weights_are_rewound_all_the_same(mlp: nn.Sequential, blobs: Task, tmp_path: Path) -> None:
    found = prune.Weights(sparsity=0.0, rewind="weights", train=TRAIN)(mlp, blobs, Run(tmp_path / "found"))
    expected = fit(copy.deepcopy(mlp), blobs, TRAIN, Run(tmp_path / "expected").within("round-2"))
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_seconds_of_rounds_are_counted_once(tmp_path: Path) -> None:
    def write(name: str, **numbers: Any) -> None:
        path = tmp_path / name / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        Checkpoint(path).write({"model": {"w": torch.zeros(1)}}, numbers)

    write("round-1", seconds=100)
    assert seconds_in(tmp_path) == 100
    write("round-2/beginning", seconds=100, instead_of=["round-1"])  # killed before the first was removed
    write("round-2", seconds=20)
    assert seconds_in(tmp_path) == 120
    (tmp_path / "other" / CHECKPOINT).mkdir(parents=True)  # a folder of this name is none
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


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
