"""ONNX files as modules: graphs of several exporters, and the whole way through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.metrics import f1_score
from torch import Tensor, nn

import mirabelle
from mirabelle import Training, prune, quantize
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.graph.exporter_tables import translations_read_once
from mirabelle.graph.trace import traced
from mirabelle.sources import model_from
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.models.onnx_graph import OnnxModule, module_from_onnx
from mirabelle.sources.zoo import digits_cnn, resnet20
from mirabelle.task.batch import arguments_of
from mirabelle.task.samples import Samples

pytestmark = pytest.mark.usefixtures("quietly")


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(50, 8), kind(8, 6, batch_first=True, **settings)
        self.head = nn.Linear(6 * (1 + self.rnn.bidirectional), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.embedding(tokens))[0].mean(1))
        return out


class Decoder(nn.Module):
    """Transposed convolutions, uneven borders, upsampling, a norm that is no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.down = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 4, 2, 1)
        self.last = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.down(self.pad(x))))
        x = nn.functional.interpolate(self.up(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return nn.functional.avg_pool2d(self.last(x), 2)


class Taught(nn.Module):
    """A transformer of the Hugging Face kind, its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.model(inputs)[0]
        return out


def of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    words = {"vocab_size": 50, "max_position_embeddings": 32}
    if name == "bert":
        return Taught(transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **words)))
    if name == "vit":
        return Taught(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)))
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, vocab_size=50, n_positions=32, use_cache=False)
    return Taught(transformers.GPT2LMHeadModel(config))


PICTURES, TOKENS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin(), torch.arange(24).reshape(2, 12) * 2
GRAPHS: Mapping[str, tuple[Any, Tensor, bool]] = {  # what makes the model, its inputs, whether torch's newer exporter writes it
    "resnet, script": (resnet20, PICTURES, False),
    "resnet, dynamo": (resnet20, PICTURES, True),
    "decoder, script": (Decoder, PICTURES, False),
    "decoder, dynamo": (Decoder, PICTURES, True),
    "lstm both ways, script": (lambda: Recurrent(nn.LSTM, bidirectional=True), TOKENS, False),
    "lstm, dynamo": (lambda: Recurrent(nn.LSTM), TOKENS, True),
    "gru, script": (lambda: Recurrent(nn.GRU), TOKENS, False),
    "bert, script": (lambda: of_transformers("bert"), TOKENS, False),
    "bert, dynamo": (lambda: of_transformers("bert"), TOKENS, True),
    "vit, script": (lambda: of_transformers("vit"), PICTURES, False),
    "gpt2, dynamo": (lambda: of_transformers("gpt2"), TOKENS, True),
}


def written(model: nn.Module, example: Tensor, path: Path, *, dynamo: bool = False, free: bool = True) -> Path:
    """The file that torch's older or newer exporter writes."""
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},) if free else None
        with translations_read_once():
            torch.onnx.export(model, (example,), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes)
    else:
        axes = {"x": {0: "batch"}} if free else None
        torch.onnx.export(
            model, (example,), path, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes, verbose=False
        )
    return path


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "gpt2, dynamo" else name for name in GRAPHS]
)
def test_a_graph_of_an_exporter_computes_what_its_model_does(name: str, tmp_path: Path) -> None:
    make, example, dynamo = GRAPHS[name]
    torch.manual_seed(0)
    model = make().eval()
    module = module_from_onnx(written(model, example, tmp_path / "model.onnx", dynamo=dynamo))
    more = example.repeat(3, *[1] * (example.ndim - 1))[:5]
    with torch.no_grad():
        due, found = model(more), module(more)
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-4)
    traced(module, *arguments_of(more))  # can be cut, and go out again
    loss = module.train()(example).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_layers_keep_their_names_and_a_tied_table_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = module_from_onnx(written(digits_cnn().eval(), torch.randn(2, 1, 8, 8), tmp_path / "model.onnx"))
    own = digits_cnn()
    assert {name: tuple(tensor.shape) for name, tensor in module.named_parameters()} == {
        name: tuple(tensor.shape) for name, tensor in own.named_parameters()
    }
    tied = of_transformers("gpt2").eval()
    graph = module_from_onnx(written(tied, TOKENS, tmp_path / "tied.onnx", dynamo=True))
    tables = [parameter for parameter in graph.parameters() if tuple(parameter.shape) == (50, 24)]
    assert len(tables) == 1, "embedding and head are one"


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_batch_that_the_file_fixes_is_free(tmp_path: Path, *, dynamo: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    path = written(model, torch.randn(1, 1, 8, 8), tmp_path / "one.onnx", dynamo=dynamo, free=False)
    module, images = module_from_onnx(path), torch.randn(7, 1, 8, 8)
    assert module.fixed_batch == 1
    torch.testing.assert_close(module(images), model(images))


def test_a_file_goes_in_and_a_smaller_one_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The four commands of a stranger who has an ONNX file and no code."""
    monkeypatch.chdir(tmp_path)
    task = digits()
    torch.manual_seed(0)
    training = Training(epochs=4, batch_size=32, lr=3e-3, precision="float32")
    model = mirabelle.training.fit(digits_cnn(), task, training, mirabelle.Run("trained", seed=0)).eval()
    written(model, task.example().inputs, tmp_path / "digits.onnx")
    assert main.run(["inspect", "digits.onnx", "--groups"]) == 0
    assert "channels of a convolution" in capsys.readouterr().out
    assert main.run(["init", "--model", "./digits.onnx", "--data", "digits", "--no-look"]) == 0
    recipe = capsys.readouterr().out
    assert "\n[baseline]" not in recipe
    start, _, _ = recipe.partition("[goal]")
    cut = '[[step]]\nuse = "prune.Channels"\nmacs = "60%"\nrecover = "least-squares"\n\n[[step]]\nuse = "quantize.Static"\n'
    Path("recipe.toml").write_text(f'{start}[goal]\nmax_drop = "8pt"\nsize = "30%"\n\n{cut}')
    assert main.run(["check", "recipe.toml"]) == 0
    assert main.run(["run", "recipe.toml", "--out", "small", "--quiet"]) == 0, capsys.readouterr().err
    report = json.loads(Path("small/report.json").read_text("utf-8"))
    assert report["end"]["macs"] <= 0.6 * report["start"]["macs"]
    assert report["end"]["size_bytes"]["packed"] <= 0.3 * report["start"]["size_bytes"]["torch"]
    capsys.readouterr()
    assert main.run(["verify", "small"]) == 0, capsys.readouterr().out
    again = mirabelle.load(lambda: module_from_onnx(Path("digits.onnx")), "small")
    assert sum(parameter.numel() for parameter in again.parameters()) < sum(one.numel() for one in model.parameters())


def test_a_graph_teaches(tmp_path: Path) -> None:
    """As a teacher, under a recipe in Python."""
    task = digits()
    torch.manual_seed(0)
    teacher = module_from_onnx(written(digits_cnn().eval(), task.example().inputs, tmp_path / "teacher.onnx"))
    step = prune.Weights(sparsity=0.5, train=Training(epochs=1, batch_size=64, precision="float32"))
    result = mirabelle.compress(digits_cnn(), task, [step], out=tmp_path / "run", teacher=teacher)
    assert result.profile.nonzero_parameters < 0.6 * result.start.nonzero_parameters


def graph_of(*nodes: onnx.NodeProto, weights: Mapping[str, np.ndarray[Any, Any]] | None = None) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    held = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", value[:1], value[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)])


MISTAKES: Mapping[str, tuple[onnx.ModelProto, str]] = {
    "operators that nobody knows": (
        graph_of(
            helper.make_node("Fancy", ["x"], ["a"], domain="com.example"),
            helper.make_node("Fancy", ["a"], ["b"], domain="com.example"),
            helper.make_node("RandomNormalLike", ["b"], ["y"]),
        ),
        r"not supported: RandomNormalLike \(random numbers\), com.example.Fancy \(2\)",
    ),
    "a form that torch does not have": (
        graph_of(
            helper.make_node("ReduceMax", ["x"], ["m"]),
            helper.make_node("BatchNormalization", ["x", *"wbmv"], ["y"], training_mode=1),
            weights={part: np.ones(4, np.float32) for part in "wbmv"},
        ),
        'BatchNormalization "BatchNormalization_1" is not supported with training_mode',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_not_covered_is_named(name: str) -> None:
    proto, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as caught:
        OnnxModule(proto)(torch.ones(2, 4))
    assert caught.value.code == "E121"
    assert "`mirabelle pack`, `bench` and `verify` accept the file" in caught.value.remedy


def test_files_that_cannot_be_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07no onnx")
    with pytest.raises(UserError, match="not an ONNX model, or it is damaged") as caught:
        model_from("broken.onnx", {}, tmp_path)
    assert caught.value.code == "E141"
    with pytest.raises(UserError, match="has no arguments; got"):
        model_from("broken.onnx", {"width": 3}, tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'schema = 1\n[model]\nfrom = "nowhere.onnx"\n[task]\ndata = "digits"\n[[step]]\nuse = "quantize.Static"\n'
    )
    assert main.run(["check", str(recipe)]) == 2
    assert "recipe.toml:3" in (told := capsys.readouterr().err)
    assert "no model at" in told


def test_a_graph_that_mixes_its_samples_is_refused(tmp_path: Path) -> None:
    """A fixed batch may hide a sum over samples: what two give together is not what each gives alone."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [onnx.numpy_helper.from_array(np.array([0]), "axes")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "mixed.onnx")
    with pytest.raises(UserError, match='output "y" of the ONNX graph differs between PyTorch and ONNX Runtime: values by'):
        module_from_onnx(tmp_path / "mixed.onnx")


def detector() -> onnx.ModelProto:
    """Scores and boxes of a layer, and a decision that nobody covers."""
    kinds = {"image": ["n", 4], "scores": ["n", 2], "boxes": ["n", 4], "kept": ["k"]}
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in kinds.items()}
    generator = np.random.default_rng(0)
    weights = {"s": generator.normal(size=(6, 2)), "b": generator.normal(size=(6, 4)), "w": generator.normal(size=(4, 6))}
    held = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["image", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "s"], ["scores"]),
        helper.make_node("MatMul", ["r", "b"], ["boxes"]),
        helper.make_node("Suppress", ["scores", "boxes"], ["kept"], domain="com.example"),
    ]
    graph = helper.make_graph(nodes, "g", [value["image"]], [value["kept"], value["boxes"]], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def test_a_graph_can_end_before_what_is_not_covered(tmp_path: Path) -> None:
    onnx.save(detector(), tmp_path / "detector.onnx")
    with pytest.raises(UserError, match=r"not supported: com.example.Suppress") as caught:
        model_from("detector.onnx", {}, tmp_path)
    assert "outputs = [" in caught.value.remedy
    module = model_from("detector.onnx", {"outputs": ["scores", "boxes"]}, tmp_path)
    found = module(torch.ones(3, 4))
    assert [tuple(part.shape) for part in found] == [(3, 2), (3, 4)]
    with pytest.raises(UserError, match='the ONNX graph has no value "score"') as caught:
        model_from("detector.onnx", {"outputs": ["score"]}, tmp_path)
    assert (caught.value.code, "scores" in caught.value.remedy) == ("E112", True)
    for wrong in ({"outputs": "scores"}, {"outputs": ["scores"], "width": 3}):
        with pytest.raises(UserError, match="has no arguments; got"):
            model_from("detector.onnx", wrong, tmp_path)


@pytest.mark.parametrize(
    ("kind", "loss", "metric"), [("Softmax", "cross_entropy", "accuracy"), ("Sigmoid", "binary_cross_entropy", "f1")]
)
def test_probabilities_are_not_trained_as_scores(kind: str, loss: str, metric: str, tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float32)}
    graph = graph_of(helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node(kind, ["s"], ["y"]), weights=weights)
    onnx.save(graph, tmp_path / "given.onnx")
    targets = torch.arange(40) % 4 if kind == "Softmax" else torch.eye(4).repeat(10, 1)
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    task = mirabelle.Task(train=(inputs, targets), test=(inputs, targets), loss=loss, metric=metric)
    trained = prune.Weights(sparsity=0.5, train=Training(epochs=1))
    for model, teacher in ((module_from_onnx(tmp_path / "given.onnx"), None), (nn.Linear(4, 4), "given.onnx")):
        guide = module_from_onnx(tmp_path / teacher) if teacher else None
        with pytest.raises(UserError, match=f"ends in {kind}, but the loss takes scores") as caught:
            mirabelle.compress(model, task, [trained], out=tmp_path / "refused", teacher=guide)
        assert (caught.value.code, 'outputs = ["s"]' in caught.value.remedy) == ("E131", True)
    module, untrained = module_from_onnx(tmp_path / "given.onnx"), [prune.Weights(sparsity=0.5)]
    if kind == "Sigmoid":  # 0 does not divide yes from no, so no metric would be right
        with pytest.raises(UserError, match="ends in Sigmoid, but the loss takes scores") as caught:
            mirabelle.compress(module, task, untrained, out=tmp_path / "refused")
        given = "torch.nn.functional:binary_cross_entropy"
        assert given in caught.value.remedy
        of_probabilities = mirabelle.Task(train=(inputs, targets), test=(inputs, targets), loss=given, metric=metric)
        result = mirabelle.compress(module, of_probabilities, untrained, out=tmp_path / "untrained")
        with torch.no_grad():
            found = result.model(inputs) > 0.5
        assert result.profile.metric.value == pytest.approx(f1_score(targets, found, average="macro"))
    else:
        mirabelle.compress(module, task, untrained, out=tmp_path / "untrained")
    scores = module_from_onnx(tmp_path / "given.onnx", ["s"])
    result = mirabelle.compress(scores, task, [trained], out=tmp_path / "trained")
    assert onnx.load(result.folder / "model.onnx").graph.output[0].name == "s"


def test_names_of_inputs_and_outputs_go_out_as_they_came_in(tmp_path: Path) -> None:
    """Through a cut, whose rewritten program stands for the module, and through the file."""
    onnx.save(detector(), tmp_path / "detector.onnx")
    module = model_from("detector.onnx", {"outputs": ["boxes", "scores"]}, tmp_path)
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    steps = [prune.Channels(sparsity=0.5), quantize.Dynamic()]
    result = mirabelle.compress(module, mirabelle.Task(train=inputs, test=inputs), steps, out=tmp_path / "run")
    graph = onnx.load(result.folder / "model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "boxes", "scores"]
    assert result.profile.parameters < 0.6 * result.start.parameters
    assert "in 2 outputs" in result.gates["torch_onnx"].detail


def test_data_that_the_graph_does_not_take_are_told(tmp_path: Path) -> None:
    onnx.save(detector(), tmp_path / "detector.onnx")
    module = model_from("detector.onnx", {"outputs": ["scores"]}, tmp_path)
    for inputs, message in (
        (torch.ones(6, 5), r'the data are 5, but input "image" of the ONNX graph is 4'),
        (torch.ones(6, 4, 1), r'the data are 4 × 1, but input "image"'),
        ({"picture": torch.ones(6, 4)}, "the data have the inputs picture, but the ONNX graph has image"),
        (Samples((torch.ones(6, 4), torch.ones(6, 4))), r"the data have 2 inputs, but the ONNX graph has 1 \(image\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            mirabelle.compress(module, mirabelle.Task(train=inputs, test=inputs), [quantize.Dynamic()], out=tmp_path / "run")
        assert caught.value.code == "E131"
