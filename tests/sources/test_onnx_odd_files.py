"""ONNX files as converters and optimizers write them: int32 shapes, half precision, quantized and fused operators, branches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import mirabelle
from mirabelle import prune, quantize
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.runtime.export import export
from mirabelle.sources import model_from
from mirabelle.sources.models.onnx_graph import OnnxModule, module_from_onnx
from mirabelle.sources.zoo import digits_cnn

pytestmark = pytest.mark.usefixtures("quietly")
NODE, FLOAT = helper.make_node, TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def whole(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int32)


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    sizes: Sequence[Any],
    *,
    kind: int = FLOAT,
    result: int = FLOAT,
    **constants: np.ndarray[Any, Any],
) -> Path:
    """A file with the input x of these sizes and the output y."""
    value = helper.make_tensor_value_info
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [value("x", kind, sizes)], [value("y", result, None)], held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def goes_out_again(module: OnnxModule, path: Path, kind: Any = np.float32) -> None:
    """The module's own file gives for batches of several sizes what the original gives."""
    example = module.example(3)
    assert example is not None
    own = onnxruntime.InferenceSession(export(module, example))
    original = onnxruntime.InferenceSession(path)
    for count in (1, 2, 5):
        inputs = module.example(count).inputs.numpy()
        (found,), (due,) = (
            own.run(None, {own.get_inputs()[0].name: inputs}),
            original.run(None, {original.get_inputs()[0].name: inputs.astype(kind) if inputs.dtype == np.float32 else inputs}),
        )
        np.testing.assert_allclose(
            found, due, rtol=1e-5 if kind == np.float32 else 1e-2, atol=1e-5 if kind == np.float32 else 1e-2
        )
        assert found.dtype == due.dtype


def branches(condition: str, *, other: str = "W2") -> onnx.NodeProto:
    result = [helper.make_tensor_value_info("r", FLOAT, None)]
    own = [numpy_helper.from_array(-WEIGHT, "W2")] if other == "W2" else []
    then = helper.make_graph([NODE("MatMul", ["x", "W"], ["r"])], "then", [], result)
    or_else = helper.make_graph([NODE("MatMul", ["x", other], ["r"])], "else", [], result, own)
    return NODE("If", [condition], ["y"], name="chosen", then_branch=then, else_branch=or_else)


def test_shapes_in_int32_stay_integers(tmp_path: Path) -> None:
    """As tf2onnx computes them."""
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Cast", ["s"], ["narrow"], to=TensorProto.INT32),
        NODE("Slice", ["narrow", "zero", "one", "zero"], ["batch"]),
        NODE("Concat", ["batch", "rest"], ["joined"], axis=0),
        NODE("Cast", ["joined"], ["sizes"], to=TensorProto.INT64),
        NODE("Reshape", ["x", "sizes"], ["flat"]),
        NODE("MatMul", ["flat", "W"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 2, 2], zero=whole(0), one=whole(1), rest=whole(4), W=WEIGHT)
    goes_out_again(module_from_onnx(path), path)


def test_int32_numbers_keep_their_type(tmp_path: Path) -> None:
    nodes = [
        NODE("Cast", ["x"], ["c"], to=TensorProto.INT32),
        NODE("Mul", ["c", "three"], ["m"]),
        NODE("Shape", ["x"], ["s"]),
        NODE("Cast", ["s"], ["narrow"], to=TensorProto.INT32),
        NODE("Add", ["m", "narrow"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 2], result=TensorProto.INT32, three=whole(3, 2))
    goes_out_again(module_from_onnx(path), path)


def test_sizes_are_computed_with_factors(tmp_path: Path) -> None:
    """As in an interpolation by a scale; the rounding is that of float32."""
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Slice", ["s", "two", "four"], ["sides"]),
        NODE("Cast", ["sides"], ["numbers"], to=FLOAT),
        NODE("Mul", ["numbers", "factors"], ["product"]),
        NODE("Floor", ["product"], ["floor"]),
        NODE("Cast", ["floor"], ["target"], to=TensorProto.INT64),
        NODE("Slice", ["s", "zero", "two"], ["first"]),
        NODE("Concat", ["first", "target"], ["sizes"], axis=0),
        NODE("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"),
    ]
    numbers = {name: np.array([number]) for name, number in (("zero", 0), ("two", 2), ("four", 4))}
    path = saved(tmp_path / "m.onnx", nodes, ["n", 2, 5, 5], factors=np.array([1.7, 2.3], np.float32), **numbers)
    module = module_from_onnx(path)
    goes_out_again(module, path)
    assert not list(module.parameters()), "a factor of sizes is no weight"


def test_weights_in_constant_nodes_are_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = {"W": WEIGHT, "b": WEIGHT[0], "g": WEIGHT[1:2]}
    nodes = [NODE("Constant", [], [name], value=numpy_helper.from_array(array)) for name, array in held.items()]
    nodes += [NODE("MatMul", ["x", "W"], ["m"]), NODE("Add", ["m", "b"], ["a"]), NODE("Mul", ["a", "g"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4])
    module = module_from_onnx(path)
    assert sum(parameter.numel() for parameter in module.parameters()) == 24 + 6 + 6
    goes_out_again(module, path)
    assert main.run(["inspect", str(path)]) == 0
    assert "24" in capsys.readouterr().out


@pytest.mark.parametrize("size", [-1, 0])
def test_a_size_of_less_than_one_is_any_size(size: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", [NODE("MatMul", ["x", "W"], ["y"])], ["n", 4], W=WEIGHT)
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(proto, path)
    module = module_from_onnx(path)
    assert module.fixed_batch is None
    assert module(torch.ones(3, 4)).shape == (3, 6)


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    nodes = [NODE("MatMul", ["x", "W"], ["h"]), NODE("Cast", ["h"], ["y"], to=FLOAT)]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], kind=TensorProto.FLOAT16, W=WEIGHT.astype(np.float16))
    module = module_from_onnx(path)
    assert module.halved
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    goes_out_again(module, path, np.float16)
    assert module(torch.ones(2, 4, dtype=torch.float16)).dtype == torch.float32


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    nodes = [NODE("Relu", ["h"], ["y"]), NODE("MatMul", ["x", "W"], ["h"])]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], W=WEIGHT)
    goes_out_again(module_from_onnx(path), path)


def test_a_branch_whose_condition_follows_from_sizes_takes_the_place_of_its_if(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Gather", ["s", "one"], ["d"]),
        NODE("Equal", ["d", "five"], ["c"]),
        branches("c"),
    ]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], one=np.array(1), five=np.array(5), W=WEIGHT)
    module = module_from_onnx(path)
    assert [type(part).__name__ for part in module.modules() if list(part.parameters(recurse=False))] == ["Linear"]
    goes_out_again(module, path)


def test_a_branch_chosen_by_the_number_of_samples_is_computed_but_not_exported(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Gather", ["s", "zero"], ["d"]),
        NODE("Greater", ["d", "one"], ["c"]),
        branches("c"),
    ]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], one=np.array(1), zero=np.array(0), W=WEIGHT)
    module = module_from_onnx(path)
    for count, sign in ((1, -1), (2, 1)):
        torch.testing.assert_close(module(torch.ones(count, 4)), sign * torch.ones(count, 4) @ torch.from_numpy(WEIGHT))
    with pytest.raises(UserError, match='the branch of If "chosen" depends on the number of samples'):
        export(module, module.example(3))


def test_a_branch_chosen_by_values_is_computed_but_not_exported(tmp_path: Path) -> None:
    nodes = [NODE("ReduceMax", ["x"], ["m"], keepdims=0), NODE("Greater", ["m", "zero"], ["c"]), branches("c")]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], zero=np.array(0, np.float32), W=WEIGHT)
    module = module_from_onnx(path)
    for sign in (-1, 1):
        inputs = sign * torch.ones(3, 4)
        torch.testing.assert_close(module(inputs), sign * inputs @ torch.from_numpy(WEIGHT))
    with pytest.raises(UserError, match='the branch of If "chosen" depends on values'):
        export(module, module.example(3))


def test_a_loop_of_known_length_goes_out_unrolled(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    held = [numpy_helper.from_array(WEIGHT[:, :4] / 2, "V")]
    body = helper.make_graph(
        [NODE("MatMul", ["v", "V"], ["p"]), NODE("Tanh", ["p"], ["next"]), NODE("Identity", ["going"], ["on"])],
        "body",
        [value("step", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("v", FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("next", FLOAT, None)],
        held,
    )
    nodes = [NODE("Loop", ["count", "yes", "x"], ["h"], body=body), NODE("MatMul", ["h", "W"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], count=np.array(3), yes=np.array(True), W=WEIGHT)
    module = module_from_onnx(path)
    assert sum(parameter.numel() for parameter in module.parameters()) == 16 + 24, "the weight in the body is one, too"
    goes_out_again(module, path)


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def recurrent(kind: str, gates: int, **settings: Any) -> tuple[list[onnx.NodeProto], list[Any], dict[str, Any]]:
    nodes = [
        NODE("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        NODE(kind, ["t", "w", "r", "b"], ["o", "h"], hidden_size=5, direction="bidirectional", **settings),
        NODE("Transpose", ["o"], ["p"], perm=[2, 0, 1, 3]),
        NODE("Reshape", ["p", "flat"], ["y"]),
    ]
    held = {"w": numbers(2, gates * 5, 3), "r": numbers(2, gates * 5, 5), "b": numbers(2, gates * 10)}
    return nodes, ["n", 7, 3], {**held, "flat": np.array([0, -1])}


SPECTRUM = [
    NODE("HannWindow", ["length"], ["window"]),
    NODE("STFT", ["x", "step", "window"], ["s"], onesided=1),
    NODE("Mul", ["s", "s"], ["squares"]),
    NODE("ReduceSum", ["squares", "last"], ["power"], keepdims=0),
    NODE("MelWeightMatrix", ["bins", "length", "rate", "low", "high"], ["mel"]),
    NODE("MatMul", ["power", "mel"], ["y"]),
]
SETTINGS = {
    "length": np.array(32), "step": np.array(8), "last": np.array([-1]), "bins": np.array(6), "rate": np.array(16000),
    "low": np.array(50.0, np.float32), "high": np.array(7000.0, np.float32),
}  # fmt: skip
REGIONS = [
    NODE("MaxRoiPool", ["x", "regions"], ["p"], pooled_shape=[2, 3], spatial_scale=0.5),
    NODE("ReduceMean", ["p"], ["m"], axes=[0, 2, 3]),
    NODE("Mul", ["x", "m"], ["y"]),
]
CASES: dict[str, tuple[list[onnx.NodeProto], list[Any], dict[str, Any]]] = {
    "a GRU of Keras 1": recurrent("GRU", 3, linear_before_reset=0),
    "an LSTM that clips": recurrent("LSTM", 4, clip=0.7),
    "a mel spectrogram": (SPECTRUM, ["n", 128, 1], SETTINGS),
    "regions of the first sample": (REGIONS, ["n", 3, 9, 9], {"regions": np.array([[0, 1, 1, 9, 7]], np.float32)}),
    "a resize with uneven factors": (
        [NODE("Resize", ["x", "", "factors"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")],
        ["n", 2, 5, 6], {"factors": np.array([1, 1, 2, 2], np.float32)},
    ),
    "places of maxima": (
        [
            NODE("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2], strides=[2, 2]),
            NODE("MaxUnpool", ["p", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        ["n", 2, 6, 6], {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_graph_goes_out_as_it_came_in(name: str, tmp_path: Path) -> None:
    nodes, sizes, constants = CASES[name]
    path = saved(tmp_path / "m.onnx", nodes, sizes, **constants)
    goes_out_again(module_from_onnx(path), path)


CODES = np.random.default_rng(3).integers(-127, 127, (4, 6)).astype(np.int8)
IN, OUT = {"xs": np.float32(0.03), "xz": np.uint8(120)}, {"ys": np.float32(0.04), "yz": np.uint8(110)}
FUSED: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {  # operator -> inputs, attributes, constants
    "FusedMatMul": (["x", "W"], {"transB": 1, "alpha": 0.5}, {"W": numbers(6, 4)}),
    "QuickGelu": (["x"], {"alpha": 1.5}, {}),
    "FastGelu": (["x", "b"], {}, {"b": numbers(4)}),
    "SkipLayerNormalization": (["x", "x", "g", "b", "c"], {"epsilon": 1e-5}, {name: numbers(4) for name in "gbc"}),
    "SkipSimplifiedLayerNormalization": (["x", "x", "g"], {"epsilon": 1e-5}, {"g": numbers(4)}),
    "FusedGemm": (["x", "W", "b"], {"activation": "LeakyRelu", "activation_alpha": 0.2}, {"W": WEIGHT, "b": numbers(6)}),
    "DynamicQuantizeMatMul": (["x", "C", "s", "", "b"], {}, {"C": CODES, "s": np.float32(0.02), "b": numbers(6)}),
    "QLinearLeakyRelu": (["q", *IN, *OUT], {"alpha": 0.1}, IN | OUT),
    "QLinearConcat": ([*OUT, "q", *IN, "q", *IN], {"axis": 1}, IN | OUT),
    "QLinearAdd": (["q", *IN, "q", *IN, *OUT], {}, IN | OUT),
    "QLinearMul": (["q", *IN, "q", *IN, *OUT], {}, IN | OUT),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED)
def test_an_operator_of_onnxruntime_gives_what_it_gives_there(kind: str, tmp_path: Path) -> None:
    inputs, settings, constants = FUSED[kind]
    coded = kind.startswith("QLinear")
    nodes = [NODE("QuantizeLinear", ["x", "xs", "xz"], ["q"])] if coded else []
    nodes += [NODE(kind, inputs, ["r" if coded else "y"], domain="com.microsoft", **settings)]
    nodes += [NODE("DequantizeLinear", ["r", "ys", "yz"], ["y"])] if coded else []
    path = saved(tmp_path / "m.onnx", nodes, ["n", 4], **{name: np.asarray(array) for name, array in constants.items()})
    module, x = module_from_onnx(path), numbers(5, 4)
    due = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), due, rtol=1e-5, atol=1e-5)


def detector(path: Path) -> Path:
    generator = np.random.default_rng(1)
    nodes = [
        NODE("MatMul", ["x", "W"], ["h"]),
        NODE("Sigmoid", ["h"], ["g"]),
        NODE("Reshape", ["g", "by_class"], ["scores"]),
        NODE("MatMul", ["x", "B"], ["b"]),
        NODE("Reshape", ["b", "by_box"], ["boxes"]),
        NODE("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["y"], name="nms"),
    ]
    constants = {
        "W": WEIGHT, "B": generator.standard_normal((4, 24)).astype(np.float32), "by_class": np.array([-1, 1, 6]),
        "by_box": np.array([-1, 6, 4]), "most": np.array([3]), "overlap": np.array([0.3], np.float32),
    }  # fmt: skip
    return saved(path, nodes, ["n", 4], result=TensorProto.INT64, **constants)


def test_a_graph_with_non_maximum_suppression_is_computed_and_says_where_to_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = detector(tmp_path / "detector.onnx")
    module = module_from_onnx(path)
    due = onnxruntime.InferenceSession(path).run(None, {"x": module.example(4).inputs.numpy()})[0]
    np.testing.assert_array_equal(module(module.example(4).inputs), due)
    assert main.run(["inspect", str(path)]) == 0
    assert "120" in capsys.readouterr().out
    np.savez(tmp_path / "data.npz", inputs=np.ones((40, 4), np.float32))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'schema = 1\n[model]\nfrom = "./detector.onnx"\n[task]\ndata = "./data.npz"\narguments = { kind = "unlabelled" }\n'
        '[[step]]\nuse = "prune.Weights"\nsparsity = 0.5\n'
    )
    assert main.run(["check", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert 'the number of boxes that are kept of NonMaxSuppression "nms" depends on values' in told
    assert '[model] arguments = { outputs = ["boxes", "scores"] }' in told
    recipe.write_text(recipe.read_text().replace("[task]", 'arguments = { outputs = ["boxes", "scores"] }\n[task]'))
    assert main.run(["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]) == 0, capsys.readouterr().err


def test_a_sequence_as_an_output_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", [NODE("SequenceConstruct", ["x", "x"], ["y"])], ["n", 4])
    proto = onnx.load(path)
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    onnx.save(proto, path)
    with pytest.raises(UserError, match='"y" of the ONNX graph is not a tensor, but of the kind sequence') as caught:
        module_from_onnx(path)
    assert caught.value.code == "E121"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model of digits whose batch is free."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    torch.manual_seed(0)
    written(digits_cnn().eval(), torch.randn(2, 1, 8, 8), path)
    return path


def written(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
            verbose=False,
        )


class Batches:
    """What ONNX Runtime's quantizer calibrates on."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._left: Iterator[Any] = iter([{"x": generator.standard_normal((8, 1, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self._left, None)


@pytest.mark.parametrize(
    "kind", ["operators", pytest.param("operators, per channel", marks=pytest.mark.slow), "pairs", "dynamic"]
)
def test_quantized_files_of_onnxruntime_have_float_layers(kind: str, trained: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = tmp_path / "quantized.onnx"
    if kind == "dynamic":
        quantization.quantize_dynamic(trained, path, weight_type=quantization.QuantType.QInt8)
    else:
        form = quantization.QuantFormat.QDQ if kind == "pairs" else quantization.QuantFormat.QOperator
        quantization.quantize_static(trained, path, Batches(), quant_format=form, per_channel="channel" in kind)
    module = module_from_onnx(path)
    kinds = sorted(type(part).__name__ for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear)))
    assert kinds == ["Conv2d", "Conv2d", "Linear", "Linear"]
    loss = module.train()(torch.randn(8, 1, 8, 8)).square().mean()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    module.eval()
    if kind == "operators, per channel":
        inputs = torch.randn(64, 1, 8, 8)
        result = mirabelle.compress(
            module, mirabelle.Task(train=inputs, test=inputs), [prune.Channels(sparsity=0.25)], out=tmp_path / "run"
        )
        assert result.profile.parameters < 0.9 * result.start.parameters
        trained_after = prune.Channels(sparsity=0.25, train=mirabelle.Training(epochs=1))
        labelled = mirabelle.Task(train=(inputs, torch.arange(64) % 10), test=(inputs, torch.arange(64) % 10))
        with pytest.raises(UserError, match="no weight has a gradient") as caught:
            mirabelle.compress(module, labelled, [trained_after], out=tmp_path / "trained")
        assert caught.value.code == "E121"


@pytest.mark.parametrize("kind", ["bert", "digits"])
def test_files_that_onnxruntime_has_optimized_keep_their_layers(kind: str, trained: Path, tmp_path: Path) -> None:
    if kind == "bert":
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
        torch.manual_seed(0)
        config = transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=32, return_dict=False)
        model = transformers.BertForSequenceClassification(config).eval()
        plain = tmp_path / "plain.onnx"
        written(model, torch.ones(2, 12, dtype=torch.int64), plain)
    else:
        plain = trained
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(plain, options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert any(node.domain == "com.microsoft" for node in optimized.graph.node)
    module, before = module_from_onnx(tmp_path / "optimized.onnx"), module_from_onnx(plain)
    count = [sum(isinstance(part, (nn.Conv2d, nn.Linear, nn.LayerNorm)) for part in one.modules()) for one in (module, before)]
    assert count[0] == count[1]
    goes_out_again(module, plain)


def test_quantization_of_a_graph_with_constants_in_nodes(tmp_path: Path) -> None:
    """A step finds the layer whose weight is in a Constant node."""
    nodes = [NODE("Constant", [], ["W"], value=numpy_helper.from_array(WEIGHT)), NODE("MatMul", ["x", "W"], ["y"])]
    saved(tmp_path / "m.onnx", nodes, ["n", 4])
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    module = model_from("m.onnx", {}, tmp_path)
    result = mirabelle.compress(module, mirabelle.Task(train=inputs, test=inputs), [quantize.Dynamic()], out=tmp_path / "run")
    assert any(part.dtype == torch.int8 for part in result.model.state_dict().values())


def test_a_file_in_the_layout_of_one_processor_is_refused_with_what_to_give_instead() -> None:
    node = NODE("ReorderInput", ["x"], ["y"], domain="com.microsoft.nchwc")
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", FLOAT, ["n", 8, 4, 4])], [value("y", FLOAT, None)])
    with pytest.raises(UserError, match=r"not supported: com\.microsoft\.nchwc\.ReorderInput") as caught:
        OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert "before ONNX Runtime's optimization" in caught.value.remedy
