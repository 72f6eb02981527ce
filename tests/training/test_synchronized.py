"""Batch norms with the statistics of all processes: for one process, those of torch; for several, see `test_processes`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle.training.synchronized import synchronized

NORMS = [
    (nn.BatchNorm2d, (8, 5, 6, 7)),
    (nn.BatchNorm1d, (9, 5)),
    (nn.BatchNorm1d, (9, 5, 4)),
    (nn.BatchNorm3d, (4, 5, 3, 3, 3)),
]


class Alone:
    """A group of one process."""

    @staticmethod
    def add(tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_a_single_process_has_the_batch_norms_of_torch(
    kind: Any, shape: tuple[int, ...], *, affine: bool, momentum: float | None, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    theirs, ours = (kind(5, affine=affine, momentum=momentum) for _ in range(2))
    if affine:
        nn.init.uniform_(theirs.weight)
        nn.init.uniform_(theirs.bias)
        ours.load_state_dict(theirs.state_dict())
    exact = precision == torch.float32
    near: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5} if exact else {"rtol": 5e-2, "atol": 0.3}
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format  # type: ignore[attr-defined]
    x, g = (torch.randn(shape) * 3 + 10).to(precision, memory_format=layout), torch.randn(shape).to(precision)
    found = []
    for norm in (theirs, ours):
        given = x.clone().requires_grad_()
        with synchronized(norm, Alone() if norm is ours else None):  # type: ignore[arg-type]
            y = norm(given)
            y.backward(g)
        gradients = [parameter.grad for parameter in norm.parameters()]
        found.append([y.detach(), given.grad, *gradients, *(tensor.float() for tensor in norm.state_dict().values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **near)


def test_in_evaluation_and_afterwards_batch_norms_are_as_they_were() -> None:
    norm, x = nn.BatchNorm1d(3).eval(), torch.randn(4, 3)
    expected = norm(x)
    with synchronized(norm, Alone()):  # type: ignore[arg-type]
        assert torch.equal(norm(x), expected)
    assert "forward" not in vars(norm)
