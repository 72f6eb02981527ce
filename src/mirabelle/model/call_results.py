"""Results of function calls as modules: what a model's code adds, concatenates or pools gets a module that may change it.

A residual addition is a call in a `forward`, not a module, so nothing can be put in its place. The edit `CallResults` numbers
the calls of some functions in the order in which the model makes them, and passes the results of chosen calls through modules
of their own, which at first return their inputs: `call_results.add_3` gets the result of call 3, an addition. Later edits
replace these modules like any others. The code of the model stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Edit, damaged
from mirabelle.model.replacement import is_uncounted, uncounted
from mirabelle.model.state import in_eval_mode
from mirabelle.model.watch import every_layer_called
from mirabelle.task.batch import Inputs, call

HOLDER = "call_results"
_NUMBERS = "_mirabelle_calls"
_COUNTED = {
    "add": "add", "mul": "mul", "cat": "cat", "concat": "cat", "concatenate": "cat", "mean": "mean",
    **{f"{kind}{d}d": f"{kind}{d}d" for kind in ("avg_pool", "adaptive_avg_pool") for d in (1, 2, 3)},
    **{name: name for name in ("relu", "relu6", "hardtanh", "clamp", "sigmoid", "leaky_relu", "hardswish", "silu", "elu")},
}  # fmt: skip  # name of a function, without underscores -> the name in the record


class ResultModules(nn.Module):
    """Holds the modules through which results of calls pass; it is never called itself."""


@dataclass(frozen=True)
class CallResults(Edit):
    """Results of function calls pass through modules of their own, which return their inputs until an edit replaces them.

    Args:
        calls: the functions that the model calls, in order. Only calls of functions in this list are counted, except those
            that a `Replacement` makes.
        numbers: of the calls whose results pass through a module, from 0.
    """

    calls: tuple[str, ...]
    numbers: tuple[int, ...]

    def replay(self, model: nn.Module) -> nn.Module:
        if HOLDER in dict(model.named_children()) or hasattr(model, HOLDER):
            raise UserError("E140", f'the model has a part "{HOLDER}" already', "give the model of this file")
        holder = ResultModules()
        for number in self.numbers:
            holder.add_module(place_of(self.calls, number), nn.Identity())
        model.__class__ = _class_with_results(type(model))
        model.__dict__[_NUMBERS] = self.calls
        model.add_module(HOLDER, holder)
        return model

    def to_data(self) -> dict[str, Any]:
        return {"calls": " ".join(self.calls), "numbers": list(self.numbers)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> CallResults:
        calls, numbers = data.get("calls"), data.get("numbers")
        known = tuple(calls.split()) if isinstance(calls, str) else ()
        if not isinstance(numbers, list) or not all(type(one) is int and 0 <= one < len(known) for one in numbers):
            raise damaged("results of calls are not named by their numbers")
        return cls(known, tuple(numbers))


def place_of(calls: Sequence[str], number: int) -> str:
    """The name of the module for the result of a call, within its holder.

    Example:
        >>> place_of(["relu", "add"], 1)
        'add_1'
    """
    return f"{calls[number]}_{number}"


def calls_of(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The functions whose results can pass through a module, as the model calls them for these inputs, in eval mode.

    Example:
        >>> calls_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Sigmoid()), torch.ones(1, 2))
        ('relu', 'sigmoid')
    """
    with torch.no_grad(), in_eval_mode(model), every_layer_called(), _Counting() as counting:
        call(model, inputs)
    return tuple(counting.made)


def with_call_results(model: nn.Module, calls: Sequence[str], numbers: Sequence[int]) -> nn.Module:
    """Let the results of calls pass through modules `call_results.NAME_NUMBER`, in place, and record the edit.

    Args:
        model: is changed in place.
        calls: as from `calls_of`.
        numbers: of the calls.

    Example:
        >>> class Doubled(nn.Module):
        ...     def forward(self, x):
        ...         return x + x
        >>> model = with_call_results(Doubled(), ["add"], [0])
        >>> model.call_results.add_0 = nn.Tanh()
        >>> model(torch.tensor([0.5]))
        tensor([0.7616])
    """
    edit = CallResults(tuple(calls), tuple(numbers))
    record = architecture_of(model).with_edit(edit)
    model = edit.replay(model)
    attach(model, record)
    return model


class _Counting(TorchFunctionMode):
    """Sees the calls of functions, but not those that these functions or replacements make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(self, function: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = self._name(function)
        counts = name is not None and isinstance(result, Tensor) and result.is_floating_point()
        if name is None or not counts or is_uncounted():
            return result
        self.made.append(name)
        return self.result(result)

    def _name(self, function: Callable[..., Any]) -> str | None:
        return _COUNTED.get(str(getattr(function, "__name__", "")).partition(".")[0].strip("_"))

    def result(self, result: Tensor) -> Tensor:
        """The result that the model gets for the call that was counted last."""
        return result


class _Passing(_Counting):
    """Passes results through modules, and refuses other calls than those of the record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._holder, self._calls = model._modules[HOLDER], model.__dict__[_NUMBERS]

    def _name(self, function: Callable[..., Any]) -> str | None:
        name = super()._name(function)
        return name if name in self._calls else None

    def result(self, result: Tensor) -> Tensor:
        number = len(self.made) - 1
        if tuple(self.made[number:]) != self._calls[number : number + 1]:
            raise self._other(f'call {number} is of "{self.made[number]}"')
        module = self._holder._modules.get(place_of(self._calls, number))  # type: ignore[union-attr]
        with uncounted():
            return result if module is None else module(result)

    def end(self) -> None:
        if len(self.made) != len(self._calls):
            raise self._other(f"it ends after {len(self.made)} of {len(self._calls)} calls")

    def _other(self, what: str) -> UserError:
        message = f"the model calls other functions than when its values were given modules: {what}"
        return UserError("E140", message, "give the code, and the kind of inputs, with which the model was made")


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # class -> the class whose results of calls pass through modules


def _class_with_results(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of a module of class `cls` whose results of calls pass through modules, with the same signature."""
    if cls in _CLASSES:
        return _CLASSES[cls]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **keywords: Any) -> Any:
        with _Passing(self) as passing:
            result = cls.forward(self, *args, **keywords)
        passing.end()
        return result

    def reduced(self: nn.Module, protocol: Any) -> Any:
        return (_new, (cls,), *cls.__reduce_ex__(self, protocol)[2:])  # pickle finds classes by their names

    names: dict[str, Any] = {
        "forward": forward,
        "__reduce_ex__": reduced,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    if issubclass(cls, nn.Sequential):  # it calls all its parts
        names["__iter__"] = lambda self: iter([part for name, part in self._modules.items() if name != HOLDER])
        names["__len__"] = lambda self: len(self._modules) - 1
    _CLASSES[cls] = type(cls.__name__, (cls,), names)
    return _CLASSES[cls]


def _new(cls: type[nn.Module]) -> nn.Module:
    made = _class_with_results(cls)
    return made.__new__(made)
