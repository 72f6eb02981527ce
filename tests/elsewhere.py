"""A device that is not the CPU, for tests on machines that have only a CPU.

Tensors on `ELSEWHERE` are computed on the CPU and give the same bits where torch takes the same kernels for both. They refuse
to meet tensors that stayed behind: a forgotten `.to(device)`, a `.numpy()` without `.cpu()`, or a loss on the wrong side fails
here as it would on a GPU. `torch.autocast` does not know the device, and torch has no fused optimizers for it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from mirabelle.model import device
from mirabelle.training import optimizer

ELSEWHERE = torch.device("lazy", 0)  # a type of devices that torch knows by name and does not try to initialize
_MOVES = {"aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense", "aten::equal", "aten::_copy_from"}
_MAY_MIX = {"aten::index.Tensor", "aten::index_put_", "aten::index"}  # indices may be on the CPU
_MOVE = device.move
_HEAVY = {"addmm", "mm", "bmm", "convolution", "convolution_backward", "linalg_cholesky_ex", "_linalg_svd"}


class There(torch.Tensor):
    """A tensor on `ELSEWHERE`."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, dtype=inner.dtype, device=ELSEWHERE, strides=inner.stride(),
            storage_offset=inner.storage_offset(), requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class Machine(TorchDispatchMode):
    """A context in which `ELSEWHERE` exists; `there` and `here` count the products computed on it and on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.partition("::")[2] not in _HEAVY and not _concerned(args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        counts = Counter[str]()
        found = _run(func, args, kwargs or {}, counts)
        name = func._schema.name.partition("::")[2]
        if name in _HEAVY:
            self.counts[bool(counts["there"])][name] += 1
        return found


@contextmanager
def a_second_device() -> Iterator[Machine]:
    """A context in which models can be moved to `ELSEWHERE`.

    Tensors that wrap others know no inference mode, which is `no_grad` here; and their objects are exchanged where a model is
    moved, also if a traced program refers to them.
    """
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch("torch.inference_mode", _no_grad),
            patch.object(optimizer, "FUSED", ()),
            patch.object(device, "move", _moved),
            patch.object(torch.utils, "weakref", SimpleNamespace(getweakrefs=lambda _: [])),
            Machine() as machine,
        ):
            yield machine
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapping)


def _moved(model: nn.Module, place: torch.device) -> None:
    """Move a model; tensors to which something refers that is about to be collected cannot be exchanged before it is."""
    try:
        _MOVE(model, place)
    except RuntimeError as error:
        if "swap" not in str(error):
            raise
        gc.collect()
        _MOVE(model, place)


def _no_grad(mode: bool = True) -> AbstractContextManager[None]:
    return torch.no_grad() if mode else nullcontext()


def _concerned(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call may have to do with the other device; quick, since tracing makes very many that do not."""
    for one in (*args, *kwargs.values()):
        if isinstance(one, torch.device):
            found = _is_there(one)
        elif isinstance(one, (list, tuple)):
            found = any(isinstance(part, (torch.Tensor, list, tuple)) for part in one)
        else:
            found = isinstance(one, (There, dict))
        if found:
            return True
    return False


def _is_there(asked: Any) -> bool:
    return asked is not None and torch.device(asked).type == ELSEWHERE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any], counts: Counter[str]) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    here = any(not isinstance(tensor, There) and tensor.dim() > 0 for tensor in tensors)
    if there and here and name not in _MOVES | _MAY_MIX:
        raise RuntimeError(f"{name}: tensors on two devices")
    counts["there"] += there
    asked = kwargs.get("device")
    plain = {**kwargs, **({"device": torch.device("cpu")} if _is_there(asked) else {})}

    def unwrapped(values: Any) -> Any:
        return tree_map_only(There, lambda tensor: tensor.inner, values)

    out = func(*unwrapped(args), **unwrapped(plain))
    if name == "aten::copy_":
        return args[0]
    if not (_is_there(asked) if asked is not None else there):
        return out
    out = tree_map_only(torch.Tensor, lambda tensor: tensor if isinstance(tensor, There) else There(tensor), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if there else out
