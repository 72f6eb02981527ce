"""Losses of torch, however a user writes them: functions, modules, `functools.partial`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.task.loss import Loss, TorchLoss, cross_entropy

# The function of each module, by whose `forward` a class derived from it is known; settings are attributes of the module.
_MODULES: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.BCELoss: F.binary_cross_entropy,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
}
_OLD = ("size_average", "reduce")  # arguments of torch that `reduction` has replaced


@dataclass(frozen=True)
class KnownLoss:
    """A loss as Mirabelle knows it.

    Args:
        loss: the loss; cross entropy of torch without settings is "cross_entropy".
        ignored: the target that it ignores.
    """

    loss: Loss
    ignored: int = UNLABELLED


def known_loss(loss: Loss) -> KnownLoss:
    """A loss of torch as a `TorchLoss`; any other loss is returned unchanged.

    Args:
        loss: a function of `torch.nn.functional`, a module of `torch.nn`, or one of them in `functools.partial`.

    Raises:
        UserError: E110 for a loss with reduction "none".

    Example:
        >>> known_loss(nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=0))
        KnownLoss(loss=cross_entropy(label_smoothing=0.1), ignored=0)
    """
    function, settings = _function_and_settings(loss)
    if function is None:
        return KnownLoss(loss)
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    settings = {name: one for name, one in settings.items() if one is not None and one is not defaults.get(name)}
    settings = {name: one for name, one in settings.items() if not isinstance(one, (int, float, str)) or one != defaults[name]}
    if settings.get("reduction") == "none":
        message = 'a loss must be one number; this one has reduction = "none"'
        raise UserError("E110", message, 'use reduction = "mean"')
    ignored = settings.pop("ignore_index", UNLABELLED)
    if function is F.cross_entropy and not settings:
        return KnownLoss(cross_entropy, ignored)
    return KnownLoss(TorchLoss(function.__name__, settings), ignored)


def _function_and_settings(loss: Loss) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """The function of torch that computes a loss, and its keyword arguments; (None, {}) for a loss of another kind."""
    if isinstance(loss, partial):
        function, settings = _function_and_settings(loss.func)
        known = function is not None and not loss.args and not set(loss.keywords) & {"input", "target", *_OLD}
        return (function, settings | loss.keywords) if known else (None, {})
    owner = getattr(loss, "__self__", None)
    if isinstance(owner, nn.Module) and getattr(loss, "__name__", "") in ("forward", "__call__"):
        loss = owner
    for module, function in _MODULES.items():
        if loss is function:
            return function, {}
        if isinstance(loss, module) and type(loss).forward is module.forward:
            names = set(inspect.signature(module.__init__).parameters) - {"self", *_OLD}
            return function, {name: getattr(loss, name) for name in names}
    return None, {}
