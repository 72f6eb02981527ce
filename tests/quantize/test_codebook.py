"""Weight sharing: codes of the nearest values, zeros kept, values trained by summed gradients, the same in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from sklearn.cluster import KMeans
from torch import nn

from mirabelle import Run, Task, Training, compress, load, prune, quantize
from mirabelle.artifact.mira import pack
from mirabelle.artifact.tensor_costs import costs_of
from mirabelle.errors import UserError
from mirabelle.inspection.layers import layers_of_module, layers_of_onnx
from mirabelle.inspection.measure import count_parameters
from mirabelle.model.architecture import replace_module
from mirabelle.quantize import CodebookLayer, MixedBits
from mirabelle.quantize.codebook_layer import with_parameters
from mirabelle.run.journal import read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import torch_equals_onnx
from mirabelle.runtime.program import exported_program
from mirabelle.task.batch import Batch
from mirabelle.training import Joint, fit

TRAIN = Training(epochs=3, batch_size=20, lr=3e-3, precision="float32")
LAYERS = [
    (nn.Linear(24, 10), (24,)),
    (nn.Conv1d(4, 6, 3), (4, 9)),
    (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 7, 7)),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3)
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_weights_become_the_centroids_of_the_best_clusters(bits: int) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(40, 30)
    layer = CodebookLayer.shared(dense, bits)
    weight, shared = dense.weight.detach(), layer.plain_tensors()["weight"]
    assert shared.unique().numel() == 2**bits
    best = KMeans(2**bits, n_init=10, random_state=0).fit(weight.reshape(-1, 1).numpy())
    assert float((weight - shared).square().sum()) <= 1.002 * best.inertia_  # of rounding to bfloat16
    for value in shared.unique():
        assert float(weight[shared == value].mean()) == pytest.approx(float(value), rel=2**-8, abs=1e-4)
    bias = dense.bias.detach().bfloat16().float()
    assert torch.equal(layer(torch.ones(1, 40)), nn.functional.linear(torch.ones(1, 40), shared, bias))


def test_zeros_stay_zeros_and_count_as_zeros() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(40, 30)
    with torch.no_grad():
        dense.weight[torch.rand(30, 40) < 0.7] = 0
    layer = CodebookLayer.shared(dense, 2)
    assert torch.equal(layer.codes == 0, dense.weight == 0)
    assert layer.plain_tensors()["weight"].unique().numel() == 4
    model = replace_module(nn.Sequential(dense), "0", layer).eval()
    kept = int((dense.weight != 0).sum())
    assert count_parameters(model) == (1230, kept + 30)
    row = layers_of_onnx(export(model, Batch(torch.randn(3, 40), torch.zeros(3))))[0]
    assert (row.parameters, row.sparsity) == (1230, pytest.approx(1 - (kept + 30) / 1230))


def test_a_layer_without_zeros_has_as_many_values_and_no_zero() -> None:
    torch.manual_seed(0)
    model: Any = replace_module(nn.Sequential(nn.Linear(20, 30)), "0", CodebookLayer.shared(nn.Linear(20, 30), 2)).eval()
    assert (int(model[0].codes.min()), int(model[0].codes.max())) == (1, 4)
    assert count_parameters(model) == (630, 630)
    assert layers_of_module(model, None)[0].sparsity == 0
    assert layers_of_onnx(export(model, Batch(torch.randn(3, 20), torch.zeros(3))))[0].sparsity == 0


@pytest.mark.parametrize(("bits", "group_size"), [(2, 0), (3, 4), (4, 0), (7, 4)])
@pytest.mark.parametrize(("dense", "shape"), LAYERS, ids=[type(dense).__name__ for dense, _ in LAYERS])
def test_onnx_runtime_computes_with_the_same_values(
    dense: nn.Module, shape: tuple[int, ...], group_size: int, bits: int
) -> None:
    torch.manual_seed(0)
    layer: Any = CodebookLayer.shared(dense, bits, group_size)
    assert len(layer.values) == (-(-len(dense.weight) // group_size) if group_size else 1)  # type: ignore[arg-type]
    model = replace_module(nn.Sequential(dense), "0", layer).eval()
    batch = Batch(torch.randn(5, *shape), torch.zeros(5))
    onnx = export(model, batch)
    gate = torch_equals_onnx(model, onnx, [batch], quantized=False)
    assert gate.passed, gate.detail
    held = {2: TensorProto.UINT2, 3: TensorProto.UINT4, 4: TensorProto.UINT4}.get(bits, TensorProto.UINT8)
    stored = {tensor.name: tensor.data_type for tensor in ModelProto.FromString(onnx).graph.initializer}
    assert stored["0.codes"] == held
    program = exported_program(model, batch.inputs)
    torch.testing.assert_close(program.module()(batch.inputs), model(batch.inputs))


def test_rows_of_a_table_are_looked_up() -> None:
    torch.manual_seed(0)
    table, ids = nn.Embedding(30, 6), torch.randint(0, 30, (5, 4))
    model = replace_module(nn.Sequential(table), "0", CodebookLayer.shared(table, 4, 10)).eval()
    torch.testing.assert_close(model(ids), table(ids), atol=0.6, rtol=0)
    assert torch.equal(model(ids), nn.functional.embedding(ids, model[0].plain_tensors()["weight"]))
    gate = torch_equals_onnx(model, export(model, Batch(ids, ids)), [Batch(ids, ids)], quantized=False)
    assert gate.passed, gate.detail


def test_the_gradient_of_a_value_is_the_sum_over_its_weights() -> None:
    torch.manual_seed(0)
    dense, x = nn.Linear(12, 5), torch.randn(7, 12)
    with torch.no_grad():
        dense.weight[:, :4] = 0
    layer = CodebookLayer.shared(dense, 2)
    plain = nn.Linear(12, 5)
    plain.load_state_dict(layer.plain_tensors())
    with_parameters(nn.Sequential(layer))
    for one in (layer, plain):
        one(x).square().sum().backward()
    assert layer.values.grad is not None
    assert plain.weight.grad is not None
    expected = [plain.weight.grad[layer.codes == code].sum() for code in range(1, 4)]
    torch.testing.assert_close(layer.values.grad[0, 1:], torch.stack(expected))
    assert float(layer.values.grad[0, 0]) == 0  # the value of pruned weights stays


def test_training_the_values_gains_and_keeps_codes_and_zeros(stripes: Task, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    fitted = fit(network(), stripes, TRAIN, run.within("dense"))
    pruned = prune.Weights(sparsity=0.6)(fitted, stripes, run)
    untrained: Any = quantize.Codebook(bits=2)(pruned, stripes, run.within("untrained"))
    trained: Any = quantize.Codebook(bits=2, train=TRAIN)(pruned, stripes.with_teacher(fitted), run.within("trained"))
    for name in ("0", "4", "6"):
        one, other = untrained.get_submodule(name), trained.get_submodule(name)
        assert torch.equal(one.codes, other.codes)
        assert not torch.equal(one.values, other.values)
        assert torch.equal(other.values, other.values.bfloat16().float())
        assert torch.equal(other.bias, other.bias.bfloat16().float())
        assert bool((other.values[:, 0] == 0).all())

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return float(
                (model(stripes.test.inputs).log_softmax(1) - fitted(stripes.test.inputs).log_softmax(1)).square().mean()
            )

    assert distance(trained) < 0.7 * distance(untrained)


def test_layers_that_share_a_weight_train_one_codebook(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids).mean(1))

    torch.manual_seed(0)
    ids, targets = torch.randint(0, 30, (60, 3)), torch.arange(60) % 30
    task = Task(train=(ids, targets), test=(ids, targets))
    before: Any = quantize.Codebook(bits=2)(Tied(), task, Run(tmp_path / "before"))
    torch.manual_seed(0)
    train = Training(epochs=5, batch_size=20, lr=0.05, precision="float32", keep="last")
    dense = Tied()
    model: Any = quantize.Codebook(bits=2, train=train)(dense, task, Run(tmp_path / "trained"))
    assert model.table.codes is model.out.codes
    assert model.table.values is model.out.values
    assert model.table.values.shape == before.table.values.shape
    assert not isinstance(model.table.values, nn.Parameter)


def test_a_training_that_makes_it_worse_is_not_kept(stripes: Task, tmp_path: Path) -> None:
    fitted = fit(network(), stripes, TRAIN, Run(tmp_path / "dense"))
    bad = Training(epochs=1, batch_size=20, lr=5.0, optimizer="sgd", precision="float32")
    run = Run(tmp_path / "run")
    kept: Any = quantize.Codebook(bits=6, train=bad)(fitted, stripes, run)
    plain: Any = quantize.Codebook(bits=6)(fitted, stripes, Run(tmp_path / "plain"))
    assert torch.equal(kept[4].values, plain[4].values)
    told = [event["text"] for event in read_events(tmp_path / "run") if event["event"] == "warning"]
    assert any("with the values of k-means, which is kept" in text for text in told)


def test_a_run_is_loaded_again_and_its_gates_hold(stripes: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5), quantize.Codebook(bits=3, group_size=4, train=TRAIN)]
    result = compress(network(), stripes, steps, out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    again = load(network, tmp_path / "run")
    assert torch.equal(again(stripes.test.inputs), result.model(stripes.test.inputs))
    assert float((again[4].codes == 0).float().mean()) >= 0.3


def test_bits_of_each_layer_fit_into_a_size(stripes: Task, tmp_path: Path) -> None:
    model = network()
    mixed = MixedBits(size="700 B", choices=(2, 3, 4, 5, 6), samples=60)
    small: Any = quantize.Codebook(bits=mixed)(model, stripes, Run(tmp_path))
    size = sum(4 * len(small[name].bias) for name in (0, 4, 6))
    chosen = {}
    for name in (0, 4, 6):
        counts = np.unique(small[name].codes.numpy(), return_counts=True)[1]
        shares = counts / counts.sum()
        size += small[name].codes.numel() * float(-(shares * np.log2(shares)).sum()) / 8 + 2 * small[name].values[:, 1:].numel()
        chosen[name] = small[name].values.numel()
    assert 600 < size <= 700
    assert len(set(chosen.values())) > 1
    with pytest.raises(UserError, match="E114"):
        quantize.Codebook(bits=MixedBits(size="300 B", samples=60))(model, stripes, Run(tmp_path / "small"))


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_other_starts_are_not_better(start: Any) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(40, 30)

    def error(layer: CodebookLayer) -> float:
        return float((layer.plain_tensors()["weight"] - dense.weight.detach()).square().sum())

    assert error(CodebookLayer.shared(dense, 4)) <= 1.002 * error(CodebookLayer.shared(dense, 4, start=start))
    other = CodebookLayer.shared(dense, 4, start=start, seed=1)
    assert torch.equal(other.codes, CodebookLayer.shared(dense, 4, start=start, seed=1).codes)


def test_strange_weights() -> None:
    for weight, entries in ((torch.zeros(3, 4), 1), (torch.full((3, 4), 0.5), 2), (torch.ones(1, 1), 2), (torch.eye(3), 2)):
        dense = nn.Linear(weight.shape[1], len(weight), bias=False)
        with torch.no_grad():
            dense.weight.copy_(weight)
        layer = CodebookLayer.shared(dense, 4)
        assert layer.values.shape == (1, entries)
        assert torch.equal(layer.plain_tensors()["weight"], weight)
        model = replace_module(nn.Sequential(dense), "0", layer).eval()
        batch = Batch(torch.randn(3, weight.shape[1]), torch.zeros(3))
        gate = torch_equals_onnx(model, export(model, batch), [batch], quantized=False)
        assert gate.passed, gate.detail


def test_groups_with_fewer_values_than_others() -> None:
    dense = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        dense.weight[:2] = 0.25
    layer = CodebookLayer.shared(dense, 3, 2)
    assert torch.equal(layer.plain_tensors()["weight"][:2], dense.weight[:2])
    assert layer.codes[:2].unique().tolist() == [1]


def test_mistakes(stripes: Task, tmp_path: Path) -> None:
    model = network()
    for settings, code in (
        ({"bits": 1}, "E110"),
        ({"bits": 9}, "E110"),
        ({"group_size": -1}, "E110"),
        ({"start": "k"}, "E103"),
    ):
        with pytest.raises(UserError, match=code):
            quantize.Codebook(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="E112"):
        quantize.Codebook(include=("conv*",))(model, stripes, Run(tmp_path / "a"))
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match='"4" is not finite'):
        quantize.Codebook()(model, stripes, Run(tmp_path / "b"))
    with pytest.raises(UserError, match="does not act during training"):
        Joint(steps=(quantize.Codebook(),), train=TRAIN)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="E105"):
        compress(network(), stripes, [quantize.Codebook(), prune.Weights(sparsity=0.5)], out=tmp_path / "c")


@pytest.mark.parametrize(("dense", "shape"), [*LAYERS, (nn.Embedding(20, 6), ())])
def test_few_levels_are_weights_in_a_file_and_a_packed_file_knows_their_step(dense: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    levels = torch.randint(-3, 4, dense.weight.shape).float()
    layer = nn.Sequential(CodebookLayer.of_levels(dense, levels, torch.tensor(0.037), None)).eval()
    inputs = torch.randn(5, *shape) if shape else torch.arange(15).reshape(5, 3) % 20
    example = Batch(inputs, torch.zeros(5))
    file = export(layer, example)
    graph = ModelProto.FromString(file).graph
    weight = next(tensor for tensor in graph.initializer if tensor.name == "0.weight")
    found = numpy_helper.to_array(weight)
    due = (levels * torch.tensor(0.037)).bfloat16().float().numpy()
    assert np.array_equal(found if found.shape == due.shape else found.T, due)
    assert not [node for node in graph.node if node.op_type == "Cast"]
    assert torch_equals_onnx(layer, file, [example], quantized=False).passed
    codec = next(one.codec for one in costs_of(pack(file)).tensors if one.name == "0.weight")
    assert codec in ("multiples, in the head", "contexts of multiples, in the head")


def test_many_levels_are_codes_in_a_file() -> None:
    dense = nn.Linear(100, 41, bias=False)
    layer = nn.Sequential(CodebookLayer.of_levels(dense, torch.ones(41, 100), torch.tensor(0.5), None)).eval()
    graph = ModelProto.FromString(export(layer, Batch(torch.randn(2, 100), torch.zeros(2)))).graph
    assert {tensor.name for tensor in graph.initializer} >= {"0.codes", "0.values"}


@pytest.mark.parametrize("steps", [(0.1, 0.3), (0.1, 0.1)])
def test_layers_with_equal_codes_keep_their_own_values(steps: tuple[float, float]) -> None:
    torch.manual_seed(0)
    levels = torch.randint(-2, 3, (16, 16)).float()
    layers = [CodebookLayer.of_levels(nn.Linear(16, 16, bias=False), levels, torch.tensor(step), None) for step in steps]
    model, example = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval(), Batch(torch.randn(5, 16), torch.zeros(5))
    assert torch_equals_onnx(model, export(model, example), [example], quantized=False).passed


def test_the_name_of_a_weight_may_be_taken() -> None:
    class Root(CodebookLayer):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return super().forward(weight)

    layer = Root.of_levels(nn.Linear(4, 3), torch.randint(-2, 3, (3, 4)).float(), torch.tensor(0.25), None).eval()
    example = Batch(torch.randn(5, 4), torch.zeros(5))
    assert torch_equals_onnx(layer, export(layer, example), [example], quantized=False).passed
