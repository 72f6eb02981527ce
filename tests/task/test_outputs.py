"""What outputs are is said in one place, and everyone who has to know agrees with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.artifact.prediction import Predictor
from mirabelle.inspection.measure import exported
from mirabelle.objectives import SoftTargets, TaskLoss
from mirabelle.task.loss import LOSSES, CrossEntropy, Loss, Matching
from mirabelle.task.outputs import DEFAULTS, Form, OutputKind, form_of_targets
from mirabelle.training import default_objective
from mirabelle.training.teacher_targets import answer

NAMES = ("red", "round", "ripe")
X = torch.randn(40, 3)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten() - targets.flatten()[: outputs.numel()]).mean()


@pytest.mark.parametrize(
    ("loss", "form", "axis", "activation", "one"),
    [
        (LOSSES["cross_entropy"], Form.CLASSES, 1, "Softmax", True),
        (LOSSES["token_cross_entropy"], Form.CLASSES, -1, "Softmax", True),
        (CrossEntropy(weights=(1.0, 2.0)), Form.CLASSES, 1, "Softmax", True),
        (LOSSES["binary_cross_entropy"], Form.LABELS, None, "Sigmoid", True),
        (LOSSES["mse"], Form.NUMBERS, None, None, True),
        (LOSSES["mae"], Form.NUMBERS, None, None, True),
        (LOSSES["huber"], Form.NUMBERS, None, None, True),
        (LOSSES["span"], Form.SPAN, 1, "Softmax", True),
        (LOSSES["ctc"], Form.SYMBOLS, None, None, True),
        (LOSSES["matching"], Form.MATCHED, None, None, False),
        (Matching((1.0, 2.0)), Form.MATCHED, None, None, False),
        (own_loss, Form.UNKNOWN, None, None, False),
    ],
)
def test_each_loss_says_what_it_takes_outputs_for(loss: Loss, form: Form, axis: int | None, activation: Any, one: bool) -> None:
    kind = OutputKind.of_loss(loss)
    assert kind == OutputKind(form, axis, activation)
    told = {"classes": "last"} if axis == -1 else {}
    assert (kind.classifies, kind.takes_one_output, kind.metadata) == (axis is not None, one, told)


def test_every_loss_by_name_is_known() -> None:
    assert Form.UNKNOWN not in {OutputKind.of_loss(loss).form for loss in LOSSES.values()}


@pytest.mark.parametrize(
    ("targets", "labels", "form"),
    [
        (torch.zeros(9, dtype=torch.long), NAMES, Form.CLASSES),
        (torch.zeros(9, 3), NAMES, Form.LABELS),
        (torch.zeros(9), (), Form.NUMBERS),
        (torch.zeros(9, 3), (), Form.NUMBERS),
        (torch.zeros(9, 0), (), Form.MATCHED),
    ],
)
def test_targets_without_a_loss_get_the_loss_of_their_form(targets: Tensor, labels: tuple[str, ...], form: Form) -> None:
    assert form_of_targets(targets, labels) is form
    assert OutputKind.of_loss(LOSSES[DEFAULTS[form][0]]).form is form


@pytest.mark.parametrize(
    ("targets", "labels", "multi_label"),
    [
        (torch.zeros(9, 3), NAMES, True),
        (torch.zeros(9, 3), (), False),
        (torch.zeros(9, 2), NAMES, False),
        (torch.zeros(9, 3, dtype=torch.long), NAMES, True),
        (torch.zeros(9), NAMES[:1], True),
        (torch.zeros(9), NAMES[:2], False),
    ],
)
def test_named_columns_are_labels(targets: Tensor, labels: tuple[str, ...], multi_label: bool) -> None:
    kind = OutputKind.of_task(LOSSES["binary_cross_entropy"], targets, labels)
    assert (kind.multi_label, kind.metadata) == (multi_label, {"decision": "several"} if multi_label else {})


@pytest.mark.parametrize(
    ("shapes", "axis"), [([(8, 10)], 1), ([(8,)], None), ([(8, 5, 10)], None), ([(8, 10), (8, 4)], None), ([], None)]
)
def test_shapes_alone_show_scores_of_one_class(shapes: list[tuple[int, ...]], axis: int | None) -> None:
    assert OutputKind.of_shapes(shapes).classes_axis == axis


@pytest.mark.parametrize(
    ("labels", "metadata", "operators", "shape", "due"),
    [
        ((), {}, {"Gemm"}, (3,), (Form.NUMBERS, None)),
        (NAMES, {}, {"Gemm"}, (3,), (Form.CLASSES, "Softmax")),
        (NAMES, {}, {"Softmax"}, (3,), (Form.CLASSES, None)),
        (NAMES, {"decision": "several"}, {"Gemm"}, (3,), (Form.LABELS, "Sigmoid")),
        (NAMES, {"decision": "several"}, {"Sigmoid"}, (3,), (Form.LABELS, None)),
        (NAMES, {"decision": "several"}, {"Softmax"}, (3,), (Form.LABELS, "Sigmoid")),
        (("", "a"), {}, {"Gemm"}, (20, 2), (Form.SYMBOLS, None)),
        (("", "a"), {}, {"Gemm"}, (2,), (Form.CLASSES, "Softmax")),
        (NAMES, {"classes": "last"}, {"Gemm"}, (3, 3), (Form.CLASSES, "Softmax")),
    ],
)
def test_a_file_says_what_its_outputs_are(
    labels: tuple[str, ...],
    metadata: dict[str, str],
    operators: set[str],
    shape: tuple[int, ...],
    due: tuple[Form, str | None],
) -> None:
    kind = OutputKind.of_file(labels, metadata, operators, shape)
    assert (kind.form, kind.activation) == due
    assert (kind.classes_axis == -1) == ("classes" in metadata)


@pytest.mark.parametrize(
    ("kind", "due"),
    [
        (OutputKind(Form.CLASSES, 1, "Softmax"), lambda scores: torch.softmax(scores, 0)),
        (OutputKind(Form.LABELS, None, "Sigmoid"), torch.sigmoid),
        (OutputKind(Form.CLASSES, 1), lambda scores: scores),
    ],
)
def test_probabilities_are_those_of_torch(kind: OutputKind, due: Any) -> None:
    scores = torch.tensor([-800.0, 0.3, 2.0, 700.0], dtype=torch.float64)
    np.testing.assert_allclose(kind.probabilities(scores.numpy()), due(scores).numpy(), rtol=1e-12)


def test_the_highest_score_is_chosen_along_the_axis_of_the_classes() -> None:
    outputs = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    second, last = OutputKind(Form.CLASSES, 1), OutputKind(Form.CLASSES, -1)
    assert torch.equal(second.chosen(outputs), outputs.argmax(1))
    assert np.array_equal(last.chosen(outputs.numpy()), outputs.numpy().argmax(-1))
    assert second.with_classes_last(outputs).shape == (4, 6, 5)
    assert last.with_classes_last(outputs).shape == (4, 5, 6)
    assert second.with_classes_last(outputs[:, :, 0]).shape == (4, 5)


CASES: dict[str, tuple[Tensor, tuple[str, ...], str | None]] = {
    "classes": (torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(0)), NAMES, "cross_entropy"),
    "labels": (torch.rand(40, 3).round(), NAMES, "binary_cross_entropy"),
    "numbers": (torch.randn(40, 3), (), "mse"),
}


@pytest.mark.parametrize("case", CASES)
def test_objective_teacher_file_and_prediction_agree(case: str, tmp_path: Path) -> None:
    targets, labels, loss = CASES[case]
    metric = DEFAULTS[Form(case)][1]
    task = Task(train=(X, targets), test=(X, targets), loss=loss, metric=metric, labels=labels)
    model = nn.Sequential(nn.Linear(3, 3))
    guided = task.with_teacher(model)
    assert task.outputs.form is Form(case)
    terms = {type(term) for _, term in default_objective(guided).terms}
    assert terms == ({SoftTargets, TaskLoss} if task.outputs.classifies else {TaskLoss})
    if task.outputs.classifies:
        assert torch.equal(answer(guided, task.example()), model(task.example().inputs).argmax(1))

    data = exported(model, task).onnx
    stored = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    assert json.loads(stored.get("labels", "[]")) == list(labels)
    assert {key: value for key, value in stored.items() if key == "decision"} == task.outputs.metadata
    (tmp_path / "model.onnx").write_bytes(data)
    np.save(tmp_path / "x.npy", X[:1].numpy())
    (found,) = Predictor(tmp_path / "model.onnx")([tmp_path / "x.npy"])
    scores = model(X[0]).detach()
    if case == "numbers":
        np.testing.assert_allclose(found.outputs, scores.numpy(), rtol=1e-5, atol=1e-6)
        return
    shares = scores.softmax(0) if case == "classes" else scores.sigmoid()
    given = {choice.label: choice.probability for choice in found.top}
    np.testing.assert_allclose([given[name] for name in NAMES], shares.numpy(), rtol=1e-4)
    assert (found.multi_label is not None) == task.outputs.multi_label
