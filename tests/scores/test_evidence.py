"""What scores look at: exact where it can be computed by hand, the same twice, and the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle import Run, Task, Training, prune, scores
from mirabelle.calibration.columns import Columns
from mirabelle.errors import UserError
from mirabelle.model.state import fingerprint
from mirabelle.scores import ActivationNorm, BatchNormScale, Fisher, Hessian, Magnitude, Score, Taylor
from mirabelle.scores.evidence import evidence_for
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.step import step_from_data, step_to_data
from mirabelle.training import evaluate, fit

LOOKING = [Taylor(), Fisher(), ActivationNorm(), Hessian()]


@pytest.fixture
def regression() -> Task:
    """Forty points in three dimensions with two real targets; all of them are seen by any score."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator)
    data = (inputs, targets)
    return Task(train=data, validation=data, test=data, loss="mse", metric="negative_squared_error")


def test_gradients_and_moments_of_a_linear_model_are_those_of_the_formula(regression: Task) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    x, y = regression.test.inputs, regression.test.targets
    errors = (layer(x) - y).detach()
    # ℓₙ is a mean over two outputs: ∂ℓₙ/∂w_ij = e_i x_j.
    single = errors.unsqueeze(2) * x.unsqueeze(1)
    found = {type(score): evidence_for(score, layer, regression)["weight"] for score in LOOKING}
    torch.testing.assert_close(found[Taylor].gradient, single.mean(0))
    torch.testing.assert_close(found[Fisher].squared_gradient, single.square().mean(0))
    torch.testing.assert_close(found[ActivationNorm].input_norms, x.square().mean(0, keepdim=True).sqrt())
    torch.testing.assert_close(found[Hessian].input_moments, (x.T @ x / 40).unsqueeze(0))
    expected = layer.weight.detach().abs() * x.square().mean(0).sqrt()
    torch.testing.assert_close(ActivationNorm()(layer.weight.detach(), found[ActivationNorm]), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (4, 7, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 11)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (3, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="circular"), (2, 4, 6, 6)),
        (nn.Conv2d(3, 2, 3), (3, 6, 6)),
        (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 4, 5, 3)),
    ],
    ids=str,
)
def test_a_layer_is_the_product_of_its_weight_and_its_columns(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirabelle.calibration.columns._NUMBERS_AT_ONCE", 50)  # so that it comes in parts
    layer = layer.double()
    inputs = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = F.linear(inputs, layer.weight) if isinstance(layer, nn.Linear) else layer(inputs) - _bias(layer)
    parts = list(Columns(layer).of(inputs))
    assert len(parts) > 1 or len(shape) == 3
    columns = torch.cat(parts, 1)
    weight = layer.weight.detach().reshape(columns.shape[0], -1, columns.shape[2])
    found = (weight @ columns.transpose(1, 2)).flatten(0, 1)  # (outputs, places)
    by_output = expected.movedim(-1 if isinstance(layer, nn.Linear) else -layer.weight.ndim + 1, 0)
    torch.testing.assert_close(found, by_output.flatten(1))


def _bias(layer: nn.Module) -> torch.Tensor:
    return layer.bias.reshape(-1, *[1] * (layer.weight.ndim - 2))


def test_a_layer_that_is_called_twice_sees_all_of_its_inputs(regression: Task) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(input=self.layer(x)))

    model = Twice()
    x = regression.test.inputs
    both = torch.cat([x, model.layer(x).detach()])
    found = evidence_for(Hessian(), model, regression)
    torch.testing.assert_close(found["layer.weight"].input_moments, (both.T @ both / 80).unsqueeze(0))


@pytest.mark.parametrize("score", LOOKING, ids=lambda score: type(score).__name__)
def test_the_model_and_the_generator_stay_as_they_were_and_the_evidence_comes_again(score: Score, images: Task) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 144)
    before, state = fingerprint(model), torch.get_rng_state()
    one, two, other = (evidence_for(score, model, images, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(model[4].weight.grad, torch.ones(3, 144))
    assert model[0].weight.grad is None
    assert not any(module._forward_pre_hooks for module in model)
    assert list(one) == ["0.weight", "4.weight"]
    for name, tensor in dict(model.named_parameters()).items():
        if name in one:
            first, again = score(tensor.detach(), one[name]), score(tensor.detach(), two[name])
            assert torch.equal(first, again)
            assert not first.requires_grad
    if score.samples < len(images.train):
        assert not torch.equal(score(model[4].weight, one["4.weight"]), score(model[4].weight, other["4.weight"]))


def test_attention_whose_parts_are_read_past_their_forward_is_left_out_or_told(blobs: Task, tmp_path: Path) -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(x.reshape(-1, 2, 4)).flatten(1))

    model = Attentive()
    assert list(evidence_for(ActivationNorm(), model, blobs)) == [
        "encoder.linear1.weight",
        "encoder.linear2.weight",
        "head.weight",
    ]
    with pytest.raises(UserError, match=r'E112.*"encoder.self_attn.out_proj.weight" is no such weight, or its layer never ran'):
        prune.Weights(sparsity=0.5, score=ActivationNorm())(model, blobs, Run(tmp_path))
    assert len(evidence_for(Taylor(), model, blobs)) == 5


def test_what_needs_no_data_gets_none(mlp: nn.Module, blobs: Task) -> None:
    found = evidence_for(Magnitude(), mlp, blobs)
    assert list(found) == ["0.weight", "2.weight"]
    assert found["0.weight"].gradient is None


@pytest.mark.parametrize("score", LOOKING, ids=lambda score: type(score).__name__)
def test_weights_are_pruned_by_what_the_data_show(score: Score, mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    before = copy.deepcopy(mlp.state_dict())
    step = prune.Weights(sparsity=0.75, score=score)
    assert step_from_data(step_to_data(step)) == step
    pruned = step(mlp, blobs, run)
    assert int((pruned[0].weight == 0).sum()) == 96
    assert fingerprint(step(mlp, blobs, run)) == fingerprint(pruned)
    assert all(torch.equal(mlp.state_dict()[name], tensor) for name, tensor in before.items())
    preview = step.preview(mlp, blobs, run)
    assert int((preview.model[0].weight == 0).sum()) == 96
    names = "0.bias"
    if score in (Taylor(), Fisher()):
        assert int((prune.Weights(sparsity=0.5, score=score, include=(names,))(mlp, blobs, run)[0].bias == 0).sum()) == 8
    else:
        with pytest.raises(UserError, match=r'E112.*"0.bias" is no such weight'):
            prune.Weights(sparsity=0.5, score=score, include=(names,))(mlp, blobs, run)


def test_scales_of_norms_are_what_their_score_prunes(images: Task, run: Run) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, -3.0, 2.0, -0.2]))
    pruned = prune.Weights(sparsity=0.5, score=BatchNormScale())(model, images, run)
    assert pruned[1].weight.tolist() == [0.0, -3.0, 2.0, 0.0]
    assert torch.equal(pruned[0].weight, model[0].weight)


def test_a_score_that_looks_at_data_ranks_once() -> None:
    with pytest.raises(UserError, match=r"E111.*Hessian needs data and is computed once"):
        prune.Weights(sparsity=0.5, schedule="cubic", score="Hessian", train=Training(epochs=1))
    assert prune.Weights(sparsity=0.5, schedule="cubic", score="Random", train=Training(epochs=1)).needs_training


def test_a_trained_network_keeps_more_by_every_score_than_by_lot(run: Run) -> None:
    task = digits()
    torch.manual_seed(0)
    model = fit(digits_cnn(), task, Training(epochs=4, batch_size=50, lr=3e-3, precision="float32"), run)

    def accuracy(score: Score) -> float:
        pruned = prune.Weights(sparsity=0.8, score=score)(model, task, run)
        return float(evaluate(pruned, task.test, task).mean())

    by_lot = max(accuracy(scores.Random(seed=seed)) for seed in range(2))
    for score in (Magnitude(), *LOOKING):
        assert accuracy(score) > by_lot + 0.05, score
