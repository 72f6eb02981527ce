from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from mirabelle import Run, Task, UserError, pack, prune, quantize, unpack
from mirabelle.inspection import layers_of_module, layers_of_onnx
from mirabelle.inspection.measure import count_parameters, exported, measure, multiply_accumulates
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources.zoo import digits_cnn, digits_mlp, lenet5, lenet300, vgg6


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "macs"),
    [
        (lenet300(), (1, 28, 28), 266_610, 784 * 300 + 300 * 100 + 100 * 10),
        (lenet5(), (1, 28, 28), 431_080, 24**2 * 20 * 25 + 8**2 * 50 * 20 * 25 + 800 * 500 + 500 * 10),
        (vgg6(), (1, 28, 28), 329_962, 26**2 * 288 + 24**2 * 9216 + 10**2 * 18432 + 8**2 * 36864 + 1024 * 256 + 2560),
        (digits_cnn(), (1, 8, 8), 70_576, 64 * 32 * 9 + 64 * 64 * 32 * 9 + 1024 * 50 + 50 * 10),
        (digits_mlp(hidden=16), (1, 8, 8), 75 * 16 + 10, 64 * 16 + 16 * 10),
    ],
    ids=["lenet300", "lenet5", "vgg6", "digits_cnn", "digits_mlp"],
)
def test_the_zoo_has_the_sizes_of_its_papers(model: nn.Module, shape: tuple[int, ...], parameters: int, macs: int) -> None:
    from mirabelle.task.batch import Batch

    example = Batch(torch.zeros(2, *shape), torch.zeros(2).long())
    assert count_parameters(model) == (parameters, parameters - sum(int((p == 0).sum()) for p in model.parameters()))
    assert multiply_accumulates(model, example) == macs
    layers = layers_of_module(model, example)
    assert sum(layer.parameters for layer in layers) == parameters
    assert sum(layer.macs or 0 for layer in layers) == macs


def test_a_profile_counts_what_is_there(cnn: nn.Module, images: Task, run: Run) -> None:
    pruned = prune.Weights(sparsity=0.75)(cnn, images, run)
    files = exported(pruned, images)
    profile, scores = measure(pruned, images, images.test, files)
    assert profile.parameters == 4 * 9 + 4 + 36 * 3 + 3
    assert profile.nonzero_parameters == profile.parameters - 27 - 81
    assert profile.macs == 36 * 4 * 9 + 36 * 3
    assert profile.size_bytes.onnx == len(files.onnx)
    assert profile.size_bytes.packed == len(files.packed)
    assert profile.size_bytes.onnx_gzip == len(gzip.compress(files.onnx, 9, mtime=0))
    assert profile.metric is not None
    assert profile.metric.value == pytest.approx(
        float((pruned(images.test.inputs).argmax(1) == images.test.targets).float().mean())
    )
    assert len(scores) == 50
    session = default_runtime().load(files.onnx, threads=1)
    assert measure(pruned, images, images.test, files, session=session)[0].metric == profile.metric


@pytest.mark.parametrize("kind", [quantize.Static, quantize.Dynamic])
def test_a_quantized_model_keeps_its_counts(cnn: nn.Module, images: Task, run: Run, kind: type) -> None:
    model = kind()(cnn, images, run)
    assert count_parameters(model)[0] == count_parameters(cnn)[0]
    assert multiply_accumulates(model, images.example()) == multiply_accumulates(cnn, images.example())


def test_layers_of_a_file_and_of_its_module_agree(cnn: nn.Module, images: Task, run: Run) -> None:
    for step in (None, prune.Weights(sparsity=0.5), quantize.Static(), quantize.Dynamic()):
        model = step(cnn, images, run) if step is not None else cnn
        files = exported(model, images)
        from_file = layers_of_onnx(unpack(files.packed))
        from_module = layers_of_module(model, images.example())
        assert [layer.macs for layer in from_file] == [layer.macs for layer in from_module]
        assert [layer.name for layer in from_file] == [layer.name for layer in from_module]
        for one, other in zip(from_file, from_module, strict=True):
            weights = one.shape if len(one.shape) == len(other.shape) else other.shape
            assert sorted(weights) == sorted(other.shape)
            if not isinstance(step, quantize.Dynamic):
                assert (one.parameters, one.sparsity) == (other.parameters, pytest.approx(other.sparsity))


def graph_of_old(batch: int | str, reshaped: int) -> bytes:
    """A convolution and a linear layer reshaped for so many samples, tensors listed as inputs as before ONNX 1.4."""
    float32 = TensorProto.FLOAT
    tensors = [
        numpy_helper.from_array(np.ones((4, 3, 2, 2), np.float32), "conv.weight"),
        numpy_helper.from_array(np.ones((36, 5), np.float32), "linear.weight"),
        numpy_helper.from_array(np.array([reshaped, 36]), "flat"),
    ]
    listed = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors]
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["mapped"]),
        helper.make_node("Reshape", ["mapped", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "linear.weight"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("image", float32, [batch, 3, 4, 4]), *listed]
    outputs = [helper.make_tensor_value_info("scores", float32, [batch, 5])]
    return helper.make_model(helper.make_graph(nodes, "old", inputs, outputs, tensors)).SerializeToString()


def test_layers_of_a_file_that_lists_its_tensors_as_inputs() -> None:
    layers = layers_of_onnx(graph_of_old("N", -1))
    assert [(layer.name, layer.shape, layer.macs) for layer in layers] == [
        ("conv", (4, 3, 2, 2), 4 * 3 * 2 * 2 * 9),
        ("linear", (36, 5), 36 * 5),
    ]


def test_layers_of_a_file_for_one_batch_alone_are_told_without_their_work() -> None:
    assert [layer.parameters for layer in layers_of_onnx(graph_of_old(8, 8))] == [48, 180]


def test_attention_is_counted() -> None:
    class Attention(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(inputs, inputs, inputs)

    from mirabelle.task.batch import Batch

    example = Batch(torch.randn(2, 4, 16, 8), torch.zeros(2))
    assert multiply_accumulates(Attention(), example) == 4 * 16 * 16 * (8 + 8)


def test_a_file_that_is_no_model_or_reaches_outside_is_refused(cnn: nn.Module, images: Task) -> None:
    with pytest.raises(UserError, match="not an ONNX model"):
        layers_of_onnx(b"\xff\xff\xff")
    model = ModelProto.FromString(exported(cnn, images).onnx)
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(UserError, match="other files"):
        layers_of_onnx(model.SerializeToString())
    with pytest.raises(UserError, match="canonical"):
        pack(model.SerializeToString(deterministic=True))


def test_int8_makes_the_onnx_file_about_a_quarter(images: Task, run: Run) -> None:
    model = digits_cnn()
    dense = ModelProto.FromString(exported(model, images).onnx)
    small = exported(quantize.Static()(model, images, run), images).onnx
    assert len(small) / dense.ByteSize() < 0.3
