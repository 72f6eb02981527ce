"""Capture the inputs and outputs of named layers during a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Self

from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.watch import LayerRun, layer_of, watch, watched
from mirabelle.task.batch import Batch


class Taps:
    """Captures inputs and outputs of named layers in the last forward pass, with their gradients.

    "name" is the first tensor that the layer returns. "name[k]" is the k-th one (from 0) of a layer that returns several, such
    as the attention weights. "name:input" is the first tensor among the layer's arguments. If a layer runs several times, its
    last run is captured.

    Args:
        model: is observed from the beginning to the end of the context.
        names: of the values to capture.

    Raises:
        UserError: E112 if the model has no layer of a name.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> import torch
        >>> with Taps(model, ["1"]) as taps:
        ...     outputs = model(torch.zeros(3, 4))
        ...     taps.taken()["1"].shape
        torch.Size([3, 6])
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._modules = {layer_of(name): _module(model, layer_of(name)) for name in self._names}
        self._seen: dict[str, tuple[Tensor, int]] = {}  # tensors and their versions, which count in-place changes
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(watched(self._modules, after=self._keep))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._seen.clear()

    def taken(self) -> dict[str, Tensor]:
        """Return the tensors captured in the last forward pass, by name, and release them.

        Raises:
            UserError: E112 if a layer did not run or did not return such a tensor; E111 if a later layer has changed the tensor
                in place.
        """
        missing = [name for name in self._names if name not in self._seen]
        if missing:
            message = f'layer "{missing[0]}" returned no tensor in the forward pass'
            raise UserError("E112", message, "name a layer that runs and returns a tensor")
        found = {}
        for name in self._names:
            found[name], version = self._seen[name]
            if _version(found[name]) != version:
                message = f'the output of layer "{name}" is changed in place by a later layer'
                raise UserError("E111", message, "name the layer that changes it, or set inplace=False there")
        self._seen.clear()
        return found

    def _keep(self, run: LayerRun) -> None:
        self._seen |= {name: (tensor, _version(tensor)) for name, tensor in run.values().items()}


def features_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """All output tensors of all layers of a model for a batch in eval mode, in the order in which the layers finish.

    Names are those of `Taps`; the outputs of the model itself are last, under the name "".

    Args:
        model: its modes are restored afterwards.
        batch: inputs of the model.
    """
    found: dict[str, Tensor] = {}

    def keep(run: LayerRun) -> None:
        for name, tensor in run.outputs().items():
            found.pop(name, None)  # the last run of a layer determines the value and its position
            found[name] = tensor

    watch(model, [batch], dict(model.named_modules()), after=keep)
    return found


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        raise UserError("E112", f'the model has no layer "{layer}"', did_you_mean(layer, modules))
    return modules[layer]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
