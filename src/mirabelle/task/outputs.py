"""The meaning of a model's outputs and of the targets of its task, decided in this one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.decisions import Decisions, of_classes, of_labels
from mirabelle.numerics.metrics import constant_numbers
from mirabelle.numerics.target_shapes import CLASS_SCORES
from mirabelle.task.loss import (
    CrossEntropy,
    Loss,
    Matching,
    Standardized,
    TorchLoss,
    binary_cross_entropy,
    cross_entropy,
    ctc,
    huber,
    mae,
    mse,
    span,
)
from mirabelle.task.torch_losses import known_loss

Array = npt.NDArray[Any]
Given = TypeVar("Given", Tensor, Array)
Outputs: TypeAlias = Any  # a tensor, or a tuple of tensors
_FRAMES = 2  # dimensions of a sample of CTC: frames, symbols
_SEVERAL = "several"  # value of the metadata "decision" in a multi-label file
_PROBABILITIES = "probabilities"  # value of the metadata "scores" in a file whose outputs are no logits
_LAST = "last"  # value of the metadata "classes" in a file with the classes in the last axis
_TWO = 2  # names of the answers of a single output
OutputsAre = Literal["classes", "classes_last", "labels", "numbers"]


class Form(Enum):
    """The meaning of outputs, as far as loss and data determine it, or the user says it.

    CLASSES: logits of mutually exclusive classes, for each sample or for each of its positions.
    LABELS: logits of independent labels, or of a single one: yes or no.
    NUMBERS: quantities (regression).
    SPAN: logits of each token to be the first, and the last, of a span, (batch, tokens, 2).
    SYMBOLS: logits of symbols in each frame for CTC, (batch, frames, symbols); symbol 0 is the blank.
    MATCHED: outputs to be matched with those of another model for the same inputs, in one or several tensors.
    UNKNOWN: unknown outputs, for example of a loss of the user.
    """

    CLASSES = "classes"
    LABELS = "labels"
    NUMBERS = "numbers"
    SPAN = "span"
    SYMBOLS = "symbols"
    MATCHED = "matched"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class OutputKind:
    """The meaning of outputs and of the targets that belong to them.

    Args:
        form: classes, labels, numbers or another form of outputs.
        classes_axis: the dimension of the class scores in a batch of outputs, 1 or −1; None if the outputs are no class scores.
        activation: the function from outputs to probabilities, by its name in ONNX; None if the outputs are probabilities
            already, or none.
        multi_label: whether the output of a sample has one value for each named label, independent of the others.

    Example:
        >>> kind = OutputKind.of_loss(CrossEntropy(classes_last=True))
        >>> kind.form.value, kind.classes_axis, kind.activation
        ('classes', -1, 'Softmax')
    """

    form: Form
    classes_axis: int | None = None
    activation: Literal["Softmax", "Sigmoid"] | None = None
    multi_label: bool = False

    @staticmethod
    def of_loss(loss: Loss) -> OutputKind:
        """The meaning of the outputs that a loss takes, also for losses of torch."""
        loss = known_loss(loss).loss
        if isinstance(loss, CrossEntropy):
            return OutputKind(Form.CLASSES, -1 if loss.classes_last else 1, "Softmax")
        if isinstance(loss, Standardized):
            return OutputKind(Form.NUMBERS)
        if isinstance(loss, Matching):
            return OutputKind(Form.MATCHED)
        if isinstance(loss, TorchLoss):
            return _BY_NAME[loss.name]
        return next((kind for known, kind in _BY_LOSS if known is loss), OutputKind(Form.UNKNOWN))

    @staticmethod
    def of_task(loss: Loss, targets: Tensor, labels: Sequence[str], said: OutputsAre | None = None) -> OutputKind:
        """The meaning of the outputs of a task's model.

        Args:
            loss: loss of the task.
            targets: targets of its data, (samples, ...).
            labels: names of the classes, or of the columns of multi-label targets.
            said: what the user says about the outputs; needed where the loss is the user's own.

        Raises:
            UserError: E111 if the loss takes outputs of another kind than the user says.
        """
        kind = OutputKind.of_loss(loss)
        if said is not None:
            due = _SAID[said]
            if kind.form is not Form.UNKNOWN and (kind.form, kind.classes_axis) != (due.form, due.classes_axis):
                message = f'outputs_are = "{said}", but the loss takes {_words(kind)}'
                raise UserError("E111", message, "leave `outputs_are` out, or name another loss")
            kind = due if kind.form is Form.UNKNOWN else kind
        columns = list(targets.shape[1:]) or [1]
        return replace(kind, multi_label=kind.form is Form.LABELS and bool(labels) and columns == [len(labels)])

    @staticmethod
    def of_pair(outputs: Outputs, targets: Tensor, *, certain: bool = False) -> OutputKind:
        """The meaning of logits of classes or labels of which only the shapes, and the targets, are known.

        Classes are in the last dimension; in dimension 1 if only that fits the targets.

        Args:
            outputs: (samples, ...).
            targets: (samples, ...).
            certain: refuse what shapes leave open.

        Raises:
            UserError: E131 if the shapes do not fit, or, if `certain`, allow for several meanings.
        """
        _check_one_output(outputs)
        last, second = (targets.shape == outputs.movedim(axis, -1).shape[:-1] for axis in (-1, min(1, outputs.dim() - 1)))
        whole = outputs.dim() == CLASS_SCORES and outputs.shape[1] > 1 and targets.numel() == len(targets)
        axis = -1 if whole or last else 1
        if not targets.is_floating_point() and outputs.dim() > 1 and (last or second or whole) and outputs.shape[axis] > 1:
            if not certain or whole or last != second:
                return OutputKind(Form.CLASSES, axis, "Softmax")
        elif not certain:
            return OutputKind(Form.LABELS, None, "Sigmoid")
        shapes = f"outputs of {tuple(outputs.shape)} and targets of {targets.dtype} {tuple(targets.shape)}"
        raise UserError(
            "E131",
            f"the loss does not say what {shapes} are",
            'say it: Task(outputs_are="classes"), "classes_last", "labels" or "numbers"',
        )

    @staticmethod
    def of_shapes(shapes: Sequence[Sequence[int]]) -> OutputKind:
        """The meaning of outputs of which only the shapes are known: a single output (batch, numbers) counts as class scores.

        Args:
            shapes: shape of each output of a model, with the batch dimension.

        Example:
            >>> OutputKind.of_shapes([(8, 10)]).classes_axis, OutputKind.of_shapes([(8, 10), (8, 4)]).classes_axis
            (1, None)
        """
        scores = [len(shape) for shape in shapes] == [CLASS_SCORES]
        return OutputKind(Form.CLASSES, 1) if scores else OutputKind(Form.UNKNOWN)

    @staticmethod
    def of_file(
        labels: Sequence[str], metadata: Mapping[str, str], last_operators: set[str], shape: Sequence[int]
    ) -> OutputKind:
        """The meaning of an output of a deployed file.

        Args:
            labels: label names stored in the file; a first name "" is the blank of CTC.
            metadata: metadata of the file.
            last_operators: types of the operators that compute the output.
            shape: shape of the output of one sample.

        Example:
            >>> OutputKind.of_file(("", "a"), {}, {"Add"}, (20, 2)).form, OutputKind.of_file(("a", "b"), {}, {"Add"}, (2,)).form
            (<Form.SYMBOLS: 'symbols'>, <Form.CLASSES: 'classes'>)
        """
        if not labels:
            return OutputKind(Form.NUMBERS)
        if labels[0] == "" and len(shape) == _FRAMES and shape[1] == len(labels):
            return OutputKind(Form.SYMBOLS)
        several, one = metadata.get("decision") == _SEVERAL, len(labels) == _TWO and list(shape) in ([], [1])
        yes_or_no = OutputKind(Form.LABELS, None, "Sigmoid", multi_label=several)
        last = metadata.get("classes") == _LAST and len(shape) > 1 and shape[-1] == len(labels)
        axis = -1 if last else _axis_of_classes(shape, len(labels))
        kind = yes_or_no if several or one else OutputKind(Form.CLASSES, axis, "Softmax")
        done = kind.activation in last_operators or metadata.get("scores") == _PROBABILITIES
        return replace(kind, activation=None) if done else kind

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that a file stores about its outputs in addition to their labels; `of_file` reads them."""
        probabilities = self.form in (Form.CLASSES, Form.LABELS) and self.activation is None
        decision = {"decision": _SEVERAL} if self.multi_label else {}
        axis = {"classes": _LAST} if self.form is Form.CLASSES and self.classes_axis == -1 else {}
        return decision | axis | ({"scores": _PROBABILITIES} if probabilities else {})

    @property
    def classifies(self) -> bool:
        """Whether the outputs are class scores, so that soft targets of a teacher are defined."""
        return self.classes_axis is not None

    @property
    def takes_one_output(self) -> bool:
        """Whether the model must have a single output."""
        return self.form not in (Form.MATCHED, Form.UNKNOWN)

    def chosen(self, outputs: Given) -> Given:
        """The class with the highest score: the argmax of the outputs over the axis of the classes."""
        assert self.classes_axis is not None, "the outputs must be class scores"
        highest: Given = outputs.argmax(self.classes_axis)
        return highest

    def with_classes_last(self, outputs: Tensor) -> Tensor:
        """Outputs (batch, ..., classes); unchanged if the classes are last already, or if there are none."""
        return outputs.movedim(1, -1) if self.classes_axis == 1 and outputs.dim() > CLASS_SCORES else outputs

    def decisions(self, outputs: Outputs, targets: Tensor) -> Decisions:
        """Outputs and targets in the form that metrics of classes and labels take.

        | form | outputs | targets |
        |---|---|---|
        | classes, axis 1 | (N, C), (N, C, ...) | class indices, (N), (N, ...) |
        | classes, axis −1 | (N, C), (N, ..., C) | class indices, (N), (N, ...) |
        | labels | (N), (N, 1), (N, L), (N, L, ...), (N, 1, ...), (N, T, 1) | 0 and 1 of any type, as outputs or without 1 |

        Targets of −100 are left out.

        Args:
            outputs: logits, or probabilities if `activation` is None.
            targets: targets of all samples.

        Raises:
            UserError: E131 for other forms, shapes or types; E132 for targets that are no class, or neither 0 nor 1.
        """
        _check_one_output(outputs)
        kind = OutputKind.of_pair(outputs, targets, certain=True) if self.form is Form.UNKNOWN else self
        if kind.form is Form.LABELS:
            return of_labels(outputs, targets, logits=kind.activation is not None)
        if kind.form is not Form.CLASSES or kind.classes_axis is None:
            raise UserError("E131", f"the outputs are {_words(kind)}, not scores of classes or labels", "name another metric")
        return of_classes(outputs, targets, kind.classes_axis)

    def probabilities(self, outputs: Array) -> Array:
        """The probabilities of one sample from its outputs, as float64; probabilities stay unchanged.

        A single output of yes or no gives those of both, (2,).
        """
        scores = outputs.astype(np.float64)
        if self.form is Form.LABELS:
            yes = scores if self.activation is None else np.exp(-np.logaddexp(0.0, -scores))
            return yes if self.multi_label or yes.size > 1 else np.concatenate([1 - yes.reshape(-1), yes.reshape(-1)])
        if self.activation is None:
            return outputs
        powers: Array = np.exp(scores - scores.max())
        shares: Array = powers / powers.sum()
        return shares


def _axis_of_classes(shape: Sequence[int], classes: int) -> int | None:
    """The axis of the classes in a batch of outputs, from the shape of one sample; None if both or neither can be."""
    first, last = shape[:1] == (classes,), shape[-1:] == (classes,)
    return 1 if len(shape) == 1 or (first and not last) else -1 if last and not first else None


def _check_one_output(outputs: Outputs) -> None:
    if not isinstance(outputs, Tensor):
        message = f"metrics of classes and labels take one output; the model has {len(outputs)}"
        raise UserError("E131", message, "name a loss and a metric that take a tuple of outputs, or wrap the model")


def _words(kind: OutputKind) -> str:
    last = " in the last axis" if kind.classes_axis == -1 else ""
    return {
        Form.CLASSES: f"scores of classes{last}",
        Form.LABELS: "scores of labels, each yes or no",
        Form.NUMBERS: "numbers",
        Form.SPAN: "scores of the ends of a span",
        Form.SYMBOLS: "scores of symbols",
        Form.MATCHED: "outputs to be matched",
        Form.UNKNOWN: "not known",
    }[kind.form]


def form_of_targets(targets: Tensor, labels: Sequence[str]) -> Form:
    """The form of the outputs that fit the targets of data.

    Args:
        targets: (samples, ...); (samples, 0) for data without labels. Integers are classes, also of pixels.
        labels: names of the classes, or of the columns of multi-label targets; empty for regression.

    Example:
        >>> import torch
        >>> form_of_targets(torch.zeros(9, 3), ("red", "round", "ripe")).value, form_of_targets(torch.zeros(9, 3), ()).value
        ('labels', 'numbers')
    """
    if targets.shape[1:] == (0,):
        return Form.MATCHED
    if not labels:
        return Form.NUMBERS
    return Form.LABELS if targets.ndim > 1 and targets.is_floating_point() else Form.CLASSES


def default_form(targets: Tensor, labels: Sequence[str]) -> Form:
    """The form of outputs for targets of which nothing else is said: integers are classes, floating-point numbers quantities.

    Args:
        targets: (samples, ...); (samples, 0) for data without labels.
        labels: names; of the columns of floating-point targets, or of the two answers of a single column, they make labels.

    Example:
        >>> import torch
        >>> default_form(torch.zeros(9, 1), ()).value, default_form(torch.zeros(9, dtype=torch.long), ()).value
        ('numbers', 'classes')
    """
    if targets.shape[1:] == (0,) or not targets.is_floating_point():
        return Form.MATCHED if targets.shape[1:] == (0,) else Form.CLASSES
    columns = targets.numel() // len(targets)
    return Form.LABELS if labels and (columns == len(labels) or (columns == 1 and len(labels) == _TWO)) else Form.NUMBERS


DEFAULTS: Mapping[Form, tuple[str, str]] = {
    Form.CLASSES: ("cross_entropy", "accuracy"),
    Form.LABELS: ("binary_cross_entropy", "f1"),
    Form.NUMBERS: ("mse", "r2"),
    Form.MATCHED: ("matching", "fidelity"),
}  # names of the default loss and metric


def default_metric(kind: OutputKind, *evaluated: Tensor) -> str:
    """The name of the metric of a task that names none.

    It is accuracy for classes and for a single label, F1 for several. For numbers it is r², which has no unit, so that a drop
    of "1pt" means the same for every task; where a target does not vary, r² is not defined, and it is the negative squared
    error.

    Args:
        kind: the meaning of the outputs.
        evaluated: targets of the data that are evaluated.

    Raises:
        UserError: E111 for floating-point targets of outputs that are not known: numbers, labels, logarithms of rates, ….
    """
    form = kind.form
    if form is Form.UNKNOWN:
        if evaluated[0].is_floating_point():
            message = "the loss is not known, so it does not say what the outputs are, nor which metric fits them"
            raise UserError("E111", message, 'say it: Task(outputs_are="numbers") or "labels"; or name a metric')
        form = Form.CLASSES
    if form is Form.LABELS:
        return "accuracy" if evaluated[0].numel() == len(evaluated[0]) else "f1"
    if form is Form.NUMBERS:
        return _WITH_UNIT if any(constant_numbers(targets) for targets in evaluated) else "r2"
    return _METRICS.get(form) or DEFAULTS[form][1]


_WITH_UNIT = "negative_squared_error"
_METRICS = {Form.SPAN: "span_f1", Form.SYMBOLS: "character_accuracy"}  # of losses that are never the default
_SAID: Mapping[str, OutputKind] = {
    "classes": OutputKind(Form.CLASSES, 1, "Softmax"),
    "classes_last": OutputKind(Form.CLASSES, -1, "Softmax"),
    "labels": OutputKind(Form.LABELS, None, "Sigmoid"),
    "numbers": OutputKind(Form.NUMBERS),
}
_BY_NAME: Mapping[str, OutputKind] = {
    "cross_entropy": _SAID["classes"],
    "nll_loss": _SAID["classes"],  # the softmax of log-probabilities is that of the logits
    "binary_cross_entropy_with_logits": _SAID["labels"],
    "binary_cross_entropy": OutputKind(Form.LABELS),
    "mse_loss": _SAID["numbers"],
    "l1_loss": _SAID["numbers"],
    "huber_loss": _SAID["numbers"],
    "smooth_l1_loss": _SAID["numbers"],
}  # losses of torch
_BY_LOSS: tuple[tuple[Loss, OutputKind], ...] = (
    (cross_entropy, OutputKind(Form.CLASSES, 1, "Softmax")),
    (binary_cross_entropy, OutputKind(Form.LABELS, None, "Sigmoid")),
    (mse, OutputKind(Form.NUMBERS)),
    (mae, OutputKind(Form.NUMBERS)),
    (huber, OutputKind(Form.NUMBERS)),
    (span, OutputKind(Form.SPAN, 1, "Softmax")),
    (ctc, OutputKind(Form.SYMBOLS)),
)
