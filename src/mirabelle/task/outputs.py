"""The meaning of a model's outputs and of the targets of its task, decided in this one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.target_shapes import CLASS_SCORES
from mirabelle.task.loss import CrossEntropy, Loss, Matching, binary_cross_entropy, ctc, huber, mae, mse, span

Array = npt.NDArray[Any]
Given = TypeVar("Given", Tensor, Array)
_FRAMES = 2  # dimensions of a sample of CTC: frames, symbols
_SEVERAL = "several"  # value of the metadata "decision" in a multi-label file


class Form(Enum):
    """The meaning of outputs, as far as the loss determines it.

    CLASSES: logits of mutually exclusive classes, for each sample or for each of its positions.
    LABELS: logits of independent labels (multi-label classification).
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
        activation: the function from outputs to probabilities, by its name in ONNX; None if there is none or it is unknown.
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
        """The meaning of the outputs that a loss takes."""
        if isinstance(loss, CrossEntropy):
            return OutputKind(Form.CLASSES, -1 if loss.classes_last else 1, "Softmax")
        if isinstance(loss, Matching):
            return OutputKind(Form.MATCHED)
        return next((kind for known, kind in _BY_LOSS if known is loss), OutputKind(Form.UNKNOWN))

    @staticmethod
    def of_task(loss: Loss, targets: Tensor, labels: Sequence[str]) -> OutputKind:
        """The meaning of the outputs of a task's model.

        Args:
            loss: loss of the task.
            targets: targets of its data, (samples, ...).
            labels: names of the classes, or of the columns of multi-label targets.
        """
        kind = OutputKind.of_loss(loss)
        named = bool(labels) and targets.is_floating_point() and targets.shape[1:] == (len(labels),)
        return replace(kind, multi_label=named)

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
        several = metadata.get("decision") == _SEVERAL
        kind = OutputKind(Form.LABELS, None, "Sigmoid", multi_label=True) if several else OutputKind(Form.CLASSES, 1, "Softmax")
        return replace(kind, activation=None) if kind.activation in last_operators else kind

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that a file stores about its outputs in addition to their labels; `of_file` reads them."""
        return {"decision": _SEVERAL} if self.multi_label else {}

    @property
    def classifies(self) -> bool:
        """Whether the outputs are class scores, so that soft targets of a teacher are defined."""
        return self.classes_axis is not None

    @property
    def takes_one_output(self) -> bool:
        """Whether the model must have a single output."""
        return self.form not in (Form.MATCHED, Form.UNKNOWN)

    def scores_one_class(self, outputs: Tensor | tuple[Tensor, ...]) -> bool:
        """Whether these outputs are the class scores of whole samples, (batch, classes)."""
        return self.classifies and isinstance(outputs, Tensor) and outputs.dim() == CLASS_SCORES

    def chosen(self, outputs: Given) -> Given:
        """The class with the highest score: the argmax of the outputs over the axis of the classes."""
        assert self.classes_axis is not None, "the outputs must be class scores"
        highest: Given = outputs.argmax(self.classes_axis)
        return highest

    def with_classes_last(self, outputs: Tensor) -> Tensor:
        """Outputs (batch, ..., classes); unchanged if the classes are last already, or if there are none."""
        return outputs.movedim(1, -1) if self.classes_axis == 1 and outputs.dim() > CLASS_SCORES else outputs

    def probabilities(self, outputs: Array) -> Array:
        """The probabilities of one sample from its outputs, as float64; outputs without an activation stay unchanged."""
        if self.activation is None:
            return outputs
        scores = outputs.astype(np.float64)
        if self.activation == "Sigmoid":
            return np.exp(-np.logaddexp(0.0, -scores))
        powers: Array = np.exp(scores - scores.max())
        shares: Array = powers / powers.sum()
        return shares


def form_of_targets(targets: Tensor, labels: Sequence[str]) -> Form:
    """The form of the outputs that fit the targets of data.

    Args:
        targets: (samples, ...); (samples, 0) for data without labels.
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
    return Form.LABELS if targets.ndim > 1 else Form.CLASSES


DEFAULTS: Mapping[Form, tuple[str, str]] = {
    Form.CLASSES: ("cross_entropy", "accuracy"),
    Form.LABELS: ("binary_cross_entropy", "f1"),
    Form.NUMBERS: ("mse", "negative_squared_error"),
    Form.MATCHED: ("matching", "fidelity"),
}  # names of the default loss and metric
_BY_LOSS: tuple[tuple[Loss, OutputKind], ...] = (
    (F.cross_entropy, OutputKind(Form.CLASSES, 1, "Softmax")),
    (binary_cross_entropy, OutputKind(Form.LABELS, None, "Sigmoid")),
    (mse, OutputKind(Form.NUMBERS)),
    (mae, OutputKind(Form.NUMBERS)),
    (huber, OutputKind(Form.NUMBERS)),
    (span, OutputKind(Form.SPAN, 1, "Softmax")),
    (ctc, OutputKind(Form.SYMBOLS)),
)
