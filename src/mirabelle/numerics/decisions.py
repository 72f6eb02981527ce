"""Outputs and targets in one form for all metrics of classes and labels: one decision for each sample, position and label.

`mirabelle.task.outputs.OutputKind.decisions` brings outputs of every shape into this form; metrics know no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.numerics.target_shapes import CLASS_SCORES, aligned

_AT_ONCE = 2**22  # numbers of one part, so that float64 copies stay small
_TWO = 2  # classes of a binary problem
_LEAST = 1e-30  # probability whose logarithm is taken for that of 0
_ONE = 1e-3  # probabilities of classes, also in float16, add up to 1 as exactly as this


@dataclass(frozen=True)
class Decisions:
    """The decisions of a model about samples, with what is right.

    A decision whose scores are NaN or infinite counts as wrong.

    Args:
        scores: logits, (samples, positions, classes) or (samples, positions, labels).
        targets: index of the right class, (samples, positions), or 0 and 1 for each label, (samples, positions, labels);
            −100 is left out.

    Example:
        >>> tokens = Decisions(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.long))
        >>> tokens.exclusive, Decisions(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)).exclusive
        (True, False)
    """

    scores: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        due = self.scores.shape[:-1] if self.exclusive else self.scores.shape
        assert self.scores.dim() == 3 and self.targets.shape == due, "scores and targets must belong together"  # noqa: PLR2004, PT018

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def exclusive(self) -> bool:
        """Whether exactly one class is right at each position; otherwise each label is decided by itself."""
        return self.targets.dim() < self.scores.dim()

    @property
    def single(self) -> bool:
        """Whether there is one decision for each sample, and none is left out."""
        return self.targets[0].numel() == 1 and bool((self.targets != UNLABELLED).all())

    @property
    def counted(self) -> Tensor:
        """Which decisions have a target, shaped as the targets."""
        return self.targets != UNLABELLED

    @property
    def finite(self) -> Tensor:
        """Which decisions rest on finite scores, shaped as the targets."""
        finite = self.scores.isfinite()
        return finite.all(-1) if self.exclusive else finite

    def chosen(self) -> Tensor:
        """The decisions: index of the class with the highest score, or 1 for a score above 0, shaped as the targets.

        A decision on scores that are not finite is −1, which is never right.
        """
        found = self.scores.nan_to_num().argmax(-1) if self.exclusive else (self.scores > 0).long()
        return found.where(self.finite, -1)

    def parts(self) -> Iterator[Decisions]:
        """The same decisions, some samples at a time."""
        size = max(1, _AT_ONCE // max(1, self.scores[0].numel()))
        for scores, targets in zip(torch.split(self.scores, size), torch.split(self.targets, size), strict=True):
            yield Decisions(scores, targets)

    def by_label(self) -> Decisions:
        """The same as labels, one against the rest: of two classes the second, of more each of them, by its probability.

        The score of the second of two classes is its logit minus that of the first. Scores are float64.
        """
        if not self.exclusive:
            return Decisions(self.scores.double(), self.targets)
        scores, classes = self.scores.double(), self.scores.shape[-1]
        places = torch.arange(classes) if classes > _TWO else torch.tensor([1])
        hits = (self.targets[..., None] == places).long().masked_fill(~self.counted[..., None], UNLABELLED)
        return Decisions(scores.softmax(-1) if classes > _TWO else scores[..., 1:] - scores[..., :1], hits)


def of_classes(outputs: Tensor, targets: Tensor, axis: int) -> Decisions:
    """Decisions between classes.

    Outputs that are probabilities already, at every place, become their logarithms.

    Args:
        outputs: logits, (samples, ...), with the classes in one axis.
        targets: class indices, (samples, ...); −100 is left out.
        axis: the axis of the classes, 1 or −1.

    Raises:
        UserError: E131 if shapes or types do not fit, E132 if a target is no class.
    """
    scores = outputs.movedim(axis, -1) if outputs.dim() > 1 else outputs
    due = scores.shape[:-1]
    own, other = ([size for size in shape[1:] if size != 1] for shape in (due, targets.shape))
    if outputs.dim() < CLASS_SCORES or targets.is_floating_point() or own != other or len(scores) != len(targets):
        given = f"outputs of {tuple(outputs.shape)} have the classes in axis {axis}; targets are {targets.dtype}"
        remedy = f"give class indices as int64 of shape {tuple(due)}, or the loss that fits: "
        remedy += '"token_cross_entropy" takes classes in the last axis, "binary_cross_entropy" single outputs, "mse" numbers'
        raise UserError("E131", f"{given} {tuple(targets.shape)}", remedy)
    scores, index = scores.reshape(len(scores), -1, scores.shape[-1]).float(), targets.reshape(len(scores), -1).long()
    known = index[index != UNLABELLED]
    if len(known) and not (int(known.min()) >= 0 and int(known.max()) < scores.shape[-1]):
        found = f"targets are {int(known.min())} to {int(known.max())}"
        message = f"classes must be in [0, {scores.shape[-1] - 1}], one for each output of the model; {found}"
        raise UserError("E132", message, "number the classes from 0, or give the model as many outputs as there are classes")
    return Decisions(scores.clamp_min(_LEAST).log() if _are_probabilities(scores) else scores, index)


def of_labels(outputs: Tensor, targets: Tensor, *, logits: bool = True) -> Decisions:
    """Decisions about labels of their own: those of axis 1, or a single one, where an axis of length 1 or none stands for it.

    Args:
        outputs: (samples,), (samples, labels), (samples, labels, ...) or (samples, positions, 1).
        targets: 0 and 1, of any type, with as many numbers; −100 is left out.
        logits: whether outputs are logits; otherwise they are probabilities.

    Raises:
        UserError: E131 if the shapes do not fit, E132 for targets other than 0 and 1.
    """
    due = aligned(outputs, targets)
    wrong = due[(due != 0) & (due != 1) & (due != UNLABELLED)]
    if len(wrong):
        message = f"targets of labels are 0 or 1; the data have {float(wrong[0]):g}"
        raise UserError("E132", message, "give 0 for no and 1 for yes, or name a loss of classes or numbers")
    scores = outputs.float()
    if not logits:
        inside = outputs.double().clamp(_LEAST, 1 - torch.finfo(torch.float64).eps)
        scores = torch.logit(inside).where(outputs.isfinite(), torch.nan)
    single = outputs.dim() == 1 or (outputs.dim() == 3 and outputs.shape[-1] == 1)  # noqa: PLR2004 (samples, positions, 1)
    scores, due = (part.reshape(len(part), -1, 1) if single else part.movedim(1, -1) for part in (scores, due.long()))
    return Decisions(*(part.reshape(len(part), -1, part.shape[-1]) for part in (scores, due)))


def _are_probabilities(scores: Tensor) -> bool:
    """Whether scores, (samples, positions, classes), are probabilities: not negative, with the sum 1, at every place."""
    if bool((scores < 0).any()):  # so are most scores, and nothing is copied
        return False
    finite = scores[scores.isfinite().all(-1)]
    return finite.numel() > 0 and bool(((finite.sum(-1) - 1).abs() < _ONE).all())
