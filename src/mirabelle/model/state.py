"""A module's tensors out to plain data and back in: ties kept, memory layout kept, misfits named."""

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
    """Parameters and persistent buffers by name; of tied tensors the first name only."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape)
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        found[name] = tensor
    return found


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """Copy tensors into the module, in place, so that ties and strides stay as they are.

    Raises:
        UserError: E140 when a tensor is missing, left over, or of another shape; nothing is copied then.
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
    """Sixteen hexadecimal digits over names, shapes and values of every tensor."""
    parts: list[bytes] = []
    for name, tensor in tensors_of_module(model).items():
        parts += [f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), bytes_of(tensor)]
    return digest(*parts)


def copied(model: Model) -> Model:
    """A deep copy. What a forward has left on the model, attention or a weight that a hook makes, loses the graph behind it."""
    left = [value for module in model.modules() for value in pytree.tree_leaves(list(vars(module).values()))]
    made = [value for value in left if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in made})


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards each of its modules is in the mode that it had.

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
