"""Read, load, hash and copy the tensors of a module. Shared tensors stay shared, and memory layouts are kept."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import bytes_of
from mirabelle.run.files import digest

Model = TypeVar("Model", bound=nn.Module)
_MOST = 8  # names in a message
_OTHER = (0.75, 0.01)  # factor and offset of other weights, positive so that variances stay so


def memory_of(tensor: Tensor) -> Hashable:
    """What identifies the memory of a tensor's elements: equal for tensors that are the same numbers, also transposed."""
    places = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    where = tensor.untyped_storage()._cdata, tensor.storage_offset() if tensor.numel() else id(tensor)
    return *where, tensor.dtype, *places


def tensors_of_module(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; shared tensors are listed once, under their first names."""
    return _once(model.state_dict())


def copies_of_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what `tensors_of_module` returns."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of_module(model).items()}


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name without the further names of shared ones. A tensor without elements is identified by its object."""
    found: dict[Hashable, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(memory_of(tensor), (name, tensor))
    return dict(found.values())


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """Copy tensors into a module in place, so that shared tensors stay shared and strides are kept.

    Args:
        model: receives the tensors.
        tensors: by name, as `tensors_of_module` returns them; further names of shared tensors must have the same values.
        source: subject of the error message.

    Raises:
        UserError: E140 if a tensor is missing, unknown, of another shape or integer instead of decimal, or if two names of a
            shared tensor have different values; no tensor is copied in this case.
    """
    own = model.state_dict()
    wanted = _once(own)
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(own))
    misshaped = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = [f"missing {_few(missing)}"] * bool(missing) + [f"extra {_few(extra)}"] * bool(extra) + misshaped
    faults += [
        f"{name} is {tensors[name].dtype}, the model has {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point()
    ]
    first = {memory_of(tensor): name for name, tensor in wanted.items()}
    for name in () if faults else tensors:
        one = first[memory_of(own[name])]
        if one != name and not _same(own[one], tensors[one], own[name], tensors[name]):
            faults.append(f"{one} and {name} differ, the model has one tensor for both")
    if faults:
        prefix = _common_prefix(missing, extra)
        remedy = f'remove "{prefix}" from the names' if prefix else "give weights of this architecture"
        raise UserError("E140", f"{source} do not fit the model: {'; '.join(faults)}", remedy)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST]) + (f", … ({len(names)} in all)" if len(names) > _MOST else "")


def _common_prefix(missing: Sequence[str], extra: Sequence[str]) -> str:
    """The prefix with which the extra names are the missing ones, such as "module." of `DataParallel`; "" if there is none."""
    prefix = next((name.removesuffix(missing[0]) for name in extra if missing and name.endswith(missing[0])), "")
    return prefix if prefix and {prefix + name for name in missing} <= set(extra) else ""


def _same(one: Tensor, value: Tensor, other: Tensor, expected: Tensor) -> bool:
    """Whether `other`, which shares the memory of `one`, is `expected` once `one` is `value`; NaN equals NaN."""
    laid = torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device=expected.device).copy_(value)
    seen, expected = laid.as_strided(other.size(), other.stride()), expected.to(other.dtype)
    return bool(((seen == expected) | (seen.isnan() & expected.isnan())).all())


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and values of all tensors: 16 hexadecimal digits."""
    parts: list[bytes] = []
    for name, tensor in tensors_of_module(model).items():
        parts += [f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), bytes_of(tensor)]
    return digest(*parts)


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal parameters and buffers, also those that are not saved, under equal names."""
    first, second = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (one, other))
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def copied(model: Model, instead: Mapping[int, Tensor] | None = None) -> Model:
    """A deep copy of a model, in which tensors that share memory share it, too.

    Parameters that are the same numbers in memory (`b.weight.data = a.weight.data`) become one parameter, so that they are
    trained and counted once. Tensors that a forward pass left in attributes of the model, such as attention weights, are copied
    without their autograd graph, which `copy.deepcopy` refuses to copy.

    Args:
        model: to copy.
        instead: `id` of a tensor of the model -> the tensor that takes its place, which is not copied.
    """
    values = [value for module in model.modules() for value in pytree.tree_leaves(list(vars(module).values()))]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    detached = {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(model, {**detached, **_copies_of_shared(model), **(instead or {})})


def on_same_parameters(model: Model) -> Model:
    """A copy whose parameters lie in the memory of the model's own, for code that changes no parameter in place.

    Its modules, buffers and gradients are its own.
    """
    apart = _copies_of_shared(model)
    own = [one for one in model.parameters() if type(one) is nn.Parameter and one.is_leaf and id(one) not in apart]
    return copied(model, {id(one): nn.Parameter(one.detach(), requires_grad=one.requires_grad) for one in own})


def take_apart(model: nn.Module, other: nn.Module) -> None:
    """Give a model memory of its own for the tensors that it shares with another one; what is one tensor stays one."""
    shared = {one.untyped_storage()._cdata for one in other.parameters() if not is_lazy(one)}
    own: dict[Hashable, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor) and tensor.untyped_storage()._cdata in shared:
            place = memory_of(tensor)
            own.setdefault(place, tensor.detach().clone())
            tensor.data = own[place]


@torch.no_grad()
def with_other_weights(model: Model) -> Model:
    """A copy whose saved tensors have other values, as a model that was made anew and not trained.

    What is loaded into it has nothing from the model itself.
    """
    other = copied(model)
    for tensor in tensors_of_module(other).values():
        if tensor.is_floating_point():
            tensor.mul_(_OTHER[0]).add_(_OTHER[1])
    return other


def _copies_of_shared(model: nn.Module) -> dict[int, Tensor]:
    """`id` of each parameter or buffer that shares memory with a parameter -> its copy; `deepcopy` would separate them."""
    together: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor) and tensor.layout == torch.strided and tensor.is_leaf and tensor.numel():
            together[tensor.untyped_storage()._cdata].append(tensor)
    copies: dict[int, Tensor] = {}
    for group in together.values():
        if len(group) == 1 or not any(isinstance(tensor, nn.Parameter) for tensor in group):
            continue
        storage = group[0].detach().untyped_storage().clone()  # type: ignore[no-untyped-call]  # torch's is not typed
        made: dict[Hashable, Tensor] = {}
        for tensor in group:
            view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, type(tensor)
            if view not in made:
                copy_of = tensor.detach().new_empty(0).set_(storage, *view[:3])
                is_parameter = isinstance(tensor, nn.Parameter)
                made[view] = nn.Parameter(copy_of, requires_grad=tensor.requires_grad) if is_parameter else copy_of
            copies[id(tensor)] = made[view]
    return copies


@contextlib.contextmanager
def in_plain_layout(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which no tensor of a model has the memory layout "channels-last"; at its end, all lie as before.

    A traced program follows that layout: adaptive pooling to one value then ends in a gather of its own result. Where an axis
    has one element, strides may tell of it in a tensor that is contiguous.
    """
    laid = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers()) if _strides_of_channels_last(tensor)]
    plain: dict[Hashable, Tensor] = {}  # tensors that share memory still do
    try:
        for tensor, data in laid:
            tensor.data = plain.setdefault(memory_of(tensor), data.clone(memory_format=torch.contiguous_format))
        yield model
    finally:
        for tensor, data in laid:
            tensor.data = data


def in_order_of_axes(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one whose memory layout is "channels-last"."""
    return tensor.clone(memory_format=torch.contiguous_format) if _strides_of_channels_last(tensor) else tensor


def _strides_of_channels_last(tensor: Tensor) -> bool:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is None or tensor.layout != torch.strided or not tensor.is_contiguous(memory_format=last):
        return False
    return tensor.stride() != torch.empty(tensor.shape, device="meta").stride()


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
