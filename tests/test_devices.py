"""Everything that runs a model over data gives the same bits on another device, and leaves nothing there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from elsewhere import ELSEWHERE, a_second_device
from mirabelle import Run, Task, Training, compress, prune, quantize
from mirabelle.errors import UserError
from mirabelle.model.device import computing_on, devices_present, named_device
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.objectives import TaskLoss
from mirabelle.objectives.objective import TERMS, Term
from mirabelle.report import read_report
from mirabelle.scores import SparseGPT, Taylor
from mirabelle.scores.evidence import evidence_for
from mirabelle.scores.score import SCORES
from mirabelle.sources import model_from, task_from
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_mlp
from mirabelle.step import Step
from mirabelle.task.augmentation import Augmentation
from mirabelle.task.batch import Batch
from mirabelle.training import evaluate, fit, optimizer
from runs_of_sources import SOURCES, write_source
from test_contracts import MODELS, SHORT, STEPS

FEW = Training(steps=2, batch_size=40, precision="float32")
OTHERS: dict[str, Step] = {
    "revived": prune.Weights(sparsity=0.5, revive=True, schedule="linear", train=SHORT),
    "rounds": prune.Weights(sparsity=0.5, rounds=2, rewind="weights", train=FEW),
    "layer by layer": prune.Weights(sparsity=0.5, score=SparseGPT()),
    "least squares": prune.Channels(sparsity=0.5, score="Hessian", recover="least-squares", samples=100),  # type: ignore[arg-type]
    "batch norm": prune.Channels(sparsity=0.5, recover="batch-norm", samples=100),
    "gradients": prune.Channels(sparsity=0.5, score=Taylor()),
    "gptq": quantize.Weights(weight_bits=4, group_size=16, method="gptq"),
    "awq": quantize.Weights(weight_bits=4, group_size=16, method="awq"),
    "adaptive": quantize.Static(samples=50, rounding="adaptive"),
    "damage": quantize.Static(samples=50, max_damage=0.01),
    "mixed bits": quantize.Static(samples=50, weight_bits=quantize.MixedBits(size="150%")),
}


class Images(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Tokens(nn.Module):
    """A small transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.embed, self.layers, self.head = (
            nn.Linear(8, 16),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x.flatten(1).reshape(-1, 8, 8))).mean(1))


@pytest.fixture(autouse=True)
def _one_kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Neither fused optimizers nor fused attention, which the second device does not have."""
    monkeypatch.setattr(optimizer, "FUSED", ())
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(scope="module")
def task() -> Task:
    whole = digits()
    train, rest = whole.train.drawn(120, 0), whole.validation.drawn(50, 0)  # type: ignore[union-attr]
    pair = rest.inputs, rest.targets
    return Task(train=(train.inputs, train.targets), validation=pair, test=pair)


def on_both(work: Callable[[], Mapping[str, Any]], *, exact: bool = True) -> int:
    """Do some work on the CPU and on the second device, and compare the tensors; the number of products computed there.

    `exact` is for networks for which torch takes the same kernels on both.
    """
    here = work()
    with a_second_device() as machine, computing_on(ELSEWHERE):
        there = work()
    assert there.keys() == here.keys()
    for name, value in here.items():
        assert there[name].device.type == "cpu", name
        assert there[name].dtype == value.dtype, name
        if exact:
            assert torch.equal(there[name], value), name
        else:
            torch.testing.assert_close(there[name], value, rtol=1e-4, atol=1e-5)
    return sum(machine.counts[True].values())


def a_run(folder: Path) -> Run:
    """With the layout of images that is measured otherwise."""
    run = Run(folder, seed=7)
    run.journal.decisions |= {f"{part}execution": "float32" for part in ("", "round-1/", "round-2/", "round-3/")}
    return run


WITHOUT_DATA = {
    "quantize.Dynamic",
    "quantize.Weights",
    "quantize.Half",
    "factorize.Linear",
    "factorize.Conv",
    "factorize.Embedding",
}


SLOW = ("adaptive", "damage", "gradients", "rounds", "mixed bits", "batch norm")


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in (*STEPS, *OTHERS)])
def test_every_step_on_another_device(name: str, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MODELS.get(name, Images)().eval()
    folders = iter((tmp_path / "here", tmp_path / "there"))

    def work() -> Mapping[str, Tensor]:
        step = (STEPS | OTHERS)[name]
        return tensors_of_module(step(copied(model), task.with_teacher(copied(model)), a_run(next(folders))))

    assert (on_both(work) > 0) == (name not in WITHOUT_DATA)


OF_OTHER_TASKS = {"Rate", "MultiLabel", "Regression", "TokenRelations", "AttentionMaps"}


@pytest.mark.parametrize("name", sorted(set(TERMS.known()) - OF_OTHER_TASKS))
def test_every_term_on_another_device(name: str, task: Task, tmp_path: Path) -> None:
    kind = Tokens if name == "HiddenStates" else Images
    torch.manual_seed(3)
    model, teacher = kind(), kind().eval()
    folders = iter((tmp_path / "here", tmp_path / "there"))
    term: Term = TERMS.member(name)()

    def work() -> Mapping[str, Tensor]:
        objective = 1.0 * TaskLoss() + 0.5 * term
        training = Training(steps=2, batch_size=40, precision="float32", optimizer="sgd", objective=objective)
        return tensors_of_module(fit(copied(model), task.with_teacher(copied(teacher)), training, a_run(next(folders))))

    assert on_both(work, exact=kind is Images) > 0


@pytest.mark.parametrize("name", SCORES.known())
def test_the_evidence_of_every_score_on_another_device(name: str, task: Task) -> None:
    torch.manual_seed(3)
    model, score = Images().eval(), SCORES.member(name)()

    def work() -> Mapping[str, Tensor]:
        found = evidence_for(score, copied(model), task, most_samples=20)
        parts = {f"{key}.{kind}": getattr(one, kind) for key, one in found.items() for kind in score.needs}
        weights = dict(model.named_parameters())
        return {**parts, **{key: score(weights[key].detach(), one) for key, one in found.items()}}

    assert (on_both(work) > 0) == bool(score.needs)


@pytest.mark.parametrize("source", SOURCES)
def test_models_of_every_source_train_on_another_device(source: str, tmp_path: Path) -> None:
    write_source(tmp_path, source)
    last = source.startswith("Keras")
    arguments: dict[str, Any] = {"mean": [0.0], "deviation": [1.0], **({"layout": "channels-last"} if last else {})}
    task = task_from(f"./{'last' if last else 'first'}.npz", arguments, data_folder=None, folder=tmp_path)
    model = model_from(SOURCES[source], {}, tmp_path, 0)
    folders = iter((tmp_path / "here", tmp_path / "there"))

    def work() -> Mapping[str, Any]:
        trained = fit(copied(model), task, Training(steps=2, batch_size=20, precision="float32"), a_run(next(folders)))
        return {**tensors_of_module(trained), "scores": torch.from_numpy(np.asarray(evaluate(trained, task.test, task)))}

    assert on_both(work) > 0


def test_augmented_images_are_the_same_on_another_device(task: Task) -> None:
    images = task.train.first(20)
    for crop, flip, layout in ((2, True, None), (0, True, "channels-last"), (3, False, None)):
        augment = Augmentation(crop=crop, flip=flip, layout=layout)  # type: ignore[arg-type]
        given = Batch(images.inputs.movedim(1, -1) if layout else images.inputs, images.targets, images.index)
        here = augment(given, 3).inputs
        with a_second_device():
            there = augment(given.to(ELSEWHERE), 3)
            assert there.inputs.device == ELSEWHERE
            assert torch.equal(there.inputs.cpu(), here)
        assert not torch.equal(here, given.inputs)


def test_a_whole_run_on_another_device(task: Task, tmp_path: Path) -> None:
    """The shipped files are the same, its device is written down, and it goes on with that device alone."""
    torch.manual_seed(3)
    model = digits_mlp().eval()
    steps = [prune.Weights(sparsity=0.3, train=FEW), quantize.Static(samples=20)]
    here = compress(model, task, steps, out=tmp_path / "here", device="cpu")
    with a_second_device(), computing_on(ELSEWHERE):
        there = compress(model, task, steps, out=tmp_path / "there")
    one, other = tensors_of_module(here.model), tensors_of_module(there.model)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (tmp_path / "here" / "model.onnx").read_bytes() == (tmp_path / "there" / "model.onnx").read_bytes()
    assert read_report(tmp_path / "there").recipe["decisions"]["device"] == str(ELSEWHERE)
    assert "device" not in read_report(tmp_path / "here").recipe["decisions"]
    with pytest.raises(UserError, match=r"E122.*began on lazy:0, which is not there\n.*--device cpu"):
        compress(model, task, steps, out=tmp_path / "there")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"E110(.|\n)*cuda:1"):
        named_device(name)


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    assert devices_present()[0] == "cpu"
    assert named_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r'E122.*"cuda:63" is not there\n.*there are: cpu'):
        named_device("cuda:63")


def test_a_model_that_mixes_devices_is_refused(task: Task, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10, device="meta"))
    with pytest.raises(UserError, match=r'E121.*"2.weight" of the model is on device "meta"'):
        compress(model, task, [quantize.Dynamic()], out=tmp_path / "run")


def test_tensors_that_a_model_keeps_to_itself_are_named(task: Task, tmp_path: Path) -> None:
    """A tensor that is no buffer stays behind: told before anything is trained, with the remedy."""

    class Shifted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.shift = torch.ones(10)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) + self.shift

    with a_second_device(), computing_on(ELSEWHERE), pytest.raises(UserError, match=r"E121.*lazy:0(.|\n)*register_buffer"):
        compress(Shifted(), task, [quantize.Dynamic()], out=tmp_path / "run")
