"""`mirabelle init` looks: what it says of model and data, the recipe that follows from it, and what does not fit."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import mirabelle
from mirabelle import Run, Task, Training
from mirabelle.cli import main
from mirabelle.inspection.layers import layers_of_module
from mirabelle.planning.seen_model import kind_of
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch
from word_tokenizer import save_word_tokenizer

NETS = """
import torch
from torch import nn


def gray(classes=2):
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, classes))


def many():
    return gray(5)


def mlp():
    return nn.Sequential(nn.Linear(6, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 2))


def nothing():
    return nn.Sequential(nn.Linear(6, 2), nn.ReLU())


def fixed():
    return nn.Sequential(nn.Hardtanh(), nn.Unflatten(1, (2, 3)), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def broken():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model
"""
Init = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Init:
    """Runs `init` in a folder with networks; (recipe, what was found)."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)

    def run(*words: str) -> tuple[dict[str, Any], list[str]]:
        capsys.readouterr()
        assert main.run(("init", *words, "--json", "--quiet")) == 0, capsys.readouterr().err
        printed = json.loads(capsys.readouterr().out)
        Path("recipe.toml").write_text(printed["recipe"])
        return tomllib.loads(printed["recipe"]), printed["found"]

    return run


def rows(count: int = 600, rare: int = 2) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points whose class, 1 for every `rare`-th, the first number tells."""
    draw = np.random.default_rng(0)
    targets = (np.arange(count) % rare == 0).astype(np.int64)
    inputs = draw.normal(size=(count, 6)).astype(np.float32)
    inputs[:, 0] += 4 * targets
    return inputs, targets


def photos(folder: Path, side: int = 40, count: int = 24) -> None:
    draw = np.random.default_rng(0)
    for name, color in {"cat": (200, 120, 60), "dog": (60, 120, 200)}.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.clip(draw.normal(color, 40, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")


def test_a_model_that_is_not_trained_is_trained_first_with_a_measured_rate(init: Init, capsys: Any) -> None:
    np.savez("rows.npz", **dict(zip(("x_train", "y_train"), rows(), strict=True)))
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./rows.npz")
    training = recipe["baseline"]["train"]
    measured = [line for line in found if line.startswith("learning rate")]
    assert measured == [f"learning rate {training['lr']:g} reaches the lowest loss in short trainings"]
    assert any(line.startswith("not trained, weights are drawn at random: accuracy") for line in found)
    assert "network: fully connected network, 27,202 parameters (108.8 kB), 26,880 multiply-accumulates a sample" in found
    assert 'heavy in bytes: layer "2" 95%' in found
    assert "targets: 2 classes, with training samples: 0 210, 1 210" in found
    assert recipe["step"][0]["use"] == "prune.Weights"
    assert recipe["goal"] == {"max_drop": "1%"}
    assert recipe["step"][0]["train"] == training
    assert main.run(("check", "recipe.toml")) == 0, capsys.readouterr().err


def test_a_trained_model_gets_what_keeps_its_metric(init: Init) -> None:
    inputs, targets = rows()
    np.savez("rows.npz", x_train=inputs, y_train=targets)
    mean, deviation = torch.from_numpy(inputs), torch.from_numpy(targets)
    task = Task(train=(mean, deviation), test=(mean, deviation))
    model = mirabelle.sources.model_from("./nets.py:mlp", {}, Path())
    save_file(
        mirabelle.training.fit(model, task, Training(epochs=8, batch_size=32), Run("run")).state_dict(), "mlp.safetensors"
    )
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./rows.npz", "--weights", "mlp.safetensors")
    assert recipe["baseline"] == {"weights": "mlp.safetensors"}
    assert len(recipe["step"]) == 1
    assert any(line.startswith("trained: accuracy") for line in found)
    assert main.run(("run", "recipe.toml", "--out", "run-1", "--quiet")) == 0
    report = json.loads(Path("run-1/report.json").read_text())
    assert 4 * report["end"]["size_bytes"]["packed"] <= report["start"]["size_bytes"]["torch"]
    assert report["end"]["metric"]["value"] >= report["start"]["metric"]["value"] - 0.01


def test_rare_classes_get_a_metric_that_shows_them(init: Init, capsys: Any) -> None:
    np.savez("rows.npz", **dict(zip(("x_train", "y_train"), rows(1500, rare=12), strict=True)))
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./rows.npz")
    assert recipe["task"]["arguments"] == {"metric": "roc_auc", "class_weights": "balanced"}
    assert any(line.startswith("rare: 1; accuracy hardly shows") for line in found)
    assert any(line.startswith("not trained, weights are drawn at random: roc_auc") for line in found)
    assert main.run(("check", "recipe.toml")) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_images_are_read_as_the_network_takes_them(init: Init, capsys: Any) -> None:
    photos(Path("photos"))
    recipe, found = init("--model", "./nets.py:gray", "--data", "./photos")
    assert recipe["task"]["arguments"] == {"size": [28, 28], "mode": "L"}
    assert any("inputs 1×28×28" in line for line in found)
    assert any(line.startswith("network: convolutional network") for line in found)
    assert main.run(("check", "recipe.toml")) == 0, capsys.readouterr().err


def test_inputs_alone_are_data_without_labels(init: Init) -> None:
    np.savez("rows.npz", x_train=rows()[0])
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./rows.npz")
    assert recipe["task"]["arguments"] == {"kind": "unlabelled"}
    assert "baseline" not in recipe
    assert "targets: none; the outputs of the given model take their place" in found
    assert [step["use"] for step in recipe["step"]] != ["quantize.Half"], "a model cannot be better than itself"
    assert recipe["goal"] == {"max_drop": "5pt"}
    assert main.run(("run", "recipe.toml", "--out", "run", "--quiet")) == 0


@pytest.mark.slow
def test_a_head_that_is_missing_is_put_on_and_trained(init: Init) -> None:
    words = [f"word{k}" for k in range(30)]
    vocabulary = save_word_tokenizer(Path("bert"), words)
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained("bert")
    draw = np.random.default_rng(0)
    texts = [(("bad", "good")[k % 2], " ".join(draw.choice(words, 3 + k % 9))) for k in range(120)]
    Path("films.tsv").write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in texts))
    recipe, found = init("--model", "./bert", "--data", "./films.tsv")
    assert recipe["model"]["arguments"] == {"head": "sequence-classification", "labels": 2}
    assert recipe["baseline"]["train"]["epochs"] == 10
    assert any(line.startswith("network: transformer") for line in found)
    (lengths,) = [line for line in found if line.startswith("texts: half of them have at most")]
    assert "the longest 11 of" in lengths or "the longest 13 of" in lengths, lengths
    assert all(step["use"] != "prune.Weights" for step in recipe["step"])


def test_what_only_looks_unlabelled_is_not_made_so(init: Init, capsys: Any) -> None:
    del init
    inputs, targets = rows()
    np.savez("few.npz", x_train=inputs, y_train=np.minimum(np.arange(len(targets)), 2)[::-1])
    assert main.run(("init", "--model", "./nets.py:mlp", "--data", "./few.npz")) == 2
    assert "a split needs 3" in capsys.readouterr().err
    photos(Path("photos"))
    Path("photos/bird").mkdir()
    assert main.run(("init", "--model", "./nets.py:gray", "--data", "./photos")) == 2
    assert 'class "bird"' in capsys.readouterr().err


@pytest.mark.slow
def test_several_labels_of_each_sample(init: Init) -> None:
    inputs, targets = rows()
    np.savez("labels.npz", x_train=inputs, y_train=np.stack([targets, 1 - targets], 1))
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./labels.npz")
    assert recipe["task"]["arguments"] == {"kind": "multi-label"}
    assert recipe["baseline"]["train"]["lr"] > 0
    assert any(line.startswith("not trained, weights are drawn at random: f1") for line in found)


TASKS = """
import torch
import mirabelle


def rare():
    draw = torch.Generator().manual_seed(0)
    y = (torch.arange(900) % 15 == 0).long()
    x = torch.randn(900, 6, generator=draw)
    return mirabelle.Task(train=(x, y), test=(x, y))
"""


@pytest.mark.slow
def test_data_of_a_function_keep_their_metric(init: Init) -> None:
    Path("tasks.py").write_text(TASKS)
    recipe, found = init("--model", "./nets.py:mlp", "--data", "./tasks.py:rare")
    assert "arguments" not in recipe["task"]
    assert any(line.startswith("not trained, weights are drawn at random: accuracy") for line in found)
    assert 'the metric of a function is its own: Task(metric="roc_auc") would show these classes' in found


@pytest.mark.slow
def test_names_are_toml_and_data_lie_in_the_folder_of_data_sets(init: Init) -> None:
    inputs, targets = rows()
    Path("sets/d😀").mkdir(parents=True)
    np.savez("sets/d😀/rows.npz", x_train=inputs, y_train=targets)
    model = mirabelle.sources.model_from("./nets.py:mlp", {}, Path())
    save_file(model.state_dict(), 'TRAINING "DATA".safetensors')
    arguments = ("--model", "./nets.py:mlp", "--weights", 'TRAINING "DATA".safetensors')
    recipe, found = init(*arguments, "--data", "data:d😀/rows.npz", "--data-dir", "sets")
    assert recipe["task"]["data"] == "data:d😀/rows.npz"
    assert recipe["baseline"] == {"weights": 'TRAINING "DATA".safetensors'}
    assert any("check that they belong here" in line for line in found)
    assert [step["use"] for step in recipe["step"]] != ["prune.Weights"]


def test_a_model_in_which_nothing_can_be_trained(init: Init) -> None:
    inputs, targets = rows()
    np.savez("rows.npz", x_train=inputs, y_train=targets)
    recipe, found = init("--model", "./nets.py:fixed", "--data", "./rows.npz")
    assert "baseline" not in recipe
    assert any(line.startswith("it cannot be trained: ") for line in found)


def test_large_models_are_not_tried(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirabelle.planning.look.MOST_PARAMETERS", 100)
    photos(Path("photos"), 28)
    recipe, found = init("--model", "./nets.py:gray", "--data", "./photos")
    assert [step["use"] for step in recipe["step"]][-1] == "quantize.Static"
    assert recipe["baseline"]["train"]["lr"] == 0.001
    assert not any("ms for one sample" in line for line in found)


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        ("many", "./photos", "error[E132]: --model: the model has 5 outputs, the data have 2 classes"),
        ("nothing", "./rows.npz", "error[E132]: --model: the model has 2 outputs, the data have 3 classes"),
        ("broken", "./rows.npz", "error[E121]: --model: the model returns"),
        ("gray", "./rows.npz", "error[E121]: --model: "),
        ("mlp", "./empty", "error[E130]: --data: "),
    ],
)
def test_what_does_not_fit_is_said_at_its_option(model: str, data: str, told: str, init: Init, capsys: Any) -> None:
    del init  # its folder
    inputs, targets = rows()
    np.savez("rows.npz", x_train=inputs, y_train=targets + (np.arange(len(targets)) % 3 == 0))
    photos(Path("photos"), 28, 30)
    Path("empty").mkdir()
    status = main.run(("init", "--model", f"./nets.py:{model}", "--data", data))
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert told in printed.err


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x, need_weights=False)[0].mean(1)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(100, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.table(x).mean(1))


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0][:, -1]


@pytest.mark.parametrize(
    ("model", "inputs", "due"),
    [
        (Attention(), torch.randn(2, 5, 8), "transformer"),
        (Last(), torch.randn(2, 5, 8), "recurrent network"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 9), "convolutional network"),
        (Tables(), torch.randint(0, 99, (2, 5)), "network of embedding tables"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.randn(2, 4), "fully connected network"),
    ],
)
def test_the_kind_of_a_network_follows_from_its_operators(model: nn.Module, inputs: torch.Tensor, due: str) -> None:
    batch = Batch(inputs, torch.zeros(2))
    assert kind_of(export(model, batch), layers_of_module(model, batch)) == due
