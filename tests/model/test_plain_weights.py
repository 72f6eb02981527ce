"""Weights that are computed before use become plain parameters with the values that are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from mirabelle import Run, Task, Training, artifact, compress, prune, quantize
from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, replayed
from mirabelle.model.plain_weights import with_plain_weights
from mirabelle.model.state import load_tensors, tensors_of_module
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.batch import Batch

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Symmetric(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def own(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Symmetric())


def masked(layer: nn.Module) -> nn.Module:
    return torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


COMPUTED: list[Callable[[Any], nn.Module]] = [
    parametrizations.weight_norm,
    nn.utils.weight_norm,
    parametrizations.spectral_norm,
    nn.utils.spectral_norm,
    parametrizations.orthogonal,
    own,
    masked,
]


def trained_a_little(computed: Callable[[Any], nn.Module]) -> nn.Sequential:
    """A model after steps of training, whose hooks have left old weights behind."""
    torch.manual_seed(0)
    model = nn.Sequential(computed(nn.Linear(6, 6)), nn.ReLU(), computed(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        loss = model(torch.randn(8, 6)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("computed", COMPUTED)
def test_the_plain_weight_is_the_one_that_is_used(computed: Callable[[Any], nn.Module]) -> None:
    model, x = trained_a_little(computed).eval(), torch.randn(5, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = with_plain_weights(model)
    assert torch.equal(folded(x), model(x))
    assert {"0.weight", "2.weight", "4.weight"} <= dict(folded.named_parameters()).keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert with_plain_weights(folded) is folded
    record = Architecture.from_data(architecture_of(folded).to_data())
    again = replayed(trained_a_little(computed), record)
    load_tensors(again, tensors_of_module(folded))
    assert torch.equal(again.eval()(x), folded(x))
    again.load_state_dict(folded.state_dict())
    assert record.pruned == (("0.weight", "2.weight") if computed is masked else ())


@pytest.fixture
def data() -> Task:
    torch.manual_seed(1)
    x = torch.randn(60, 6)
    return Task(train=(x, x[:, :3].argmax(1)), test=(x, x[:, :3].argmax(1)))


STEPS: list[tuple[Any, float]] = [  # a step, and the largest error that its rounding explains
    (quantize.Weights(), 0.03),
    (quantize.Dynamic(), 0.05),
    (quantize.Static(), 0.1),
    (prune.Weights(sparsity=1e-6), 1e-6),
    (prune.Channels(sparsity=0.0), 1e-6),
]


@pytest.mark.parametrize("computed", [*COMPUTED[1:3], own])
@pytest.mark.parametrize(("step", "error"), STEPS)
def test_steps_change_the_weight_that_is_used(
    step: Any, error: float, computed: Callable[[Any], nn.Module], data: Task, tmp_path: Path
) -> None:
    model = trained_a_little(computed)
    result = step(model, data, Run(tmp_path))
    x = data.test.inputs
    with torch.no_grad():
        due, given = model.eval()(x), result.eval()(x)
        assert (given - due).abs().max() <= error * due.abs().max()
        artifact.save(result, tmp_path)
        assert torch.equal(artifact.load(model, tmp_path)(x), given)


@pytest.mark.parametrize("computed", [nn.utils.weight_norm, pytest.param(nn.utils.spectral_norm, marks=pytest.mark.slow)])
def test_a_run_prunes_trains_and_quantizes_them(computed: Callable[[Any], nn.Module], data: Task, tmp_path: Path) -> None:
    training = Training(epochs=1, lr=1e-2)
    steps = [prune.Channels(sparsity=0.3, train=training), prune.Weights(sparsity=0.5, train=training), quantize.Dynamic()]
    result = compress(trained_a_little(computed), data, steps, out=tmp_path, baseline=training)
    assert all(gate.passed for gate in result.gates.values())
    given = default_runtime().load((tmp_path / "model.onnx").read_bytes(), threads=1)
    scores = given.outputs_of([Batch(data.test.inputs, data.test.targets)])[0]
    assert np.mean(np.argmax(np.asarray(scores), 1) == data.test.targets.numpy()) == pytest.approx(result.profile.metric.value)


def test_layers_that_compute_their_weights_from_the_same_tensors_stay_tied() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.utils.weight_norm(nn.Linear(4, 4)))
    model[1].weight_g, model[1].weight_v = model[0].weight_g, model[0].weight_v
    folded: Any = with_plain_weights(model)
    assert folded[0].weight is folded[1].weight


class Drawn(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def test_a_weight_that_is_drawn_anew_is_refused_by_name(data: Task, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    parametrize.register_parametrization(model[0], "weight", Drawn())
    with pytest.raises(UserError, match=r'E121.*"0.weight" differs from call to call'):
        quantize.Weights()(model, data, Run(tmp_path))


def test_a_weight_that_an_unknown_hook_sets_is_refused_by_name(data: Task, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    raw = nn.Parameter(model[0].weight.detach().clone())
    del model[0].weight
    model[0].raw = raw

    def halve(module: Any, _: Any) -> None:
        module.weight = module.raw / 2

    model[0].register_forward_pre_hook(halve)
    model(torch.randn(2, 6))
    with pytest.raises(UserError, match=r'E121.*"0" is set by a hook'):
        prune.Weights(sparsity=0.5)(model, data, Run(tmp_path))
