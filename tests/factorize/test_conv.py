"""`factorize.Conv`: the three forms, their optima and geometry, what is left alone, and what later steps do with factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, Training, factorize, load, prune, quantize, save
from mirabelle.errors import UserError
from mirabelle.factorize import SeparatedConv, TuckerConv
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model.architecture import replaced_module_names
from mirabelle.numerics.low_rank import decomposed, lost_by_channels, tucker
from mirabelle.testing import check_replacement, check_step


def images(count: int = 40, channels: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, channels, 9, 8, generator=draw)
    return torch.einsum("nchw,dc->ndhw", x, torch.randn(channels, channels, generator=draw)) * 0.3 + 0.2


def task_of(inputs: Tensor) -> Task:
    targets = (inputs.reshape(len(inputs), -1)[:, 0] > 0).long()
    return Task(train=(inputs, targets), test=(inputs, targets))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(12, 20, 3, padding=1, stride=2), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 24, 3, bias=False), nn.ReLU(),
        nn.Conv2d(24, 24, 3, groups=24, padding=1), nn.Conv2d(24, 16, 1), nn.Flatten(), nn.Linear(16 * 6, 2),
    ).eval()  # fmt: skip


def step(**settings: Any) -> factorize.Conv:
    return factorize.Conv(**{"keep": "smaller", "multiple": 1, **settings})


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": 2, "padding_mode": "reflect", "bias": False},
    {"padding": (0, 1), "padding_mode": "circular", "stride": 2},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("form", ["tucker", "channels", "separated"])
def test_factors_of_full_rank_compute_what_the_layer_computes(form: str, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense, x = nn.Conv2d(12, 10, (3, 2), **geometry), images()
    small: nn.Module
    if form == "separated":
        found = decomposed(SeparatedConv.as_matrix(dense.weight))
        small = SeparatedConv.factorized(dense, found, found.full_rank)
    elif form == "tucker":
        small = TuckerConv.factorized(dense, 10, 12)
    else:
        small = TuckerConv.of_outputs(dense, decomposed(dense.weight.flatten(1)), 10)
    with torch.no_grad():
        torch.testing.assert_close(small(x), dense(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small.plain_tensors()["weight"], dense.weight, rtol=1e-4, atol=1e-5)
    assert len(list(small.children())) == {"tucker": 3, "channels": 2, "separated": 2}[form]


def test_tucker_finds_a_kernel_that_has_the_ranks_and_is_never_worse_than_its_start() -> None:
    torch.manual_seed(0)
    exact = torch.einsum("op,pqhw,iq->oihw", torch.randn(9, 2), torch.randn(2, 3, 3, 2), torch.randn(8, 3))
    left, core, right = tucker(exact, outputs=2, inputs=3)
    torch.testing.assert_close(torch.einsum("op,pqhw,iq->oihw", left, core, right).float(), exact, rtol=1e-4, atol=1e-4)
    kernel = torch.randn(9, 8, 3, 2)
    errors = []
    for rounds in (0, 1, 10):
        left, core, right = tucker(kernel, outputs=4, inputs=3, rounds=rounds)
        errors.append(float((torch.einsum("op,pqhw,iq->oihw", left, core, right) - kernel).square().sum()))
    assert errors[2] < errors[1] < errors[0]
    bound = float(lost_by_channels(kernel, 0)[4] + lost_by_channels(kernel, 1)[3]) * float(kernel.square().sum())
    assert errors[0] <= bound


@pytest.mark.parametrize("bias", [True, False])
def test_whitened_output_channels_have_the_least_error_on_the_data(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, task, rank = nn.Sequential(nn.Conv2d(12, 10, 3, padding=1, bias=bias)), task_of(images()), 4
    x = task.train.inputs.double()
    errors = {}
    for method in ("svd", "whitened"):
        small = step(form="channels", rank=rank, method=method, samples=len(x))(dense.float(), task, Run(tmp_path / method))
        errors[method] = float((small.double()(x) - dense.double()(x)).detach().square().sum())
    outputs = dense.double()(x).detach().movedim(1, -1).reshape(-1, 10).numpy()
    outputs = outputs - outputs.mean(0) if bias else outputs
    due = float(np.linalg.eigvalsh(outputs.T @ outputs)[: 10 - rank].sum())
    assert errors["whitened"] == pytest.approx(due, rel=1e-4)
    assert errors["whitened"] < errors["svd"]


@pytest.mark.parametrize("form", ["tucker", "channels", "separated"])
def test_counts_are_those_of_the_factors_and_a_limit_holds(form: str, tmp_path: Path) -> None:
    dense, task = net(), task_of(images())
    whole = multiply_accumulates(dense, task.example())
    small = step(form=form, macs="65%")(dense, task, Run(tmp_path))
    assert 0.5 * whole < multiply_accumulates(small, task.example()) <= 0.65 * whole
    assert count_parameters(small)[0] < count_parameters(dense)[0]
    preview = step(form=form, rank=4).preview(dense, task, Run(tmp_path / "preview"))
    told = " ".join(preview.description)
    assert "its 24 groups are small kernels already" in told or form == "separated"
    assert {"0", "3"} <= {*replaced_module_names(preview.model)} <= {"0", "3", "6"}


@pytest.mark.parametrize("form", ["tucker", "channels", "separated"])
def test_it_keeps_the_contracts(form: str, tmp_path: Path) -> None:
    task = task_of(images())
    check_step(step(form=form, rank=4), net(), task)
    check_step(step(form=form, rank=4, train=Training(steps=1)), net(), task)
    dense = net()[0]
    small = step(form=form, rank=4)(nn.Sequential(dense), task, Run(tmp_path))[0]
    with torch.no_grad():
        dense.weight.copy_(small.plain_tensors()["weight"])
    check_replacement(small, dense, images())


@pytest.mark.parametrize("form", ["tucker", "channels", "separated"])
@pytest.mark.parametrize(
    "then",
    [prune.Channels(sparsity=0.25), prune.Weights(sparsity=0.5), quantize.Static(samples=20)],
    ids=lambda s: type(s).__name__,
)
def test_later_steps_treat_factors_as_layers(then: Any, form: str, tmp_path: Path) -> None:
    x = images()
    task = task_of(x)
    factors = step(form=form, rank=8)(net(), task, Run(tmp_path / "factors"))
    model = then(factors, task, Run(tmp_path / "then"))
    save(model, tmp_path / "saved")
    back = load(net, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(back(x), model.eval()(x))
    if then.stage == "quantize":
        parts = {f"{name}.{part}" for name in ("0", "3") for part, _ in factors.get_submodule(name).named_children()}
        assert parts <= {*replaced_module_names(model)}
    if isinstance(then, prune.Channels):
        plain = model[3].plain_tensors()["weight"]
        assert plain.shape == (18, 15, 3, 3)
        with torch.no_grad():
            due = nn.functional.conv2d(images(channels=15), plain)
            torch.testing.assert_close(model[3](images(channels=15)), due, rtol=1e-4, atol=1e-4)


def test_what_has_no_factors_is_told_and_a_form_without_an_optimum_refused(tmp_path: Path) -> None:
    task = task_of(images())
    preview = step(form="separated", rank=2).preview(net(), task, Run(tmp_path))
    assert "a kernel of 1 x 1 cannot be separated" in " ".join(preview.description)
    with pytest.raises(UserError, match=r'E111.*"whitened" has no optimum for the form "tucker"'):
        step(rank=4, method="whitened")
    with pytest.raises(UserError, match=r"E110.*rank = 25 is larger than every matrix: the largest full rank is 24 \(3\)"):
        step(rank=25)(net(), task, Run(tmp_path))
    with pytest.raises(UserError, match=r"E112.*no module of class Conv1d, Conv2d, Conv3d is selected"):
        step(rank=2)(nn.Sequential(nn.Flatten(), nn.Linear(12 * 72, 2)), task, Run(tmp_path))


def test_convolutions_of_one_and_three_dimensions(tmp_path: Path) -> None:
    for dense, x in ((nn.Conv1d(12, 16, 5), torch.randn(20, 12, 9)), (nn.Conv3d(6, 8, 3), torch.randn(20, 6, 4, 4, 5))):
        model = nn.Sequential(dense, nn.AdaptiveAvgPool1d(1) if x.ndim == 3 else nn.AdaptiveAvgPool3d(1), nn.Flatten())
        small = step(rank=3)(model, task_of(x), Run(tmp_path / str(x.ndim)))
        with torch.no_grad():
            plain = small[0].plain_tensors()
            assert plain["weight"].shape == dense.weight.shape
            again = type(dense)(*dense.weight.shape[:2][::-1], dense.kernel_size)
            again.weight.copy_(plain["weight"])
            again.bias.copy_(plain["bias"])
            torch.testing.assert_close(small[0](x), again(x), rtol=1e-4, atol=1e-5)
