"""The contract test of a runtime."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.draws import global_draws
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import Runtime, time_alone, time_side_by_side
from mirabelle.task.batch import Batch, parts_of

_SAMPLES = 7
_NAME = re.compile(r"[a-z0-9_]+")


def check_runtime(runtime: Runtime, *, tolerance: float = 1e-4) -> None:
    """Check that a runtime fulfils the contract of runtimes, by loading and running small models for a few seconds.

    Args:
        runtime: the runtime to check.
        tolerance: largest difference of float32 outputs from those of torch, relative to the largest value.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle.runtime import OnnxRuntime
        >>> check_runtime(OnnxRuntime())
    """
    _check_description(runtime)
    _check_outputs(runtime, tolerance)
    _check_integers(runtime)
    _check_two_sessions(runtime)
    _check_refusal(runtime)
    _check_timing(runtime)
    _check_operators(runtime)


class _Network(nn.Module):
    """Two inputs, images and integers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.table = nn.Conv2d(1, 4, 3, padding=1), nn.Embedding(5, 4)
        self.scores, self.place = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, image: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        both = self.convolution(image).relu().mean((2, 3)) + self.table(token).mean(1)
        return self.scores(both), self.place(both)


def _network(seed: int = 0) -> tuple[nn.Module, bytes, dict[str, Tensor]]:
    """A network, its ONNX file, and inputs."""
    with global_draws(seed):
        model = _Network().eval()
        inputs = {"image": torch.randn(_SAMPLES, 1, 8, 8), "token": torch.randint(5, (_SAMPLES, 3))}
    return model, export(model, Batch(inputs, torch.zeros(_SAMPLES))), inputs


def _check_description(runtime: Runtime) -> None:
    found = runtime.describe()
    assert _NAME.fullmatch(found.name), f'the name "{found.name}" must be of small letters, digits and _'
    assert found.title, "a title is missing"
    assert found.version, "a version is missing"
    assert found.device, "a device is missing"
    assert found.uses, "what computes is missing"


def _check_outputs(runtime: Runtime, tolerance: float) -> None:
    """Names, order and values of two inputs and two outputs, in batches of three sizes."""
    model, onnx, inputs = _network()
    session, graph = runtime.load(onnx, threads=1), ModelProto.FromString(onnx).graph
    assert session.runtime == runtime.describe().name, f'a session names its runtime "{session.runtime}"'
    assert session.threads == 1, f"a session for 1 thread says {session.threads}"
    assert session.input_names == [value.name for value in graph.input], "inputs are not those of the graph, in its order"
    assert session.output_names == [value.name for value in graph.output], "outputs are not those of the graph, in its order"
    for count in (_SAMPLES, 1, 2):
        part = {name: tensor[:count] for name, tensor in inputs.items()}
        feed = session.feed(part)
        before = {name: array.copy() for name, array in feed.items()}
        given = session.run(feed)
        assert all(np.array_equal(before[name], feed[name]) for name in feed), "inputs are changed by a run"
        with torch.inference_mode():
            expected = [to_numpy(tensor) for tensor in model(**part)]
        for name, due, array in zip(session.output_names, expected, given, strict=True):
            assert isinstance(array, np.ndarray), f'output "{name}" is {type(array).__name__}, not an array'
            assert array.dtype == due.dtype, f'output "{name}" is {array.dtype}, not {due.dtype}'
            assert array.shape == due.shape, f'output "{name}" has shape {array.shape}, not {due.shape}, for {count} samples'
            worst = float(np.abs(array - due).max() / np.abs(due).max())
            assert worst <= tolerance, f'output "{name}" differs from torch by {worst:.1e} of the largest value'
    in_order = parts_of(session(tuple(inputs[name] for name in session.input_names)))
    by_name = parts_of(session(inputs))
    assert all(map(torch.equal, in_order, by_name)), "the same inputs by name and in order give different outputs"


def _check_integers(runtime: Runtime) -> None:
    """A quantized matrix product whose sums exceed 16 bits, 255 · 127 · 64 terms, must be exact."""
    terms = 64
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "one"], ["weights"]),
        helper.make_node("MatMul", ["values", "weights"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(np.ones((), np.float32), "one"),
        numpy_helper.from_array(np.zeros((), np.uint8), "zero"),
        numpy_helper.from_array(np.full((terms, 1), 127, np.int8), "weight"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", terms), ("y", 1)))
    graph = helper.make_graph(nodes, "integers", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = runtime.load(model.SerializeToString(), threads=1).run({"x": np.full((2, terms), 255, np.float32)})[0]
    due = 255 * 127 * terms
    assert np.all(given == due), f"a product of integers is {given.ravel().tolist()}, not {due}: its sums saturate"


def _check_two_sessions(runtime: Runtime) -> None:
    """Sessions that exist at the same time are independent, and a later run does not change the outputs of an earlier one."""
    files, inputs = [_network(seed)[1] for seed in range(2)], _network()[2]
    first, second = (runtime.load(onnx, threads=1) for onnx in files)
    alone = [array.copy() for array in first.run(first.feed(inputs))]
    kept = first.run(first.feed(inputs))
    assert all(map(np.array_equal, alone, kept)), "two runs on the same inputs give different bits"
    others = second.run(second.feed(inputs))
    first.run(first.feed({name: torch.zeros_like(tensor) for name, tensor in inputs.items()}))
    assert all(map(np.array_equal, alone, kept)), "outputs change when the session runs again"
    assert not any(map(np.array_equal, alone, others)), "two sessions give the outputs of one model"


def _check_refusal(runtime: Runtime) -> None:
    code = None
    try:
        runtime.load(b"no model", threads=1)
    except UserError as error:
        code = error.code
    assert code == "E141", f"a file that is no model must be refused with E141, not {code}"


def _check_timing(runtime: Runtime) -> None:
    """Latencies name the runtime, the number of threads and the batch size."""
    _, onnx, inputs = _network()
    name, (start, end) = runtime.describe().name, (runtime.load(onnx, threads=1) for _ in range(2))
    alone = time_alone(start, inputs, batch=2, seconds=0.01)
    *pair, ratio = time_side_by_side(start, end, inputs, batch=2, seconds=0.01)
    for latency in (alone, *pair):
        assert (latency.runtime, latency.threads, latency.batch) == (name, 1, 2), f"a latency says {latency}"
        assert 0 < latency.median <= latency.p95 < math.inf, f"a latency is {latency}"
    assert 0 < ratio.low <= ratio.median <= ratio.high, f"a ratio is {ratio}"


def _check_operators(runtime: Runtime) -> None:
    """One time for each node and run; or E111 from a runtime without a profile of operators."""
    runs, names = 3, ("first_", "second_")
    nodes = [helper.make_node("MatMul", ["x", "w"], [name], name=name) for name in names]
    x, *outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("x", *names))
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "operators", [x], outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    try:
        found = runtime.operator_milliseconds(model, {"x": np.ones((2, 8), np.float32)}, threads=1, runs=runs)
    except UserError as error:
        if error.code == "E111":
            return
        raise AssertionError(f"a runtime without times of operators must raise E111, not {error.code}") from error
    assert set(found) == set(names), f"operators {sorted(names)} have times by the names {sorted(found)}"
    for name, times in found.items():
        assert len(times) == runs, f'operator "{name}" has {len(times)} times for {runs} runs'
        assert all(0 <= time < math.inf for time in times), f'operator "{name}" has times {list(times)}'
