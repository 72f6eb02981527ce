"""What a training makes small: losses by name, functions (outputs, targets) -> scalar.

A model of several outputs gives the loss a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics.several_outputs import UNLABELLED, paired
from mirabelle.records.functions import function_from, name_of

Loss: TypeAlias = Callable[[Any, Tensor], Tensor]  # of the outputs, a tuple where there are several, and the targets


@dataclass(frozen=True)
class CrossEntropy:
    """−Σ w_y · log softmax(outputs)_y / Σ w_y over all decisions; targets of −100 are left out.

    Args:
        classes_last: outputs are (batch, ..., classes), as those of transformers; otherwise (batch, classes, ...), as in torch.
        weights: w of each class; by default 1.

    Example:
        >>> CrossEntropy(classes_last=True)(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long))
        tensor(1.3863)
    """

    classes_last: bool = False
    weights: tuple[float, ...] = ()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.classes_last:
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
        weights = outputs.new_tensor(self.weights) if self.weights else None
        return F.cross_entropy(outputs, targets, weights)


@dataclass(frozen=True)
class Matching:
    """How far outputs are from those that are due: mean over the outputs of mean((output − target)²) / s².

    Args:
        variances: s² of each output, so that boxes in pixels weigh as much as probabilities; by default 1.

    Example:
        >>> outputs = torch.ones(2, 3), torch.zeros(2, 1)
        >>> Matching(variances=(0.5, 1.0))(outputs, torch.zeros(2, 4))
        tensor(1.)
    """

    variances: tuple[float, ...] = ()

    def __call__(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        pairs = paired(outputs, targets)
        scales = self.variances or (1.0,) * len(pairs)
        return torch.stack([F.mse_loss(*pair) / scale for pair, scale in zip(pairs, scales, strict=True)]).mean()


def balanced(targets: Tensor, classes: int) -> tuple[float, ...]:
    """Weights with which all classes count alike: samples / (classes · samples of the class), 0 for one without a sample.

    Example:
        >>> balanced(torch.tensor([0, 0, 0, 1]), 2)
        (0.6666666865348816, 2.0)
    """
    counts = torch.bincount(targets[targets != UNLABELLED].flatten(), minlength=classes)
    weights = counts.sum() / (classes * counts)
    return tuple(torch.where(counts > 0, weights, 0.0).tolist())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """mean((output − target)²); targets (batch,) fit outputs (batch, 1)."""
    return F.mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """mean |output − target|; targets as of `mse`."""
    return F.l1_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """mean of ½ d² where |d| ≤ 1, else |d| − ½; d = output − target. Source: Huber 1964, doi:10.1214/aoms/1177703732."""
    return F.huber_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean(y · log σ(o) + (1 − y) · log σ(−o)) over samples and labels; targets of 0 or 1, shaped as for `mse`."""
    return F.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def span(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the first and the last token of a span; outputs (batch, tokens, 2), targets (batch, 2).

    Targets of −100 are left out, and so are further columns.
    """
    return F.cross_entropy(outputs.movedim(2, 1).flatten(0, 1), targets[:, :2].flatten())


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log of the sum over all paths of frames that read as the target, over its length, mean over the batch.

    Args:
        outputs: scores, (batch, frames, symbols), of which symbol 0 is the blank.
        targets: symbols from 1, padded with −100, (batch, length).

    Source: Graves, Fernández, Gomez, Schmidhuber 2006, doi:10.1145/1143844.1143891.
    """
    frames = torch.full((len(outputs),), outputs.shape[1])
    due = targets != UNLABELLED
    paths = outputs.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(paths, targets.where(due, 0), frames, due.sum(1), zero_infinity=True)


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "token_cross_entropy": CrossEntropy(classes_last=True),
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "span": span,
    "ctc": ctc,
    "matching": Matching(),
}


def loss_of(loss: str | Loss, folder: Path = Path()) -> Loss:
    """A loss by name, "pkg.mod:function" or "./file.py:function" among them; or a function as it is.

    Args:
        loss: (outputs, targets) -> scalar.
        folder: against which the path of a file is read.

    Raises:
        UserError: E110 when the name is not known, E120 when no such function is found.
    """
    if not isinstance(loss, str):
        return loss
    if ":" in loss:
        return function_from(loss, folder)
    if loss not in LOSSES:
        raise UserError("E110", f'loss "{loss}" is not known', did_you_mean(loss, LOSSES))
    return LOSSES[loss]


def public_name(loss: Loss) -> str:
    """What a fingerprint calls a loss: the name that recipes give it, or its class with its settings; never where its code is.

    A function of the user's is named by its module.

    Example:
        >>> public_name(LOSSES["mse"]), public_name(CrossEntropy(weights=(1.0, 2.0)))
        ('mse', 'CrossEntropy(classes_last=False, weights=(1.0, 2.0))')
    """
    known = next((name for name, ours in LOSSES.items() if ours is loss or (is_dataclass(loss) and ours == loss)), None)
    return known or (repr(loss) if isinstance(loss, (CrossEntropy, Matching)) else name_of(loss))
