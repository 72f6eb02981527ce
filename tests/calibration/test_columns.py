"""Rows of columns: bounded parts of all of them, any of them by number, padded and strided as the layer does it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mirabelle.calibration.columns import Columns, columns_of, multiplies_inputs

LAYERS = [
    (nn.Linear(5, 3), (4, 7, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 11)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (3, 4, 9, 8)),
    (nn.Conv2d(4, 4, 4, padding="same", groups=4, padding_mode="circular"), (3, 4, 6, 6)),
    (nn.Conv3d(2, 3, 2, padding=1), (3, 2, 4, 5, 3)),
]
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)


@every_layer
def test_rows_by_number_are_those_of_all_rows_and_the_layer_s_outputs(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    columns, x = Columns(layer.double()), torch.randn(shape, dtype=torch.float64)
    whole = torch.cat(list(columns.of(x)), 1)
    assert whole.shape[1] == columns.rows_in(x)
    monkeypatch.setattr("mirabelle.calibration.columns._NUMBERS_AT_ONCE", 40)  # so that it comes in parts
    rows = torch.arange(1, columns.rows_in(x), 2)
    parts = list(columns.at(x, rows))
    assert len(parts) > 1
    assert torch.equal(torch.cat(parts, 1), whole[:, rows])
    assert torch.equal(torch.cat(list(columns.of(x)), 1), whole)
    with torch.no_grad():
        outputs = (whole[:, rows] @ columns.weight().transpose(1, 2)).transpose(0, 1).reshape(len(rows), -1) + layer.bias
        torch.testing.assert_close(outputs, columns.outputs_at(layer(x), rows))
    assert not list(columns.at(x, rows[:0])) or next(columns.at(x, rows[:0])).shape[1] == 0


@every_layer
def test_layers_of_torch_have_columns(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert columns_of(layer) == Columns(layer)
    assert Columns(layer).has_batch(torch.zeros(shape))
    assert multiplies_inputs(layer, layer.weight)
    assert not multiplies_inputs(layer, layer.bias)


def test_other_modules_have_none() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert [columns_of(module) for module in (Own(2, 2), nn.ConvTranspose2d(1, 1, 2), nn.BatchNorm1d(2), None)] == [None] * 4
    assert not Columns(nn.Linear(3, 2)).has_batch(torch.zeros(3))
    assert not Columns(nn.Conv2d(3, 2, 1)).has_batch(torch.zeros(3, 4, 4))
