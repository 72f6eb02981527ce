"""Where models compute: the device of a job, on which models are while they work. Between that they are on the CPU.

What changes, saves, exports or compares the tensors of a model finds them on the CPU, so only code that runs a model over data
knows of devices: it does so within `at_work`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.run.launch import by_slurm, launched
from mirabelle.task.batch import place_of

CPU = torch.device("cpu")
_ACCELERATORS = ("cuda", "xpu", "mps")
_JOB: ContextVar[torch.device | None] = ContextVar("device of the job", default=None)
V = TypeVar("V")
Model = TypeVar("Model", bound=nn.Module)


def named_device(name: str) -> torch.device:
    """The device of a name: "cpu", "cuda", "cuda:1", "mps", "xpu", or "auto" for the first accelerator, or else the CPU.

    Raises:
        UserError: E110 for another name; E122 for a device that is not there; E111 for a single one if several processes on
            this machine need one each.

    Example:
        >>> named_device("cpu")
        device(type='cpu')
    """
    present = devices_present()
    if name == "auto":
        return of_process(torch.device(present[1] if len(present) > 1 else present[0]))
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", *_ACCELERATORS) or (colon and not number.isdecimal()):
        raise UserError("E110", f'device is "{name}"', 'give "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu"')
    full = name if kind == CPU.type or number else f"{kind}:0"
    if full not in present:
        raise UserError("E122", f'device "{name}" is not there', f"there are: {', '.join(present)}")
    if number and _processes_here() > 1:
        message = f'device is "{name}", and {_processes_here()} processes on this machine need one each'
        raise UserError("E111", message, f'write device = "{kind}", or start a single process')
    return of_process(torch.device(full))


def of_process(device: torch.device) -> torch.device:
    """The device of a kind for this process: of several that were started together on a machine, each takes one of its own.

    Raises:
        UserError: E122 if there are not so many devices.
    """
    launch = launched()
    if launch is None or launch.local_count == 1 or device.type == CPU.type:
        return device
    own = f"{device.type}:{launch.local_rank}"
    present = [name for name in devices_present() if name.startswith(f"{device.type}:")]
    if len(present) == 1 and by_slurm():  # which shows each process a device of its own, under the same number
        return torch.device(present[0])
    if own not in present:
        message = f'{launch.local_count} processes on this machine need a device each; "{own}" is not there'
        raise UserError("E122", message, f"there are: {', '.join(devices_present())}")
    return torch.device(own)


def _processes_here() -> int:
    launch = launched()
    return 1 if launch is None else launch.local_count


def devices_present() -> list[str]:
    """The names of all devices of this machine with which torch can compute, the CPU first.

    Example:
        >>> devices_present()[0]
        'cpu'
    """
    found = [CPU.type]
    for kind in _ACCELERATORS:
        library = getattr(torch, kind, None)
        if library is not None and library.is_available():
            found += [f"{kind}:{number}" for number in range(library.device_count())]
    return found


def title_of(device: torch.device) -> str:
    """The name of a device for people, such as "cuda:0 (NVIDIA H200)"."""
    library: Any = getattr(torch, device.type, None)
    name = library.get_device_name(device) if hasattr(library, "get_device_name") else ""
    return f"{device} ({name})" if name else str(device)


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[torch.device]:
    """A context in which models compute on a device whenever they are `at_work`."""
    library: Any = getattr(torch, device.type, None)
    current = (
        library.device(device) if device.type in _ACCELERATORS and hasattr(library, "device") else contextlib.nullcontext()
    )
    before = _JOB.set(device)
    try:
        with current:  # torch seeds, and waits for, the current device of a kind
            yield device
    finally:
        _JOB.reset(before)


def device_of_jobs() -> torch.device | None:
    """The device of the job within which this is called; None outside of jobs."""
    return _JOB.get()


def device_of_job(model: nn.Module) -> torch.device:
    """The device on which a model is to compute: that of the job, or outside of jobs the one on which it is."""
    return _JOB.get() or place_of(model) or CPU


@contextlib.contextmanager
def at_work(*models: nn.Module) -> Iterator[torch.device]:
    """A context in which models are on the device of the job; at its end, those that were elsewhere return there.

    A model that is at work already stays where it is, so such contexts may be within one another. What is computed within has
    the device of the models; what leaves is brought to the CPU by `home`.

    Args:
        models: with float weights, moved in place.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with computing_on(CPU), at_work(model) as device:
        ...     device
        device(type='cpu')
    """
    with at_work_on(device_of_job(models[0]), *models) as device:
        yield device


@contextlib.contextmanager
def at_work_on(device: torch.device, *models: nn.Module) -> Iterator[torch.device]:
    """A context in which models, if any, are on a device; at its end, those that were elsewhere return there."""
    moved = [(model, place) for model in models if (place := place_of(model)) is not None and place != device]
    try:
        for model, _ in moved:
            move(model, device)
        yield device
    finally:
        for model, place in moved:
            move(model, place)


@contextlib.contextmanager
def at_home(model: nn.Module) -> Iterator[None]:
    """A context in which a model is on the CPU, for work that is done there alone, such as tracing; then it returns."""
    place = place_of(model) or CPU
    if place != CPU:
        move(model, CPU)
    try:
        yield
    finally:
        if place != CPU:
            move(model, place)


def on_cpu(model: Model) -> Model:
    """A copy of a model on the CPU."""
    found = copied(model)
    if place_of(found) not in (None, CPU):
        move(found, CPU)
    return found


@contextlib.contextmanager
def copy_at_work(model: Model) -> Iterator[Model]:
    """A context that gives a copy of a model that is at work, or the model itself if it is; for models that are traced.

    A traced program refers to the memory of the tensors that it was traced with.
    """
    made = model if place_of(model) in (None, device_of_job(model)) else copied(model)
    with at_work(made):
        yield made


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model in place; tensors that are the same numbers in memory still are afterwards."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # of each tensor, as a module has it
    same: dict[Hashable, dict[int, tuple[int, ...]]] = {}  # tensors that are the same numbers, with their strides
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((held, name))
                    place = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()
                    same.setdefault(place if tensor.numel() else id(tensor), {})[id(tensor)] = tensor.stride()
    model.to(device)
    for group in same.values():
        one, *others = group
        _put(places[one], _at(places[one][0]))
        for other in others:
            moved = _at(places[other][0])
            view = _at(places[one][0]).data.as_strided(moved.size(), group[other])
            if isinstance(moved, nn.Parameter):
                moved.data = view
            _put(places[other], moved if isinstance(moved, nn.Parameter) else view)


def _at(place: tuple[dict[str, Any], str]) -> Tensor:
    held, name = place
    found: Tensor = held[name]
    return found


def _put(places: list[tuple[dict[str, Any], str]], tensor: Tensor) -> None:
    for held, name in places:
        held[name] = tensor


def free_bytes(device: torch.device) -> int:
    """The bytes of memory that are free on a device; 0 for the CPU, and where torch does not say."""
    library: Any = getattr(torch, device.type, None)
    if device.type == "mps" and library is not None:
        return int(library.recommended_max_memory() - library.driver_allocated_memory())
    return int(library.mem_get_info(device)[0]) if device != CPU and hasattr(library, "mem_get_info") else 0


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed what it was given, before the time is read."""
    library = getattr(torch, device.type, None)
    if device.type in _ACCELERATORS and library is not None:
        library.synchronize()


def home(value: V) -> V:
    """What was computed, with its tensors on the CPU.

    Example:
        >>> home((torch.ones(1), "a"))
        (tensor([1.]), 'a')
    """
    moved: V = pytree.tree_map_only(Tensor, lambda tensor: tensor.cpu(), value)
    return moved


def check_device(model: nn.Module, what: str = "the model") -> None:
    """Raise unless all parameters and buffers of a model have values on one device, and its parameters are float32.

    Args:
        model: that will be run.
        what: its name in the message.

    Raises:
        UserError: E121 naming the first tensor without values or on another device, or parameter in another precision.

    Example:
        >>> check_device(nn.Linear(2, 2))
        >>> check_device(nn.Linear(2, 2, device="meta"))
        Traceback (most recent call last):
        mirabelle.errors.UserError: error[E121]: "weight" of the model is on device "meta", which holds no values
        help: load its weights
    """
    first = place_of(model)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise UserError("E121", f'"{name}" of {what} is on device "meta", which holds no values', "load its weights")
        if tensor.device != first:
            message = f'"{name}" of {what} is on device "{tensor.device}", other tensors are on "{first}"'
            raise UserError("E121", message, 'move it whole: model.to("cpu")')
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            message = f'"{name}" of {what} is {tensor.dtype}; models are compressed in float32'
            raise UserError("E121", message, "convert it: model.float()")
