"""Masks of Keras: on padded inputs, modules and files give what Keras gives, whatever reads the mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mirabelle
from mirabelle import Task, prune
from mirabelle.sources.models.keras_model.library import library
from mirabelle.sources.models.keras_model.loading import module_from_keras

keras = library()
L = keras.layers
LENGTH, WORDS = 7, 20
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")  # of Keras itself


def _words() -> tuple[Any, Any]:
    words = keras.Input((LENGTH,), dtype="int32")
    return words, L.Embedding(WORDS, 6, mask_zero=True)(words)


def _of_words(rest: Callable[[Any], Any]) -> Callable[[], Any]:
    def made() -> Any:
        words, states = _words()
        return keras.Model(words, L.Dense(3)(rest(states)))

    return made


def _of_numbers(rest: Callable[[Any], Any]) -> Callable[[], Any]:
    def made() -> Any:
        numbers = keras.Input((LENGTH, 4))
        return keras.Model(numbers, L.Dense(3)(rest(L.Masking(7.0)(numbers))))

    return made


def _explicit() -> Any:
    words, shown = keras.Input((LENGTH,), dtype="int32"), keras.Input((LENGTH,), dtype="bool")
    return keras.Model([words, shown], L.LSTM(5)(L.Embedding(WORDS, 6)(words), mask=shown))


def _translating() -> Any:
    """An encoder whose state begins the decoder."""
    words, states = _words()
    _, *state = L.LSTM(5, return_state=True)(states)
    return keras.Model(words, L.LSTM(5)(L.Dense(6)(states), initial_state=state))


def _within() -> Any:
    words, states = _words()
    inner = keras.Sequential([keras.Input((LENGTH, 6)), L.Dense(5), L.GRU(4)])
    return keras.Model(words, L.Dense(3)(inner(states)))


def _pooled(x: Any) -> Any:
    return L.GlobalAveragePooling1D()(x)


CONSUMERS: dict[str, Callable[[], Any]] = {
    "mean": _of_words(_pooled),
    "mean after layers that pass the mask": _of_words(lambda x: _pooled(L.LayerNormalization()(L.Dropout(0.5)(L.Dense(5)(x))))),
    "mean after a convolution": _of_words(lambda x: _pooled(L.Conv1D(5, 3, padding="same")(x))),
    "mean after a batch norm": _of_numbers(lambda x: _pooled(L.ReLU()(L.BatchNormalization()(x)))),
    "mean of a sum": _of_words(lambda x: _pooled(L.Add()([x, L.Dense(6)(x)]))),
    "mean of two beside each other": _of_words(lambda x: _pooled(L.Concatenate()([x, L.Dense(2)(x)]))),
    "mean of attention, whose mask the graph holds": _of_words(
        lambda x: _pooled(L.Add()([x, L.MultiHeadAttention(2, 3)(x, x)]))
    ),
    "LSTM": _of_words(L.LSTM(5)),
    "GRU of outputs": _of_words(lambda x: _pooled(L.GRU(5, return_sequences=True)(x))),
    "recurrent layers, one on the other": _of_numbers(lambda x: L.GRU(5)(L.LSTM(4, return_sequences=True)(x))),
    "both ways": _of_words(L.Bidirectional(L.LSTM(5))),
    "both ways, all outputs": _of_words(lambda x: L.Flatten()(L.Bidirectional(L.GRU(5, return_sequences=True))(x))),
    "one way, all outputs": _of_numbers(lambda x: L.Flatten()(L.LSTM(5, return_sequences=True)(x))),
    "zeros at padding": _of_words(lambda x: L.Flatten()(L.LSTM(5, return_sequences=True, zero_output_for_mask=True)(x))),
    "a recurrent layer that torch lacks": _of_words(L.SimpleRNN(5)),
    "attention over itself": _of_words(lambda x: _pooled(L.MultiHeadAttention(2, 3)(x, x))),
    "plain attention": _of_words(lambda x: _pooled(L.Attention()([x, x]))),
    "a layer at each position": _of_words(lambda x: _pooled(L.TimeDistributed(L.Dense(5))(x))),
    "an inner model": _within,
    "a mask of the caller": _explicit,
    "a state of the caller": _translating,
}


def padded(model: Any) -> list[torch.Tensor]:
    """Inputs with padding behind, in front, in the middle and nowhere."""
    shown = torch.ones(4, LENGTH, dtype=torch.bool)
    shown[0, 3:], shown[1, :4], shown[2, 2:5] = False, False, False
    if len(model.inputs) > 1:
        return [torch.randint(1, WORDS, (4, LENGTH)), shown]
    if len(model.inputs[0].shape) > 2:
        return [torch.where(shown[..., None], torch.randn(4, LENGTH, 4), 7.0)]
    return [torch.randint(1, WORDS, (4, LENGTH)) * shown]


def made(name: str) -> Any:
    keras.utils.set_random_seed(0)
    torch.manual_seed(0)
    model = CONSUMERS[name]()
    draw = np.random.default_rng(0)
    model.set_weights([weight + draw.uniform(0.02, 0.4, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", CONSUMERS)
def test_padding_counts_as_in_keras(name: str) -> None:
    model = made(name)
    inputs = padded(model)
    due = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    torch.testing.assert_close(module_from_keras(model)(*inputs), due, rtol=1e-5, atol=1e-6)


def test_statistics_of_a_batch_norm_leave_padding_out() -> None:
    numbers = keras.Input((LENGTH, 4))
    masked = L.BatchNormalization(name="norm")(L.Masking(7.0)(numbers))
    model = keras.Model(numbers, masked)
    (inputs,) = padded(model)
    module = module_from_keras(model).train()
    found = module(inputs)
    torch.testing.assert_close(found, model(inputs, training=True), rtol=1e-5, atol=1e-5)
    counted = inputs[(inputs != 7).any(-1)]
    torch.testing.assert_close(module.norm.running_mean, 0.01 * counted.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.norm.running_var, 0.99 + 0.01 * counted.var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["both ways", pytest.param("recurrent layers, one on the other", marks=pytest.mark.slow)])
def test_files_of_a_pruned_model_keep_masks(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = made(name)
    inputs = torch.cat([padded(model)[0] for _ in range(10)])
    task = Task(train=(inputs, torch.arange(40) % 3), test=(inputs, torch.arange(40) % 3))
    mirabelle.compress(model, task, [prune.Channels(sparsity=0.5)], out=tmp_path)
    small = keras.models.load_model(tmp_path / "model.keras")
    assert sum(weight.size for weight in small.get_weights()) < 0.9 * sum(weight.size for weight in model.get_weights())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs[:5].numpy()})
    np.testing.assert_allclose(found, small.predict(inputs[:5].numpy(), verbose=0), rtol=1e-4, atol=1e-5)
