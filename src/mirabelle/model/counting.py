"""Count the multiply-accumulate operations (MACs) of a model by running it on one sample; `model.products` defines them.

Every operator that runs is seen, whoever calls it: a module, a function such as `F.linear`, or a method of a tensor. Torch's
fused kernels are off meanwhile, since they hide what they compute.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mirabelle.model.products import Operation, factors, is_counted, mac_products
from mirabelle.model.state import in_eval_mode
from mirabelle.model.watch import LayerRun, every_layer_called, watched
from mirabelle.task.batch import Batch, Inputs, call, map_tensors

_DEVICE_OF = torch.ops.prim.device.default


@dataclass(frozen=True)
class Counted:
    """The MACs of a model for one sample.

    Args:
        by_tensor: name of a parameter or buffer -> MACs of the operators that multiply by it; a shared one has its first name.
        by_module: name of a module -> MACs of the products of activations that it computes itself, such as those of attention.
    """

    by_tensor: Mapping[str, int]
    by_module: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_tensor.values()) + sum(self.by_module.values())


def macs_of(model: nn.Module, example: Batch) -> Counted:
    """The MACs of the program that runs for one sample in eval mode, as far as its outputs need them.

    Two kinds of products are not counted, since a file for deployment leaves them out: those of stored numbers alone, such
    as the norm of a spectrally normalized weight, and those on which no output depends. A model that refuses a single sample
    runs on the whole example, and the count is divided by its number of samples.

    Args:
        model: any module; modes and hooks are as before afterwards.
        example: the first sample is used.

    Example:
        >>> class Twice(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(5, 5))
        ...     def forward(self, x):
        ...         return x @ self.weight @ self.weight.T
        >>> macs_of(Twice(), Batch(torch.ones(2, 5), torch.zeros(2))).by_tensor
        {'weight': 50}
    """
    try:
        return _counted(model, map_tensors(example.inputs, lambda tensor: tensor[:1]), samples=1)
    except Exception:  # noqa: BLE001 (a model may refuse a batch of one sample in any way)
        return _counted(model, example.inputs, samples=len(example))


def _counted(model: nn.Module, inputs: Inputs, samples: int) -> Counted:
    counter = _Counter(model)
    with torch.inference_mode(mode=False), torch.no_grad(), in_eval_mode(model), every_layer_called(), counter.listening(model):
        outputs = call(model, inputs)
    return counter.counted(outputs, samples)


@dataclass(frozen=True, eq=False)
class _Value:
    """The contents of some memory after one operator.

    Args:
        sources: what the operator read.
        names: (offset, name) of each parameter and buffer in it, or of one from which alone it was computed; else empty.
    """

    sources: tuple[_Value, ...] = ()
    names: tuple[tuple[int, str], ...] = ()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's mode is not typed
    """Sees every operator, and what it reads and writes."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._running = [""]
        self._values: dict[int, _Value] = {}  # by memory
        self._needed: list[_Value] = []  # what code looked at
        self._macs: list[tuple[_Value, str | None, str, int]] = []  # result, weight, module, MACs
        held: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (memory := _memory(tensor)) is not None:
                held[memory].append((int(tensor.storage_offset()), name))
        self._values = {memory: _Value(names=tuple(names)) for memory, names in held.items()}
        self._held = tuple(held)

    @contextlib.contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model's operators are counted, each for the innermost module that runs."""

        def enter(run: LayerRun) -> None:
            self._running.append(run.name)

        def leave(run: LayerRun) -> None:
            while len(self._running) > 1 and self._running.pop() != run.name:
                pass  # modules that an exception left

        heard = {name: module for name, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)}
        with watched(heard, before=enter, after=leave), self:
            yield

    def counted(self, outputs: Any, samples: int) -> Counted:
        """The MACs that the outputs, the new values of buffers, or the path of the code through the model need."""
        ends = [*self._needed, *(self._values[memory] for memory in self._held), *map(self._of, _tensors(outputs))]
        needed: set[int] = set()
        while ends:
            value = ends.pop()
            if id(value) not in needed:
                needed.add(id(value))
                ends.extend(value.sources)
        by_tensor: dict[str, int] = defaultdict(int)
        by_module: dict[str, int] = defaultdict(int)
        for result, weight, module, count in self._macs:
            if id(result) in needed and weight is not None:
                by_tensor[weight] += count
            elif id(result) in needed:
                by_module[module] += count
        return Counted(*({name: n // samples for name, n in found.items()} for found in (by_tensor, by_module)))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            with self:
                return _body(func)(*args, **kwargs)
        name = _name_of(func)
        if not is_counted(name) and func is not _DEVICE_OF:
            with self:
                parts = (_python_body(func) or func.decompose)(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        given = _tensors((args, kwargs))
        result = self._written(name, given, output)
        if is_counted(name):
            operation: Operation[int] = Operation(name, _arguments(func, args, kwargs), _first(output), _shape)
            self._add(result, sum(prod(lengths) for lengths in mac_products(operation)), _tensors(factors(operation)))
        elif (formula := _formula(func)) is not None:
            self._add(result, formula(*args, **kwargs, out_val=output) // 2, given)
        return output

    def _add(self, result: _Value, count: int, multiplied: list[Tensor]) -> None:
        weights = [name for part in multiplied if (name := self._name_of(part)) is not None]
        if len(weights) < len(multiplied):  # otherwise stored numbers alone
            self._macs.append((result, weights[0] if weights else None, self._running[-1], count))

    def _name_of(self, tensor: Tensor) -> str | None:
        """The name of the stored tensor that this one is, or is computed from; None if it depends on the input."""
        known = self._of(tensor).names
        before = [pair for pair in known if pair[0] <= tensor.storage_offset()]
        return max(before or known)[1] if known else None

    def _of(self, tensor: Tensor) -> _Value:
        memory = _memory(tensor)
        return _Value() if memory is None else self._values.setdefault(memory, _Value())

    def _written(self, operator: str, given: list[Tensor], output: Any) -> _Value:
        """Note the new contents of the memory that an operator wrote."""
        sources = tuple({id(value): value for value in map(self._of, given)}.values())
        results = _tensors(output)
        read = {_memory(part) for part in given}
        if not results:
            self._needed.extend(sources)  # a number that code looks at, or an assertion
            return _Value(sources)
        if all(_memory(part) in read for part in results) and len(sources) == 1:
            return sources[0]  # a view, or a change in place that reads nothing else
        stored = bool(sources) and all(value.names for value in sources) and operator != "lift_fresh"
        name = self._name_of(given[0]) if stored else None
        value = _Value(sources, () if name is None else ((0, name),))
        for part in results:
            if (memory := _memory(part)) is not None:
                self._values[memory] = value
        return value


def _body(func: Any) -> Callable[..., Any]:
    """What an operator that takes functions computes, such as the branch that is taken, or every turn of a loop."""
    if func is torch.ops.higher_order.cond:
        return lambda condition, if_true, if_false, operands: (if_true if bool(condition) else if_false)(*operands)
    found: Callable[..., Any] = func.py_kernels[torch._C.DispatchKey.CompositeExplicitAutograd]
    return found


def _python_body(func: Any) -> Callable[..., Any] | None:
    """The code of an operator that was defined by `torch.library.custom_op` and has no formula of its own."""
    defined = OPDEFS.get(func.overloadpacket._qualified_op_name)
    bodies = defined._backend_fns if defined is not None and _formula(func) is None else {}
    found: Callable[..., Any] | None = bodies.get(None, bodies.get("cpu"))
    return found


def _memory(tensor: Tensor) -> int | None:
    """The identity of a tensor's memory; None for tensors without any, such as sparse ones."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # torch: no storage, also as its subclass for what a layout lacks
        return None


def _name_of(func: Any) -> str:
    namespace, _, name = func.overloadpacket._qualified_op_name.partition("::")
    return name if namespace == "aten" else f"{namespace}.{name}"


def _arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = (argument.name for argument in func._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _tensors(values: Any) -> list[Tensor]:
    return [part for part in pytree.tree_leaves(values) if isinstance(part, Tensor)]


def _formula(func: Any) -> Callable[..., int] | None:
    """The formula that an operator's author registered with torch, for operators that `model.products` does not know."""
    found: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
    return found
