"""One place says where models compute: a model without values, or in another precision, is refused before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from elsewhere import ELSEWHERE, a_second_device
from mirabelle import Run, Task, Training, compress, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import Files, measure
from mirabelle.inspection.sensitivity import sensitivity_of
from mirabelle.job.comparison import compare
from mirabelle.model.device import CPU, at_work, check_device, computing_on, device_of_job, move, on_cpu
from mirabelle.model.precision import autocast
from mirabelle.model.state import tensors_of_module
from mirabelle.training import fit

NOWHERE = nn.Linear(8, 3, device="meta")
STARTS: dict[str, Callable[[nn.Module, Task, Path], object]] = {
    "compress": lambda model, task, out: compress(model, task, [quantize.Static()], out=out),
    "fit": lambda model, task, out: fit(model, task, Training(epochs=1), Run(out)),
    "measure": lambda model, task, out: measure(model, task, task.test, Files(b"", b"")),
    "compare": lambda model, task, out: compare(model, task, {"one": [quantize.Static()]}, out=out),
    "sensitivity": lambda model, task, out: sensitivity_of(model, task),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_model_without_values_is_refused_before_anything_is_run(start: str, blobs: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'E121.*"weight" of the model is on device "meta"') as caught:
        STARTS[start](NOWHERE, blobs, tmp_path / "run")
    assert caught.value.remedy == "load its weights"
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_a_teacher_without_values_is_refused(mlp: nn.Module, blobs: Task, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'E121.*"weight" of the teacher is on device "meta"'):
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "out", teacher=NOWHERE)
    with pytest.raises(UserError, match=r'E121.*"weight" of the teacher is on device "meta"'):
        fit(mlp, blobs.with_teacher(NOWHERE), Training(epochs=1), run)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_refused(precision: torch.dtype, blobs: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf'E121.*"weight" of the model is {precision}.*\n.*model.float'):
        compress(nn.Linear(4, 3).to(precision), blobs, [quantize.Static()], out=tmp_path / "out")


def test_buffers_count_as_well() -> None:
    model = nn.BatchNorm1d(3, affine=False, device="meta")
    with pytest.raises(UserError, match=r'E121.*"running_mean"'):
        check_device(model)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_of_a_forward_pass(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype is dtype


def test_models_are_at_work_on_the_device_of_the_job_and_return() -> None:
    model, other = nn.Linear(2, 2), nn.Sequential()
    assert device_of_job(model) == CPU
    with a_second_device(), computing_on(ELSEWHERE):
        assert device_of_job(model) == ELSEWHERE
        with at_work(model, other) as device:
            assert device == model.weight.device == ELSEWHERE
            with at_work(model):
                pass
            assert model.weight.device == ELSEWHERE  # it was there already
            copy = on_cpu(model)
            assert copy.weight.device == CPU
        assert model.weight.device == CPU
        with pytest.raises(ValueError, match="stop"), at_work(model):
            raise ValueError("stop")
        assert model.weight.device == CPU
    assert device_of_job(model) == CPU


def test_outside_of_jobs_a_model_computes_where_it_is() -> None:
    model = nn.Linear(2, 2)
    with a_second_device():
        move(model, ELSEWHERE)
        with at_work(model) as device:
            assert device == ELSEWHERE
        assert model.weight.device == ELSEWHERE
        move(model, CPU)


def test_buffers_of_several_modules_are_one_after_a_move() -> None:
    shared = torch.arange(3.0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        layer.register_buffer("places", shared)
    model[0].register_buffer("turned", torch.ones(2, 3))
    model[1].register_buffer("turned", model[0].turned.t())
    before = list(tensors_of_module(model))
    with a_second_device(), computing_on(ELSEWHERE), at_work(model):
        assert model[0].places is model[1].places
        assert model[0].places.device == ELSEWHERE
    assert list(tensors_of_module(model)) == before
    model[0].places[1] = 9.0
    assert float(model[1].places[1]) == 9.0


def test_tensors_that_share_memory_do_so_after_a_move() -> None:
    """Two parameters with one memory, one of them transposed; a move to another type of the same device copies, too."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight.data = model[0].weight.data.t()
    model.register_buffer("alone", torch.ones(2))
    values = model[0].weight.detach().clone()
    copies = model.to

    def to(device: torch.device) -> nn.Module:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return copies(device)

    model.to = to  # type: ignore[method-assign,assignment]
    move(model, CPU)
    assert torch.equal(model[0].weight, values)
    with torch.no_grad():
        model[0].weight[0, 1] = 7.0
    assert model[1].weight[1, 0].item() == 7.0
    assert torch.equal(model[1].weight, model[0].weight.t())
