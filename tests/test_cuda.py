"""Real CUDA devices: trainings, whole runs, and the provider of ONNX Runtime. Without such a device these tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, compress, prune, quantize
from mirabelle.model.device import computing_on, named_device
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.objectives import Hint, SoftTargets, TaskLoss
from mirabelle.report import read_report
from mirabelle.runtime.runtime import runtime_named, runtimes_present
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.step import Step
from mirabelle.training import evaluate, fit
from test_contracts import MODELS, STEPS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(scope="module")
def task() -> Task:
    return digits()


@pytest.mark.parametrize("name", STEPS)
def test_every_step_computes_on_the_device_and_gives_a_model_on_the_cpu(name: str, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MODELS.get(name, digits_cnn)().eval()
    step: Step = STEPS[name]
    with computing_on(named_device("cuda")):
        found = step(copied(model), task.with_teacher(copied(model)), Run(tmp_path, seed=7))
    assert {tensor.device.type for tensor in tensors_of_module(found).values()} <= {"cpu"}
    assert all(tensor.isfinite().all() for tensor in tensors_of_module(found).values() if tensor.is_floating_point())


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_a_training_there_learns_what_one_on_the_cpu_does(precision: str, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, teacher = digits_cnn(), digits_cnn()
    objective = 0.5 * SoftTargets() + 0.5 * TaskLoss() + 0.1 * Hint()
    training = Training(epochs=5, batch_size=64, precision=precision, objective=objective, micro_batch=24)  # type: ignore[arg-type]
    values = []
    for device in ("cpu", "cuda"):
        with computing_on(named_device(device)):
            taught = task.with_teacher(fit(copied(teacher), task, Training(epochs=5), Run(tmp_path / device / "teacher")))
            trained = fit(copied(model), taught, training, Run(tmp_path / device / "student"))
            values.append(task.metric.value(evaluate(trained, task.test, task)))
    assert values[1] == pytest.approx(values[0], abs=0.06)


def test_a_whole_run_there_is_written_down_and_goes_on_there(task: Task, tmp_path: Path) -> None:
    steps: list[Step] = [prune.Weights(sparsity=0.5, train=Training(epochs=2)), quantize.Static()]
    torch.manual_seed(0)
    found = compress(digits_cnn(), task, steps, out=tmp_path, baseline=Training(epochs=5), device="cuda")
    report = read_report(tmp_path)
    assert report.recipe["decisions"]["device"] == "cuda:0"
    assert "cuda:0 (" in report.processes[0]["device"]
    assert all(gate.passed for gate in found.gates.values())


def test_a_batch_that_does_not_fit_is_taken_in_parts(task: Task, tmp_path: Path) -> None:
    """A network whose activations of the whole batch need more than the device has, and those of a part do not."""
    free, _ = torch.cuda.mem_get_info()
    width = free // (4 * 128 * 4)  # two layers of so many values for 128 samples take half of the memory and more

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.head(x.flatten(1))
            wide = (logits[:, :1] * torch.ones(width, device=x.device)).exp().exp().exp()
            return logits + 0 * wide.mean(1, keepdim=True).clamp(max=1)

    run = Run(tmp_path)
    with computing_on(named_device("cuda")):
        fit(Wide(), task, Training(steps=2, batch_size=512, precision="float32"), run)
    assert run.decided("micro_batch") < 512


def test_onnx_runtime_with_cuda_agrees_with_the_cpu(task: Task, tmp_path: Path) -> None:
    if "onnxruntime_cuda" not in runtimes_present():
        pytest.skip("onnxruntime has no CUDA provider here")
    found = compress(digits_cnn(), task, [quantize.Dynamic()], out=tmp_path, goal={"runtime": "onnxruntime_cuda"})
    latency = found.profile.latency_ms
    assert latency is not None
    assert latency.runtime == "onnxruntime_cuda"
    assert runtime_named("onnxruntime_cuda").describe().uses[0] == "CUDAExecutionProvider"
