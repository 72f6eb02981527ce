"""Saved, loaded onto a fresh dense module and exported to ONNX, a cut architecture is what it was."""

from __future__ import annotations

import pytest
from shipping import shipped
from test_zoo import FAST, made_or_skipped
from zoo import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore")  # notices of the exporter; what it gives is compared
FEW = {"lenet", "chunked_qkv", "stacked_gru", "batch_times_heads"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW & FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_form_of_a_cut_architecture_agrees(name: str) -> None:
    made_or_skipped(name)
    assert shipped(name).faults() == []
