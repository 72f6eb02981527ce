"""Terms over what layers give: which layers they find, what they compare, and that nothing of them stays on the student."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mirabelle import Augmentation, Run, Task, Training, objectives
from mirabelle.errors import UserError
from mirabelle.model.taps import features_of
from mirabelle.objectives import (
    CRD,
    RKD,
    AttentionMaps,
    AttentionTransfer,
    FeatureKL,
    HiddenStates,
    Hint,
    ReviewKD,
    SoftTargets,
    TaskLoss,
    Term,
    TokenRelations,
)
from mirabelle.objectives.embeddings import EmbeddingTerm
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.hidden import FeatureTerm
from mirabelle.objectives.layer_matching import pairs_of
from mirabelle.run import files
from mirabelle.sources.zoo import resnet20
from mirabelle.task.batch import Batch
from mirabelle.task.samples import Stream
from mirabelle.training import fit
from mirabelle.training.execution import Execution
from mirabelle.training.teacher import guidance
from students import Convolutional, Transformer, pair_for

FAMILY: list[type[Term]] = [
    kind
    for kind in (getattr(objectives, name) for name in objectives.__all__)
    if isinstance(kind, type) and issubclass(kind, (FeatureTerm, EmbeddingTerm, TokenRelations))
]
SETTINGS: dict[type[Term], dict[str, Any]] = {TokenRelations: {"heads": 2}, CRD: {"negatives": 64}, ReviewKD: {"width": 8}}
LEARNED = {ReviewKD, CRD}  # whose loss is not zero for equal models: what they train along is drawn


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.journal.folder / "events.jsonl").read_text("utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def term_of(kind: type[Term], **settings: Any) -> Term:
    return kind(**SETTINGS.get(kind, {}), **settings)


def test_the_family_is_whole() -> None:
    assert {kind.__name__ for kind in FAMILY} == {
        "Hint", "FeatureKL", "AttentionTransfer", "SimilarityPreserving", "ReviewKD", "RKD", "SimKD", "CRD", "HiddenStates",
        "AttentionMaps", "TokenRelations",
    }  # fmt: skip


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_the_student_has_a_gradient_and_the_teacher_none(kind: type[Term], images: Task) -> None:
    student, task = pair_for(kind, images)
    bound = (1.0 * term_of(kind)).bind(student, task, task.example())
    batch = task.train.first(16)
    loss = bound(bound.seen(student, batch, task.teacher))
    loss.backward()
    assert loss.shape == ()
    assert float(loss.detach()) > 0
    assert any(parameter.grad is not None and float(parameter.grad.abs().sum()) > 0 for parameter in student.parameters())
    assert task.teacher is not None
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert not set(student.parameters()) & set(bound.parameters())


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind not in LEARNED], ids=lambda kind: kind.__name__)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(kind: type[Term], images: Task) -> None:
    student, task = pair_for(kind, images, equal=True)
    assert task.teacher is not None
    bound = (1.0 * term_of(kind)).bind(student, task, task.example())
    loss = bound(bound.seen(student, task.train.first(16), task.teacher))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_training_lowers_the_loss_and_leaves_nothing_on_the_student(kind: type[Term], images: Task, run: Run) -> None:
    student, task = pair_for(kind, images)
    names = list(student.state_dict())
    epochs = 30 if kind is CRD else 6  # whose banks follow slowly
    training = Training(epochs=epochs, batch_size=50, lr=0.01, objective=1.0 * term_of(kind), precision="float32", keep="last")
    fit(student, task, training, run)
    losses = [event["loss"] for event in events(run, "epoch")]
    assert losses[-1] < 0.9 * losses[0]
    assert list(student.state_dict()) == names
    assert not any(module._forward_hooks for one in (student, task.teacher) for module in one.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Hint, FeatureKL, ReviewKD], ids=lambda kind: kind.__name__)
def test_what_is_trained_along_runs_in_the_precision_of_the_features(kind: type[Term], images: Task) -> None:
    student, task = pair_for(kind, images)
    bound = (1.0 * term_of(kind)).bind(student, task, task.example())
    seen = bound.seen(student, task.train.first(16), task.teacher)
    exact = bound(seen)
    dtypes: set[torch.dtype] = set()
    for module in bound.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _args, given: dtypes.add(given.dtype))
    rounded = {name: part.detach().bfloat16().requires_grad_() for name, part in seen.features.items()}
    loss = bound(dataclasses.replace(seen, features=rounded))
    loss.backward()
    assert dtypes == {torch.bfloat16}
    assert loss.dtype is torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    assert all(parameter.grad is not None and parameter.grad.dtype is torch.float32 for parameter in bound.parameters())


def test_a_killed_training_goes_on_with_the_same_projectors(images: Task, run: Run, tmp_path: Path) -> None:
    objective = 0.5 * Hint() + 0.5 * SoftTargets() + 0.1 * CRD(negatives=32)
    settings = Training(epochs=3, batch_size=50, lr=0.01, objective=objective, precision="float32", keep="last")
    student, task = pair_for(Hint, images)
    halved = Run(tmp_path / "halved", seed=run.seed)
    run.journal.decisions["execution"] = halved.journal.decisions["execution"] = "float32"
    due = fit(copy.deepcopy(student), task, settings, run)

    class KilledError(Exception):
        pass

    calls = 0

    def killed(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KilledError

    broken = copy.deepcopy(student)
    handle = broken.register_forward_pre_hook(killed)
    with pytest.raises(KilledError):
        fit(broken, task, settings, halved)
    handle.remove()
    again = fit(copy.deepcopy(student), task, settings, halved)
    assert all(map(torch.equal, due.state_dict().values(), again.state_dict().values()))


# Which layers ------------------------------------------------------------------------------------------------------------


def test_maps_of_equal_sizes_are_paired() -> None:
    task = Task(train=(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), test=(torch.randn(8, 3, 32, 32), torch.arange(8) % 3))
    pairs = pairs_of(plain_net(), resnet20(), task.example(), ((), ()), ("maps",))
    assert [(pair.student.places, pair.teacher.name) for pair in pairs] == [
        ((32, 32), "layer1"), ((16, 16), "layer2"), ((8, 8), "layer3"),
    ]  # fmt: skip
    assert [pair.student.name for pair in pairs] == ["2", "6", "10"]


def plain_net() -> nn.Module:
    """Convolutions in a row, pooled in between, as a VGG."""
    layers: list[nn.Module] = []
    for into, out in ((3, 8), (8, 12), (12, 16), (16, 16)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))


def test_a_shallow_transformer_looks_at_every_other_layer(images: Task) -> None:
    student, teacher = Transformer(12, 2, 2), Transformer(24, 4, 4)
    pairs = pairs_of(student, teacher, images.example(), ((), ()), ("tokens",))
    assert [(pair.student.name, pair.teacher.name) for pair in pairs] == [("layers.0", "layers.1"), ("layers.1", "layers.3")]
    pairs = pairs_of(student, teacher, images.example(), ((), ()), ("attention",))
    assert [(pair.student.name, pair.teacher.name) for pair in pairs] == [
        ("layers.0.attention[1]", "layers.1.attention[1]"),
        ("layers.1.attention[1]", "layers.3.attention[1]"),
    ]
    named = pairs_of(student, teacher, images.example(), (("layers.1",), ()), ("tokens",))
    assert [(pair.student.name, pair.teacher.name) for pair in named] == [("layers.1", "layers.3")]


def test_perceptrons_are_paired_by_depth(blobs: Task) -> None:
    student = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))
    pairs = pairs_of(student, teacher, blobs.example(), ((), ()), ("maps", "tokens", "vectors"))
    assert [(pair.student.name, pair.teacher.name) for pair in pairs] == [("1", "3")]


@pytest.mark.parametrize(
    ("term", "code", "words"),
    [
        (Hint(layers=("finer",)), "E112", 'pattern "finer" matches no layer'),
        (Hint(layers=("fine", "coarse"), teacher_layers=("coarse",)), "E111", "`layers` selects 2 layers of the student"),
        (
            Hint(layers=("fine",), teacher_layers=("head",)),
            "E111",
            r"\"fine\", \(2, 4, 8, 8\) of the student and \"head\", \(2, 3\) of the teacher cannot be compared",
        ),
        (HiddenStates(), "E112", "do not both have layers whose outputs are tokens"),
        (AttentionMaps(), "E112", "do not both have layers whose outputs are attention"),
        (TokenRelations(), "E112", "Convolutional has no query, key and value projections"),
        (TokenRelations(layer="heed"), "E112", 'no layer "heed"'),
        (RKD(layers=("fine", "coarse")), "E111", "names 2 layers, but one embedding is compared"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Term) else "",
)
def test_layers_that_make_no_pair_are_told(term: Term, code: str, words: str, images: Task) -> None:
    task = images.with_teacher(Convolutional(8))
    with pytest.raises(UserError, match=words) as raised:
        (1.0 * term).bind(Convolutional(4), task, task.example())
    assert raised.value.code == code


def test_shapes_that_cannot_be_matched_are_told(images: Task) -> None:
    class Halved(Transformer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, :, ::2])

    task = images.with_teacher(Transformer(24, 4, 4))
    with pytest.raises(UserError, match=r'E111.*"layers.0", \(2, 4, 12\) of the student and "layers.1", \(2, 8, 24\) of the'):
        (1.0 * HiddenStates()).bind(Halved(12, 2, 2), task, task.example())
    with pytest.raises(UserError, match=r'E111.*the width of "layers.1.attention.key", 12, is not divisible by heads = 5'):
        (1.0 * TokenRelations(heads=5)).bind(Transformer(12, 2, 2), task, task.example())


# What is compared --------------------------------------------------------------------------------------------------------


def test_widths_and_sizes_that_differ_are_brought_together(images: Task) -> None:
    student, task = pair_for(Hint, images)
    term = Hint(layers=("fine",), teacher_layers=("coarse",))
    bound = (1.0 * term).bind(student, task, task.example())
    (projector,) = bound.terms[0].projectors
    assert projector.weight.shape == (16, 4, 1, 1)
    batch = task.train.first(16)
    seen = bound.seen(student, batch, task.teacher)
    assert seen.teacher is not None
    pooled = nn.functional.avg_pool2d(seen.features["fine"], 2)
    due = (projector(pooled) - seen.teacher.features["coarse"]).square().mean()
    assert float(bound(seen).detach()) == pytest.approx(float(due.detach()), rel=1e-5)


def test_the_classic_equation_is_one_line(images: Task) -> None:
    student, task = pair_for(FeatureKL, images)
    alpha = 0.3
    objective = alpha * FeatureKL(layers=("coarse",), teacher_layers=("coarse",)) + (1 - alpha) * SoftTargets()
    bound = objective.bind(student, task, task.example())
    seen = bound.seen(student, task.train.first(16), task.teacher)
    parts = [float(term(seen).detach()) for term in bound.terms]
    assert float(bound(seen).detach()) == pytest.approx(0.3 * parts[0] + 0.7 * parts[1], rel=1e-6)


def test_embeddings_are_what_the_head_is_given(images: Task) -> None:
    student, task = pair_for(RKD, images)
    bound = (1.0 * RKD(angle=0.0)).bind(student, task, task.example())
    assert bound.student_layers == bound.teacher_layers == ("head:input",)


def test_contrast_draws_near_what_is_the_same_and_knows_samples_again(images: Task) -> None:
    student, task = pair_for(CRD, images)
    bound = (1.0 * CRD(negatives=64)).bind(student, task, task.example())
    bank = bound.terms[0].student_bank.clone()
    batch = task.train.at(torch.tensor([7, 3]))
    seen = bound.seen(student, batch, task.teacher)
    bound(seen)
    moved = (bound.terms[0].student_bank != bank).any(1).nonzero().flatten().tolist()
    assert moved == [3, 7]
    loader = DataLoader(TensorDataset(task.train.inputs, task.train.targets), batch_size=8, shuffle=True)
    stream = task.replace(train=Stream(loader))
    with pytest.raises(UserError, match=r"E111.*the training data are a stream"):
        (1.0 * CRD()).bind(student, stream, task.example())


# The teacher's side -------------------------------------------------------------------------------------------------------


def test_features_are_kept_with_the_outputs_and_equal_those_of_the_live_teacher(images: Task, run: Run) -> None:
    _, task = pair_for(Hint, images)
    assert task.teacher is not None
    task.teacher.eval()  # a pass in training mode would change its statistics, and make it another teacher
    given = guidance(task.teacher, task.train, run, layers=("coarse", "head:input"))
    batch = task.train.at(torch.tensor([7, 3, 150]))
    bound = (1.0 * Hint(layers=("coarse",), teacher_layers=("coarse",))).bind(task.teacher, task, task.example())
    live = bound.seen(task.teacher, batch, task.teacher).teacher
    assert live is not None
    assert torch.allclose(given(batch).features["coarse"], live.features["coarse"], atol=1e-6)
    assert torch.allclose(given(batch).outputs, live.outputs, atol=1e-6)
    again = guidance(task.teacher, task.train, run, layers=("coarse", "head:input"))
    assert torch.equal(again(batch).features["head:input"], given(batch).features["head:input"])
    assert len(list((run.folder / "teacher").iterdir())) == 1
    guidance(task.teacher, task.train, run, layers=("fine",))
    assert len(list((run.folder / "teacher").iterdir())) == 2, "other layers are another cache"


def test_features_that_are_too_large_are_asked_for_with_every_batch(images: Task, run: Run) -> None:
    student, task = pair_for(Hint, images)
    objective = 1.0 * AttentionTransfer() + TaskLoss()
    fit(student, task, Training(epochs=1, batch_size=50, objective=objective, teacher_cache=1000), run)
    (told,) = events(run, "teacher")
    assert not told["cached"]
    assert "the features need" in told["why"]


@pytest.mark.parametrize("execution", [Execution("bfloat16", True), Execution("float32", False)], ids=str)
def test_features_too_large_for_the_memory_lie_on_disk_as_the_teacher_gives_them(
    execution: Execution, images: Task, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirabelle.training.teacher.KEPT", 1000)
    _, task = pair_for(Hint, images)
    assert task.teacher is not None
    settings = {"layers": ("coarse", "head:input"), "augment": Augmentation(crop=1, views=2), "execution": execution}
    kept = guidance(task.teacher, task.train, run, limit=10**9, **settings)
    live = guidance(task.teacher, task.train, run, limit=1, **settings)
    for view in (0, 1):
        batch = settings["augment"](task.train.at(torch.tensor([3, 0, 17, 3])), view)
        found, due = kept(batch), live(batch)
        assert found.features["coarse"].dtype is (torch.bfloat16 if execution.precision == "bfloat16" else torch.float32)
        assert found.features["coarse"].is_contiguous(memory_format=torch.channels_last) == execution.channels_last
        for name, feature in due.features.items():
            assert torch.allclose(
                found.features[name].float(), feature.float(), rtol=0.02, atol=1e-2 * float(feature.abs().max())
            )
        assert torch.allclose(found.outputs, due.outputs, rtol=0.02, atol=1e-2 * float(due.outputs.abs().max()))
    told = [event["cached"] for event in events(run, "teacher")]
    assert told == [False, True, True]
    assert len(list((run.folder / "teacher").glob("*.safetensors"))) == 2


def test_without_room_for_large_features_the_teacher_runs(images: Task, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, rows: Any, count: int, _: Any = None) -> int:
        raise files.cannot_write(path, OSError(28, "No space left on device"), count)

    monkeypatch.setattr("mirabelle.training.teacher.KEPT", 1000)
    monkeypatch.setattr("mirabelle.run.files.write_rows", full)
    _, task = pair_for(Hint, images)
    assert task.teacher is not None
    given = guidance(task.teacher, task.train, run, layers=("coarse",), limit=10**9)
    batch = task.train.first(4)
    assert torch.equal(given(batch).features["coarse"], features_of(task.teacher, batch)["coarse"])
    (told,) = events(run, "teacher")
    assert not told["cached"]
    assert "No space left" in told["why"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_without_triples_has_no_angles(count: int, images: Task) -> None:
    student, task = pair_for(RKD, images)
    bound = (1.0 * RKD()).bind(student, task, task.example())
    loss = bound(bound.seen(student.eval(), task.train.first(count), task.teacher))
    loss.backward()
    assert torch.isfinite(loss)
    assert (float(loss.detach()) == 0.0) == (count < 3), "one distance is its own mean"


def test_tokens_that_a_mask_hides_teach_nothing() -> None:
    from mirabelle.objectives.projection import real_tokens

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    tokens, attention = torch.randn(2, 3, 5), torch.randn(2, 4, 3, 3)
    assert torch.equal(real_tokens(tokens, {"attention_mask": mask}), torch.stack([tokens[0, 0], tokens[0, 1], tokens[1, 0]]))
    rows = torch.stack([attention[0, :, 0], attention[0, :, 1], attention[1, :, 0]])
    assert torch.equal(real_tokens(attention, {"attention_mask": mask}), rows)
    assert real_tokens(tokens, tokens) is tokens


def test_relations_leave_out_the_tokens_that_a_mask_hides(images: Task) -> None:
    student, task = pair_for(TokenRelations, images)
    pixels = task.train.first(4).inputs
    batch = Batch({"pixels": pixels, "attention_mask": torch.arange(8).expand(4, 8) < 5}, torch.zeros(4))
    assert task.teacher is not None
    bound = TokenRelations(heads=2).bind(student, task, task.example())
    losses = []
    for changed in ([], [5, 6, 7], [4]):
        sides = [features_of(model, Batch(pixels, batch.targets)) for model in (student, task.teacher)]
        for name in bound.student_layers:
            sides[0][name][:, changed] += 7.0
        teacher = Forward(batch, pixels, features=sides[1])
        losses.append(float(bound(Forward(batch, pixels, teacher, sides[0]))))
    assert losses[0] == losses[1] != losses[2]


def test_contrast_begins_where_the_authors_does(images: Task) -> None:
    """With the sum of the first batch h(u) is 1 / (1 + M) for a product like any other, whatever the temperature."""
    student, task = pair_for(CRD, images)
    bound = (1.0 * CRD(negatives=64)).bind(student, task, task.example())
    loss = float(bound(bound.seen(student, task.train.first(16), task.teacher)).detach())
    assert 2 * 3 < loss < 2 * 12
