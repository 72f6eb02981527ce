"""The contract of every step behind every door: plain data, given model untouched, same seed same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle import Run, Training, distill, prune, quantize, training
from mirabelle.model.state import fingerprint
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.step import STAGES, Step, step_from_data, step_to_data, use_of

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
