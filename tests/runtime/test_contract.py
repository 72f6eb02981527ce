"""The contract of runtimes: ONNX Runtime keeps it, a runtime of anybody's own serves, and broken ones are found."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from mirabelle import Task, runtime
from mirabelle.errors import UserError
from mirabelle.inspection.measure import exported, measure
from mirabelle.report.verdict import title_of
from mirabelle.runtime.onnxruntime import library
from mirabelle.runtime.runtime import (
    Description,
    Runtime,
    Session,
    default_runtime,
    runtime_named,
    runtimes_present,
    time_alone,
    time_side_by_side,
)
from mirabelle.task.goal import FASTEST, RuntimeName
from mirabelle.testing import check_runtime


class ReferenceSession(Session):
    def __init__(self, model: bytes, threads: int) -> None:
        try:
            self._evaluator = ReferenceEvaluator(ModelProto.FromString(model))
        except Exception as error:
            raise UserError("E141", f"no model: {error}", "export it again") from error
        super().__init__("reference", threads, self._evaluator.input_names, self._evaluator.output_names)

    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        return self._evaluator.run(None, dict(feed))


class Reference(Runtime):
    """ONNX's own evaluator in NumPy: a second runtime, in twenty lines."""

    def describe(self) -> Description:
        return Description("reference", "the reference", "1", "cpu", ("numpy",))

    def load(self, model: bytes, threads: int) -> Session:
        return ReferenceSession(model, threads)


@pytest.mark.parametrize("name", runtime.RUNTIMES)
def test_every_runtime_behind_the_door_keeps_the_contract(name: str) -> None:
    if name not in runtimes_present():
        pytest.skip(f"{runtime.RUNTIMES[name].module} is not installed, or this processor lacks what {name} needs")
    found = runtime_named(name)
    check_runtime(found, tolerance=3e-2 if name.endswith("bf16") else 1e-4)  # bfloat16 has eight bits
    described = found.describe()
    assert (described.name, described.title) == (name, runtime.RUNTIMES[name].title)


def test_a_provider_that_does_not_work_is_refused_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with its CPU kernels if CUDA cannot be loaded; a time of them would be told as one of CUDA."""
    if "CUDAExecutionProvider" in library().get_available_providers():
        pytest.skip("ONNX Runtime has a CUDA provider here")
    cuda = runtime_named("onnxruntime_cuda")
    assert not cuda.usable()
    assert cuda.describe().device == "cuda"
    onnx = exported(
        nn.Linear(3, 2), Task(train=(torch.zeros(4, 3), torch.zeros(4, 2)), test=(torch.zeros(2, 3), torch.zeros(2, 2)))
    ).onnx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"E122.*CUDAExecutionProvider .* does not work here; .* with CPUExecutionProvider"):
            cuda.load(onnx, 1)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert "onnxruntime_cuda" in runtimes_present()


def test_a_goal_knows_the_runtimes() -> None:
    assert set(get_args(RuntimeName)) == {*runtime.RUNTIMES, FASTEST}


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("mirabelle.runtime.openvino._cores", [])
    with pytest.raises(UserError, match=r"E160.*\n.*mirabelle\[openvino\]"):
        runtime_named("openvino").load(b"", 1)


def test_importing_openvino_tells_nobody() -> None:
    pytest.importorskip("openvino_telemetry")
    code = "import sys; from mirabelle.runtime.openvino import library; library(); print('openvino_telemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_runtime_of_anybodys_own_keeps_the_contract() -> None:
    check_runtime(Reference())


def test_a_second_runtime_measures_and_times(cnn: nn.Module, images: Task) -> None:
    files = exported(cnn, images)
    mine, other = (one.load(files.onnx, threads=1) for one in (Reference(), default_runtime()))
    profile, scores = measure(cnn, images, images.test, files, session=mine)
    due, expected = measure(cnn, images, images.test, files, session=other)
    assert profile == due
    assert np.array_equal(scores, expected)
    inputs = images.example().inputs
    latency = time_alone(mine, inputs, seconds=0.01)
    assert (latency.runtime, latency.threads, latency.batch) == ("reference", 1, 1)
    assert time_side_by_side(mine, mine, inputs, seconds=0.01)[1].runtime == "reference"
    with pytest.raises(UserError, match=r"E111.*the reference cannot measure the time of single operators"):
        Reference().operator_milliseconds(files.onnx, {}, threads=1, runs=1)


def test_a_runtime_of_another_name_is_refused() -> None:
    with pytest.raises(UserError, match=r'E103.*there is no runtime "onnxrutime"') as caught:
        runtime_named("onnxrutime")
    assert caught.value.remedy == 'did you mean "onnxruntime"?'
    assert (title_of("onnxruntime"), title_of("of a later version")) == ("ONNX Runtime", "of a later version")


class Shuffled(ReferenceSession):
    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        return super().run(feed)[::-1]


class Writing(ReferenceSession):
    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        outputs = super().run(feed)
        for array in feed.values():
            array[:] = 0
        return outputs


class Saturating(ReferenceSession):
    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        return [np.minimum(array, np.float32(2**15 - 1)) for array in super().run(feed)]


class Reusing(ReferenceSession):
    """It gives the same memory in every run."""

    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        outputs = super().run(feed)
        kept = vars(self).setdefault("kept", {})
        for name, array in zip(self.output_names, outputs, strict=True):
            if kept.setdefault((name, array.shape), array) is not array:
                kept[name, array.shape][...] = array
        return [kept[name, array.shape] for name, array in zip(self.output_names, outputs, strict=True)]


@pytest.mark.parametrize(
    ("session", "words"),
    [
        (Shuffled, "has shape"),
        (Writing, "inputs are changed"),
        (Saturating, "its sums saturate"),
        (Reusing, "outputs change when the session runs again"),
    ],
)
def test_a_runtime_that_breaks_the_contract_is_found(
    session: type[ReferenceSession], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reference, "load", lambda self, model, threads: session(model, threads))
    with pytest.raises(AssertionError, match=words):
        check_runtime(Reference())
