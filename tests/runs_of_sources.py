"""Runs of each kind of source through each step and goal, whole and killed once, for `test_matrix` and its table."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from mirabelle.cli import main
from mirabelle.run.run import Run
from mirabelle.runtime.runtime import time_side_by_side

SOURCES = {
    "torch function": "./nets.py:of_torch",
    "ONNX file": "./net.onnx",
    "Keras file": "./net.keras",
    "Keras function": "./keras_nets.py:of_keras",
    "transformers folder": "./vit",
}
_STUDENTS = {"Keras file": "./keras_nets.py:small", "Keras function": "./keras_nets.py:small"}
_CHANNELS_LAST = ("Keras file", "Keras function")
_TRAIN = 'train = { epochs = 1, batch_size = 20, lr = 1e-3, precision = "float32" }'
_LIMITS = {"sparsity": "0.5", "macs": '"70%"', "parameters": '"70%"', "size": '"80%"', "latency": '"90%"'}
# Name of a row -> the step and its settings.
STEPS = {
    **{f"prune.Weights({key})": f'use = "prune.Weights"\n{key} = {value}\n{_TRAIN}' for key, value in
       (("sparsity", "0.5"), ("threshold", "0.05"), ("quality", "0.5"))},
    "prune.Weights(rounds)": f'use = "prune.Weights"\nsparsity = 0.5\nrounds = 2\nrewind = "weights"\n{_TRAIN}',
    **{f"prune.{kind}({key})": f'use = "prune.{kind}"\n{key} = {value}\nsamples = 20\n{_TRAIN}'
       for kind in ("Channels", "Layers") for key, value in _LIMITS.items()},
    "distill.Student(model)": f'use = "distill.Student"\nmodel = "STUDENT"\n{_TRAIN}',
    **{f"distill.Student({key})": f'use = "distill.Student"\n{key} = 0.5\n{_TRAIN}' for key in ("width", "depth")},
    "training.Joint": f'use = "training.Joint"\n{_TRAIN}\nsteps = [{{ use = "distill.Student", width = 0.75 }}, '
    '{ use = "prune.Weights", sparsity = 0.5 }]',
    **{f"quantize.{kind}": f'use = "quantize.{kind}"' for kind in ("Static", "Dynamic", "Weights", "Half")},
    "quantize.Codebook": f'use = "quantize.Codebook"\n{_TRAIN}',
    "quantize.EntropyConstrained": f'use = "quantize.EntropyConstrained"\nrate = 0.5\n{_TRAIN}',
    "quantize.RateDistortion": 'use = "quantize.RateDistortion"\nsize = "15%"\nsamples = 64',
    "quantize.Aware": f'use = "quantize.Aware"\n{_TRAIN}',
    **{f"factorize.{kind}": f'use = "factorize.{kind}"\nratio = 0.5\n{_TRAIN}' for kind in ("Linear", "Conv", "Embedding")},
}  # fmt: skip
GOALS = {
    "max_drop": '"90pt"', "metric": "0.1", "size": '"120%"', "onnx_size": '"120%"', "latency": '"1000%"', "macs": '"100%"',
    "parameters": '"100%"',
}  # fmt: skip
_SHIPPED = ("model.onnx", "model.mira", "model.safetensors", "architecture.json")
_NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(x)))

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, width, 3, padding=1), nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

def of_torch():
    return Net()

def small():
    return Net(4)
"""
_KERAS_NETS = """
import keras
from keras import layers as L

def of_keras(width=8):
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(width, 3, padding="same", activation="relu")(image)
    for _ in range(2):
        y = L.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = L.Add()([x, L.Conv2D(width, 3, padding="same")(y)])
    return keras.Model(image, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))

def small():
    return of_keras(4)
"""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Args:
        said: "ok", or the code and rule of the refusal.
        differs: names of shipped files that differ after a kill.
    """

    said: str
    differs: tuple[str, ...] = ()


def write_source(folder: Path, source: str) -> None:
    """Write one of the sources of a small network, with images in its layout, unless it is there already."""
    from mirabelle.runtime.export import export
    from mirabelle.sources import model_from
    from mirabelle.task.batch import Batch

    (folder / "nets.py").write_text(_NETS)
    (folder / "keras_nets.py").write_text(_KERAS_NETS)
    draw = np.random.default_rng(0)
    images, classes = draw.random((100, 1, 8, 8), dtype=np.float32), np.arange(100) % 3
    images[np.arange(100), 0, 2 * classes] += 1
    for name, given in (("first", images), ("last", np.moveaxis(images, 1, -1))):
        np.savez(folder / f"{name}.npz", x_train=given[:60], y_train=classes[:60], x_test=given[60:], y_test=classes[60:])
    if "function" in source or (folder / SOURCES[source]).exists():
        return
    if source == "ONNX file":
        net = model_from("./nets.py:of_torch", {}, folder, 1).eval()
        (folder / "net.onnx").write_bytes(export(net, Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2))))
    elif source == "Keras file":
        from mirabelle.sources.models.keras_model import keras_model_of

        module: Any = model_from("./keras_nets.py:of_keras", {}, folder, 1)
        keras_model_of(module, module).save(folder / "net.keras")
    else:
        import transformers

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")


def recipe_of(source: str, step: str, goal: str = "") -> str:
    """The text of the recipe of a cell."""
    last = source in _CHANNELS_LAST
    layout = ', layout = "channels-last"' if last else ""
    data = f'data = "./{"last" if last else "first"}.npz"\narguments = {{ mean = [0.0], deviation = [1.0]{layout} }}'
    text = STEPS[step].replace("STUDENT", _STUDENTS.get(source, "./nets.py:small"))
    limits = f"[goal]\n{goal} = {GOALS[goal]}\n" if goal else ""
    return f'schema = 1\nseed = 7\n\n[model]\nfrom = "{SOURCES[source]}"\n\n[task]\n{data}\n\n{limits}\n[[step]]\n{text}\n'


def outcome_of(folder: Path, source: str, step: str, goal: str = "") -> Outcome:
    """Run a cell as a whole, and go on, with its measured decisions, from what a kill in its middle would leave behind."""
    write_source(folder, source)
    place = folder / "cell"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (folder / "recipe.toml").write_text(recipe_of(source, step, goal))
    with _kept_at_each_event(place / "whole", place / "kept") as kept:
        status, said = _ran("recipe.toml", "cell/whole", folder)
    if status not in (0, 4) or not (place / "whole" / "report.json").is_file():
        return Outcome(said)
    (place / "kept" / str(len(kept) // 2)).rename(place / "cut")
    shutil.copy(place / "whole" / "recipe.toml", place / "cut" / "recipe.toml")
    again, said = _ran("cell/cut/recipe.toml", "cell/cut", folder)
    if again not in (0, 4):
        return Outcome(f"after a kill: {said}")
    assert '"resumed"' in (place / "cut" / "events.jsonl").read_text("utf-8"), "the run began anew"
    differs = [name for name in _SHIPPED if (place / "whole" / name).read_bytes() != (place / "cut" / name).read_bytes()]
    return Outcome("ok", (*differs, *(() if again == status else ["whether the goal is met"])))


def _ran(recipe: str, out: str, folder: Path) -> tuple[int, str]:
    """The exit status of a run, and the first line of its error."""
    told = folder / "told.txt"
    briefly = partial(time_side_by_side, seconds=0.1)  # what is measured is not compared
    with (
        told.open("w", encoding="utf-8") as stream,
        patch.object(sys, "stderr", stream),
        patch.object(sys, "stdout", stream),
        patch("mirabelle.job.job.time_side_by_side", briefly),
        patch("mirabelle.allocation.limits._SECONDS", 0.1),
    ):
        before = Path.cwd()
        os.chdir(folder)
        try:
            status = main.run(["run", recipe, "--out", out, "--quiet"])
        finally:
            os.chdir(before)
    lines = told.read_text("utf-8").splitlines()
    return status, next((line for line in lines if line.startswith(("error[", "internal error"))), f"status {status}")


@contextmanager
def _kept_at_each_event(run: Path, kept: Path) -> Iterator[list[str]]:
    """A context in which `kept` gets a copy of a run's folder before each of its events, as if it were killed there."""
    kinds: list[str] = []
    record = Run.event

    def copied(self: Run, kind: str, **content: Any) -> Any:
        if self.journal.folder.resolve() == run.resolve():  # not a forecast in a folder of its own
            shutil.copytree(run, kept / str(len(kinds)))
            kinds.append(kind)
        return record(self, kind, **content)

    with patch.object(Run, "event", copied):
        yield kinds
