"""Observe the inputs and outputs of layers while a model runs: hooks that are always removed, and passes over batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.model.replacement import uncounted
from mirabelle.model.state import in_eval_mode
from mirabelle.task.batch import Batch, Inputs, call


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One call of a layer. A layer that is called several times in a forward pass has one `LayerRun` per call.

    Args:
        name: of the layer, as given to `watched` or `watch`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        given: return value; None before the layer has run.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Any = None

    @property
    def input(self) -> Tensor | None:
        """The first tensor among the arguments; None if there is none."""
        return next((part for part in (*self.args, *self.kwargs.values()) if isinstance(part, Tensor)), None)

    @property
    def output(self) -> Tensor | None:
        """The first tensor that the layer returned; None if there is none."""
        return next(iter(self.outputs().values()), None)

    def outputs(self) -> dict[str, Tensor]:
        """The tensors that the layer returned: the first as "name", the k-th (from 0) as "name[k]"."""
        tensors = [part for part in _parts(self.given) if isinstance(part, Tensor)]
        return {self.name if k == 0 else f"{self.name}[{k}]": tensor for k, tensor in enumerate(tensors)}

    def values(self) -> dict[str, Tensor]:
        """The outputs, and the input as "name:input"."""
        found = self.input
        return self.outputs() | ({} if found is None else {f"{self.name}:input": found})


Observer: TypeAlias = Callable[[LayerRun], object]


class EndOfForward(BaseException):  # not an Exception, so that `except Exception` in a model does not catch it
    """Raised by an observer in `watch` to end the forward pass when the rest of it is not needed."""


def layer_of(name: str) -> str:
    """The name of the layer to which a value belongs.

    Example:
        >>> layer_of("encoder.layer.0.attention[1]"), layer_of("head:input")
        ('encoder.layer.0.attention', 'head')
    """
    return name.partition("[")[0].partition(":")[0]


@contextlib.contextmanager
def watched(
    modules: Mapping[str, nn.Module], *, before: Observer | None = None, after: Observer | None = None
) -> Iterator[None]:
    """A context in which observers are called whenever one of the modules runs. It does not change modes or gradients.

    Args:
        modules: modules to observe, by the names that observers receive. A module may have several names.
        before: called before a module runs; may change the module's tensors.
        after: called after a module has run, with its return value.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with watched({"hidden": model[0]}, after=lambda run: print(run.name, run.output.shape)):
        ...     _ = model(torch.zeros(2, 4))
        hidden torch.Size([2, 3])
    """
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            if before is not None:
                hooks.callback(module.register_forward_pre_hook(_before(name, before), with_kwargs=True).remove)
            if after is not None:
                hooks.callback(module.register_forward_hook(_after(name, after), with_kwargs=True).remove)
        yield


def watch(
    model: nn.Module,
    batches: Iterable[Inputs | Batch],
    modules: Mapping[str, nn.Module],
    *,
    before: Observer | None = None,
    after: Observer | None = None,
) -> None:
    """Run a model over batches, in eval mode and without gradients, and call observers whenever one of the modules runs.

    Args:
        model: its modes are restored and its hooks removed afterwards, also after an exception.
        batches: inputs of the model; each batch is one forward pass.
        modules: modules to observe, by the names that observers receive.
        before: called before a module runs. May raise `EndOfForward` to continue with the next batch.
        after: called after a module has run, with its return value. May raise `EndOfForward`, too.

    Example:
        >>> model, sums = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), []
        >>> watch(model, [torch.ones(2, 2, 2), torch.ones(5, 2, 2)], {"1": model[1]},
        ...       before=lambda run: sums.append(float(run.input.sum())))
        >>> sums
        [8.0, 20.0]
    """
    with torch.no_grad(), in_eval_mode(model), every_layer_called(), watched(modules, before=before, after=after):
        for batch in batches:
            with contextlib.suppress(EndOfForward):
                call(model, batch.inputs if isinstance(batch, Batch) else batch)


def _before(name: str, observer: Observer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with uncounted():
            observer(LayerRun(name, args, kwargs))  # the result is not returned: torch would use it as new arguments

    return hook


def _after(name: str, observer: Observer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> None:
        with uncounted():
            observer(LayerRun(name, args, kwargs, given))

    return hook


@contextlib.contextmanager
def every_layer_called() -> Iterator[None]:
    """A context without torch's fused attention kernels, which use the weights of layers without calling the layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _parts(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        yield from given.values()
    elif isinstance(given, (tuple, list)):
        yield from given
    else:
        yield given
