"""Quantization-aware training: what is simulated is what is computed afterwards, and the training pays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, artifact, prune, quantize
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.objectives import Rate, TaskLoss
from mirabelle.quantize.simulated import Simulated, Step, levels
from mirabelle.quantize.simulation import quantized_as_trained, simulating
from mirabelle.run.journal import read_events
from mirabelle.training import Joint, Training, fit


class Residual(nn.Module):
    """Folded batch norms, one that is not folded, an addition and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        first = self.norm1(self.conv1(images)).relu()
        return self.fc((self.norm2(self.conv2(first)) + first).relu().mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.inner(self.table(tokens)).tanh()).mean(1)


def stripes(count: int = 240) -> tuple[Tensor, Tensor]:
    """Images of noise with a horizontal stripe, a vertical one, or none."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.5
    classes = torch.randint(0, 3, (count,), generator=generator)
    images[classes == 1, :, 2, :] += 0.6
    images[classes == 2, :, :, 2] += 0.6
    return images, classes


@pytest.fixture
def images() -> Task:
    return Task(train=stripes(), test=stripes())


def trained(model: nn.Module, task: Task, run: Run, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return mirabelle.training.fit(model, task, Training(precision="float32", **settings), run)  # type: ignore[arg-type]


def _gap(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(inputs) - other.eval()(inputs)).abs().max())


def test_the_rate_makes_more_weights_zero(images: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    zeros = []
    for name, weight in (("without", 0.0), ("with", 20.0)):
        objective = TaskLoss() + weight * Rate()
        train = Training(epochs=15, batch_size=40, lr=5e-3, precision="float32", keep="last", objective=objective)
        model = quantize.Aware(weight_bits=4, activations="float", train=train)(Residual(), images, Run(tmp_path / name))
        codes = [layer.codes for layer in model.modules() if isinstance(layer, quantize.GroupLayer)]
        zeros.append(sum(int((one == 0).sum()) for one in codes) / sum(one.numel() for one in codes))
    assert zeros[1] > 2 * zeros[0] > 0


def test_gradient_of_levels_is_that_of_learned_step_sizes() -> None:
    values = torch.tensor([-9.0, -0.6, 0.24, 0.9, 7.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    (step * levels(values, step, -4, 3)).sum().backward()
    ratio = values.detach() / 0.5
    inside = (ratio > -4) & (ratio < 3)
    expected = torch.where(inside, ratio.round() - ratio, ratio.sign() * torch.where(ratio < 0, 4.0, 3.0))
    assert values.grad is not None
    assert values.grad.tolist() == inside.float().tolist()
    assert step.grad is not None
    assert float(step.grad) == pytest.approx(float(expected.sum()))


def test_gradient_of_a_step_per_channel_is_summed_over_the_channel() -> None:
    weight, steps = torch.tensor([[0.6, -0.3], [5.0, 0.1]]), torch.tensor([[0.5], [1.0]], requires_grad=True)
    (steps * levels(weight, steps, -3, 3)).sum().backward()
    assert steps.grad is not None
    assert steps.grad.flatten().tolist() == pytest.approx([(1 - 1.2) + (-1 + 0.6), 3 + (0 - 0.1)])


def test_a_step_is_positive_and_stored_in_two_bytes() -> None:
    step = Step(torch.tensor(0.1), 127)
    with torch.no_grad():
        step.logarithm.fill_(-30.0)
    value = step(100).detach()
    assert 0 < float(value) < 0.1
    assert torch.equal(value.bfloat16().float(), value)


@pytest.mark.parametrize("activations", ["static", "token", "tensor", "float"])
@pytest.mark.parametrize("bits", [8, 3])
def test_the_simulation_computes_what_the_quantized_model_computes(
    images: Task, tmp_path: Path, activations: str, bits: int
) -> None:
    model = trained(Residual(), images, Run(tmp_path / "dense"), epochs=1).eval()
    step = quantize.Aware(weight_bits=bits, activations=activations)  # type: ignore[arg-type]
    calibrated = step._without_training()(model, images, Run(tmp_path / "aware"))
    simulated = simulating(model, calibrated)
    inputs = images.test.inputs[:64]
    assert isinstance(inputs, Tensor)
    assert any(isinstance(module, Simulated) for module in simulated.modules())
    moved = trained(simulated, images, Run(tmp_path / "moved"), epochs=1, lr=3e-3, batch_size=32)
    final = quantized_as_trained(calibrated, moved)
    assert not any(isinstance(module, Simulated) for module in final.modules())
    assert _gap(moved, final, inputs) < 1e-5
    assert _gap(final, model, inputs) > 1e-3


def test_before_the_training_it_is_the_quantized_model(images: Task, tmp_path: Path) -> None:
    model = trained(Residual(), images, Run(tmp_path / "dense"), epochs=1).eval()
    quantized = quantize.Static(weight_bits=4)(model, images, Run(tmp_path / "static"))
    simulated = simulating(model, quantized)
    inputs = images.test.inputs[:64]
    assert isinstance(inputs, Tensor)
    assert _gap(simulated, quantized, inputs) < 1e-6
    assert _gap(quantized_as_trained(quantized, simulated), quantized, inputs) == 0


def test_two_bits_are_learned(images: Task, tmp_path: Path) -> None:
    model = trained(Residual(), images, Run(tmp_path / "dense"), epochs=12, lr=1e-2, batch_size=32).eval()
    task = images.with_teacher(model)
    calibrated = quantize.Static(weight_bits=2)(model, task, Run(tmp_path / "static"))
    aware = quantize.Aware(weight_bits=2, train=Training(epochs=12, lr=3e-3, batch_size=32, precision="float32"))
    learned = aware(model, task, Run(tmp_path / "aware"))
    before, after = (
        images.metric.value(mirabelle.training.evaluate(one, images.test, images)) for one in (calibrated, learned)
    )
    assert after > before + 0.05
    assert set(learned.conv1.codes.unique().tolist()) <= {-1, 0, 1}  # type: ignore[union-attr, operator]


def test_pruned_weights_stay_zero_in_a_joint_training_and_the_run_reloads(images: Task, tmp_path: Path) -> None:
    joint = Joint(
        steps=(prune.Weights(sparsity=0.5, schedule="cubic", include=("conv*", "fc*")), quantize.Aware(weight_bits=4)),
        train=Training(epochs=2, lr=3e-3, batch_size=32),
    )
    result = mirabelle.compress(Residual(), images, [joint], out=tmp_path)
    codes = [module.codes for module in result.model.modules() if hasattr(module, "codes")]
    zeros = sum(int((one == 0).sum()) for one in codes) / sum(one.numel() for one in codes)
    assert zeros >= 0.5
    assert all(gate.passed for gate in result.gates.values())
    again = artifact.load(Residual, tmp_path)
    inputs = images.test.inputs[:8]
    assert isinstance(inputs, Tensor)
    assert _gap(again, result.model, inputs) == 0


def test_weights_pruned_before_stay_zero(images: Task, tmp_path: Path) -> None:
    model = prune.Weights(sparsity=0.5, include=("conv2.weight",))(Residual(), images, Run(tmp_path / "pruned"))
    zero = model.conv2.weight == 0  # type: ignore[union-attr]
    aware = quantize.Aware(weight_bits=4, train=Training(epochs=1, lr=1e-2, batch_size=32))
    learned = aware(model, images, Run(tmp_path / "aware"))
    assert not learned.conv2.codes[zero].any()  # type: ignore[union-attr, index]
    assert zero.any()


def test_layers_that_share_a_weight_learn_one(tmp_path: Path) -> None:
    tokens = torch.randint(0, 20, (64, 5), generator=torch.Generator().manual_seed(0))
    task = Task(train=(tokens, tokens[:, 0]), test=(tokens, tokens[:, 0]))
    aware = quantize.Aware(weight_bits=4, activations="token", train=Training(epochs=1, lr=1e-2, batch_size=32))
    result = mirabelle.compress(Tied(), task, [aware], out=tmp_path)
    assert result.model.table.codes is result.model.head.codes  # type: ignore[union-attr]
    assert all(gate.passed for gate in result.gates.values())
    assert architecture_of(result.model).replaced.keys() >= {"inner", "head", "table"}


def test_a_single_layer_is_a_model(tmp_path: Path) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    task = Task(train=(x, (x.sum(1) > 0).long()), test=(x, (x.sum(1) > 0).long()))
    aware = quantize.Aware(weight_bits=3, train=Training(epochs=1, batch_size=32))
    result = mirabelle.compress(nn.Linear(6, 2), task, [aware], out=tmp_path)
    assert isinstance(result.model, quantize.StaticLayer)


def test_without_a_training_it_is_refused(images: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quantize\.Aware trains") as caught:
        quantize.Aware()(Residual(), images, Run(tmp_path))
    assert caught.value.code == "E111"


def test_a_training_that_diverges_leaves_the_calibrated_model(images: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fit(Residual(), images, Training(epochs=4, lr=3e-3, batch_size=32), Run(tmp_path / "dense"))
    calibrated = quantize.Static(weight_bits=4)(model, images, Run(tmp_path / "static"))
    training = Training(epochs=1, lr=3.0, batch_size=32, optimizer="sgd", clip=1.0, precision="float32")
    found = quantize.Aware(weight_bits=4, train=training)(model, images, Run(tmp_path / "aware"))
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), calibrated.state_dict().values(), strict=True))
    told = [one["text"] for one in read_events(tmp_path / "aware") if one["event"] == "warning"]
    assert any("made the quantized model worse" in text and "lower lr" in text for text in told)


def test_a_joint_training_that_diverges_still_prunes(images: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fit(Residual(), images, Training(epochs=4, lr=3e-3, batch_size=32), Run(tmp_path / "dense"))
    joint = Joint(
        steps=(prune.Weights(sparsity=0.5, include=("conv*", "fc*")), quantize.Aware(weight_bits=4)),
        train=Training(epochs=1, lr=3.0, batch_size=32, optimizer="sgd", clip=1.0, precision="float32"),
    )
    found = joint(model, images, Run(tmp_path / "joint"))
    codes = [module.codes for module in found.modules() if hasattr(module, "codes")]
    assert sum(int((one == 0).sum()) for one in codes) >= 0.5 * sum(one.numel() for one in codes)
