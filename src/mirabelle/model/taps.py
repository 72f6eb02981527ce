"""What named layers give while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.state import in_eval_mode
from mirabelle.task.batch import Batch, call


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
        >>> with Taps(model, ["1"]) as taps:
        ...     outputs = model(torch.zeros(3, 4))
        ...     taps.taken()["1"].shape
        torch.Size([3, 6])
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._modules = {layer_of(name): _module(model, layer_of(name)) for name in self._names}
        self._seen: dict[str, tuple[Tensor, int]] = {}  # with the version of the tensor, which counts changes in place
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
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

    def _keep(self, layer: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Any) -> None:
            self._seen |= {name: (tensor, _version(tensor)) for name, tensor in _named(layer, given).items()}
            taken = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
            self._seen |= {f"{layer}:input": (part, _version(part)) for part in taken[:1]}

        return keep


def layer_of(name: str) -> str:
    """The layer of a tap.

    Example:
        >>> layer_of("encoder.layer.0.attention[1]")
        'encoder.layer.0.attention'
    """
    return name.partition("[")[0].partition(":")[0]


def features_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Everything that the layers of a model give for a batch in eval mode, in the order in which they are done.

    The model's own outputs stand last, under "".

    Args:
        model: left as it is.
        batch: the inputs.
    """
    found: dict[str, Tensor] = {}

    def keep(layer: str, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], given: Any) -> None:
        for name, tensor in _named(layer, given).items():
            found.pop(name, None)  # the last run counts, and its place
            found[name] = tensor

    listened(model, batch, keep)
    return found


def listened(model: nn.Module, batch: Batch, hear: Callable[[str, tuple[Any, ...], Mapping[str, Any], Any], None]) -> None:
    """Run a model once in eval mode; every layer that is done, the model itself last, is told.

    Args:
        model: left as it is.
        batch: the inputs.
        hear: (name, arguments, keywords, what it gives).
    """

    def hook(name: str) -> Any:
        return lambda _module, args, kwargs, given: hear(name, args, kwargs, given)

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), in_eval_mode(model):
            call(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        raise UserError("E112", f'the model has no layer "{layer}"', did_you_mean(layer, modules))
    return modules[layer]


def _named(layer: str, given: Any) -> dict[str, Tensor]:
    tensors = [part for part in _parts(given) if isinstance(part, Tensor)]
    return {layer if k == 0 else f"{layer}[{k}]": tensor for k, tensor in enumerate(tensors)}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _parts(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        yield from given.values()
    elif isinstance(given, (tuple, list)):
        yield from given
    else:
        yield given
