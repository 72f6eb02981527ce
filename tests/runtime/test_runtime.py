"""Export, its canonical form, ONNX Runtime, latency, and gates that really fail."""

from __future__ import annotations

import copy
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, checker, numpy_helper
from torch import Tensor, nn

from mirabelle import Run, Task, quantize
from mirabelle.errors import UserError
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import _tolerance, first_differing_layer, same_bytes, same_outputs, torch_equals_onnx
from mirabelle.runtime.latency import interleaved
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.seal import SEAL
from mirabelle.task.batch import Batch


def test_the_exported_model_is_valid_and_takes_any_batch(cnn: nn.Module, images: Task) -> None:
    onnx = export(cnn, images.example(), labels=("row", "column", "none"))
    model = ModelProto.FromString(onnx)
    checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props if entry.key != SEAL} == {
        "labels": '["row", "column", "none"]'
    }
    session = default_runtime().load(onnx, threads=1)
    for count in (1, 2, 7):
        outputs, targets = session.outputs_of([images.test.first(count)])
        assert outputs.shape == (count, 3)
        assert len(targets) == count


class Padding(nn.Module):
    """Borders as other frameworks have them: more on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(F.pad(self.one(F.pad(x, (0, 1, 0, 1))).relu(), (1, 0, 0, 0))).mean((2, 3))


def test_a_convolution_of_codes_pads_itself(images: Task, run: Run) -> None:
    model = quantize.Static()(Padding(), images, run)
    onnx = export(model, images.example())
    nodes = ModelProto.FromString(onnx).graph.node
    pads = [list(one.ints) for node in nodes for one in node.attribute if node.op_type == "Conv" and one.name == "pads"]
    assert pads == [[0, 0, 1, 1], [1, 2, 1, 1]]
    assert "Pad" not in {node.op_type for node in nodes}
    given = default_runtime().load(onnx, threads=1).outputs_of([images.test.first(20)])[0]
    with torch.no_grad():
        due = model(images.test.inputs[:20])
    assert (given - due).abs().max() < 0.02 * due.abs().max()  # a rounding tie that falls the other way


def test_equal_models_give_equal_bytes_free_of_the_exporter(cnn: nn.Module, images: Task) -> None:
    onnx = export(cnn, images.example())
    assert onnx == export(copy.deepcopy(cnn), images.example())
    for word in (b"pytorch", b"pkg.torch", b"Traceback", b".py", b"doc_string"):
        assert word not in onnx
    model = ModelProto.FromString(onnx)
    assert canonical(model, {}) == onnx
    assert all(tensor.raw_data for tensor in model.graph.initializer)


def test_a_session_that_was_released_runs_again(cnn: nn.Module, images: Task) -> None:
    session = default_runtime().load(export(cnn, images.example()), threads=1)
    inputs = images.example().inputs
    before = session(inputs)
    session.release()
    assert torch.equal(session(inputs), before)


def test_values_are_named_for_their_layers(cnn: nn.Module, images: Task) -> None:
    model = ModelProto.FromString(export(cnn, images.example()))
    made = [name for node in model.graph.node for name in node.output]
    assert [name for name in made if name in ("0", "1", "2")] == ["0", "1", "2"]


class Two(nn.Module):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) * self.right(right)


@pytest.mark.parametrize("as_dict", [True, False])
def test_several_inputs_export_by_name_or_in_order(as_dict: bool) -> None:
    model, left, right = Two().eval(), torch.randn(4, 3), torch.randn(4, 5)
    inputs = {"left": left, "right": right} if as_dict else (left, right)
    session = default_runtime().load(export(model, Batch(inputs, torch.zeros(4))), threads=1)
    with torch.inference_mode():
        assert session.run(session.feed(inputs))[0] == pytest.approx(model(left, right).numpy(), abs=1e-6)


def test_a_model_that_cannot_be_exported_is_named() -> None:
    class Branches(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * 2 if inputs.sum() > 0 else inputs

    with pytest.raises(UserError, match=r"E121.*cannot export"):
        export(Branches(), Batch(torch.randn(2, 3), torch.zeros(2)))


def test_a_file_that_is_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="E141"):
        default_runtime().load(b"no model", threads=1)


@pytest.mark.parametrize("quantized", [True, False])
def test_the_gate_passes_equal_models(cnn: nn.Module, images: Task, run: Run, quantized: bool) -> None:
    model = quantize.Static()(cnn, images, run) if quantized else cnn
    gate = torch_equals_onnx(model, export(model, images.example()), list(images.train.batches(50)), quantized=quantized)
    assert gate.passed
    assert gate.worst < (0.05 if quantized else 1e-5)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("layer", ["0", "4"])
def test_a_gate_that_fails_says_which_layer_differs_first(
    cnn: nn.Module, images: Task, run: Run, quantized: bool, layer: str
) -> None:
    deep = nn.Sequential(*cnn, nn.ReLU(), nn.Linear(3, 3))
    model = quantize.Static()(deep, images, run) if quantized else deep
    broken = ModelProto.FromString(export(model, images.example()))
    name = f"{layer}.bias_codes" if quantized else f"{layer}.bias"
    for tensor in broken.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor)
            tensor.raw_data = (values + np.abs(values).max() * 3).astype(values.dtype).tobytes()
    gate = torch_equals_onnx(model, broken.SerializeToString(), list(images.train.batches(50)), quantized=quantized)
    assert not gate.passed
    assert f'first layer that differs is "{layer}"' in gate.detail


def test_a_gate_sees_nan_and_another_shape(cnn: nn.Module, images: Task) -> None:
    onnx, batches = export(cnn, images.example()), list(images.train.batches(50))
    with torch.no_grad():
        cnn.get_submodule("4").bias[0] = float("nan")
    assert not torch_equals_onnx(cnn, onnx, batches, quantized=False).passed
    wider = nn.Sequential(cnn, nn.Linear(3, 4)).eval()
    assert "torch gives" in torch_equals_onnx(wider, onnx, batches, quantized=False).detail


def test_when_only_the_end_differs_the_last_layer_is_named(cnn: nn.Module, images: Task) -> None:
    onnx = export(cnn, images.example())
    with torch.no_grad():
        cnn.get_submodule("4").weight.mul_(2)
    assert '"4"' in first_differing_layer(cnn, onnx, images.train.first(10), 1e-4)


def test_bytes_and_modules_are_compared_exactly(mlp: nn.Module, blobs: Task) -> None:
    assert same_bytes(b"abc", b"abc").passed
    assert same_bytes(b"abc", [b"ab", b"c"]).passed
    for other, place in ((b"abd", 2), ([b"ab", b"d"], 2), (b"abcd", 3), ([b"abc", b"d"], 3), ([b"a", b"x"], 1)):
        gate = same_bytes(b"abc", other)
        assert (gate.passed, gate.detail) == (False, f"first difference at byte {place} of 3")
    for short in (b"ab", [b"a", b"b"]):
        assert same_bytes(b"abc", short).detail == "only the first 2 bytes of 3"
    other = copy.deepcopy(mlp)
    assert same_outputs(mlp, other, blobs.example()).passed
    with torch.no_grad():
        other.get_submodule("2").bias.add_(1e-6)
    assert not same_outputs(mlp, other, blobs.example()).passed


def test_latency_tells_a_slow_call_from_a_fast_one() -> None:
    calls = {"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.004)}
    latencies, ratios = interleaved(lambda: calls, runtime="sleep", threads=1, batch=1, seconds=0.3)
    assert latencies["slow"].median > 2 * latencies["fast"].median
    assert latencies["slow"].p95 >= latencies["slow"].median
    assert ratios["fast"].median == 1.0
    assert ratios["slow"].low > 1.5


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads need two cores")
def test_a_session_that_waits_leaves_the_cores_to_the_one_that_runs() -> None:
    """Else what is timed in turn is timed against the spinning threads of the other: at half its speed on two cores."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    example = Batch(torch.randn(16, 32, 32, 32), torch.zeros(16))
    session = default_runtime().load(export(model, example), threads=2)
    feed = session.feed(example.inputs)

    def spun() -> float:
        """Processor time that the process takes while it sleeps right after a call, as a share."""
        session.run(feed)
        begin = time.process_time()
        time.sleep(0.02)
        return (time.process_time() - begin) / 0.02

    assert min(spun() for _ in range(5)) < 0.2


class AskingForItsLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x).view(len(x), 2, int(x.shape[1])).transpose(1, 2).flatten(1))


def test_a_model_that_asks_for_its_number_of_samples_takes_any() -> None:
    torch.manual_seed(0)
    model = AskingForItsLength().eval()
    session = default_runtime().load(export(model, Batch(torch.randn(2, 8), torch.tensor([0, 1]))), 1)
    for count in (1, 3, 5):
        inputs = torch.randn(count, 8)
        with torch.no_grad():
            due = model(inputs)
        torch.testing.assert_close(session.outputs_of([Batch(inputs, torch.zeros(count))])[0], due)


class Stepped(nn.Module):
    """Rounds its input to whole numbers, times a step, beside a constant 1."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x.round() - x.floor() if x.is_floating_point() else x) * self.step
        return torch.cat([rounded, torch.ones(len(x), 1)], 1)


@pytest.mark.parametrize(("step", "due"), [(0.01, 0.05), (0.06, 0.12), (0.5, 0.2)])
def test_where_noise_moves_an_output_further_a_sample_may_differ_by_twice_as_much(step: float, due: float) -> None:
    halves = torch.arange(12).reshape(4, 3) + 0.5  # noise decides which way they are rounded
    batches, model = [Batch(halves, torch.zeros(4))], Stepped(step)
    expected = model(halves).numpy()
    one_off, all_off = expected.copy(), expected + 0.06
    one_off[0, 0] += 0.06
    found, words = _tolerance(model, batches, [expected], [one_off])
    assert found == pytest.approx(due)
    assert ("noise" in words) == (due > 0.05)
    assert _tolerance(model, batches, [expected], [expected + 0.04]) == (0.05, ""), "5 % are enough"
    if step < 0.1:
        assert _tolerance(model, batches, [expected], [all_off]) == (0.05, ""), "what differs everywhere is no noise"
    whole = [Batch(torch.arange(12).reshape(4, 3), torch.zeros(4))]
    numbers = model(whole[0].inputs).numpy()
    assert _tolerance(model, whole, [numbers], [numbers + 0.06 * np.abs(numbers).max()]) == (0.05, "")
