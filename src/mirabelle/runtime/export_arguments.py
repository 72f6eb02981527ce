"""How the exporters call a model: by position or by name, with free batches and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.model.state import in_order_of_axes
from mirabelle.task.batch import Inputs, map_tensors

_WRAPPED = "model"  # attribute of `_ByName`


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


def as_exported(modules: Iterable[str], tensors: Iterable[str]) -> dict[str, str]:
    """Name that an exported file gives a module -> its name in the model; those without a tensor in the file keep theirs.

    A model that takes its inputs by name is wrapped for the exporter, and all of its names get a prefix.

    Args:
        modules: names in the model.
        tensors: names of the tensors that the file stores.

    Example:
        >>> as_exported(["model.fc", "relu"], ["model.model.fc.weight"])
        {'model.model.fc': 'model.fc', 'relu': 'relu'}
    """
    stems = {name.rsplit(".", count)[0] for name in tensors for count in range(1, name.count(".") + 1)}
    wrapped = {name: f"{_WRAPPED}.{name}" for name in modules}
    return {other if name not in stems and other in stems else name: name for name, other in wrapped.items()}


def free_tokens(inputs: Inputs) -> dict[str, int]:
    """The number of tokens of each named input with the (batch, tokens) of the "attention_mask".

    A decoder input has a length of its own, which stays that of the example.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(inputs, Mapping) or mask is None or mask.ndim < 2:  # noqa: PLR2004 (batch, tokens)
        return {}
    alike = [name for name in inputs if not name.startswith("decoder") and inputs[name].shape[:2] == mask.shape[:2]]
    return dict.fromkeys(alike, mask.shape[1])


def arguments(
    inputs: Inputs, given: Inputs, free: Mapping[str, int] | None = None, largest_batch: int | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(positional arguments, keyword arguments, their dynamic axes), also for named inputs that are passed by position.

    Args:
        inputs: as the exporter passes them.
        given: as the model takes them.
        free: the inputs whose number of tokens is dynamic; by default those of `free_tokens`.
        largest_batch: the largest size of the batch; by default any.
    """
    batch = torch.export.Dim("batch", max=largest_batch)
    inputs = map_tensors(inputs, in_order_of_axes)
    free = free_tokens(given) if free is None else free
    if isinstance(given, Mapping):
        axes = {name: {0: batch} | ({1: torch.export.Dim.AUTO} if name in free else {}) for name in given}
        if isinstance(inputs, Mapping):
            return (), dict(inputs), axes
        return tuple(inputs), {}, tuple(axes.values())
    positional = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return positional, {}, tuple({0: batch} for _ in positional)
