"""Count the layers of Keras 3 that are covered: each is exported and compared with Keras in ONNX Runtime at two batch sizes.

python docs/keras_layers.py            prints the table and writes it to docs/frameworks.md, section "Keras layers"
python docs/keras_layers.py LSTM GRU   prints the rows of these classes only
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import runtime_named
from mirabelle.sources.models.keras_model import module_from_keras
from mirabelle.sources.models.keras_model.library import library
from mirabelle.task.batch import Batch

keras = library()
L = keras.layers
PAGE = Path(__file__).with_name("frameworks.md")
HEADING = "### Keras layers"
BATCHES = (2, 5)
TOLERANCE = 1e-4  # of the largest value: sums in another order
Array = npt.NDArray[Any]

SEQUENCE, GRID, VOLUME, VECTOR = (6, 4), (8, 8, 3), (6, 6, 6, 2), (5,)
NOT_COUNTED = {
    "Layer": "an abstract base",
    "Wrapper": "an abstract base",
    "InputLayer": "made by `keras.Input`, part of every model here",
    "Lambda": "code, which a file does not contain; works from a function",
    "JaxLayer": "code of JAX",
    "FlaxLayer": "code of Flax",
    "TFSMLayer": "a TensorFlow program",
    "TorchModuleWrapper": "a PyTorch module, which is compressed without Keras",
}
# Augmentation, which changes nothing in inference: class -> settings.
IDENTITIES: dict[str, dict[str, Any]] = {
    "AugMix": {}, "CutMix": {}, "MaxNumBoundingBoxes": {"max_number": 3}, "MixUp": {}, "RandAugment": {},
    "RandomBrightness": {"factor": 0.2}, "RandomColorDegeneration": {"factor": 0.2},
    "RandomColorJitter": {"value_range": (0, 1), "brightness_factor": 0.2}, "RandomContrast": {"factor": 0.2},
    "RandomCrop": {"height": 8, "width": 8}, "RandomElasticTransform": {}, "RandomErasing": {}, "RandomFlip": {},
    "RandomGaussianBlur": {}, "RandomGrayscale": {}, "RandomHue": {"factor": 0.2}, "RandomInvert": {}, "RandomPerspective": {},
    "RandomPosterization": {"factor": 4}, "RandomRotation": {"factor": 0.1}, "RandomSaturation": {"factor": 0.2},
    "RandomSharpness": {"factor": 0.2}, "RandomShear": {"x_factor": 0.2}, "RandomTranslation": {"height_factor": 0.1,
    "width_factor": 0.1}, "RandomZoom": {"height_factor": 0.1},
}  # fmt: skip


def one(shape: tuple[int, ...], *settings: Any, **more: Any) -> Callable[[str], Any]:
    """A model of one layer with these settings, and one input."""

    def made(name: str) -> Any:
        x = keras.Input(shape)
        return keras.Model(x, getattr(L, name)(*settings, **more)(x))

    return made


def two(shape: tuple[int, ...], **settings: Any) -> Callable[[str], Any]:
    """A model of one layer that reads two inputs as a list."""

    def made(name: str) -> Any:
        inputs = [keras.Input(shape), keras.Input(shape)]
        return keras.Model(inputs, getattr(L, name)(**settings)(inputs))

    return made


def within(shape: tuple[int, ...], around: Callable[[Any], Any]) -> Callable[[str], Any]:
    """A model in which another layer holds the one of this name."""

    def made(name: str) -> Any:
        x = keras.Input(shape)
        return keras.Model(x, around(getattr(L, name))(x))

    return made


def numbers(name: str, *settings: Any, **more: Any) -> Any:
    """A model that reads whole numbers."""
    x = keras.Input((6,), dtype="int64")
    return keras.Model(x, getattr(L, name)(*settings, **more)(x))


def attention(name: str, **settings: Any) -> Any:
    x = keras.Input(SEQUENCE)
    return keras.Model(x, getattr(L, name)(**settings)(x, x))


def adapted(name: str) -> Any:
    layer = getattr(L, name)()
    layer.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 5)).astype(np.float32))
    x = keras.Input(VECTOR)
    return keras.Model(x, layer(x))


def each_rank(*ranks: int, **settings: Any) -> list[Callable[[str], Any]]:
    shapes = {1: SEQUENCE, 2: GRID, 3: VOLUME}
    return [one(shapes[rank], **settings) for rank in ranks]


def masked(name: str) -> Any:
    words = keras.Input((6,), dtype="int64")
    return keras.Model(words, getattr(L, name)(3)(L.Embedding(9, 4, mask_zero=True)(words)))


def masked_gru() -> Any:
    x = keras.Input((6,), dtype="int64")
    return keras.Model(x, L.GRU(3, reset_after=False, go_backwards=True)(L.Embedding(9, 4, mask_zero=True)(x)))


def padded() -> Any:
    x = keras.Input(SEQUENCE)
    return keras.Model(x, L.LSTM(3)(L.Masking(0.0)(x)))


def crossing(name: str) -> Any:
    inputs = [keras.Input((1,), dtype="int64"), keras.Input((1,), dtype="int64")]
    return keras.Model(inputs, getattr(L, name)(num_bins=5)(tuple(inputs)))


def words(name: str, **settings: Any) -> Any:
    x = keras.Input((1,), dtype="string")
    return keras.Model(x, getattr(L, name)(**settings)(x))


CASES: dict[str, list[Callable[[str], Any]]] = {
    **{name: [two(SEQUENCE), two(GRID)]
       for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")},
    **{name: [one(GRID)] for name in ("ELU", "Flatten", "Identity", "LeakyReLU", "PReLU", "ReLU", "ActivityRegularization",
       "BatchNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization")},
    **{f"{kind}{rank}D": each_rank(rank) for rank in (1, 2, 3) for kind in ("GlobalAveragePooling", "GlobalMaxPool",
       "UpSampling", "ZeroPadding", "Cropping")},
    **{f"{kind}{rank}D": [*each_rank(rank, pool_size=2), *each_rank(rank, pool_size=3, strides=2, padding="same")]
       for rank in (1, 2, 3) for kind in ("AveragePooling", "MaxPool")},
    **{name: [one(VECTOR, 0.3)] for name in ("AlphaDropout", "GaussianDropout", "GaussianNoise")},
    **{f"Adaptive{kind}Pooling{rank}D": each_rank(rank, output_size=3) for rank in (1, 2, 3) for kind in ("Average", "Max")},
    **{f"SpatialDropout{rank}D": each_rank(rank, rate=0.3) for rank in (1, 2, 3)},
    **{f"Conv{rank}D": [
        *each_rank(rank, filters=4, kernel_size=3, padding="same", activation="relu"),
        *each_rank(rank, filters=4, kernel_size=2, strides=2)] for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": [
        *each_rank(rank, filters=4, kernel_size=3, strides=2, padding="same"),
        *each_rank(rank, filters=4, kernel_size=2, strides=2)] for rank in (1, 2, 3)},
    **{f"{kind}Conv{rank}D": each_rank(rank, kernel_size=3, padding="same", **({} if kind == "Depthwise" else {"filters": 4}))
       for rank in (1, 2) for kind in ("Depthwise", "Separable")},
    **{f"ConvLSTM{rank}D": [
        one((4, *shape), 3, 3, padding="same"), one((4, *shape), 3, 3, return_sequences=True, go_backwards=True)]
       for rank, shape in ((1, SEQUENCE), (2, (5, 5, 2)), (3, (4, 4, 4, 2)))},
    "Activation": [one(VECTOR, name) for name in ("relu", "gelu", "softplus", "hard_silu", "mish", "softmax")],
    "AdditiveAttention": [two(SEQUENCE)], "Attention": [two(SEQUENCE), two(SEQUENCE, use_scale=True)],
    "Bidirectional": [
        *(within(SEQUENCE, lambda kind, how=how: kind(L.LSTM(3), merge_mode=how)) for how in ("concat", "sum", "mul", "ave")),
        within(SEQUENCE, lambda kind: kind(L.GRU(3, return_sequences=True), merge_mode="sum")),
        within(SEQUENCE, lambda kind: kind(L.SimpleRNN(3, return_sequences=True)))],
    "CategoryEncoding": [lambda name: numbers(name, 9, output_mode="multi_hot")], "CenterCrop": [one(GRID, 5, 4)],
    "Dense": [one(VECTOR, 4, activation="tanh"), one(SEQUENCE, 4)], "Discretization": [one(VECTOR, [-1.0, 0.0, 0.5])],
    "Dot": [two(SEQUENCE, axes=(2, 2))], "Dropout": [one(VECTOR, 0.3)],
    "EinsumDense": [one(SEQUENCE, "abc,cd->abd", (None, 3))],
    "Embedding": [lambda name: numbers(name, 9, 4)],
    "GRU": [one(SEQUENCE, 3), one(SEQUENCE, 3, go_backwards=True, return_sequences=True), one(SEQUENCE, 3, reset_after=False),
            masked, lambda _: masked_gru()],
    "GRUCell": [within(SEQUENCE, lambda kind: L.RNN(kind(3)))], "GroupNormalization": [one((8, 8, 4), 2)],
    "GroupQueryAttention": [lambda name: attention(name, head_dim=4, num_query_heads=4, num_key_value_heads=2)],
    "HashedCrossing": [crossing], "Hashing": [lambda name: numbers(name, 4)],
    "IntegerLookup": [lambda name: numbers(name, vocabulary=[1, 2, 3])],
    "LSTM": [one(SEQUENCE, 3, dropout=0.2, recurrent_dropout=0.1),
             one(SEQUENCE, 3, go_backwards=True, return_sequences=True), one(SEQUENCE, 3, activation="relu"), masked],
    "LSTMCell": [within(SEQUENCE, lambda kind: L.RNN(kind(3), return_sequences=True))], "Masking": [lambda _: padded()],
    "MelSpectrogram": [one((400,), num_mel_bins=8, sampling_rate=4000, sequence_stride=64, fft_length=128)],
    "MultiHeadAttention": [lambda name: attention(name, num_heads=2, key_dim=3)], "Normalization": [adapted],
    "Permute": [one(SEQUENCE, (2, 1))], "Pipeline": [one(GRID, [L.Rescaling(0.5), L.CenterCrop(4, 4)])],
    "RepeatVector": [one(VECTOR, 3)], "Rescaling": [one(GRID, 1 / 127.5, offset=-1.0)], "Reshape": [one(SEQUENCE, (3, 8))],
    "Resizing": [one(GRID, 5, 6), one(GRID, 12, 12, interpolation="nearest")],
    "ReversibleEmbedding": [lambda name: numbers(name, 9, 4)],
    "RNN": [within(SEQUENCE, lambda kind: kind([L.LSTMCell(3), L.GRUCell(4)])),
            within(SEQUENCE, lambda kind: kind(L.SimpleRNNCell(3), go_backwards=True, return_sequences=True))],
    "SimpleRNN": [one(SEQUENCE, 3), one(SEQUENCE, 3, return_sequences=True, activation="relu"), masked],
    "SimpleRNNCell": [within(SEQUENCE, lambda kind: L.RNN(kind(3)))], "Softmax": [one(VECTOR), one(SEQUENCE, axis=1)],
    "SpectralNormalization": [within(VECTOR, lambda kind: kind(L.Dense(4)))],
    "StackedRNNCells": [within(SEQUENCE, lambda kind: L.RNN(kind([L.SimpleRNNCell(3), L.LSTMCell(2)])))],
    "STFTSpectrogram": [one((400, 1), frame_length=64, frame_step=32, fft_length=64)],
    "StringLookup": [lambda name: words(name, vocabulary=["a", "b"])],
    "TextVectorization": [lambda name: words(name, vocabulary=["a"])],
    "TimeDistributed": [within((4, 5), lambda kind: kind(L.Dense(3, activation="relu"))),
                        within((4, *GRID), lambda kind: kind(L.Conv2D(3, 3)))],
    **{name: [one(GRID, **settings)] for name, settings in IDENTITIES.items()},
    "AutoContrast": [one(GRID, value_range=(0, 1))], "Equalization": [one(GRID, value_range=(0, 1))],
    "Solarization": [one(GRID, addition_factor=0.1, value_range=(0, 1))],
    "ContrastLimitedAdaptiveHistogramEqualization": [one(GRID, value_range=(0, 1), tile_grid_size=(2, 2))],
}  # fmt: skip


def drawn(model: Any, batch: int) -> list[Array]:
    """Inputs for a model: numbers between 0 and 1, or whole numbers below 9, of which some are 0."""
    draw = np.random.default_rng(batch)
    return [
        draw.random((batch, *value.shape[1:]), dtype=np.float32)
        if "float" in str(value.dtype)
        else draw.integers(0, 9, (batch, *value.shape[1:]))
        for value in model.inputs
    ]


def as_tensors(arrays: list[Array]) -> Any:
    tensors = tuple(map(torch.from_numpy, arrays))
    return tensors if len(tensors) > 1 else tensors[0]


def difference(model: Any) -> float:
    """The largest difference between Keras and the exported file, relative to the largest value, over the batch sizes."""
    draw = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(draw.uniform(-0.6, 0.6, weight.shape))
    module = module_from_keras(model)
    file = export(module, Batch(as_tensors(drawn(model, BATCHES[0])), torch.zeros(BATCHES[0])))
    session = runtime_named("onnxruntime").load(file, threads=1)
    worst = 0.0
    for batch in BATCHES:
        arrays = drawn(model, batch)
        with torch.no_grad():
            due = np.asarray(model(arrays if len(arrays) > 1 else arrays[0], training=False).cpu())
        feeds = dict(zip(session.input_names, arrays, strict=True))
        (found,) = session.run(feeds)
        shown = module.as_in_keras(torch.from_numpy(found)).numpy()
        if shown.shape != due.shape:
            return float("inf")
        worst = max(worst, float(np.abs(shown - due).max()) / max(float(np.abs(due).max()), 1e-6))
    return worst


def result_of(name: str) -> tuple[bool, str]:
    """Whether a class is covered, and the difference, or why it is not."""
    worst = 0.0
    for made in CASES[name]:
        keras.utils.set_random_seed(0)
        try:
            model = made(name)
        except (ImportError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            return False, f"Keras itself refuses it with the torch backend: {str(error).strip().splitlines()[0]}"
        try:
            worst = max(worst, difference(model))
        except UserError as error:
            return False, f"{error.code}: {error.message.splitlines()[0]}"
        except Exception as error:  # noqa: BLE001 (a row for each class)
            return False, f"internal: {type(error).__name__}: {str(error).splitlines()[0]}"
        if worst > TOLERANCE:
            return False, f"differs by {worst:.1e}"
    return True, f"{worst:.0e}"


def classes() -> list[str]:
    """The public layer classes, each under one name."""
    found: dict[Any, str] = {}
    for name in dir(L):
        kind = getattr(L, name)
        if inspect.isclass(kind) and issubclass(kind, keras.Layer):
            found[kind] = name if name in CASES or name in NOT_COUNTED or kind not in found else found[kind]
    return sorted(found.values())


def main() -> None:
    warnings.simplefilter("ignore")
    asked = sys.argv[1:]
    results = {}
    for name in asked or [name for name in classes() if name not in NOT_COUNTED]:
        results[name] = result_of(name) if name in CASES else (False, "not tried")
        sys.stdout.write(f"{name:45s} {'covered' if results[name][0] else 'no':8s} {results[name][1]}\n")
        sys.stdout.flush()
    if not asked:
        text = PAGE.read_text("utf-8")
        made = re.sub(rf"(?ms)^{HEADING}$.*?(?=^#|\Z)", "", text).rstrip("\n")
        before, heading, after = made.partition("\n## Metrics and losses")
        PAGE.write_text(f"{before.rstrip()}\n\n{_section(results)}\n{heading}{after}\n", "utf-8")


def _section(results: dict[str, tuple[bool, str]]) -> str:
    covered = [name for name, (is_covered, _) in results.items() if is_covered]
    augmenting, batches = sum(name in IDENTITIES for name in covered), " and ".join(map(str, BATCHES))
    lines = [
        HEADING,
        "",
        f"{len(covered)} of the {len(results)} public layer classes of Keras {keras.__version__} are covered: a model of each",
        f"is exported, and ONNX Runtime gives what Keras gives at {batches} samples, within {TOLERANCE} of the largest value.",
        f"{augmenting} of them augment data, and change nothing in inference.",
        "The command is `python docs/keras_layers.py`.",
        "",
        "| not covered | why |",
        "|---|---|",
        *(f"| `{name}` | {_short(why)} |" for name, (is_covered, why) in results.items() if not is_covered),
        "",
        "Not counted: " + "; ".join(f"`{name}` ({why})" for name, why in NOT_COUNTED.items()) + ".",
    ]
    return "\n".join(lines)


def _short(why: str) -> str:
    """A reason without the representations of objects."""
    return re.sub(r" <Keras[^>]*>", "", re.sub(r"<OpOverload\(op='([\w.]+)'.*", r"\1", why))


if __name__ == "__main__":
    main()
