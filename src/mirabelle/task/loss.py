"""Loss functions by name: (outputs, targets) -> scalar. The outputs of a model with several outputs are a tuple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics.selections import nothing
from mirabelle.numerics.several_outputs import UNLABELLED, paired
from mirabelle.numerics.target_shapes import aligned
from mirabelle.records.functions import function_from, name_of

Loss: TypeAlias = Callable[[Any, Tensor], Tensor]  # (outputs, targets); several outputs are a tuple


@dataclass(frozen=True)
class CrossEntropy:
    """Weighted cross entropy, −Σ w_y · log softmax(outputs)_y / Σ w_y over all targets y; targets of −100 are ignored.

    It is 0 if no target is left, or the weights of all are 0.

    Args:
        classes_last: whether outputs are (batch, ..., classes), as in transformers; otherwise (batch, classes, ...), as in
            torch.
        weights: the weight w of each class; by default 1.

    Example:
        >>> CrossEntropy(classes_last=True)(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long))
        tensor(1.3863)
    """

    classes_last: bool = False
    weights: tuple[float, ...] = ()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.classes_last:
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
        weights = {"weight": torch.tensor(self.weights, dtype=outputs.dtype).to(outputs.device)} if self.weights else {}
        return _of_classes(F.cross_entropy, outputs, targets, **weights)


@dataclass(frozen=True)
class Matching:
    """Mean squared error between the outputs of two models: the mean over all outputs of mean((output − target)²) / s².

    Args:
        variances: s² of each output, so that, for example, boxes in pixels count as much as probabilities; by default 1.

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


@dataclass(frozen=True)
class Standardized:
    """A loss of numbers in units of the standard deviation s of the targets: loss(output / s, target / s).

    A network that is trained here from its first weights gets output · s + mean after its last layer, so that it computes
    numbers of about 1, and its outputs, metrics and file have the units of the targets.

    Args:
        loss: "mse", "mae" or "huber".
        mean: of the training targets.
        deviation: s, their standard deviation.

    Example:
        >>> Standardized(mean=500.0, deviation=10.0)(torch.tensor([[520.0]]), torch.tensor([[500.0]]))
        tensor(4.)
    """

    loss: Literal["mse", "mae", "huber"] = "mse"
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[self.loss](outputs / self.deviation, targets / self.deviation)


@dataclass(frozen=True, eq=False)
class TorchLoss:
    """A loss of `torch.nn.functional` with its settings; targets of single numbers or labels get the shape of the outputs.

    Args:
        name: name of the function.
        settings: its keyword arguments.

    Example:
        >>> TorchLoss("mse_loss")(torch.zeros(3, 1), torch.tensor([1.0, 1.0, 1.0]))
        tensor(1.)
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        function = getattr(F, self.name)
        settings = {key: one.to(outputs) if isinstance(one, Tensor) else one for key, one in self.settings.items()}
        if self.name.startswith("binary"):
            return _of_labels(function, outputs, targets, **settings)
        if self.name in _BY_CLASS:
            return _of_classes(function, outputs, targets, **settings)
        if self.name in _BY_NUMBER:
            targets = aligned(outputs, targets).to(outputs.dtype)
        found: Tensor = function(outputs, targets, **settings)
        return found

    def __repr__(self) -> str:
        """The name of the function with its settings, for fingerprints."""
        given = {key: one.tolist() if isinstance(one, Tensor) else one for key, one in sorted(self.settings.items())}
        return f"{self.name}({', '.join(f'{key}={one}' for key, one in given.items())})" if given else self.name


def class_weights_of(loss: Loss) -> tuple[float, ...]:
    """The weights of the classes by which a loss divides its sum; () if it is a plain mean.

    Example:
        >>> class_weights_of(CrossEntropy(weights=(1.0, 3.0))), class_weights_of(CrossEntropy())
        ((1.0, 3.0), ())
    """
    if isinstance(loss, TorchLoss):
        given = loss.settings.get("weight") if loss.name in _BY_CLASS else None
        return () if given is None else tuple(given.tolist())
    return loss.weights if isinstance(loss, CrossEntropy) else ()


def counted_targets(loss: Loss, targets: Tensor) -> float:
    """What the mean of a loss over a batch is over: its samples, its known targets, or the weights of their classes.

    A function of the user is taken for a mean over the targets that are not −100, or over the samples if targets are numbers.

    Example:
        >>> counted_targets(LOSSES["cross_entropy"], torch.tensor([1, -100, 0]))
        2.0
        >>> counted_targets(LOSSES["ctc"], torch.tensor([[1, 2, -100], [3, -100, -100]]))
        2.0
    """
    of_labels = loss is binary_cross_entropy or (isinstance(loss, TorchLoss) and loss.name.startswith("binary"))
    if loss is ctc or (targets.is_floating_point() and not of_labels):
        return float(len(targets))
    targets = targets[:, :2] if loss is span else targets
    known = targets != UNLABELLED
    weights = class_weights_of(loss)
    if weights and not targets.is_floating_point():
        known = known * torch.tensor(weights).to(targets.device)[torch.where(known, targets, 0)]
    return float(known.sum())


def counted_places(loss: Loss, targets: Tensor) -> float:
    """The number of places with one class each, such as tokens, that have a target; of other targets that of the samples."""
    of_labels = loss is binary_cross_entropy or (isinstance(loss, TorchLoss) and loss.name.startswith("binary"))
    of_samples = targets.dim() < 2 or targets.is_floating_point() or of_labels or loss in (ctc, span)  # noqa: PLR2004
    return float(len(targets) if of_samples else (targets != UNLABELLED).sum())


def is_of_user(loss: Loss) -> bool:
    """Whether a loss is a function of the user, of which it is not known what it is a mean over."""
    ours = isinstance(loss, (CrossEntropy, Matching, Standardized, TorchLoss))
    return not ours and all(loss is not one for one in LOSSES.values())


def balanced(targets: Tensor, classes: int) -> tuple[float, ...]:
    """Class weights that give all classes equal influence: samples / (classes · samples of the class), 0 without samples.

    Args:
        targets: class indices of any shape; −100 is ignored.
        classes: number of classes.

    Example:
        >>> balanced(torch.tensor([0, 0, 0, 1]), 2)
        (0.6666666865348816, 2.0)
    """
    counts = torch.bincount(targets[targets != UNLABELLED].flatten(), minlength=classes)
    weights = counts.sum() / (classes * counts)
    return tuple(torch.where(counts > 0, weights, 0.0).tolist())


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean of −log softmax(outputs)_y over all targets y except those of −100; 0 if no target is left.

    Args:
        outputs: logits, (batch, classes, ...).
        targets: class indices, (batch, ...), or probabilities of the classes in the shape of the outputs.
    """
    return _of_classes(F.cross_entropy, outputs, targets)


def _of_classes(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """A loss of classes; 0 if no target is a class of which the weight is not 0, for which torch gives NaN."""
    if targets.is_floating_point():
        return function(outputs, targets, **settings)
    counted = targets[targets != UNLABELLED]
    weights = settings.get("weight")
    if bool(counted.numel() if weights is None else weights[counted].any()):
        return function(outputs, targets, **settings)
    return nothing(outputs)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error, mean((output − target)²); targets get the shape of the outputs (`aligned`)."""
    return F.mse_loss(outputs, aligned(outputs, targets).to(outputs.dtype))


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error, mean |output − target|; targets get the shape of the outputs (`aligned`)."""
    return F.l1_loss(outputs, aligned(outputs, targets).to(outputs.dtype))


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber loss: the mean of ½ d² where |d| ≤ 1, otherwise of |d| − ½, with d = output − target.

    Targets get the shape of the outputs (`aligned`).

    Source: Huber 1964, doi:10.1214/aoms/1177703732.
    """
    return F.huber_loss(outputs, aligned(outputs, targets).to(outputs.dtype))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of logits o, −mean(y · log σ(o) + (1 − y) · log σ(−o)) over all samples and labels.

    Targets y are 0 or 1 and get the shape of the outputs (`aligned`); those of −100 are left out.
    """
    return _of_labels(F.binary_cross_entropy_with_logits, outputs, targets)


def _of_labels(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """A loss of single labels over those that have a target; 0 if none has."""
    targets = aligned(outputs, targets).to(outputs.dtype)
    known = targets != UNLABELLED
    if bool(known.all()):
        return function(outputs, targets, **settings)
    losses = function(outputs, targets.where(known, 0.0), **settings | {"reduction": "none"}).where(known, 0.0).sum()
    return losses if settings.get("reduction") == "sum" else losses / known.sum().clamp_min(1)


def span(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the first and the last token of a span; 0 if no span is labelled.

    Args:
        outputs: logits of each token to be the first, and the last, (batch, tokens, 2).
        targets: indices of the first and the last token, (batch, 2); −100 and further columns are ignored.
    """
    return cross_entropy(outputs.movedim(2, 1).flatten(0, 1), targets[:, :2].flatten())


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Connectionist temporal classification: −log p(target | outputs) / length of the target, mean over the batch.

    p(target | outputs) is the sum of the probabilities of all paths of frames that reduce to the target.

    Args:
        outputs: logits, (batch, frames, symbols); symbol 0 is the blank.
        targets: symbols from 1, padded with −100, (batch, length).

    Source: Graves, Fernández, Gomez, Schmidhuber 2006, doi:10.1145/1143844.1143891.
    """
    frames = torch.full((len(outputs),), outputs.shape[1])
    due = targets != UNLABELLED
    paths = outputs.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(paths, targets.where(due, 0), frames, due.sum(1), zero_infinity=True)


_BY_CLASS = ("cross_entropy", "nll_loss")
_BY_NUMBER = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
LOSSES: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
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
    """The loss function of a name.

    Args:
        loss: one of `LOSSES`, "pkg.mod:function" or "./file.py:function"; a function (outputs, targets) -> scalar is returned
            unchanged.
        folder: the folder to which the path of a file is relative.

    Raises:
        UserError: E110 if the name is not known, E120 if there is no such function.
    """
    if not isinstance(loss, str):
        return loss
    if ":" in loss:
        return function_from(loss, folder)
    if loss not in LOSSES:
        raise UserError("E110", f'loss "{loss}" is not known', did_you_mean(loss, LOSSES))
    return LOSSES[loss]


def public_name(loss: Loss) -> str:
    """The name of a loss in fingerprints: its name in recipes, or its class with its settings, but not the place of its code.

    A function of the user is named by its module.

    Example:
        >>> public_name(LOSSES["mse"]), public_name(CrossEntropy(weights=(1.0, 2.0)))
        ('mse', 'CrossEntropy(classes_last=False, weights=(1.0, 2.0))')
    """
    known = next((name for name, ours in LOSSES.items() if ours is loss or (is_dataclass(loss) and ours == loss)), None)
    if isinstance(loss, TorchLoss):
        return f"torch.nn.functional:{loss!r}"
    return known or (repr(loss) if isinstance(loss, (CrossEntropy, Matching, Standardized)) else name_of(loss))
