"""Expected milliseconds of a program's operators in the runtime, by the fractions that items keep, and efficient widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from mirabelle.allocation.knapsack import Table, tables_of
from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.costs import Length, Polynomial, mac_products, polynomial_of
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup
from mirabelle.runtime.timing import Operator, milliseconds

_MOST_MEASURED = 400  # entries of one operator's table; above this, each item is varied separately
_MULTIPLES = (1, 2, 4, 8, 16, 32)
_HEAVIEST = 4  # number of operators by which a multiple is chosen
_GOOD = 0.9  # share of the best rate that is sufficient


class OperatorTimes:
    """Expected milliseconds of the operators with weights, as tables over the fractions that the items keep.

    Each operator is measured alone in the sizes in question. The part of the whole model's latency that these operators do not
    explain is distributed over all other operators in proportion to the number of values they compute.

    Args:
        flow: the program's axes.
        groups: the groups of units.
        item_of: the index of the item that each group belongs to.
        whole_ms: milliseconds of the whole unchanged model.
        batch: number of samples in a measured call.
        traced_batch: number of samples of the example that was traced.
        threads: number of threads of an operator.
    """

    def __init__(
        self,
        flow: Flow,
        groups: Sequence[AxisGroup],
        item_of: Sequence[int],
        *,
        whole_ms: float,
        batch: int,
        traced_batch: int,
        threads: int,
    ) -> None:
        self._threads, self._growth = threads, batch / traced_batch
        self._times: dict[Operator, float] = {}
        self._operators: list[_Sized] = []
        rest: Polynomial = {}

        def polynomial(lengths: Sequence[Length]) -> Polynomial:
            return in_items(polynomial_of([tuple(lengths)], flow, groups), item_of)

        counted = dict.fromkeys(node for node, _ in mac_products(flow))
        for node in flow.axes:
            sized = _sized(flow, node, polynomial) if node in counted else None
            if sized is not None:
                self._operators.append(sized)
            elif node.op == "call_function" and node not in flow.constants and isinstance(value_of(node), Tensor):
                for key, value in polynomial(list(zip(flow.of(node), sizes_of(value_of(node)), strict=True))).items():
                    rest[key] = rest.get(key, 0.0) + value
        ones = [np.ones(1) for _ in range(max(item_of, default=-1) + 1)]
        explained = sum(float(table.sum()) for table in self._measured_tables(ones).values())
        unexplained = max(whole_ms - explained, 0.0)
        values = sum(rest.values()) or 1.0
        self._rest = {key: unexplained * value / values for key, value in rest.items()}

    def tables(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        found = dict(tables_of(self._rest, fractions))
        for items, table in self._measured_tables(fractions).items():
            found[items] = found[items] + table if items in found else table
        return found

    def best_multiple(self) -> int:
        """The smallest multiple of channels (1, 2, 4, … 32) with which the heaviest operators reach 90 % of their best rate.

        For each multiple, an operator is measured with the number of its inputs, then of its outputs, reduced to the largest
        odd multiple below 0.8 of it. The rate is the number of multiply-accumulates per millisecond.
        """
        whole = [sized.whole(self._growth) for sized in self._operators]
        heaviest = sorted(dict.fromkeys(whole), key=_macs, reverse=True)[:_HEAVIEST]
        narrowed = {multiple: [n for operator in heaviest for n in _narrowed(operator, multiple)] for multiple in _MULTIPLES}
        times = milliseconds([operator for operators in narrowed.values() for operator in operators], self._threads)
        rates = {
            multiple: float(np.mean([_macs(operator) / max(times[operator], 1e-9) for operator in operators]))
            for multiple, operators in narrowed.items()
            if len(operators) == 2 * len(heaviest)
        }
        return next((multiple for multiple, rate in rates.items() if rate >= _GOOD * max(rates.values())), 1)

    def _measured_tables(self, fractions: Sequence[Table]) -> dict[tuple[int, ...], Table]:
        needed = [(sized, part) for sized in self._operators for part in sized.parts(fractions)]
        grids = [(sized, part, sized.grid(part, fractions, self._growth)) for sized, part in needed]
        missing = [operator for _, _, grid in grids for operator in grid.flat if operator not in self._times]
        self._times |= milliseconds(missing, self._threads)
        found: dict[tuple[int, ...], Table] = {}
        for sized, part, grid in grids:
            table = np.vectorize(self._times.__getitem__, otypes=[np.float64])(grid)
            if part != sized.items:  # varied separately: the difference to the unchanged operator
                table = table - self._times[sized.whole(self._growth)] if part else table
            found[part] = found[part] + table if part in found else table
        return found


@dataclass(frozen=True)
class _Sized:
    """An operator whose sizes depend on items: a polynomial for each size, and a function from sizes to an operator."""

    items: tuple[int, ...]
    sizes: tuple[Polynomial, ...]
    made: Callable[[Sequence[int], float], Operator]

    def parts(self, fractions: Sequence[Table]) -> list[tuple[int, ...]]:
        """The sets of items to vary: all at once if the table is small enough; else none, and each item separately."""
        if math.prod(len(fractions[item]) for item in self.items) <= _MOST_MEASURED:
            return [self.items]
        return [(), *((item,) for item in self.items)]

    def grid(self, part: tuple[int, ...], fractions: Sequence[Table], growth: float) -> Any:
        found = np.empty([len(fractions[item]) for item in part], object)
        for place in np.ndindex(*found.shape):
            kept = {item: float(fractions[item][option]) for item, option in zip(part, place, strict=True)}
            found[place] = self._at(kept, growth)
        return found

    def whole(self, growth: float) -> Operator:
        return self._at({}, growth)

    def _at(self, kept: Mapping[int, float], growth: float) -> Operator:
        sizes = [
            max(1, round(sum(value * math.prod(kept.get(item, 1.0) for item in key) for key, value in polynomial.items())))
            for polynomial in self.sizes
        ]
        return self.made(sizes, growth)


def _sized(flow: Flow, node: fx.Node, polynomial: Callable[[Sequence[Length]], Polynomial]) -> _Sized | None:
    """The operator of a node, if it has stored weights and can be measured alone; else None."""
    call = Call.of(node)
    if call.name in ("conv1d", "conv2d", "conv3d", "convolution"):
        made = _convolution(call)
        operands = (call["input"], call["weight"])
    elif call.name in ("linear", "addmm", "mm"):
        made = _product
        operands = (
            (call["input"], call["weight"])
            if call.name == "linear"
            else tuple(call[name] for name in (("mat1", "mat2") if call.name == "addmm" else ("self", "mat2")))
        )
    else:
        return None
    if made is None:
        return None
    lengths = [tuple(zip(flow.of(operand), sizes_of(value_of(operand)), strict=True)) for operand in operands]
    if call.name == "linear":
        lengths[1] = lengths[1][::-1]
    if made is _product:  # rows, inputs, outputs
        sizes = [polynomial(lengths[0][:-1]), polynomial(lengths[0][-1:]), polynomial(lengths[1][-1:])]
    else:
        sizes = [polynomial([length]) for length in (*lengths[0], *lengths[1])]
    items = tuple(sorted({item for size in sizes for key in size for item in key}))
    return _Sized(items, tuple(sizes), made)


def _product(sizes: Sequence[int], growth: float) -> Operator:
    rows, inputs, outputs = sizes
    return Operator("MatMul", (max(1, round(rows * growth)), inputs), (inputs, outputs))


def _convolution(call: Call) -> Callable[[Sequence[int], float], Operator] | None:
    if call.get("transposed") or isinstance(call.get("padding"), str):
        return None
    rank = len(sizes_of(value_of(call["input"]))) - 2

    def each(name: str, default: int) -> tuple[int, ...]:
        value = call.get(name)
        value = [default] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(value * rank if len(value) == 1 else value)

    stride, padding, dilation = each("stride", 1), each("padding", 0), each("dilation", 1)

    def made(sizes: Sequence[int], growth: float) -> Operator:
        batch, channels, *places = sizes[: rank + 2]
        outputs, inputs, *kernel = sizes[rank + 2 :]
        groups = max(1, round(channels / inputs))
        outputs = max(1, round(outputs / groups)) * groups
        shape, weight = (max(1, round(batch * growth)), groups * inputs, *places), (outputs, inputs, *kernel)
        settings = (("strides", stride), ("pads", padding * 2), ("dilations", dilation), ("group", groups))
        return Operator("Conv", shape, weight, settings)

    return made


def _macs(operator: Operator) -> int:
    if operator.kind == "MatMul":
        return math.prod(operator.shape) * operator.weight[1]
    stride = dict(operator.attributes)["strides"]
    assert isinstance(stride, tuple), "one for each dimension"
    return operator.shape[0] * math.prod(operator.weight) * math.prod(operator.shape[2:]) // math.prod(stride)


def _narrowed(operator: Operator, multiple: int) -> list[Operator]:
    """The operator with fewer inputs, and with fewer outputs; empty if it is too small, or a grouped convolution."""
    conv = operator.kind == "Conv"
    if conv and dict(operator.attributes)["group"] != 1:
        return []
    inputs, outputs = operator.shape[1], operator.weight[0 if conv else 1]
    found = []
    for width, of_inputs in ((inputs, True), (outputs, False)):
        times = int(0.8 * width) // multiple
        odd = times - 1 + times % 2
        if odd < 1:
            continue
        narrow = odd * multiple
        weight = list(operator.weight)
        weight[(1 if conv else 0) if of_inputs else (0 if conv else 1)] = narrow
        shape = (operator.shape[0], narrow, *operator.shape[2:]) if of_inputs else operator.shape
        found.append(replace(operator, shape=shape, weight=tuple(weight)))
    return found


def in_items(polynomial: Polynomial, item_of: Sequence[int]) -> Polynomial:
    """A polynomial over groups as a polynomial over the items that the groups belong to."""
    found: Polynomial = {}
    for key, value in polynomial.items():
        items = tuple(sorted(item_of[group] for group in key))
        found[items] = found.get(items, 0.0) + value
    return found
