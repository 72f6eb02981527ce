"""Class targets in the shape that losses take, one index for each sample, from columns, whole numbers and one-hot rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.task.loss import Loss
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.samples import Samples, Stream

_TABLE = 2  # dimensions of one-hot targets: samples, classes


def with_class_indices(
    splits: Sequence[Samples | Stream], loss: Loss | None, labels: Sequence[str], *, own_metric: bool
) -> tuple[tuple[Samples | Stream, ...], tuple[str, ...]]:
    """Splits of a classification with class indices (samples,) as targets, and a sentence if they were one-hot.

    | targets | become class indices |
    |---|---|
    | whole numbers (N, 1) | with the loss "cross_entropy", named or by default |
    | floating-point whole numbers (N) or (N, 1) | with a named loss of classes |
    | floating-point one-hot rows (N, C), C > 1 | with a loss of classes; by default, without `labels` and own metric |

    Args:
        splits: data; a stream is converted batch by batch, as the others are.
        loss: that was named; None for the default.
        labels: names of classes or columns.
        own_metric: whether the metric is a function of the user, which takes the targets as they are.
    """
    kind = None if loss is None else OutputKind.of_loss(loss)
    if kind is not None and (kind.form is not Form.CLASSES or kind.classes_axis != 1):
        return tuple(splits), ()
    known = [data.targets for data in splits if isinstance(data, Samples)]
    decimal = any(targets.is_floating_point() for targets in known)
    if decimal and not own_metric and (loss is not None or not labels) and all(is_one_hot(targets) for targets in known):
        note = f"Targets of shape (samples, {known[0].shape[1]}) with a single 1 in each row are read as class indices."
        return tuple(data.with_targets(_of_one_hot) for data in splits), (note,)
    columns = all(targets.shape[1:] in ((), (1,)) for targets in known)
    if columns and (not decimal or (loss is not None and all(bool((targets % 1 == 0).all()) for targets in known))):
        return tuple(data.with_targets(_of_column) for data in splits), ()
    return tuple(splits), ()


def is_one_hot(targets: Tensor) -> bool:
    """Whether targets are (samples, classes) with a single 1 in each row and 0 elsewhere.

    Example:
        >>> import torch
        >>> is_one_hot(torch.eye(3)), is_one_hot(torch.ones(2, 1)), is_one_hot(torch.tensor([[0, 1], [1, 1]]))
        (True, False, False)
    """
    if targets.dim() != _TABLE or targets.shape[1] < _TABLE:
        return False
    return bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())


def check_one_hot(outputs: object, targets: Tensor) -> None:
    """Raise E131 for whole-numbered targets of 0 and 1 in the shape of class scores, which can mean two things.

    Args:
        outputs: class scores, (samples, classes).
        targets: of the same samples.
    """
    if (
        not isinstance(outputs, Tensor)
        or outputs.dim() != _TABLE
        or targets.shape != outputs.shape
        or targets.shape[1] < _TABLE
    ):
        return
    if targets.is_floating_point() or not bool(((targets == 0) | (targets == 1)).all()):
        return
    if is_one_hot(targets):
        message = f"the targets {tuple(targets.shape)} are one-hot: a single 1 in each row"
        raise UserError("E131", message, "give class indices, y.argmax(1); for independent labels name binary_cross_entropy")
    message = (
        f"the targets {tuple(targets.shape)} are 0 and 1 for each output, and the loss takes one class index for each sample"
    )
    raise UserError("E131", message, 'name the loss "binary_cross_entropy" for independent labels')


def _of_one_hot(targets: Tensor) -> Tensor:
    if not is_one_hot(targets):
        raise UserError("E131", "some targets are one-hot, others are not", "give class indices for all samples")
    return targets.argmax(1)


def _of_column(targets: Tensor) -> Tensor:
    return targets.reshape(len(targets)).long()
