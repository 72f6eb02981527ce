"""How the exporters call a model: by position or by name, with free batches and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.task.batch import Inputs


class _ByName(nn.Module):
    """A model whose forward takes arbitrary keyword arguments, wrapped to take them by position."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)))


def taking(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, list[str]]:
    """(model, inputs, names of the inputs) for the exporter; the names are empty if the forward's parameters give them."""
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    if isinstance(inputs, Mapping) and inspect.Parameter.VAR_KEYWORD in kinds:
        return _ByName(model, list(inputs)), tuple(inputs.values()), list(inputs)
    if not isinstance(inputs, Mapping) and inspect.Parameter.VAR_POSITIONAL in kinds:
        count = len(inputs) if isinstance(inputs, (tuple, list)) else 1
        return model, inputs, ["input"] if count == 1 else [f"input_{k}" for k in range(count)]
    return model, inputs, []


def _free_tokens(inputs: Mapping[str, Any], name: str) -> dict[int, Any]:
    """The dynamic token axis of an input with the (batch, tokens) of the "attention_mask"; {} for other inputs."""
    mask = inputs.get("attention_mask")
    tokens = mask is not None and mask.ndim > 1 and inputs[name].shape[:2] == mask.shape[:2]
    return {1: torch.export.Dim.AUTO} if tokens else {}


def arguments(inputs: Inputs, given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(positional arguments, keyword arguments, their dynamic axes), also for named inputs that are passed by position."""
    batch = torch.export.Dim("batch")
    if isinstance(given, Mapping):
        axes = {name: {0: batch, **_free_tokens(given, name)} for name in given}
        if isinstance(inputs, Mapping):
            return (), dict(inputs), axes
        return tuple(inputs), {}, tuple(axes.values())
    positional = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return positional, {}, tuple({0: batch} for _ in positional)
