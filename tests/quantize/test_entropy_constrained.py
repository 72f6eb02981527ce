"""Entropy-constrained training: the rate is that of the levels, its gradient and its control work, and files become small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import nn

from kills import KilledAt, KilledError
from mirabelle import Run, Task, Training, compress, load, prune, quantize, save
from mirabelle.errors import UserError
from mirabelle.model.state import fingerprint
from mirabelle.numerics.entropy import level_model
from mirabelle.objectives import Rate, TaskLoss
from mirabelle.objectives.forward import Forward
from mirabelle.quantize import CodebookLayer
from mirabelle.quantize.rounded_layer import RoundedLayer, rounded_layers
from mirabelle.quantize.rounding_controls import Damping
from mirabelle.run.journal import read_events
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch
from mirabelle.training import Joint, fit
from mirabelle.training.checkpoint import Checkpoint

SHORT = Training(epochs=1, batch_size=40, lr=1e-3, precision="float32")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))


def rounding(model: nn.Sequential) -> nn.Sequential:
    for place, layer in zip((1, 3), rounded_layers([model[1], model[3]]), strict=True):
        model[place] = layer
    return model


def coded_bytes(model: nn.Module) -> float:
    """The estimated bytes of the codes of all layers, and of their biases."""
    bits = 0.0
    for layer in model.modules():
        if isinstance(layer, CodebookLayer):
            steps = layer.values[0, 1:]
            unit = float(steps.abs().min()) if steps.numel() else 1.0
            levels = (layer.values[0][layer.codes.long()] / unit).round().flatten(1)
            bits += float(level_model(levels).bits(levels))
    return bits / 8


def forward(progress: float) -> Forward:
    return Forward(Batch(torch.zeros(1), torch.zeros(1)), torch.zeros(1), progress=progress)


def test_the_rate_is_the_bits_of_the_levels_over_their_number(stripes: Task) -> None:
    model = rounding(network())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(parameter.abs() > 0.05)
        for layer in (model[1], model[3]):  # weights that are levels already
            for values, step in ((layer.weight, layer.weight_step), (layer.bias, layer.bias_step)):
                values.copy_((values / step(values.numel())).round() * step(values.numel()))
    bound = Rate().bind(model, stripes, stripes.example())
    expected, count = 0.0, 0
    for layer in (model[1], model[3]):
        for _, numbers in layer.positions():
            levels = numbers.detach().round()
            expected, count = expected + float(level_model(levels).bits(levels)), count + levels.numel()
    assert count == 64 * 40 + 40 + 40 * 3 + 3
    assert float(bound(forward(1.0)).detach()) == pytest.approx(expected / count, rel=1e-4)


def test_the_rate_alone_makes_everything_zero(stripes: Task) -> None:
    model = rounding(network())
    bound = Rate().bind(model, stripes, stripes.example())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (500 * bound(forward(1.0))).backward()
        optimizer.step()
    share = [float((layer.as_codebook(dense).codes == 0).float().mean()) for layer, dense in zip(
        (model[1], model[3]), (network()[1], network()[3]), strict=True)]  # fmt: skip
    assert min(share) > 0.99


def test_the_control_of_a_size_raises_and_lowers_the_weight(stripes: Task) -> None:
    model = rounding(network())
    few: Any = Rate(size="100 B").bind(model, stripes, stripes.example())
    many: Any = Rate(size="100 kB").bind(model, stripes, stripes.example())
    for _ in range(50):
        few(forward(0.7))
        many(forward(0.7))
    assert float(few.weight) == pytest.approx(0.1 * math.exp(0.02 * 50), rel=1e-3)
    assert float(many.weight) < 0.1
    assert float(few(forward(0.7)).detach()) == pytest.approx(
        float(few.weight) * math.exp(3.0) * float(Rate().bind(model, stripes, stripes.example())(forward(1.0)).detach()),
        rel=1e-3,
    )


def test_a_layer_in_training_computes_what_its_codebook_will(stripes: Task) -> None:
    torch.manual_seed(0)
    inputs = stripes.test.inputs[:9]
    dense = nn.Conv2d(1, 5, 3)
    layer = rounded_layers([dense])[0]
    torch.testing.assert_close(layer.as_codebook(dense)(inputs), layer(inputs).detach(), rtol=0.01, atol=0.01)
    with torch.no_grad():
        layer.weight.mul_(1e3)  # clamped to 127 levels
    book = layer.as_codebook(dense)
    assert float(book.values.abs().max()) == pytest.approx(127 * float(layer.weight_step(1).detach()), rel=0.01)
    torch.testing.assert_close(book(inputs), layer(inputs).detach(), rtol=0.01, atol=0.3)


def test_a_size_is_met_and_the_metric_kept(stripes: Task, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    dense = fit(network(), stripes, Training(epochs=20, batch_size=40, lr=3e-3, precision="float32"), run.within("dense"))
    train = Training(epochs=60, batch_size=40, lr=5e-3, precision="float32")  # keep = "best" would keep a large one
    small = quantize.EntropyConstrained(size="60 B", train=train)(dense, stripes.with_teacher(dense), run)
    assert coded_bytes(small) < 64
    with torch.no_grad():
        accuracy = [
            float((model(stripes.test.inputs).argmax(1) == stripes.test.targets).float().mean()) for model in (dense, small)
        ]
    assert accuracy[0] > 0.95
    assert accuracy[1] > accuracy[0] - 0.03


def test_a_size_that_a_training_does_not_meet_is_told(stripes: Task, tmp_path: Path) -> None:
    told: list[str] = []
    for size in ("40 B", "100 kB"):
        run = Run(tmp_path / size)
        quantize.EntropyConstrained(size=size, train=SHORT)(network(), stripes, run)
        told.append(" ".join(event["text"] for event in read_events(run.folder) if event["event"] == "warning"))
    assert "more than size = 40 B" in told[0]
    assert "more than size" not in told[1]


def test_the_end_of_the_training_is_kept_though_an_earlier_epoch_had_a_better_metric(stripes: Task, tmp_path: Path) -> None:
    dense = fit(network(), stripes, Training(epochs=8, batch_size=40, lr=3e-3, precision="float32"), Run(tmp_path / "dense"))
    found = []
    for keep in ("best", "last"):
        train = Training(epochs=6, batch_size=40, lr=1e-2, precision="float32", keep=keep)  # type: ignore[arg-type]
        step = quantize.EntropyConstrained(rate=100.0, train=train)
        found.append(step(dense, stripes.with_teacher(dense), Run(tmp_path / keep)))
    metrics = [event["metric"] for event in read_events(tmp_path / "best") if event["event"] == "epoch"]
    assert max(metrics[:-1]) > metrics[-1]
    assert fingerprint(found[0]) == fingerprint(found[1])


def test_a_training_that_diverges_is_told(stripes: Task) -> None:
    model = rounding(network())
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")  # type: ignore[operator, index, union-attr]
    assert bool(Rate(size="1 kB").bind(model, stripes, stripes.example())(forward(0.5)).isnan())


def test_a_run_is_loaded_again_and_pruned_weights_stay(stripes: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5), quantize.EntropyConstrained(rate=0.5, train=SHORT)]
    result = compress(network(), stripes, steps, out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    again: Any = load(network, tmp_path / "run")
    assert torch.equal(again(stripes.test.inputs), result.model(stripes.test.inputs))
    assert float((again[1].codes == 0).float().mean()) >= 0.4


def test_damping_moves_numbers_towards_their_levels() -> None:
    """In proportion to the change by the optimizer and to the distance; a shared weight once."""
    dense = nn.Linear(4, 1)
    dense.weight.data = torch.tensor([[0.9, -1.4, 0.0, 3.2]])
    tied = nn.Linear(4, 1)
    tied.weight = dense.weight
    model = nn.ModuleList(rounded_layers([dense, tied]))
    first = model[0]
    assert isinstance(first, RoundedLayer)
    assert first.weight is model[1].weight
    first.weight_step.first.fill_(0.5)
    control = Damping()
    inputs = torch.ones(1, 4)
    model.train()
    for layer in model:
        layer(inputs)
    with torch.no_grad():
        first.weight += torch.tensor([[0.2, 0.0, 0.0, 0.0]])  # as by an optimizer step: |Δw| = 0.1
    numbers, levels = np.array([2.2, -2.8, 0.0, 6.4]), np.array([2, -3, 0, 6])
    due = 0.5 * numbers + 0.5 * 0.1 * (levels - numbers)
    assert control(model, 0.5) is False
    assert first.weight.detach().numpy()[0] == pytest.approx(due, abs=1e-6)
    assert control(model, 0.5) is False  # without a pass nothing is moved
    assert first.weight.detach().numpy()[0] == pytest.approx(due, abs=1e-6)
    for layer in model:
        layer(inputs)
    with torch.no_grad():
        first.weight[0, 1:] += torch.tensor(
            [10.0, 0.1, 100.0]
        )  # a long step: numbers go to their levels, not beyond; at most ±127
    moved = first.weight.detach().numpy()[0].copy()
    control(model, 0.5)
    levels = np.clip(np.round(moved / 0.5), -127, 127)
    assert first.weight.detach().numpy()[0] == pytest.approx(0.5 * levels, abs=1e-5)
    assert [control.settled(progress) for progress in (0.99, 1.0)] == [False, True]


def test_a_killed_training_finds_its_weight_again(stripes: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "due", property(lambda _: True))
    step = quantize.EntropyConstrained(size="100 B")
    training = Training(epochs=2, batch_size=40, lr=1e-3, precision="float32")

    def trained(folder: str, controls: list[Any]) -> nn.Module:
        prepared = step.prepare(network(), stripes, Run(tmp_path / folder))
        assert prepared.terms is not None
        objective = TaskLoss() + prepared.terms
        return fit(prepared.model, stripes, training, Run(tmp_path / folder), objective=objective, controls=controls)

    whole = trained("whole", [])
    with pytest.raises(KilledError):
        trained("killed", [KilledAt(7)])
    groups, numbers = Checkpoint(tmp_path / "killed" / "checkpoint.safetensors").read() or ({}, {})
    Checkpoint(tmp_path / "killed" / "checkpoint.safetensors").write(groups, {**numbers, "controls": []})
    assert float(groups["objective"]["terms.1.weight"]) != 0.1  # what the control had found
    assert fingerprint(trained("killed", [])) == fingerprint(whole)


def test_layers_that_share_a_weight_share_codes_and_step(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(30, 8), nn.Linear(8, 30)
            self.out.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids).mean(1))

    torch.manual_seed(0)
    ids, targets = torch.randint(0, 30, (60, 3)), torch.arange(60) % 30
    task = Task(train=(ids, targets), test=(ids, targets))
    model: Any = quantize.EntropyConstrained(rate=0.1, train=SHORT)(Tied(), task, Run(tmp_path))
    assert model.table.codes is model.out.codes
    assert model.table.values is model.out.values
    prepared = quantize.EntropyConstrained(rate=0.1).prepare(Tied(), task, Run(tmp_path / "again"))
    bound: Any = Rate().bind(prepared.model, task, task.example())
    assert bound._count == 30 * 8 + 30  # the shared weight once, and a bias


def test_it_joins_a_training(stripes: Task, tmp_path: Path) -> None:
    steps = (prune.Weights(sparsity=0.6, schedule="linear"), quantize.EntropyConstrained(rate=0.1))
    model: Any = Joint(steps=steps, train=SHORT)(network(), stripes, Run(tmp_path))
    assert float((model[1].codes == 0).float().mean()) >= 0.5


def test_mistakes(stripes: Task, tmp_path: Path) -> None:
    for settings, code in (
        ({}, "E111"),
        ({"rate": 1.0, "size": "4 kB"}, "E111"),
        ({"rate": -1.0}, "E110"),
        ({"size": "k"}, "E113"),
    ):
        with pytest.raises(UserError, match=code):
            quantize.EntropyConstrained(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="E111"):
        quantize.EntropyConstrained(rate=1.0)(network(), stripes, Run(tmp_path / "a"))
    with pytest.raises(UserError, match="are rounded in the training"):
        fit(network(), stripes, Training(epochs=1, objective=TaskLoss() + 1.0 * Rate()), Run(tmp_path / "b"))
    model = network()
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="is not finite"):
        quantize.EntropyConstrained(rate=1.0, train=SHORT)(model, stripes, Run(tmp_path / "c"))
    assert not any(isinstance(layer, RoundedLayer) for layer in model.modules())


def normed() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 12, bias=True),
        nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2),
    )  # fmt: skip
    for norm in (model[1], model[5]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.bias)
    return model.eval()


def test_batch_norms_are_folded_before_the_training(tmp_path: Path) -> None:
    images, targets = torch.randn(80, 1, 8, 8), torch.arange(80) % 2
    task, model = Task(train=(images, targets), test=(images, targets)), normed()
    step = quantize.EntropyConstrained(rate=0.0, train=Training(epochs=1, lr=1e-3, precision="float32", keep="last"))
    prepared = step.prepare(model, task, Run(tmp_path / "prepared"))
    layers = [module for module in prepared.model.modules() if isinstance(module, RoundedLayer)]
    assert [layer.bias is not None for layer in layers] == [True, True, True]
    expected = model[1](model[0](images))
    with torch.no_grad():
        exact = torch.nn.functional.conv2d(images, layers[0].weight, layers[0].bias)
    assert torch.allclose(exact, expected, atol=1e-5), "the weights before the rounding are the folded ones"
    made = step(model, task, Run(tmp_path / "run"))
    assert [type(module).__name__ for module in made] == [
        "CodebookLayer", "FoldedNorm", "ReLU", "Flatten", "CodebookLayer", "FoldedNorm", "ReLU", "CodebookLayer",
    ]  # fmt: skip
    save(made, tmp_path / "saved")
    again = load(normed(), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(images), made(images))
    onnx = export(made, task.example())
    names = {tensor.name for tensor in ModelProto.FromString(onnx).graph.initializer}
    assert not [name for name in names if "running" in name]
    outputs = onnxruntime.InferenceSession(onnx).run(None, {"input": images.numpy()})[0]
    assert torch.allclose(torch.from_numpy(outputs), made(images), atol=1e-4)
