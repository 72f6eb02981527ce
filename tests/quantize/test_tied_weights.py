"""Layers that share a weight read one table of codes, in torch and in all files; otherwise the weight is left and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from mirabelle import Run, Task, artifact, quantize
from mirabelle.inspection.layers import layers_of_module
from mirabelle.inspection.measure import count_parameters
from mirabelle.model.counting import macs_of
from mirabelle.model.state import copied, memory_of, tensors_of_module
from mirabelle.quantize.layers import DynamicLayer, StaticLayer, TokenLayer, WeightLayer
from mirabelle.report import read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.testing import check_replacement

VOCABULARY, WIDTH = 300, 16
IDS = torch.arange(300)[::3].repeat(2)[:120].reshape(20, 6) % VOCABULARY


class Tied(nn.Module):
    """An embedding, a layer of its own, and an output layer with the table of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.middle(self.table(ids)))).mean(1)


class InOneMemory(Tied):
    """Tied by `.data`, as old code does."""

    def __init__(self) -> None:
        super().__init__()
        self.out.weight = nn.Parameter(self.table.weight.detach())


class TwoLayers(nn.Module):
    """Two layers with one weight, and biases of their own, of which one needs larger scales than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight
        self.out = nn.Linear(WIDTH, 3)
        with torch.no_grad():
            self.one.bias.fill_(900.0)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.one(self.table(ids))) - 890
        return self.out(torch.relu(self.other(hidden)).mean(1))


class OneConvolution(nn.Module):
    """A module under two parents, with batch norms that must not be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.first = nn.Sequential(convolution, nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.second = nn.Sequential(convolution, nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.second(self.first(self.table(ids).transpose(1, 2))).mean(2))


STEPS = [
    quantize.Weights(),
    quantize.Dynamic(granularity="token"),
    quantize.Dynamic(granularity="tensor"),
    quantize.Static(),
    quantize.Codebook(bits=8),
]
MODELS = [Tied, InOneMemory, TwoLayers, OneConvolution]


def task_for(model: nn.Module) -> Task:
    with torch.no_grad():
        targets = model.eval()(IDS).argmax(1)
    return Task(train=(IDS, targets), test=(IDS, targets))


def made(make: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = make().eval()
    return model


def initializers(onnx: bytes, least: int = 256) -> list[Any]:
    found = [numpy_helper.to_array(tensor) for tensor in ModelProto.FromString(onnx).graph.initializer]
    return [array for array in found if array.size >= least]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("make", MODELS)
def test_ties_stay_ties(make: type[nn.Module], step: Any, tmp_path: Path) -> None:
    dense = made(make)
    task, run = task_for(dense), Run(tmp_path / "run")
    model = step(dense, task, run)

    # Every distinct tensor is counted once, and the number of parameters is that of the dense model.
    assert count_parameters(model)[0] == count_parameters(copied(dense))[0]
    assert sum(row.parameters for row in layers_of_module(model, None)) == count_parameters(model)[0]
    assert macs_of(model, task.example()).total == macs_of(dense, task.example()).total

    # The file of torch has it once, and loading makes one tensor of it.
    artifact.save(model, tmp_path)
    loaded = artifact.load(make, tmp_path)
    ours, theirs = ([memory_of(tensor) for tensor in one.state_dict().values()] for one in (model, loaded))
    assert [ours.index(memory) for memory in ours] == [theirs.index(memory) for memory in theirs]
    size = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors_of_module(model).items()}
    assert sum(size.values()) < sum(tensor.numel() * 4 for tensor in tensors_of_module(copied(dense)).values())
    with torch.no_grad():
        assert torch.equal(model(IDS), loaded(IDS))

    # So does the file of ONNX, which computes the same.
    onnx = export(model, task.example())
    arrays = initializers(onnx)
    assert len({array.tobytes() for array in arrays}) == len(arrays)
    matrices = [array for array in arrays if array.ndim > 1]
    assert not [one for one in matrices for other in matrices if one is not other and np.array_equal(one, other.T)]
    whole = initializers(export(dense, task.example()))
    assert sum(array.nbytes for array in arrays) <= sum(array.nbytes for array in whole)
    result = default_runtime().load(onnx, threads=1).run({next(iter(_inputs(onnx))): IDS.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(result, model(IDS).numpy(), atol=0.02 * float(model(IDS).abs().max()))
        error = (model(IDS) - dense(IDS)).abs().max() / dense(IDS).abs().max()
    assert float(error) < 0.03


def _inputs(onnx: bytes) -> list[str]:
    return [value.name for value in ModelProto.FromString(onnx).graph.input]


@pytest.mark.parametrize(("step", "kind"), [(STEPS[1], TokenLayer), (STEPS[2], DynamicLayer), (STEPS[3], StaticLayer)])
def test_a_table_is_quantized_with_the_layer_that_has_it(step: Any, kind: type, tmp_path: Path) -> None:
    dense = made(Tied)
    run = Run(tmp_path)
    model: Any = step(dense, task_for(dense), run)
    assert type(model.table) is WeightLayer
    assert type(model.out) is kind
    assert model.out.codes is model.table.codes
    assert model.out.scale is model.table.scale
    assert torch.equal(model.out.weight, model.table.weight)
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "quantized"]
    assert set(event["modules"]) == {"table", "middle", "out"}
    said = step.preview(dense, task_for(dense), run).description
    assert "table, out share one table of codes" in said


class ReadElsewhere(Tied):
    """The table is also a parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.words.sum()


class Normed(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.table.max_norm = 1.0


class Transposed(nn.Module):
    """A tied autoencoder in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.enter, self.leave = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.leave.weight = nn.Parameter(self.enter.weight.detach().t())

    def forward(self, ids: Tensor) -> Tensor:
        return self.leave(torch.relu(self.enter(self.table(ids)))).mean(1)


LEFT = [
    (Tied, {"exclude": ("table",)}, "table.weight", "table.weight and out.weight are one tensor, and table is excluded"),
    (
        Normed,
        {},
        "table.weight",
        "table.weight and out.weight are one tensor, and table.weight, of Embedding, has no quantized form",
    ),
    (
        ReadElsewhere,
        {},
        "words",
        "words and table.weight and out.weight are one tensor, and words, of ReadElsewhere, has no quantized form",
    ),
    (Transposed, {}, "enter.weight", "enter.weight and leave.weight are one tensor, and one of them is transposed"),
]


@pytest.mark.parametrize("kind", [quantize.Weights, quantize.Dynamic, quantize.Static])
@pytest.mark.parametrize("case", LEFT)
def test_what_is_shared_with_something_else_stays_whole_and_is_named(case: Any, kind: Any, tmp_path: Path) -> None:
    make, settings, name, why = case
    dense = made(make)
    task = task_for(dense)
    if make is Transposed and kind is not quantize.Weights:
        with pytest.raises(Exception, match="one of them is transposed") as caught:
            kind(**settings)(dense, task, Run(tmp_path))
        assert caught.value.code == "E112"
        return
    model = kind(**settings)(dense, task, Run(tmp_path))
    assert count_parameters(model)[0] == count_parameters(copied(dense))[0]
    parts = next(event for event in read_events(tmp_path) if event["event"] == "left alone")["parts"]
    (found,) = [part for part in parts if part["why"] == why]
    assert found["names"] == [name]
    sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in tensors_of_module(model).items()}
    assert found["share_of_bytes"] == pytest.approx(sizes[name] / sum(sizes.values()))
    artifact.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(artifact.load(make, tmp_path)(IDS), model(IDS))


def test_a_name_in_include_takes_the_weight_under_its_other_names(tmp_path: Path) -> None:
    dense = made(Tied)
    model: Any = quantize.Weights(include=("out",))(dense, task_for(dense), Run(tmp_path))
    assert model.table.codes is model.out.codes
    assert type(model.middle) is nn.Linear


class OneIsIdle(TwoLayers):
    """One of the layers that share a weight is never called."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.one(self.table(ids))).mean(1))


def test_a_layer_that_never_runs_reads_the_codes_of_the_one_that_does(tmp_path: Path) -> None:
    dense = made(OneIsIdle)
    model: Any = quantize.Static()(dense, task_for(dense), Run(tmp_path))
    assert type(model.one) is StaticLayer
    assert type(model.other) is WeightLayer
    assert model.one.codes is model.other.codes
    assert count_parameters(model)[0] == count_parameters(dense)[0]


class TiedBias(TwoLayers):
    """The model has a name of its own for the bias of its output layer, as BERT has."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.out.bias = self.bias


def test_a_tied_bias_stays_one_tensor_or_is_named(tmp_path: Path) -> None:
    dense = made(TiedBias)
    model: Any = quantize.Dynamic()(dense, task_for(dense), Run(tmp_path / "run"))
    assert model.out.bias is model.bias
    artifact.save(model, tmp_path)
    loaded: Any = artifact.load(TiedBias, tmp_path)
    assert loaded.out.bias is loaded.bias
    said = "bias and out.bias are no longer one tensor: a static layer stores its bias in steps of its own"
    assert said in quantize.Static().preview(dense, task_for(dense), Run(tmp_path / "static")).description
    assert not [
        text
        for text in quantize.Static().preview(made(OneConvolution), task_for(made(OneConvolution)), Run(tmp_path)).description
        if "no longer" in text
    ]


@pytest.mark.parametrize("pattern", ["second", "second.0", "first.*"])
def test_every_name_of_a_shared_module_can_be_chosen(pattern: str, tmp_path: Path) -> None:
    dense = made(OneConvolution)
    chosen: Any = quantize.Weights(include=(pattern,))(dense, task_for(dense), Run(tmp_path / "chosen"))
    assert type(chosen.second[0]) is WeightLayer
    assert chosen.second[0] is chosen.first[0]
    left: Any = quantize.Weights(exclude=(pattern,))(dense, task_for(dense), Run(tmp_path / "left"))
    assert type(left.first[0]) is nn.Conv1d


class Gpt2(nn.Module):
    """GPT-2: its linear layers are `Conv1D`, and its output layer is the table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": WIDTH, "n_layer": 1, "n_head": 2}
        self.gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.gpt(input_ids=ids, use_cache=False).logits.mean(1)
        return found


@pytest.mark.slow
def test_the_layers_and_the_table_of_gpt_2_are_quantized(tmp_path: Path) -> None:
    dense: Any = made(Gpt2)
    task = task_for(dense)
    whole = export(dense, task.example())
    for step in STEPS:
        run = Run(tmp_path / str(STEPS.index(step)))
        model: Any = step(dense, task, run)
        codes, block = model.gpt.lm_head.codes, model.gpt.transformer.h[0]
        assert codes is model.gpt.transformer.wte.codes
        assert block.mlp.c_fc.codes.numel() == dense.gpt.transformer.h[0].mlp.c_fc.weight.numel()
        assert block.mlp.c_fc.weight.shape == dense.gpt.transformer.h[0].mlp.c_fc.weight.shape
        assert count_parameters(model)[0] == count_parameters(dense)[0]
        artifact.save(model, run.folder)
        onnx = export(model, task.example())
        assert len(onnx) < 0.75 * len(whole)
        with torch.no_grad():
            outputs = model(IDS)
            assert torch.equal(artifact.load(Gpt2, run.folder)(IDS), outputs)
            assert float((outputs - dense(IDS)).abs().max() / dense(IDS).abs().max()) < 0.03
        assert np.allclose(default_runtime().load(onnx, threads=1).run({"ids": IDS.numpy()})[0], outputs.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", [WeightLayer, DynamicLayer, TokenLayer])
def test_a_conv1d_is_quantized_like_the_linear_layer_that_it_is(kind: type[WeightLayer]) -> None:
    torch.manual_seed(0)
    turned = transformers.pytorch_utils.Conv1D(12, 6)
    linear = nn.Linear(6, 12)
    with torch.no_grad():
        linear.weight.copy_(turned.weight.t())
        linear.bias.copy_(turned.bias.normal_())
    one, other = kind.quantized(turned, 8), kind.quantized(linear, 8)
    assert torch.equal(one.codes, other.codes)
    x = torch.randn(3, 6)
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.plain_tensors()["weight"], other.plain_tensors()["weight"].t())
    check_replacement(one, turned, x)
