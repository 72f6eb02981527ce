"""Sizes of a traced program at other values of its free sizes, such as another batch.

The trace writes every size as an expression of symbols, one for each free dimension of the inputs. Given inputs, the symbols
have values, and so has every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mirabelle.graph.call import is_free, is_known, number_of, value_of
from mirabelle.graph.example_signature import Example
from mirabelle.graph.trace import Program

_ASSUMED = 2  # smallest value of a free size in a trace
_NO_LIMIT = 1 << 40  # the exporter's largest size stands for infinity


class FreeSizes:
    """The values that the free sizes of a program have for given inputs.

    Args:
        program: of the model.
        inputs: all user inputs in the order of the program's placeholders.
    """

    def __init__(self, program: Program, inputs: Sequence[Any]) -> None:
        self._values: dict[Any, int] = {}
        self._known: dict[Any, int] = {}
        for traced, given in zip(traced_inputs(program), inputs, strict=True):
            for size, own in zip(_shape(traced), given.shape, strict=True) if _shape(traced) else ():
                if is_free(size) and size.node.expr.is_Symbol:
                    self._values[size.node.expr] = own

    def of(self, size: Any) -> int | None:
        """The value of a traced size; None if it depends on the values of tensors."""
        if not is_free(size):
            return int(size)
        if not is_known(size):
            return None
        expression = size.node.expr
        if expression not in self._known:
            value = expression.subs(self._values)
            self._known[expression] = int(value) if value.is_number else number_of(size)
        return self._known[expression]


def traced_inputs(program: Program) -> list[Any]:
    """The values of the user inputs as recorded by the trace: fake tensors, or plain values."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [value_of(node) for node in nodes if program.sources[node.name].kind == "input"]


@dataclass(frozen=True)
class Limits:
    """The values of a dimension of an input for which a program holds: multiples of a number, from `low` to `high`.

    `high` is None if there is no limit.
    """

    low: int
    high: int | None
    multiple: int = 1

    @staticmethod
    def of(size: Any, program: Program, least: int = _ASSUMED) -> Limits:
        """The limits of a traced size.

        A branch of the code on a free size, such as `if x.shape[0] > 4`, limits it.

        Args:
            size: of a dimension of an input.
            program: of the model.
            least: instead of 2, which every trace assumes of a free size.
        """
        if not is_free(size):
            return Limits(int(size), int(size))
        coefficient, symbol = size.node.expr.as_coeff_Mul()
        multiple = int(coefficient)
        own = program.exported.range_constraints.get(symbol)
        low, high = (_ASSUMED, None) if own is None else (own.lower, own.upper)
        low = least if low <= _ASSUMED else int(low)
        return Limits(low * multiple, None if high is None or high > _NO_LIMIT else int(high) * multiple, multiple)

    def hold(self, value: int) -> bool:
        """Whether a size is within the limits."""
        return self.low <= value and (self.high is None or value <= self.high) and value % self.multiple == 0

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.low)
        size = f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"
        return size if self.multiple == 1 else f"{size} by {self.multiple}"


def limits_of_batch(program: Program) -> list[Limits]:
    """The limits of the first dimension of every input, where the samples are; a free one may have any size."""
    values = [value for value in traced_inputs(program) if isinstance(value, Tensor) and value.ndim]
    return list(dict.fromkeys(Limits.of(value.shape[0], program) for value in values))


def resized(program: Program, example: Example, *, more: int = 0, to: int = 0) -> Example | None:
    """The example with other numbers of samples, by repeating its own; None if the program does not hold for them.

    Args:
        program: of the model.
        example: inputs of the trace.
        more: number of samples added along each free dimension.
        to: instead, the number of samples; a single one is tried although every trace assumes two.
    """
    leaves, spec = pytree.tree_flatten(example)
    changed, given = False, []
    for traced, own in zip(traced_inputs(program), leaves, strict=True):
        value = own
        for d, size in enumerate(_shape(traced)):
            if is_free(size):
                count = to or own.shape[d] + more
                if not size.node.expr.is_Symbol or not Limits.of(size, program, least=1).hold(count):
                    return None
                value, changed = _rows(value, d, count), changed or count != own.shape[d]
        given.append(value)
    return pytree.tree_unflatten(given, spec) if changed else None


def repeated(example: Example, count: int) -> Example:
    """The example with this number of samples, by repeating its own: the first dimension of every tensor."""
    return pytree.tree_map(lambda part: _rows(part, 0, count) if isinstance(part, Tensor) and part.ndim else part, example)  # type: ignore[no-any-return]


def _shape(value: Any) -> tuple[Any, ...]:
    """The shape of a traced input, with symbols for free sizes; empty for what is no tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _rows(tensor: Tensor, dimension: int, count: int) -> Tensor:
    return tensor.index_select(dimension, torch.arange(count, device=tensor.device) % tensor.shape[dimension])
