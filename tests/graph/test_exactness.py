"""The proof, on every architecture of the zoo: what it must give, held."""

from __future__ import annotations

import pytest
import torch
from proof import proved_of, tensors_of
from test_zoo import chosen, degenerate, made_or_skipped
from zoo import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? self.*assigned during export:UserWarning")


@pytest.mark.parametrize("name", chosen(ARCHITECTURES))
@torch.no_grad()
def test_what_is_cut_is_what_was_masked(name: str) -> None:
    model, positional, named = made_or_skipped(name)
    assert degenerate(model) == []
    proof = proved_of(name, model, positional, named)
    assert proof.faults() == []
    assert all(output.std() > 0.01 * output.abs().mean() for output in tensors_of(model(*positional, **named)))
