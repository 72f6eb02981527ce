"""One place says where models compute: a model that is elsewhere is refused before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, compress, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import Files, measure
from mirabelle.inspection.sensitivity import sensitivity_of
from mirabelle.job.comparison import compare
from mirabelle.model.device import CPU, check_device, device_of
from mirabelle.model.precision import autocast
from mirabelle.training import fit

ELSEWHERE = nn.Linear(8, 3, device="meta")
STARTS: dict[str, Callable[[nn.Module, Task, Path], object]] = {
    "compress": lambda model, task, out: compress(model, task, [quantize.Static()], out=out),
    "fit": lambda model, task, out: fit(model, task, Training(epochs=1), Run(out)),
    "measure": lambda model, task, out: measure(model, task, task.test, Files(b"", b"")),
    "compare": lambda model, task, out: compare(model, task, {"one": [quantize.Static()]}, out=out),
    "sensitivity": lambda model, task, out: sensitivity_of(model, task),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_model_that_is_not_on_the_cpu_is_refused_before_anything_is_run(start: str, blobs: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'E121.*"weight" of the model is on device "meta"') as caught:
        STARTS[start](ELSEWHERE, blobs, tmp_path / "run")
    assert caught.value.remedy == 'load its weights, which "meta" does not hold'
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_a_teacher_that_is_not_on_the_cpu_is_refused(mlp: nn.Module, blobs: Task, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'E121.*"weight" of the teacher is on device "meta"'):
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "out", teacher=ELSEWHERE)
    with pytest.raises(UserError, match=r'E121.*"weight" of the teacher is on device "meta"'):
        fit(mlp, blobs.with_teacher(ELSEWHERE), Training(epochs=1), run)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_refused(precision: torch.dtype, blobs: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf'E121.*"weight" of the model is {precision}.*\n.*model.float'):
        compress(nn.Linear(4, 3).to(precision), blobs, [quantize.Static()], out=tmp_path / "out")


def test_buffers_count_as_well() -> None:
    model = nn.BatchNorm1d(3, affine=False, device="meta")
    with pytest.raises(UserError, match=r'E121.*"running_mean"'):
        check_device(model)
    assert device_of(model) == CPU  # it has no parameters
    assert device_of(ELSEWHERE).type == "meta"


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_of_a_forward_pass(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype is dtype
