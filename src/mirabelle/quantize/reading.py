"""Which layers a model reads without calling them: their weights are operands of code outside the layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mirabelle.model.watch import watch
from mirabelle.task.batch import Batch


class _Operands(TorchFunctionMode):
    """Notes which of the given tensors are arguments of an operator."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: set[str] = set()

    def __torch_function__(self, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None) -> Any:
        for part in pytree.tree_leaves((args, kwargs)):
            if isinstance(part, Tensor) and id(part) in self._names:
                self.found.add(self._names[id(part)])
        return func(*args, **(kwargs or {}))


def read_but_not_called(model: nn.Module, layers: Collection[str], example: Batch) -> set[str]:
    """The names of the layers whose weights the model uses although it never calls the layers.

    Args:
        model: runs once, in eval mode.
        layers: names of layers with a `weight`.
        example: the batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mirabelle.task.batch import Batch
        >>> class Tied(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return self.one(x) @ self.other.weight
        >>> read_but_not_called(Tied(), ["one", "other"], Batch(torch.ones(2, 4), torch.zeros(2)))
        {'other'}
    """
    modules = {name: model.get_submodule(name) for name in layers}
    weights = {id(module.weight): name for name, module in modules.items()}
    called: set[str] = set()
    if modules:
        with _Operands(weights) as operands:
            watch(model, [example], modules, before=lambda run: called.add(run.name))
        return {name for name in operands.found if name not in called}
    return set()
