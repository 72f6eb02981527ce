"""The function at the end of a model, found by running it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ENDS: Mapping[str, str] = {"_softmax": "Softmax", "softmax": "Softmax", "sigmoid": "Sigmoid"}  # by names in ATen
_SAME = {
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten", "transpose", "permute", "t", "clone",
    "detach", "alias", "_to_copy", "contiguous", "select", "slice", "expand", "squeeze_", "unsqueeze_",
}  # fmt: skip


def ending(run: Callable[[], Any]) -> str | None:
    """ "Softmax" or "Sigmoid" if this function computes the only output of a model, whatever reshapes the result; else None.

    Args:
        run: runs the model and returns its outputs.

    Example:
        >>> from torch import nn
        >>> x, linear = torch.ones(2, 3), nn.Linear(3, 1)
        >>> ending(lambda: torch.sigmoid(linear(x)).squeeze(1)), ending(lambda: linear(x))
        ('Sigmoid', None)
    """
    with torch.no_grad(), _Ends() as ends:
        outputs = run()
    return ends.of(outputs) if isinstance(outputs, Tensor) else None


class _Ends(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Remembers which tensors a softmax or sigmoid computed; tensors are kept, so that no other gets their identity."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[Tensor, str]] = {}

    def of(self, tensor: Tensor) -> str | None:
        return self._known.get(id(tensor), (None, None))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        end = _ENDS.get(name)
        if end is None and name in _SAME and args and isinstance(args[0], Tensor):
            end = self.of(args[0])
        if end is not None and isinstance(given, Tensor):
            self._known[id(given)] = (given, end)
        return given
