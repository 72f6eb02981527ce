"""Terms and losses over a selection of samples or tokens: what they are worth where nothing, one or some are selected."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, Training, objectives, prune
from mirabelle.distill import Guided
from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.objectives import (
    DKD,
    RKD,
    AttentionMaps,
    Forward,
    HiddenStates,
    SimilarityPreserving,
    SoftTargets,
    TaskLoss,
    Term,
    TokenRelations,
)
from mirabelle.objectives.decisions import Decisions
from mirabelle.scores import Fisher, Taylor
from mirabelle.scores.evidence import evidence_for
from mirabelle.task.batch import Batch
from mirabelle.task.loss import LOSSES, CrossEntropy, Loss
from mirabelle.training import fit
from students import pair_for

TERMS = [
    one
    for one in map(partial(getattr, objectives), objectives.__all__)
    if isinstance(one, type) and issubclass(one, Term) and dataclasses.is_dataclass(one) and not one.__abstractmethods__
]
OF_OUTPUTS = [kind() for kind in TERMS if issubclass(kind, Decisions) and kind is not DKD] + [SoftTargets(standardize=True)]
OF_TOKENS = [HiddenStates(), HiddenStates(distance="cosine"), AttentionMaps(), TokenRelations(heads=2)]
FEWEST = {SimilarityPreserving: 2, RKD: 3}  # samples that they compare with each other: below, every student is right
SAMPLES, TOKENS, CLASSES = 3, 4, 5
SELECTED = {
    "none": torch.zeros(SAMPLES, TOKENS, dtype=torch.bool),
    "one": torch.arange(SAMPLES * TOKENS).reshape(SAMPLES, TOKENS) == 6,
    "some": torch.arange(TOKENS) < torch.tensor([[4], [1], [0]]),
    "all": torch.ones(SAMPLES, TOKENS, dtype=torch.bool),
}
selections = pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)


def named(term: Term) -> str:
    settings = [str(value) for value in vars(term).values() if isinstance(value, str) or value is True]
    return "-".join([type(term).__name__, *settings])


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def backward(loss: Tensor, leaf: Tensor) -> Tensor:
    assert loss.shape == ()
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    return leaf.grad


def test_the_terms_are_all_here() -> None:
    assert {"TaskLoss", "SoftTargets", "CRD", "ReviewKD", "GroupLasso", "L2"} <= {kind.__name__ for kind in TERMS}
    assert len(OF_OUTPUTS) >= 8


@selections
@pytest.mark.parametrize("term", OF_OUTPUTS, ids=named)
def test_outputs_are_compared_at_labelled_tokens(term: Decisions, selected: Tensor) -> None:
    words = torch.zeros(SAMPLES, TOKENS, dtype=torch.long)
    targets = torch.where(selected, 2, UNLABELLED)
    task = Task(train=(words, targets), test=(words, targets), loss="token_cross_entropy").with_teacher(nn.Identity())
    batch = Batch(words, targets)
    bound = (1.0 * term).bind(nn.Identity(), task, batch)
    student = drawn(SAMPLES, TOKENS, CLASSES, seed=0).requires_grad_()
    teacher = drawn(SAMPLES, TOKENS, CLASSES, seed=1)
    found = bound(Forward(batch, student, Forward(batch, teacher)))
    gradient = backward(found, student)
    alone = [part.detach()[selected] for part in (student, teacher)]
    due = term.compare(*alone, batch, getattr(term, "temperature", 1.0)).item() if selected.any() else 0.0
    assert found.item() == pytest.approx(due, rel=1e-5)
    assert (gradient[~selected] == 0).all()
    assert bool((gradient != 0).any()) is bool(selected.any())
    assert (found.item() != 0) is bool(selected.any())


@selections
def test_soft_targets_of_some_tokens_are_what_numpy_says(selected: Tensor) -> None:
    words, targets = torch.zeros(SAMPLES, TOKENS, dtype=torch.long), torch.where(selected, 2, UNLABELLED)
    task = Task(train=(words, targets), test=(words, targets), loss="token_cross_entropy").with_teacher(nn.Identity())
    batch, logits = Batch(words, targets), [drawn(SAMPLES, TOKENS, CLASSES, seed=k) for k in (0, 1)]
    found = SoftTargets(temperature=2.0).bind(nn.Identity(), task, batch)(Forward(batch, logits[0], Forward(batch, logits[1])))
    q, p = (np.exp(part[selected].double().numpy() / 2) for part in logits)
    q, p = (powers / powers.sum(-1, keepdims=True) for powers in (q, p))
    due = 4 * (p * np.log(p / q)).sum() / max(len(p), 1)
    assert found.item() == pytest.approx(due, rel=1e-5)


def test_a_class_to_take_apart_is_needed_for_each_sample() -> None:
    inputs, targets = drawn(4, CLASSES, seed=0), torch.tensor([0, 1, UNLABELLED, 2])
    task = Task(train=(inputs, targets), test=(inputs, targets)).with_teacher(nn.Identity())
    batch = Batch(inputs, targets)
    with pytest.raises(UserError, match=r"E111.*some without a class"):
        DKD().bind(nn.Identity(), task, batch)(Forward(batch, inputs, Forward(batch, inputs)))


@selections
@pytest.mark.parametrize("term", OF_TOKENS, ids=named)
def test_layers_are_compared_at_real_tokens(term: Term, selected: Tensor, images: Task) -> None:
    """With the rows of an image as eight tokens; the same mask hides them for every layer."""
    student, task = pair_for(type(term), images)
    batch = task.train.first(SAMPLES)
    bound = (1.0 * term).bind(student, task, batch)
    seen = bound.seen(student, batch, task.teacher)
    real = selected.repeat(1, 2)
    seen = dataclasses.replace(seen, batch=Batch({"attention_mask": real.long()}, batch.targets))
    found = bound(seen)
    assert found.isfinite()
    assert (found.item() != 0) is bool(real.any())
    gradients = torch.autograd.grad(found, list(student.parameters()), allow_unused=True)
    given = [gradient for gradient in gradients if gradient is not None]
    assert given
    assert all(bool(gradient.isfinite().all()) for gradient in given)
    assert any(bool((gradient != 0).any()) for gradient in given) is bool(real.any())
    if isinstance(term, HiddenStates):
        own, theirs = (side.features for side in (seen, seen.teacher))  # type: ignore[union-attr]
        parts = []
        for pair, project in zip(bound.terms[0].pairs, bound.terms[0].projectors, strict=True):
            one, other = project(own[pair.student.name])[real], theirs[pair.teacher.name][real]
            rows = (one - other).square().mean(-1) if term.distance == "mse" else 1 - F.cosine_similarity(one, other, dim=-1)
            parts.append(rows.sum().item() / max(len(rows), 1))
        assert found.item() == pytest.approx(sum(parts) / len(parts), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_a_batch_may_have_a_single_sample(kind: type[Term], count: int, images: Task) -> None:
    student, task = pair_for(kind, images)
    batch = task.train.first(count)
    bound = (1.0 * kind()).bind(student, task, task.example())
    found = bound(bound.seen(student.eval(), batch, task.teacher.eval()))  # type: ignore[union-attr]
    assert found.isfinite()
    assert (found.item() > 0) is (count >= FEWEST.get(kind, 1))
    found.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_one_sample_has_no_correlation_with_others() -> None:
    """What remains is one minus the correlation over its classes."""
    one, other = drawn(1, CLASSES, seed=0), drawn(1, CLASSES, seed=1)
    q, p = (part.double().softmax(-1).numpy()[0] for part in (one, other))
    found = objectives.DIST(beta=1.0, gamma=1.0).compare(one, other, Batch(one, torch.zeros(1)), 1.0)
    assert found.item() == pytest.approx(1 - np.corrcoef(q, p)[0, 1], rel=1e-5)


def own_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


OF_CLASSES: dict[str, Loss] = {
    "cross_entropy": LOSSES["cross_entropy"],
    "weights": CrossEntropy(weights=(1.0, 0.0, 2.0, 0.5, 1.0)),
    "nn": nn.CrossEntropyLoss(label_smoothing=0.1),
    "nn with weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])),
    "functional": partial(F.nll_loss),
    "own": own_cross_entropy,
}


@pytest.mark.parametrize("counted", [0, 1, 3])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_the_loss_of_a_task_is_the_mean_over_its_labels(name: str, counted: int) -> None:
    inputs, targets = drawn(6, CLASSES, seed=0).log_softmax(-1), torch.tensor([2, 4, 3, 0, 2, 2])
    given = targets.clone()
    given[counted:] = UNLABELLED
    if "weights" in name:
        given[counted:] = 1  # a class of weight 0
    task = Task(train=(inputs, targets), test=(inputs, targets), loss=OF_CLASSES[name], outputs_are="classes")
    student = inputs.clone().requires_grad_()
    batch = Batch(inputs, given)
    found = TaskLoss().bind(nn.Identity(), task, batch)(Forward(batch, student))
    gradient = backward(found, student)
    known = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0]) if "weights" in name else torch.ones(CLASSES)
    logs, weights = inputs.double().numpy(), known.double().numpy()[targets[:counted].numpy()]
    smoothing = 0.1 if name == "nn" else 0.0
    rows = [-(1 - smoothing) * logs[k, targets[k]] - smoothing * logs[k].mean() for k in range(counted)]
    due = float(np.dot(rows, weights) / weights.sum()) if counted else 0.0
    assert found.item() == pytest.approx(due, rel=1e-5)
    assert (gradient[counted:] == 0).all()
    assert bool((gradient[:counted] != 0).any()) is bool(counted)


@pytest.mark.parametrize("counted", [0, 1, 2])
def test_losses_of_tokens_spans_and_labels_over_what_is_labelled(counted: int) -> None:
    outputs = drawn(2, 4, 3, seed=2)
    tokens = torch.full((2, 4), UNLABELLED)
    tokens[0, :counted] = 1
    due = -sum(float(outputs[0, k].log_softmax(-1)[1]) for k in range(counted)) / max(counted, 1)
    leaf = outputs.clone().requires_grad_()
    found = LOSSES["token_cross_entropy"](leaf, tokens)
    assert found.item() == pytest.approx(due, rel=1e-5)
    assert bool((backward(found, leaf) != 0).any()) is bool(counted)
    spans = torch.full((2, 2), UNLABELLED)
    spans[:counted] = torch.tensor([1, 2])
    ends = [float(outputs[k, :, end].log_softmax(-1)[place]) for k in range(counted) for end, place in ((0, 1), (1, 2))]
    leaf = outputs[..., :2].clone().requires_grad_()
    found = LOSSES["span"](leaf, spans)
    assert found.item() == pytest.approx(-sum(ends) / max(len(ends), 1), rel=1e-5)
    assert bool((backward(found, leaf) != 0).any()) is bool(counted)
    labels = torch.full((4,), float(UNLABELLED))
    labels[:counted] = 1.0
    leaf = outputs[0, :, 0].clone().requires_grad_()
    found = LOSSES["binary_cross_entropy"](leaf, labels)
    yes = [-math.log(float(outputs[0, k, 0].sigmoid())) for k in range(counted)]
    assert found.item() == pytest.approx(sum(yes) / max(counted, 1), rel=1e-5)
    assert bool((backward(found, leaf) != 0).any()) is bool(counted)


@pytest.fixture
def tagging() -> Task:
    """Tags of six tokens; forty of sixty-four sentences have none."""
    words = torch.randint(0, 20, (64, 6), generator=torch.Generator().manual_seed(0))
    tags = words % 5
    tags[:40] = UNLABELLED
    return Task(
        train=(words, tags), validation=(words[40:], tags[40:]), test=(words[40:], tags[40:]), loss="token_cross_entropy"
    )


def tagger(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.parametrize("term", OF_OUTPUTS, ids=named)
def test_a_training_goes_through_batches_without_a_label(term: Term, tagging: Task, run: Run) -> None:
    objective = 0.9 * term + 0.1 * TaskLoss()
    training = Training(epochs=2, batch_size=2, lr=0.01, precision="float32", objective=objective)
    trained = fit(tagger(), tagging.with_teacher(tagger(1)), training, run)
    assert all(bool(parameter.isfinite().all()) for parameter in trained.parameters())


def test_a_whole_run_goes_through_batches_without_a_label(tagging: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5, train=Training(epochs=8, batch_size=2, lr=0.02))]
    result = mirabelle.compress(tagger(), tagging, steps, out=tmp_path, baseline=Training(epochs=8, batch_size=2, lr=0.02))
    assert result.profile.metric is not None
    assert result.profile.metric.value > 0.8, "the labelled sentences teach as they do alone"


def test_a_loop_of_ones_own_gets_zero_for_a_batch_without_a_label(tagging: Task) -> None:
    assert isinstance(tagging.train, mirabelle.task.Samples)
    example = tagging.train.inputs[40:44], tagging.train.targets[40:44]
    student, nobody = tagger(), tagging.train.first(4)
    with Guided(
        student, tagger(1), 0.9 * SoftTargets() + 0.1 * TaskLoss(), example, loss=LOSSES["token_cross_entropy"]
    ) as loss:
        for count in (None, 0, torch.tensor(0), 12):
            found = loss(student(nobody.inputs), nobody.targets, num_items_in_batch=count)
            found.backward()
            assert found.item() == 0
    assert all(parameter.grad is not None and bool((parameter.grad == 0).all()) for parameter in student.parameters())


def test_gradients_as_evidence_come_from_the_labelled_samples(tagging: Task) -> None:
    model, drawn_samples = tagger(), tagging.train.drawn(50, 0)
    due = torch.autograd.grad(tagging.loss(model(drawn_samples.inputs), drawn_samples.targets), model[1].weight)[0]
    found = evidence_for(Taylor(samples=50), model, tagging)["1.weight"].gradient
    assert due.any()
    torch.testing.assert_close(found, due)
    squares = torch.zeros_like(due)
    for k in (drawn_samples.targets != UNLABELLED).any(1).nonzero().flatten().tolist():
        one = drawn_samples.at(torch.tensor([k]))
        squares += torch.autograd.grad(tagging.loss(model(one.inputs), one.targets), model[1].weight)[0].square() / 50
    torch.testing.assert_close(evidence_for(Fisher(samples=50), model, tagging)["1.weight"].squared_gradient, squares)
