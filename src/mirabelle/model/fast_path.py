"""Torch's fast path of `nn.TransformerEncoderLayer`, which computes another function with some masks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.model.state import in_eval_mode
from mirabelle.model.watch import every_layer_called
from mirabelle.task.batch import Batch, call, tensors_of

_LAYERS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
_ROUNDING = 1e-3  # largest difference of two ways to compute the same function, in shares of the largest output


def check_fast_path(model: nn.Module, batch: Batch) -> None:
    """Raise unless a model in eval mode computes what it computes in training, in exports and after a step.

    Without gradients, torch computes its encoder layers by a fast path that takes every number but 0 of a floating-point mask
    for −inf, and so adds no bias by distance (ALiBi), which the layer itself does.

    Args:
        model: its modes are the same afterwards.
        batch: inputs for the comparison.

    Raises:
        UserError: E121 naming the layer, if the outputs differ.
    """
    if not any(isinstance(module, _LAYERS) for module in model.modules()):
        return
    biased: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = [*args[1:], *(value for key, value in kwargs.items() if "mask" in key)]
            if any(_is_biased(tensor) for tensor in pytree.tree_leaves(given)):
                biased.append(name)

        return hook

    with ExitStack() as hooks, in_eval_mode(model), torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS):
                hooks.callback(module.register_forward_pre_hook(look(name), with_kwargs=True).remove)
        with every_layer_called():
            slow = call(model, batch.inputs)
    if not biased:
        return
    with in_eval_mode(model), torch.no_grad():
        fast = call(model, batch.inputs)
    pairs = zip(tensors_of(slow), tensors_of(fast), strict=True)
    gap = max(
        float((one.float() - other.float()).abs().max() / one.float().abs().max().clamp_min(1e-6)) for one, other in pairs
    )
    if not gap <= _ROUNDING:
        message = (
            f'"{biased[0]}" is given a mask with numbers that are neither 0 nor −inf; in eval mode, torch takes them for −inf, '
            f"and outputs differ by {gap:.0%}"
        )
        raise UserError(
            "E121", message, "call torch.backends.mha.set_fastpath_enabled(False) before, and where the model is used"
        )


def _is_biased(tensor: object) -> bool:
    """Whether a mask holds numbers that are added to scores, rather than places to leave out."""
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(((tensor != 0) & (tensor != -torch.inf)).any())
