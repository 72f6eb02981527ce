"""The contract of every step behind every door: plain data, given model untouched, same seed same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, distill, factorize, prune, quantize, training
from mirabelle.calibration.ranges import Range
from mirabelle.codecs import Codec, Contexts, Deflate, Histogram, Palette, Planes, Sparse
from mirabelle.errors import UserError
from mirabelle.model.state import copied, fingerprint
from mirabelle.objectives import L1, Rate
from mirabelle.objectives.bound_objective import BoundFunction
from mirabelle.objectives.objective import TERMS, Term
from mirabelle.quantize import CodebookLayer, DynamicLayer, StaticLayer, TokenLayer, WeightLayer
from mirabelle.records.record import record
from mirabelle.scores import Evidence, Score
from mirabelle.scores.score import SCORES
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn, digits_mlp
from mirabelle.step import Preview, Stage, Step, use_of
from mirabelle.task.batch import Batch
from mirabelle.testing import check_codec, check_replacement, check_score, check_step, check_term
from mirabelle.training import JoinsTraining, Prepared

SHORT = Training(epochs=1, batch_size=200, precision="float32")
STEPS: dict[str, Step] = {
    "prune.Weights": prune.Weights(sparsity=0.5, schedule="linear", train=SHORT),
    "prune.Channels": prune.Channels(sparsity=0.5, train=SHORT),
    "prune.Layers": prune.Layers(sparsity=0.5, train=SHORT),
    "distill.Student": distill.Student(model="mirabelle.sources.zoo:digits_mlp", train=SHORT),
    "quantize.Static": quantize.Static(samples=50),
    "quantize.Dynamic": quantize.Dynamic(),
    "quantize.Weights": quantize.Weights(),
    "quantize.Half": quantize.Half(),
    "quantize.Aware": quantize.Aware(samples=50, train=SHORT),
    "quantize.Codebook": quantize.Codebook(bits=4, train=SHORT),
    "quantize.EntropyConstrained": quantize.EntropyConstrained(rate=1.0, train=SHORT),
    "quantize.RateDistortion": quantize.RateDistortion(size="15%", samples=64),
    "factorize.Linear": factorize.Linear(ratio=0.5, multiple=1, keep="smaller"),
    "factorize.Conv": factorize.Conv(ratio=0.5, multiple=1, keep="smaller"),
    "factorize.Embedding": factorize.Embedding(ratio=0.3, multiple=1),
    "training.Joint": training.Joint(steps=(prune.Weights(sparsity=0.5),), train=SHORT),
}


class Plus(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x).relu()


def residual() -> nn.Module:
    """A network with layers that can be dropped."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), Plus(20, 20), Plus(20, 20), nn.Linear(20, 10))


class Shades(nn.Module):
    """A network with a table, which it reads by the shade of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x.flatten(1) * 16 + 16).clamp(0, 39).long()).mean(1))


MODELS = {"prune.Layers": residual, "factorize.Embedding": Shades}


def test_every_step_behind_the_doors_is_here() -> None:
    doors = {
        "prune": prune,
        "distill": distill,
        "factorize": factorize,
        "quantize": quantize,
        "training": training,
    }
    found = {
        f"{family}.{name}" for family, door in doors.items() for name in door.__all__ if hasattr(getattr(door, name), "stage")
    }  # fmt: skip
    assert found == set(STEPS)


@pytest.mark.parametrize("use", STEPS)
def test_a_step_keeps_the_contract(use: str) -> None:
    torch.manual_seed(0)
    model = MODELS.get(use, digits_cnn)().eval()
    step = STEPS[use]
    assert use_of(step) == use
    check_step(step, model, digits(), origin=digits_mlp() if use == "distill.Student" else None)


DECISIONS = {"TaskLoss", "SoftTargets", "DKD", "DIST", "MLKD", "ReverseKL", "JensenShannon", "L1", "L2", "RKD", "CRD"}


@pytest.mark.parametrize("name", sorted(DECISIONS))
def test_a_term_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    term = TERMS.member(name)()
    check_term(term, digits_mlp(), digits().with_teacher(digits_mlp()))


def test_the_rate_keeps_the_contract(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = quantize.EntropyConstrained(rate=1.0).prepare(digits_mlp(), digits(), Run(tmp_path))
    for term in (Rate(), Rate(size="1 kB")):
        check_term(term, prepared.model, digits())


@pytest.mark.parametrize("name", SCORES.known())
def test_a_score_keeps_the_contract(name: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)).eval()
    check_score(SCORES.member(name)(), model, digits())


CODECS = {
    "deflate": Deflate(),
    "histogram": Histogram(),
    "planes": Planes(),
    "sparse histogram": Sparse(Histogram()),
    "sparse planes": Sparse(Planes()),
    "contexts": Contexts(),
    "palette": Palette(),
}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_codec_keeps_the_contract(codec: Codec) -> None:
    check_codec(codec)


@pytest.mark.parametrize(
    "made",
    [
        lambda dense: StaticLayer.quantized(dense, Range(-4.0, 4.0), weight_bits=8),
        lambda dense: WeightLayer.quantized(dense, 8),
        lambda dense: DynamicLayer.quantized(dense, 8),
        lambda dense: TokenLayer.quantized(dense, 8),
        lambda dense: CodebookLayer.shared(dense, 3),
        lambda _: prune.Skipped(),
    ],
    ids=["static", "weights", "dynamic", "token", "codebook", "skipped"],
)
def test_a_replaced_module_keeps_the_contract(made: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(6, 6)
    check_replacement(made(dense), dense, torch.randn(5, 6))


# The checks find what does not keep the contract.


@record
class Changing:
    """Changes the given model, draws from the global generator, or leaves a hook, as it is asked."""

    stage: ClassVar[Stage] = "thin"
    fault: str

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        other = model if self.fault == "changes" else copied(model)
        with torch.no_grad():
            other[1].weight.mul_(0.5)
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "hooks":
            other[1].register_forward_hook(lambda *_: None)
        if self.fault == "varies":
            other[1].weight.data += Path(run.folder).name == "1"
        if self.fault == "unrecorded":
            other[1].register_forward_pre_hook(lambda *_: None).remove()
            other[3] = nn.Sequential(other[3], nn.Softmax(1))
        return other

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        return Preview(copied(model), () if self.fault == "silent" else ("halves",))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("changes", "must not be changed"),
        ("draws", "random generator"),
        ("hooks", "no hooks"),
        ("varies", "equal seeds"),
        ("silent", "in words"),
    ],
)
def test_a_step_that_breaks_the_contract_is_found(fault: str, words: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    check_step(Changing(fault="none"), copied(model), digits())
    with pytest.raises(AssertionError, match=words):
        check_step(Changing(fault=fault), model, digits())


def test_a_change_that_is_not_recorded_is_found() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    with pytest.raises(UserError, match="E140"):  # the tensors have other names than those of a fresh dense module
        check_step(Changing(fault="unrecorded"), model, digits())


class Lossy:
    """A codec that forgets the sign of zero."""

    dtypes = ("float32",)

    def encode(self, symbols: np.ndarray) -> bytes:
        return (symbols + np.float32(0)).tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return np.frombuffer(data, dtype).reshape(shape)


def test_a_codec_that_loses_a_bit_is_found() -> None:
    with pytest.raises(AssertionError, match="the same bits"):
        check_codec(Lossy())


@record
class Flat(Score):
    def __call__(self, tensor: torch.Tensor, evidence: Evidence) -> torch.Tensor:
        return tensor.flatten()


@record
class Vector(Term):
    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        return BoundFunction(lambda forward: forward.outputs.mean(1))


def test_scores_and_terms_of_a_wrong_shape_are_found() -> None:
    with pytest.raises(AssertionError, match="have shape"):
        check_score(Flat(), digits_mlp(), digits())
    with pytest.raises(AssertionError, match="must return a scalar"):
        check_term(Vector(), digits_mlp(), digits())


class Forgetful(nn.Linear):
    """Does not say all of its settings."""

    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def from_dense(cls, dense: nn.Linear) -> Forgetful:
        return cls(dense.in_features, 3)


def test_a_replaced_module_that_is_not_made_again_is_found() -> None:
    with pytest.raises(AssertionError, match="same names, shapes and dtypes"):
        check_replacement(Forgetful(6, 4), nn.Linear(6, 4), torch.randn(2, 6))


# A step that joins a training.

JOINING = {use: step for use, step in STEPS.items() if isinstance(step, JoinsTraining)}


def test_the_steps_that_join_a_training_are_these() -> None:
    assert list(JOINING) == [
        *(
            "prune.Weights",
            "prune.Channels",
            "prune.Layers",
            "distill.Student",
            "quantize.Aware",
            "quantize.EntropyConstrained",
        ),
        *("factorize.Linear", "factorize.Conv", "factorize.Embedding"),
    ]


@pytest.mark.parametrize("use", JOINING)
def test_a_step_that_joins_prepares_a_copy_of_the_model_the_same_each_time(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS.get(use, digits_cnn)()
    before, state = fingerprint(model), torch.get_rng_state()
    one, two = (JOINING[use].prepare(model, digits(), Run(tmp_path / str(k), seed=7)) for k in range(2))
    assert isinstance(one, Prepared)
    assert fingerprint(one.model) == fingerprint(two.model)
    assert fingerprint(model) == before
    assert not {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in one.model.parameters()}
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AttributeError):
        one.model = model  # type: ignore[misc]


class Counting:
    """A control that counts the optimizer steps, and the models that it is called with."""

    def __init__(self, model: nn.Module) -> None:
        self.models, self.steps = {id(model)}, 0

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self.models.add(id(model))
        self.steps += 1
        return False

    def settled(self, progress: float) -> bool:
        return True

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.steps = state["steps"]


class Plain:
    """The least that a step must have to join a training; what it does is written down in `log`."""

    stage: ClassVar[Stage] = "thin"

    def __init__(self, name: str, log: list[str], **brought: Any) -> None:
        self.name, self.log, self.brought = name, log, brought

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        return Preview(model, ())

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        self.log.append(f"prepare {self.name}")
        return Prepared(copied(model), **self.brought)


def logging(log: list[str], text: str) -> Callable[[nn.Module], nn.Module]:
    """A `finish` that writes down when it was called."""
    return lambda model: [log.append(text), model][1]  # type: ignore[return-value,func-returns-value]


@pytest.fixture
def one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that are compared to the bit take the same memory layout, which is measured otherwise."""
    monkeypatch.setattr(
        "mirabelle.training.memory.fastest_execution", lambda *_, **__: training.Execution("float32", channels_last=False)
    )


@pytest.mark.usefixtures("one_layout")
def test_a_step_joins_a_training_with_a_stage_a_preview_and_what_it_prepares(tmp_path: Path) -> None:
    step = Plain("plain", [])
    assert isinstance(step, JoinsTraining)
    assert not isinstance(quantize.Static(samples=50), JoinsTraining)
    torch.manual_seed(0)
    model = digits_cnn()
    runs = [Run(tmp_path / str(k), seed=7) for k in range(2)]
    joined = training.Joint(steps=(step,), train=SHORT)(model, digits(), runs[0])
    assert fingerprint(joined) == fingerprint(training.fit(copied(model), digits(), SHORT, runs[1]))


@pytest.mark.usefixtures("one_layout")
def test_what_steps_bring_to_a_training_is_used_in_their_order(tmp_path: Path) -> None:
    log: list[str] = []
    made: list[Counting] = []

    def controls(model: nn.Module) -> list[Counting]:
        log.append("controls")
        made.append(Counting(model))
        return [made[-1]]

    first = Plain("first", log, controls=controls, terms=0.01 * L1(), finish=logging(log, "finish first"))
    last = Plain("last", log, controls=controls, finish=logging(log, "finish last"))
    torch.manual_seed(0)
    model, task = digits_cnn(), digits()
    both = training.Joint(steps=(first, last), train=SHORT)(copied(model), task, Run(tmp_path / "both", seed=7))
    assert log == ["prepare first", "prepare last", "controls", "controls", "finish first", "finish last"]
    assert [control.steps for control in made] == [len(task.train) // 200] * 2
    assert made[0].models == made[1].models == {id(both)}, "controls are made for the model that trains"
    objective = training.default_objective(task) + 0.01 * L1()
    alone = training.fit(copied(model), task, SHORT, Run(tmp_path / "alone", seed=7), objective=objective)
    assert fingerprint(both) == fingerprint(alone)
