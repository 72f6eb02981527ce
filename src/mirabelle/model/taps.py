"""What named layers give while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Self

from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.watch import LayerRun, layer_of, watch, watched
from mirabelle.task.batch import Batch


class Taps:
    """Keeps what named layers gave in the last forward pass, with its gradients.

    A layer's first tensor stands under its name; of a layer that gives several, such as an attention that also gives its
    weights, the k-th (from 0) stands under "name[k]". What a layer is given, its first tensor, stands under "name:input". Of a
    layer that runs several times the last run counts.

    Args:
        model: that is listened to, from the beginning to the end of the context.
        names: as above.

    Raises:
        UserError: E112 when the model has no layer of a name.

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
        self._seen: dict[str, tuple[Tensor, int]] = {}  # with the version of the tensor, which counts changes in place
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(watched(self._modules, after=self._keep))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._seen.clear()

    def taken(self) -> dict[str, Tensor]:
        """What the last forward gave, by name; it is forgotten here.

        Raises:
            UserError: E112 when a layer did not run, or gave no such tensor; E111 when a later layer has changed it in place.
        """
        missing = [name for name in self._names if name not in self._seen]
        if missing:
            raise UserError("E112", f'layer "{missing[0]}" gave no tensor in a forward', "name layers that run and give one")
        found = {}
        for name in self._names:
            found[name], version = self._seen[name]
            if _version(found[name]) != version:
                message = f'what layer "{name}" gives is changed in place by a later one'
                raise UserError("E111", message, "name the layer that changes it, or let it work out of place")
        self._seen.clear()
        return found

    def _keep(self, run: LayerRun) -> None:
        self._seen |= {name: (tensor, _version(tensor)) for name, tensor in run.values().items()}


def features_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Every tensor that the layers of a model give for a batch in eval mode, in the order in which the layers finish.

    Names are those of `Taps`; the model's own outputs stand last, under "".

    Args:
        model: left as it is.
        batch: the inputs.
    """
    found: dict[str, Tensor] = {}

    def keep(run: LayerRun) -> None:
        for name, tensor in run.outputs().items():
            found.pop(name, None)  # the last run counts, and its place
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
