"""The contract of every step behind every door: plain data, given model untouched, same seed same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, distill, prune, quantize, training
from mirabelle.model.state import copied, fingerprint
from mirabelle.objectives import L1
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.step import STAGES, Preview, Stage, Step, step_from_data, step_to_data, use_of
from mirabelle.training import JoinsTraining, Prepared

SHORT = Training(epochs=1, batch_size=200, precision="float32")
STEPS: dict[str, Step] = {
    "prune.Weights": prune.Weights(sparsity=0.5, schedule="linear", train=SHORT),
    "prune.Channels": prune.Channels(sparsity=0.5, train=SHORT),
    "prune.Layers": prune.Layers(sparsity=0.5, train=SHORT),
    "distill.Student": distill.Student(model="mirabelle.sources.zoo:digits_mlp", train=SHORT),
    "quantize.Static": quantize.Static(samples=50),
    "quantize.Dynamic": quantize.Dynamic(),
    "quantize.Weights": quantize.Weights(),
    "training.Joint": training.Joint(steps=(prune.Weights(sparsity=0.5),), train=SHORT),
}


class Plus(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x).relu()


def residual() -> nn.Module:
    """A network with layers that can be dropped."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), Plus(20, 20), Plus(20, 20), nn.Linear(20, 10))


def test_every_step_behind_the_doors_is_here() -> None:
    doors = {"prune": prune, "distill": distill, "quantize": quantize, "training": training}
    found = {
        f"{family}.{name}" for family, door in doors.items() for name in door.__all__ if hasattr(getattr(door, name), "stage")
    }  # fmt: skip
    assert found == set(STEPS)


@pytest.mark.parametrize("use", STEPS)
def test_a_step_is_data(use: str) -> None:
    step = STEPS[use]
    assert isinstance(step, Step)
    assert use_of(step) == use
    assert step.stage in STAGES
    assert step_from_data(step_to_data(step)) == step
    with pytest.raises(AttributeError):
        step.stage = "thin"  # type: ignore[misc]


@pytest.mark.parametrize("use", STEPS)
def test_a_step_leaves_the_given_model_and_the_generator_alone_and_repeats_itself(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = residual() if use == "prune.Layers" else digits_cnn()
    task, before, state = digits(), fingerprint(model), torch.get_rng_state()
    runs = [Run(tmp_path / str(k), seed=7) for k in range(2)]
    for run in runs:  # what is measured may turn out differently each time, so it is decided here
        run.journal.decisions["execution"] = "float32"
    results = [STEPS[use](model, task, run) for run in runs]
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(results[0]) == fingerprint(results[1])
    assert fingerprint(results[0]) != before
    assert not any(hooks for module in results[0].modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))


# A step that joins a training.

JOINING = {use: step for use, step in STEPS.items() if isinstance(step, JoinsTraining)}


def test_the_steps_that_join_a_training_are_these() -> None:
    assert list(JOINING) == ["prune.Weights", "prune.Channels", "prune.Layers", "distill.Student"]


@pytest.mark.parametrize("use", JOINING)
def test_a_step_that_joins_prepares_a_copy_of_the_model_the_same_each_time(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = residual() if use == "prune.Layers" else digits_cnn()
    before, state = fingerprint(model), torch.get_rng_state()
    one, two = (JOINING[use].prepare(model, digits(), Run(tmp_path / str(k), seed=7)) for k in range(2))
    assert isinstance(one, Prepared)
    assert fingerprint(one.model) == fingerprint(two.model)
    assert fingerprint(model) == before
    assert not {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in one.model.parameters()}
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AttributeError):
        one.model = model  # type: ignore[misc]


class Counting:
    """A control that counts the optimizer steps, and the models that it is called with."""

    def __init__(self, model: nn.Module) -> None:
        self.models, self.steps = {id(model)}, 0

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self.models.add(id(model))
        self.steps += 1
        return False

    def settled(self, progress: float) -> bool:
        return True

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.steps = state["steps"]


class Plain:
    """The least that a step must have to join a training; what it does is written down in `log`."""

    stage: ClassVar[Stage] = "thin"

    def __init__(self, name: str, log: list[str], **brought: Any) -> None:
        self.name, self.log, self.brought = name, log, brought

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        return Preview(model, ())

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        self.log.append(f"prepare {self.name}")
        return Prepared(copied(model), **self.brought)


def logging(log: list[str], text: str) -> Callable[[nn.Module], nn.Module]:
    """A `finish` that writes down when it was called."""
    return lambda model: [log.append(text), model][1]  # type: ignore[return-value,func-returns-value]


def test_a_step_joins_a_training_with_a_stage_a_preview_and_what_it_prepares(tmp_path: Path) -> None:
    step = Plain("plain", [])
    assert isinstance(step, JoinsTraining)
    assert not isinstance(quantize.Static(samples=50), JoinsTraining)
    torch.manual_seed(0)
    model = digits_cnn()
    runs = [Run(tmp_path / str(k), seed=7) for k in range(2)]
    joined = training.Joint(steps=(step,), train=SHORT)(model, digits(), runs[0])
    assert fingerprint(joined) == fingerprint(training.fit(copied(model), digits(), SHORT, runs[1]))


def test_what_steps_bring_to_a_training_is_used_in_their_order(tmp_path: Path) -> None:
    log: list[str] = []
    made: list[Counting] = []

    def controls(model: nn.Module) -> list[Counting]:
        log.append("controls")
        made.append(Counting(model))
        return [made[-1]]

    first = Plain("first", log, controls=controls, terms=0.01 * L1(), finish=logging(log, "finish first"))
    last = Plain("last", log, controls=controls, finish=logging(log, "finish last"))
    torch.manual_seed(0)
    model, task = digits_cnn(), digits()
    both = training.Joint(steps=(first, last), train=SHORT)(copied(model), task, Run(tmp_path / "both", seed=7))
    assert log == ["prepare first", "prepare last", "controls", "controls", "finish first", "finish last"]
    assert [control.steps for control in made] == [len(task.train) // 200] * 2
    assert made[0].models == made[1].models == {id(both)}, "controls are made for the model that trains"
    objective = training.default_objective(task) + 0.01 * L1()
    alone = training.fit(copied(model), task, SHORT, Run(tmp_path / "alone", seed=7), objective=objective)
    assert fingerprint(both) == fingerprint(alone)
