"""Networks of several outputs, and data without labels: a stranger's detector goes the whole way without code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image as Picture
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, Training, prune, quantize
from mirabelle.artifact.prediction import Predictor
from mirabelle.cli import main
from mirabelle.distill import Ensemble
from mirabelle.errors import UserError
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.objectives import Forward, Regression, SoftTargets
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import batches_to_compare, same_outputs, torch_equals_onnx
from mirabelle.sources import task_from
from mirabelle.task.batch import as_outputs, in_float32, joined, parts_of
from mirabelle.task.given_data import data_of
from mirabelle.task.loss import Matching
from mirabelle.task.samples import Samples
from mirabelle.training.teacher import guidance

PLACES = 16


class Detector(nn.Module):
    """Grey images of 8 × 8 to the scores of two classes and a box at each of sixteen places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.classes, self.corners = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(image)
        scores = self.classes(x).permute(0, 2, 3, 1).reshape(-1, PLACES, 2).softmax(-1)
        return scores, 8 * self.corners(x).permute(0, 2, 3, 1).reshape(-1, PLACES, 4)


pytestmark = pytest.mark.usefixtures("quietly")


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


def pictures(count: int = 60) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def without_labels(count: int = 60) -> Task:
    images = pictures(count)
    return Task(train=images[: count // 2], validation=images[count // 2 : -10], test=images[-10:])


def test_what_a_model_gives_is_a_tensor_or_a_tuple() -> None:
    one, other = torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.long)
    assert as_outputs([one]) is one
    assert as_outputs([one, other]) == (one, other)
    assert as_outputs({"logits": one}) == {"logits": one}
    assert parts_of(one) == (one,)
    assert [part.dtype for part in in_float32((one.half(), other))] == [torch.float32, torch.int64]
    assert [tuple(part.shape) for part in joined([(one, other), (one, other)])] == [(4, 3), (4, 1)]


def test_data_without_labels_are_told_apart_by_their_inputs() -> None:
    images = pictures(12)
    data = data_of(images)
    assert isinstance(data, Samples)
    assert (data.labelled, tuple(data.targets.shape)) == (False, (12, 0))
    assert data.digest() == data.against(torch.ones(12, 5)).digest()
    assert not data.drawn(4, seed=0).labelled
    assert not any(part.labelled for part in data.split(0.25, seed=0))
    by_name = data_of({"ids": images, "mask": images})
    assert isinstance(by_name, Samples)
    assert (set(by_name.inputs), by_name.labelled) == ({"ids", "mask"}, False)
    labelled = data_of({"ids": images, "labels": torch.zeros(12)})
    assert isinstance(labelled, Samples)
    assert labelled.labelled
    with pytest.raises(UserError, match="the test data have no targets, the others do"):
        Task(train=(images, torch.zeros(12).long()), test=images)
    with pytest.raises(UserError, match="without labels cannot be augmented"):
        Task(train=images, test=images, augment=mirabelle.Augmentation(flip=True))


def test_what_the_start_gives_stands_for_labels(detector: Detector) -> None:
    task = without_labels()
    assert (task.loss, task.metric.name, task.labelled) == (Matching(), "fidelity", False)
    known = with_model_outputs_as_targets(task, detector)
    with torch.no_grad():
        scores, boxes = detector(task.test.inputs)
    torch.testing.assert_close(known.test.targets, torch.cat([scores.flatten(1), boxes.flatten(1)], 1))
    assert isinstance(known.loss, Matching)
    with torch.no_grad():
        due = [part.var(0).mean() for part in detector(task.train.inputs)]  # type: ignore[union-attr]  # samples in memory
    assert known.loss.variances == pytest.approx([float(part) for part in due])
    assert with_model_outputs_as_targets(known, Detector()) is known
    assert known.fingerprint() == task.fingerprint()
    assert float(known.loss(detector(known.test.inputs), known.test.targets)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="the model fails on inputs of") as caught:
        with_model_outputs_as_targets(task, nn.Linear(3, 2))
    assert (caught.value.code, caught.value.path) == ("E121", ("model", "from"))


@pytest.mark.slow
def test_a_network_of_several_outputs_learns_to_match_itself(detector: Detector, tmp_path: Path) -> None:
    steps = [
        prune.Weights(sparsity=0.5, train=Training(epochs=30, batch_size=10, lr=3e-3, precision="float32")),
        quantize.Static(),
    ]
    result = mirabelle.compress(detector, without_labels(), steps, out=tmp_path / "run")
    untaught = [prune.Weights(sparsity=0.5), quantize.Static()]
    worse = mirabelle.compress(detector, without_labels(), untaught, out=tmp_path / "untaught")
    assert result.start.metric is not None
    assert result.profile.metric is not None
    assert worse.profile.metric is not None
    assert result.profile.metric.value > worse.profile.metric.value
    assert result.start.metric.value == pytest.approx(1, abs=1e-6)
    assert "in 2 outputs" in result.gates["torch_onnx"].detail
    again = mirabelle.compress(detector, without_labels(), steps, out=tmp_path / "run")
    assert again.profile.metric == result.profile.metric
    with pytest.raises(UserError, match="the data have no labels, so the model cannot be trained"):
        mirabelle.compress(detector, without_labels(), steps, out=tmp_path / "two", baseline=Training(epochs=1))


def test_a_stranger_s_detector_and_photos_need_no_code(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.onnx.export(
        detector, (pictures(1),), "faces.onnx", dynamo=False, input_names=["image"], output_names=["scores", "boxes"],
        opset_version=17, verbose=False,
    )  # fmt: skip
    Path("photos/more").mkdir(parents=True)
    for k, values in enumerate(np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)):
        Picture.fromarray(values).save(f"photos/{'more/' if k % 2 else ''}{k}.png")
    assert main.run(["inspect", "faces.onnx", "--groups"]) == 0
    assert "channels of a convolution" in capsys.readouterr().out
    Path("recipe.toml").write_text(
        'schema = 1\n[model]\nfrom = "./faces.onnx"\n[task]\ndata = "./photos"\narguments = { kind = "unlabelled" }\n'
        '[goal]\nmax_drop = "30pt"\n[[step]]\nuse = "prune.Channels"\nsparsity = 0.25\nrecover = "least-squares"\n'
        '[[step]]\nuse = "quantize.Static"\n'
    )
    assert main.run(["check", "recipe.toml"]) == 0
    assert "(2, 16, 2), (2, 16, 4) out" in capsys.readouterr().out
    assert main.run(["run", "recipe.toml", "--out", "small", "--quiet"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main.run(["verify", "small"]) == 0, capsys.readouterr().out
    assert main.run(["export", "small", "--out", "again.onnx"]) == 0, capsys.readouterr().err
    assert Path("again.onnx").read_bytes() == Path("small/model.onnx").read_bytes()
    graph = onnx.load("small/model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "scores", "boxes"]
    capsys.readouterr()
    assert main.run(["predict", "small/model.mira", "photos/0.png", "--json"]) == 0
    outputs = json.loads(capsys.readouterr().out)[0]["outputs"]
    assert {name: np.shape(values) for name, values in outputs.items()} == {"scores": (16, 2), "boxes": (16, 4)}
    np.testing.assert_allclose(np.sum(outputs["scores"], 1), 1, rtol=0.05)


JUDGES = """
import torch
import torch.nn.functional as F

def loss(outputs, targets):
    scores, boxes = outputs
    there = targets[..., 0].long()
    found = F.smooth_l1_loss(boxes, targets[..., 1:], reduction="none").mean(-1)
    return F.nll_loss(scores.clamp_min(1e-6).log().movedim(-1, 1), there) + (found * there).mean()

def right(outputs, targets):
    return (outputs[0].argmax(-1) == targets[..., 0]).float().mean(-1)
"""


@pytest.mark.slow
def test_losses_and_metrics_of_one_s_own_take_all_outputs(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A detection head on a given loss: by name in a recipe, relative to it."""
    (tmp_path / "own").mkdir()
    images = pictures(80)
    with torch.no_grad():
        scores, boxes = detector(images)
    targets = torch.cat([scores.argmax(-1, keepdim=True).float(), boxes], -1)
    np.savez(tmp_path / "own" / "boxes.npz", inputs=images, targets=targets)
    (tmp_path / "own" / "judges.py").write_text(JUDGES)
    torch.onnx.export(
        Detector(), (images[:2],), tmp_path / "own" / "head.onnx", dynamo=False, opset_version=17, verbose=False,
        input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    (tmp_path / "own" / "recipe.toml").write_text(
        'schema = 1\n[model]\nfrom = "./head.onnx"\n[task]\ndata = "./boxes.npz"\n'
        'arguments = { kind = "regression", loss = "./judges.py:loss", metric = "./judges.py:right" }\n'
        '[baseline]\ntrain = { epochs = 30, batch_size = 10, lr = 1e-2 }\n[[step]]\nuse = "quantize.Static"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main.run(["run", "own/recipe.toml", "--out", "run", "--quiet"]) == 0, capsys.readouterr().err
    report = json.loads(Path("run/report.json").read_text("utf-8"))
    assert report["end"]["metric"]["name"] == "right"
    assert report["start"]["metric"]["value"] > 0.6
    assert main.run(["verify", "run"]) == 0, capsys.readouterr().out
    task = Task(train=(images, targets), test=(images, targets), loss=nn.functional.mse_loss, metric="./own/judges.py:right")
    assert task.metric.value(task.metric.of_samples((scores, boxes), targets)) == 1
    with pytest.raises(UserError, match='has no function "wrong"'):
        Task(train=(images, targets), test=(images, targets), metric="./own/judges.py:wrong")


def test_what_does_not_fit_several_outputs_is_told(detector: Detector) -> None:
    images, classes = pictures(12), torch.zeros(12, dtype=torch.long)
    with pytest.raises(UserError, match="returns a tuple, not a tensor, and the loss takes one output"):
        try_one_batch(detector, Task(train=(images, classes), test=(images, classes)))
    judged = Task(train=(images, classes), test=(images, classes), loss=lambda outputs, _: outputs[0].sum())
    with pytest.raises(UserError, match="classes and labels take one output; the model has 2") as caught:
        try_one_batch(detector, judged)
    assert "take a tuple" in caught.value.remedy

    class Odd(nn.Module):
        def __init__(self, other: object) -> None:
            super().__init__()
            self.other = other

        def forward(self, x: Tensor) -> object:
            return x.flatten(1), self.other

    task = Task(train=images, test=images)
    with pytest.raises(UserError, match="returns a tuple that contains NoneType, not a tensor"):
        with_model_outputs_as_targets(task, Odd(None))
    with pytest.raises(UserError, match=r"output 1 of the model has shape \(5,\) for 2 samples"):
        with_model_outputs_as_targets(task, Odd(torch.zeros(5)))
    outputs, batch = detector(images[:2]), task.train.first(2)
    forward = Forward(batch, outputs, Forward(batch, detector(images[2:4])))
    with pytest.raises(UserError, match="SoftTargets compares class scores of one output; the model has 2 outputs"):
        SoftTargets().bind(detector, task, batch)(forward)
    due = torch.stack([nn.functional.mse_loss(a, b) for a, b in zip(outputs, detector(images[2:4]), strict=True)]).mean()
    torch.testing.assert_close(Regression().bind(detector, task, batch)(forward), due)


def test_gates_look_at_every_output(detector: Detector, tmp_path: Path) -> None:
    task = without_labels()
    batches = batches_to_compare(task.validation)
    file = export(detector, task.example())
    assert [value.name for value in onnx.ModelProto.FromString(file).graph.output] == ["output_0", "output_1"]
    gate = torch_equals_onnx(detector, file, batches, quantized=False)
    assert gate.passed
    other = Detector()
    other.load_state_dict(detector.state_dict())
    with torch.no_grad():
        other.corners.bias += 0.5
    gate = torch_equals_onnx(other, file, batches, quantized=False)
    assert not gate.passed
    assert 'the largest difference is in "output_1"; the first layer that differs is "corners"' in gate.detail
    assert not same_outputs(detector, other, batches[0]).passed
    detector.output_names = ("scores", "body")  # type: ignore[assignment]  # as a user writes it
    named = onnx.ModelProto.FromString(export(detector, task.example()))
    assert [value.name for value in named.graph.output] == ["scores", "body"]
    (tmp_path / "named.onnx").write_bytes(named.SerializeToString())
    np.save(tmp_path / "one.npy", task.test.inputs[0].numpy())
    assert set(Predictor(tmp_path / "named.onnx")([tmp_path / "one.npy"])[0].outputs) == {"scores", "body"}


def test_a_teacher_of_several_outputs_is_kept_and_averaged(detector: Detector, tmp_path: Path) -> None:
    task, run = without_labels(), Run(tmp_path)
    taught = guidance(detector, task.train, run)
    batch = task.train.at(torch.tensor([3, 1]))  # type: ignore[union-attr]  # samples in memory
    with torch.no_grad():
        due = detector(batch.inputs)
    for given, part in zip(taught(batch).outputs, due, strict=True):
        torch.testing.assert_close(given, part)
    torch.manual_seed(1)
    mean = Ensemble([detector, Detector()])(batch.inputs)
    assert [part.shape for part in mean] == [part.shape for part in due]
    torch.testing.assert_close(mean[0].sum(-1), torch.ones(2, PLACES))


def test_files_without_labels_are_read_where_it_is_said(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images[:5])
    task = task_from("./images.npz", {"kind": "unlabelled"}, data_folder=None, folder=tmp_path)
    assert (len(task.train), len(task.validation), len(task.test), task.labelled) == (27, 3, 5, False)
    with pytest.raises(UserError, match="but not its counterpart") as caught:
        task_from("./images.npz", {}, data_folder=None, folder=tmp_path)
    assert 'kind = "unlabelled"' in caught.value.remedy
    for part, count in (("train", 8), ("test", 3)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for k in range(count):
            Picture.fromarray(images[k]).save(tmp_path / "photos" / part / f"{k}.png")
    task = task_from("./photos", {"kind": "unlabelled"}, data_folder=None, folder=tmp_path)
    assert (len(task.train), len(task.validation), len(task.test), task.labelled) == (7, 1, 3, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in"):
        task_from("./empty", {"kind": "unlabelled"}, data_folder=None, folder=tmp_path)
