"""Read, load, hash and copy the tensors of a module. Shared tensors stay shared, and memory layouts are kept."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import bytes_of
from mirabelle.run.files import digest

Model = TypeVar("Model", bound=nn.Module)


def tensors_of_module(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; shared tensors are listed once, under their first names."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape)
        if identity in seen and tensor.numel():
            continue
        seen.add(identity)
        found[name] = tensor
    return found


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """Copy tensors into a module in place, so that shared tensors stay shared and strides are kept.

    Args:
        model: receives the tensors.
        tensors: by name, as `tensors_of_module` returns them.
        source: subject of the error message.

    Raises:
        UserError: E140 if a tensor is missing, unknown or of another shape; no tensor is copied in this case.
    """
    wanted = tensors_of_module(model)
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(model.state_dict()))
    misshaped = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    faults = [f"missing {', '.join(missing)}"] * bool(missing) + [f"extra {', '.join(extra)}"] * bool(extra) + misshaped
    if faults:
        raise UserError("E140", f"{source} do not fit the model: {'; '.join(faults)}", "give weights of this architecture")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and values of all tensors: 16 hexadecimal digits."""
    parts: list[bytes] = []
    for name, tensor in tensors_of_module(model).items():
        parts += [f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), bytes_of(tensor)]
    return digest(*parts)


def copied(model: Model, instead: Mapping[int, Tensor] | None = None) -> Model:
    """A deep copy of a model.

    Args:
        model: to copy.
        instead: `id` of a tensor of the model -> the tensor that takes its place, which is not copied.

    Tensors that a forward pass left in attributes of the model, such as attention weights, are copied without their autograd
    graph, which `copy.deepcopy` refuses to copy.
    """
    values = [value for module in model.modules() for value in pytree.tree_leaves(list(vars(module).values()))]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {**{id(value): value.detach().clone() for value in computed}, **(instead or {})})


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which a model is in eval mode; at its end, each module returns to its previous mode.

    A frozen batch norm stays frozen, and a dropout that is on in a model in eval mode stays on. The modes are changed by
    `train` and `eval`, which some modules override: a low-rank adapter that is merged into its layer for evaluation, say.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with in_eval_mode(model):
        ...     [module.training for module in model.modules()]
        [False, False, False]
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():  # a module comes before its parts, whose modes its `train` changes
            if module.training != mode:
                module.train(mode)
