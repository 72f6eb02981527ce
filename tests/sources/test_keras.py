"""Keras files as modules, cut, and back: whatever layers they have, plain Keras computes what torch does."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import Tensor

import mirabelle
from mirabelle import Task, prune, quantize
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import copied
from mirabelle.runtime.export import export
from mirabelle.sources import model_from
from mirabelle.sources.datasets.digits import digits

if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)
import h5py

from mirabelle.sources.models.keras_model import KerasModule, keras_model_of, module_from_keras
from mirabelle.sources.models.keras_model.library import library

keras = library()
L = keras.layers


def dense() -> Any:
    layers = [L.Dense(32, activation="relu"), L.Dropout(0.2), L.BatchNormalization(), L.Dense(16, activation="tanh")]
    return keras.Sequential([keras.Input((20,)), *layers, L.Dense(3, activation="softmax")])


def convolutional() -> Any:
    layers = [
        L.Conv2D(8, 3, strides=2, padding="same", activation="relu"), L.BatchNormalization(), L.MaxPooling2D(),
        L.DepthwiseConv2D(3, padding="same", depth_multiplier=2), L.SeparableConv2D(12, 3, padding="same"),
        L.Conv2D(8, 4, padding="same", groups=2), L.LayerNormalization(), L.GlobalAveragePooling2D(), L.Dense(4),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((17, 17, 3)), *layers])


def decoder() -> Any:
    up = [L.Conv2DTranspose(8, side, strides=2, padding=how) for side, how in ((3, "same"), (4, "valid"), (1, "valid"))]
    return keras.Sequential([keras.Input((4, 4, 6)), *up, L.Conv2D(3, 3, padding="same", activation="sigmoid")])


def recurrent() -> Any:
    words = keras.Input((12,), dtype="int64")
    states = L.GRU(6, return_sequences=True)(L.LSTM(10, return_sequences=True)(L.Embedding(30, 8)(words)))
    return keras.Model(words, L.Dense(2)(L.Bidirectional(L.LSTM(5))(L.Conv1D(8, 3, padding="causal")(states))))


def attention() -> Any:
    words = keras.Input((12,), dtype="int64")
    states = L.Embedding(30, 8)(words)
    states = L.LayerNormalization()(states + L.MultiHeadAttention(2, 4)(states, states))
    return keras.Model(words, L.Dense(2)(L.GlobalAveragePooling1D()(states)))


def masked() -> Any:
    words = keras.Input((12,), dtype="int64")
    return keras.Model(words, L.Dense(2)(L.LSTM(5)(L.Embedding(30, 8, mask_zero=True)(words))))


def nested() -> Any:
    one, other = keras.Input((8,)), keras.Input((5,))
    inner = keras.Sequential([keras.Input((8,)), L.Dense(12, activation="relu"), L.Dense(6)], name="train")
    both = L.Concatenate()([inner(one), L.Dense(7)(other)])
    return keras.Model([one, other], L.Dense(2)(L.Dense(9, activation="relu")(both)))


MODELS: dict[str, Callable[[], Any]] = {
    "dense": dense, "convolutional": convolutional, "decoder": decoder, "recurrent": recurrent, "attention": attention,
    "nested": nested,
}  # fmt: skip


def saved(make: Callable[[], Any], folder: Path) -> KerasModule:
    """The module of a file whose weights hide nothing."""
    keras.utils.set_random_seed(0)
    model = make()
    draw = np.random.default_rng(0)
    model.set_weights([np.abs(weight) + draw.uniform(0.02, 0.3, weight.shape) for weight in model.get_weights()])
    model.save(folder / "model.keras")
    return module_from_keras(folder / "model.keras")


def task_of(module: KerasModule) -> Task:
    """Drawn inputs, of which nothing is learned."""
    batch = module.example(6)
    assert batch is not None
    data = (batch.inputs, torch.zeros(6))
    return Task(
        train=data, validation=data, test=data,
        loss=lambda outputs, _: outputs.float().square().mean(), metric=lambda _, targets: torch.zeros(len(targets)),
    )  # fmt: skip


def outputs(model: Any, inputs: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(model, keras.Model):
            found = model(list(inputs) if isinstance(inputs, tuple) else inputs, training=False)
        else:
            found = model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return found[0] if isinstance(found, (list, tuple)) else found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_cut_and_goes_back_with_its_new_widths(name: str, tmp_path: Path) -> None:
    module = saved(MODELS[name], tmp_path)
    task = task_of(module)
    smaller = prune.Channels(sparsity=0.5)(module, task, mirabelle.Run(tmp_path / "run"))
    keras_model_of(module, smaller).save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert again.count_params() < 0.75 * module.graph.model.count_params()
    inputs = task.train.inputs  # type: ignore[union-attr]  # they lie in memory
    due = module.as_in_keras(outputs(smaller, inputs))
    torch.testing.assert_close(outputs(again, inputs), due, rtol=1e-5, atol=1e-5)
    rewritten = architecture_of(smaller).rewritten is not None
    assert rewritten == (name == "attention"), "Keras writes down the widths of its attention"


def test_a_quantized_model_goes_back_as_the_numbers_its_codes_stand_for(tmp_path: Path) -> None:
    module = saved(convolutional, tmp_path)
    task = task_of(module)
    codes = quantize.Static(weight_bits=8)(copied(module), task, mirabelle.Run(tmp_path / "run"))
    inputs = task.train.inputs  # type: ignore[union-attr]  # they lie in memory
    found, due = outputs(keras_model_of(module, codes), inputs), outputs(module, inputs)
    assert 0 < float((found - due).abs().max()) < 0.1 * float(due.abs().max())
    assert float((found - outputs(codes, inputs)).abs().max()) < 0.1 * float(due.abs().max())


def ends_in_softmax() -> dict[str, Any]:
    """Models that end in one, wherever it stands."""
    one, inner = keras.Input((5,)), keras.Sequential([keras.Input((5,)), L.Dense(4), L.Softmax()])
    return {
        "within a layer": keras.Sequential([keras.Input((5,)), L.Dense(4, activation="softmax")]),
        "a layer of its own": keras.Sequential([keras.Input((5,)), L.Dense(4), L.Activation("softmax")]),
        "a model within": keras.Model(one, inner(L.Dense(5)(one))),
        "places": keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(4, 3, activation="softmax")]),
    }


def test_scores_come_without_the_last_softmax_which_the_file_has_again(tmp_path: Path) -> None:
    for name, model in ends_in_softmax().items():
        module = module_from_keras(model)
        example = module.example(3)
        assert example is not None
        assert module.gives_scores, name
        scores, due = outputs(module, example.inputs), outputs(model, example.inputs)
        torch.testing.assert_close(scores.softmax(-1), due)
        assert not torch.allclose(scores, due), name
        torch.testing.assert_close(outputs(keras_model_of(module, module), example.inputs), due)
    one = keras.Input((5,))
    shares = L.Dense(4, activation="softmax")(one)
    for model in (keras.Model(one, L.Dense(4)(shares)), keras.Model(one, [shares, L.Dense(2)(one)])):
        module = module_from_keras(model)
        assert not module.gives_scores
        torch.testing.assert_close(outputs(module, torch.ones(3, 5)), outputs(model, torch.ones(3, 5)))


def residual() -> Any:
    image = keras.Input((16, 16, 3))
    states = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(image)))
    other = L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(L.Dropout(0.1)(states)))
    states = L.MaxPooling2D()(L.Activation("relu")(L.Add()([states, other])))
    states = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(states))
    return keras.Model(image, L.Dense(3)(states))


def test_layers_follow_on_each_other_as_in_a_model_written_in_torch(tmp_path: Path) -> None:
    """Nothing is transposed on the way, so that norms fold and integers stay integers."""
    module = saved(residual, tmp_path)
    task = task_of(module)
    kinds = Counter(node.op_type for node in ModelProto.FromString(export(module, task.example())).graph.node)
    assert kinds["Transpose"] == 1, "the image comes in with its channels last"
    codes = quantize.Static()(module, task, mirabelle.Run(tmp_path / "run"))
    kinds = Counter(node.op_type for node in ModelProto.FromString(export(codes, task.example())).graph.node)
    assert kinds["Transpose"] == 1
    assert not kinds["BatchNormalization"]
    assert not kinds["Pad"]


def altered(path: Path, target: Path, kind: str, **arguments: Any) -> None:
    """A copy of a file whose layers of a class have further arguments."""

    def changed(text: Any) -> str:
        config = json.loads(text)
        for layer in config["config"]["layers"]:
            layer["config"].update(arguments if layer["class_name"] == kind else {})
        return json.dumps(config)

    if path.suffix == ".h5":
        shutil.copy(path, target)
        with h5py.File(target, "r+") as file:
            file.attrs["model_config"] = changed(file.attrs["model_config"])
        return
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            data = before.read(name)
            after.writestr(name, changed(data) if name == "config.json" else data)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_arguments_that_keras_no_longer_knows_are_left_out_where_they_say_nothing(suffix: str, tmp_path: Path) -> None:
    model = convolutional()
    model.save(tmp_path / f"new{suffix}")
    altered(tmp_path / f"new{suffix}", tmp_path / f"half{suffix}", "DepthwiseConv2D", groups=1)
    more = {"groups": 1, "kernel_initializer": {"class_name": "Zeros", "config": {}}, "kernel_constraint": None}
    altered(tmp_path / f"half{suffix}", tmp_path / f"old{suffix}", "SeparableConv2D", **more)
    module = module_from_keras(tmp_path / f"old{suffix}")
    example = module.example()
    assert example is not None
    torch.testing.assert_close(outputs(module, example.inputs), outputs(model, example.inputs))
    assert type(next(layer for layer in module.layers() if layer.name.startswith("depth"))) is L.DepthwiseConv2D
    altered(tmp_path / f"new{suffix}", tmp_path / f"odd{suffix}", "DepthwiseConv2D", groups=2, quantum=True)
    with pytest.raises(UserError, match="does not know the argument groups, quantum of a DepthwiseConv2D layer") as caught:
        module_from_keras(tmp_path / f"odd{suffix}")
    assert caught.value.code == "E141"


def test_a_keras_model_in_memory_is_compressed_and_written_back(tmp_path: Path) -> None:
    model = dense()
    inputs, targets = torch.randn(120, 20, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3
    task = Task(train=(inputs, targets), test=(inputs, targets))
    result = mirabelle.compress(model, task, [prune.Weights(sparsity=0.5)], out=tmp_path / "run")
    assert isinstance(result.model, KerasModule)
    small = keras.models.load_model(tmp_path / "run" / "model.keras")
    kernels = [layer.get_weights()[0] for layer in small.layers if isinstance(layer, L.Dense)]
    assert sum(int((kernel == 0).sum()) for kernel in kernels) == sum(kernel.size // 2 for kernel in kernels)
    again = mirabelle.load(model, tmp_path / "run")
    torch.testing.assert_close(outputs(again, inputs).softmax(-1), outputs(small, inputs))
    net = "import keras\n\ndef net():\n    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])\n"
    (tmp_path / "net.py").write_text(net)
    assert isinstance(model_from("./net.py:net", {}, tmp_path), KerasModule)


def test_masks_are_kept(tmp_path: Path) -> None:
    """Words of padding do not count in Keras, so they must not count here."""
    module = saved(masked, tmp_path)
    words = torch.tensor([[3, 5, 7, *[0] * 9], [3, 5, 7, *[1] * 9]])
    found = outputs(module, words)
    torch.testing.assert_close(found, outputs(module.graph.model, words))
    assert not torch.allclose(found[0], found[1])


def test_layers_train_and_copies_share_the_graph_alone(tmp_path: Path) -> None:
    module = saved(dense, tmp_path)
    other = copied(module)
    assert other.graph is module.graph
    assert not {id(tensor) for tensor in module.parameters()} & {id(tensor) for tensor in other.parameters()}
    other.train()(torch.randn(8, 20)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [layer.p for layer in other.modules() if isinstance(layer, torch.nn.Dropout)] == [0.2]


@pytest.mark.parametrize("name", [pytest.param("digits.h5", marks=pytest.mark.slow), "digits.keras"])
def test_a_stranger_with_a_keras_file_gets_a_smaller_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = digits()
    splits: dict[str, Any] = {"train": task.train, "test": task.test}
    arrays = {f"x_{name}": part.inputs.movedim(1, -1).numpy() for name, part in splits.items()}
    arrays |= {f"y_{name}": part.targets.numpy() for name, part in splits.items()}
    np.savez("data.npz", **arrays)
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(16, 3, 2, padding="same", activation="relu"), L.Flatten(), L.Dense(32, activation="relu")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy())
    model.fit(arrays["x_train"], arrays["y_train"], epochs=4, batch_size=32, verbose=0)
    model.save(name)
    assert main.run(["inspect", name, "--groups"]) == 0
    assert "channels of a convolution" in capsys.readouterr().out
    assert main.run(["init", "--model", f"./{name}", "--data", "./data.npz", "--no-look"]) == 0
    start, _, _ = capsys.readouterr().out.partition("[goal]")
    training = "train = { epochs = 2, batch_size = 32, lr = 1e-3 }"
    cut = f'[[step]]\nuse = "prune.Channels"\nmacs = "50%"\nrecover = "least-squares"\n{training}\n'
    Path("recipe.toml").write_text(f'{start}[goal]\nmax_drop = "8pt"\n\n{cut}\n[[step]]\nuse = "quantize.Static"\n')
    assert main.run(["check", "recipe.toml"]) == 0, capsys.readouterr().err
    assert main.run(["run", "recipe.toml", "--out", "small", "--quiet"]) == 0, capsys.readouterr().err
    assert main.run(["verify", "small"]) == 0
    report = json.loads(Path("small/report.json").read_text("utf-8"))
    small = keras.models.load_model("small/model.keras")
    assert small.count_params() < model.count_params()
    right = small.predict(arrays["x_test"], verbose=0).argmax(1) == arrays["y_test"]
    assert abs(right.mean() - report["end"]["metric"]["value"]) < 0.01


class Doubling(L.Layer):  # type: ignore[misc]  # Keras ships no types
    def call(self, inputs: Any) -> Any:
        return inputs * 2


class Own(keras.Model):  # type: ignore[misc]  # Keras ships no types
    def __init__(self) -> None:
        super().__init__()
        self.layer = L.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


def test_what_cannot_come_in_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Own is a subclass of keras\.Model") as caught:
        KerasModule(Own())
    assert caught.value.code == "E121"
    (tmp_path / "broken.keras").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"Keras cannot read .*broken\.keras") as caught:
        model_from("broken.keras", {}, tmp_path)
    assert caught.value.code == "E141"
    keras.Sequential([keras.Input((3,)), Doubling(), L.Dense(2)]).save(tmp_path / "own.keras")
    with pytest.raises(UserError, match=r'(?s)"Doubling" is not a class of Keras.*file\.py:function') as caught:
        model_from("own.keras", {}, tmp_path)
    assert caught.value.code == "E141"
    assert "\n" not in caught.value.message, "one line, without the whole config"
    dense().save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(UserError, match="contains only weights"):
        model_from("only.weights.h5", {}, tmp_path)
    unsafe = keras.Sequential([keras.Input((3,)), L.Lambda(lambda x: x + 1)])
    unsafe.save(tmp_path / "lambda.keras")
    with pytest.raises(UserError, match=r"Keras cannot read.* a lambda, which is code") as caught:
        model_from("lambda.keras", {}, tmp_path)
    assert caught.value.code == "E141"


@pytest.mark.slow
def test_another_backend_or_no_keras_is_told(tmp_path: Path) -> None:
    """In processes of their own: Keras chooses its backend when it is imported."""
    package = "mirabelle.sources.models.keras_model"
    program = f"from pathlib import Path; from {package} import module_from_keras; module_from_keras(Path('x'))"
    missing = f"import sys; sys.modules['keras'] = None; {program}"
    elsewhere = (
        "import sys; from types import SimpleNamespace as Space; "
        f"sys.modules['keras'] = Space(backend=Space(backend=lambda: 'jax')); {program}"
    )
    for code, told in ((missing, "pip install 'mirabelle[keras]'"), (elsewhere, "Keras is imported with the backend jax")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert "E160" in done.stderr
        assert told in done.stderr
