"""Layers of Keras in the exported file: what Keras computes, at any number of samples."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from mirabelle.sources.models.keras_model import keras_model_of, module_from_keras

PAGE = Path(__file__).parents[2] / "docs" / "keras_layers.py"
SPEC = importlib.util.spec_from_file_location("keras_layers", PAGE)
assert SPEC is not None
assert SPEC.loader is not None
LAYERS: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(LAYERS)
keras, L = LAYERS.keras, LAYERS.L
REFUSED = {  # by Keras itself without TensorFlow, by torch's exporter, or by ONNX Runtime
    "HashedCrossing", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization", "Equalization",
    "ContrastLimitedAdaptiveHistogramEqualization",
}  # fmt: skip
QUICK = ("SimpleRNN", "StackedRNNCells", "TimeDistributed", "ActivityRegularization", "RandomHue")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYERS.classes()
        if name not in (*LAYERS.NOT_COUNTED, *REFUSED)
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about operators of Keras
def test_a_layer_is_exported_and_gives_what_keras_gives(name: str) -> None:
    assert LAYERS.result_of(name)[0], LAYERS.result_of(name)[1]


def wrapped(kind: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4))
    layer = getattr(L, kind)(8, return_sequences=True)
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(L.Bidirectional(layer, **settings)(x))))


@pytest.mark.parametrize(("kind", "how"), [("LSTM", "sum"), ("SimpleRNN", "mul"), ("GRU", "ave")])
def test_directions_that_are_merged_go_back(kind: str, how: str) -> None:
    model = wrapped(kind, merge_mode=how)
    module = module_from_keras(model)
    assert model.layers[1].name in module.converted
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.5)
        inputs = torch.randn(12, 6, 4, generator=torch.Generator().manual_seed(0))
        back = keras_model_of(module, module)
        torch.testing.assert_close(module(inputs), back(inputs, training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_layer_that_runs_backwards_over_padding(kind: str) -> None:
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int64")
    layer = getattr(L, kind)(5, go_backwards=True, return_sequences=True, dropout=0.2)
    model = keras.Model(words, layer(L.Embedding(9, 4, mask_zero=True)(words)))
    module = module_from_keras(model)
    assert layer.name in module.converted
    given = torch.tensor([[1, 2, 3, 0, 0, 0], [0, 0, 4, 5, 6, 7], [1, 0, 2, 0, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(module(given), model(given, training=False), rtol=1e-5, atol=1e-6)
