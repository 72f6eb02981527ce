"""What the outputs of a model and the targets of its task are; everyone who has to know asks here."""

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
_SEVERAL = "several"  # value of the metadata "decision" in a file whose labels are each decided alone


class Form(Enum):
    """What outputs are, as far as the loss says.

    CLASSES: scores of classes, of which one holds for each sample, or for each of its places.
    LABELS: a score for each label, which holds or does not, whatever the others do.
    NUMBERS: quantities.
    SPAN: scores of each token to be the first, and the last, of a span, (batch, tokens, 2).
    SYMBOLS: scores of symbols in each frame, of which symbol 0 is the blank of CTC, (batch, frames, symbols).
    MATCHED: whatever another model gives for the same inputs, in one tensor or several.
    UNKNOWN: nothing is known.
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
    """What outputs, and the targets that belong to them, mean.

    Args:
        form: as above.
        classes_axis: the dimension of a batch of outputs that holds the scores of which the highest is chosen: 1 or −1; None
            where nothing is chosen so.
        activation: what makes probabilities of the outputs, by its name in ONNX; None where that is not known, or nothing does.
        multi_label: whether there is a name for each number of a sample, which holds or does not, whatever the others do.

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
        """What a loss takes its outputs for."""
        if isinstance(loss, CrossEntropy):
            return OutputKind(Form.CLASSES, -1 if loss.classes_last else 1, "Softmax")
        if isinstance(loss, Matching):
            return OutputKind(Form.MATCHED)
        return next((kind for known, kind in _BY_LOSS if known is loss), OutputKind(Form.UNKNOWN))

    @staticmethod
    def of_task(loss: Loss, targets: Tensor, labels: Sequence[str]) -> OutputKind:
        """What the outputs of a task's model are.

        Args:
            loss: of the task.
            targets: of its data, (samples, ...).
            labels: names of classes, or of what each column of the targets says yes or no to.
        """
        kind = OutputKind.of_loss(loss)
        named = bool(labels) and targets.is_floating_point() and targets.shape[1:] == (len(labels),)
        return replace(kind, multi_label=named)

    @staticmethod
    def of_shapes(shapes: Sequence[Sequence[int]]) -> OutputKind:
        """What outputs are taken for where nothing but their shapes is known: (batch, numbers) alone for scores of classes.

        Args:
            shapes: of every output of a model, the batch first.

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
        """What an output of a shipped file is.

        Args:
            labels: names that the file holds; a first name "" is the blank of CTC.
            metadata: of the file.
            last_operators: names of the operators that give the output.
            shape: of the output for one sample.

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
        """What a file says of its outputs besides their labels, as `of_file` reads it."""
        return {"decision": _SEVERAL} if self.multi_label else {}

    @property
    def classifies(self) -> bool:
        """Whether the highest of several scores is chosen, so that softened decisions of a teacher mean something."""
        return self.classes_axis is not None

    @property
    def takes_one_output(self) -> bool:
        """Whether a model of several outputs is certainly wrong."""
        return self.form not in (Form.MATCHED, Form.UNKNOWN)

    def scores_one_class(self, outputs: Tensor | tuple[Tensor, ...]) -> bool:
        """Whether these outputs score the one class of each sample, (batch, classes)."""
        return self.classifies and isinstance(outputs, Tensor) and outputs.dim() == CLASS_SCORES

    def chosen(self, outputs: Given) -> Given:
        """The index of the highest score of each choice: outputs without the axis of the classes."""
        assert self.classes_axis is not None, "nothing is chosen"
        highest: Given = outputs.argmax(self.classes_axis)
        return highest

    def with_classes_last(self, outputs: Tensor) -> Tensor:
        """Outputs (batch, ..., classes); as they are where the classes are last already, or there are none."""
        return outputs.movedim(1, -1) if self.classes_axis == 1 and outputs.dim() > CLASS_SCORES else outputs

    def probabilities(self, outputs: Array) -> Array:
        """Of the scores of one sample, as float64; outputs that are probabilities, as they are."""
        if self.activation is None:
            return outputs
        scores = outputs.astype(np.float64)
        if self.activation == "Sigmoid":
            return np.exp(-np.logaddexp(0.0, -scores))
        powers: Array = np.exp(scores - scores.max())
        shares: Array = powers / powers.sum()
        return shares


def form_of_targets(targets: Tensor, labels: Sequence[str]) -> Form:
    """What outputs are due for the targets of data.

    Args:
        targets: (samples, ...); (samples, 0) where nobody knows any.
        labels: names of classes, or of what each column of the targets says yes or no to; none for quantities.

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
}  # names of loss and metric, where the user names none
_BY_LOSS: tuple[tuple[Loss, OutputKind], ...] = (
    (F.cross_entropy, OutputKind(Form.CLASSES, 1, "Softmax")),
    (binary_cross_entropy, OutputKind(Form.LABELS, None, "Sigmoid")),
    (mse, OutputKind(Form.NUMBERS)),
    (mae, OutputKind(Form.NUMBERS)),
    (huber, OutputKind(Form.NUMBERS)),
    (span, OutputKind(Form.SPAN, 1, "Softmax")),
    (ctc, OutputKind(Form.SYMBOLS)),
)
