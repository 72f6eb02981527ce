"""What one operator costs: its multiply-accumulate operations (MACs) as sums of products of lengths of dimensions.

This is the definition of a MAC that every number in Mirabelle follows: a multiplication of two numbers whose product is added
to a sum, in an operator that sums over a dimension.

| operator | MACs |
|---|---|
| linear layer, matrix product | elements of the result × length of the dimension that is summed over |
| convolution | elements of the result × input channels of a group × size of the kernel, borders included |
| transposed convolution | elements of the input × output channels of a group × size of the kernel |
| attention | queries × keys × (width of the queries + width of the values), for each head; masked places count |
| LSTM, GRU, RNN | time steps × elements of all weight matrices |
| einsum | one pair of operands after the other: the product of all their lengths, if a letter is summed over |
| bilinear layer | elements of the result × both input widths |
| everything else | 0: elementwise operators, norms, pooling, softmax, lookups, sorting, transforms |

The same table serves real tensors (a model that runs, `model.operations`) and traced axes (`graph.costs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Length = TypeVar("Length")


@dataclass(frozen=True)
class Operation(Generic[Length]):
    """One call of an operator.

    Args:
        name: of the operator without its overload, such as "linear".
        arguments: by the names of the operator's schema.
        output: what it returns.
        lengths: the lengths of the dimensions of a tensor among the arguments or outputs.
    """

    name: str
    arguments: Mapping[str, Any]
    output: Any
    lengths: Callable[[Any], Sequence[Length]]

    def of(self, name: str) -> tuple[Length, ...]:
        """The lengths of an argument."""
        return tuple(self.lengths(self.arguments[name]))

    @property
    def result(self) -> tuple[Length, ...]:
        """The lengths of the result."""
        return tuple(self.lengths(self.output))


def mac_products(operation: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    """The products of lengths whose sum is the number of MACs of a call; nothing for operators without any.

    Example:
        >>> shapes = {"self": (2, 3), "mat2": (3, 5), "result": (2, 5)}
        >>> list(mac_products(Operation("mm", {"self": "self", "mat2": "mat2"}, "result", shapes.__getitem__)))
        [(2, 5, 3)]
    """
    rule = _RULES.get(operation.name)
    return rule(operation) if rule is not None else iter(())


def is_counted(name: str) -> bool:
    """Whether an operator has MACs."""
    return name in _RULES


def factors(operation: Operation[Length]) -> list[Any]:
    """The tensors that an operator multiplies: all its tensors except those that are only added."""
    left_out = _ADDED.get(operation.name, ("bias",))
    return [value for name, value in operation.arguments.items() if name not in left_out]


def _linear(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    yield (*call.result, call.of("weight")[-1])


def _convolution(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    transposed = "transpose" in call.name or bool(call.arguments.get("transposed"))
    yield (*(call.of("input") if transposed else call.result), *call.of("weight")[1:])


def _convolution_over_time(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    yield (*call.result, *call.of("weight")[:2])  # weight (kernel, in, out)


def _product(left: str) -> Callable[[Operation[Length]], Iterator[tuple[Length, ...]]]:
    """Matrix products: the last dimension of the left factor is summed over."""

    def products(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
        yield (*call.result, call.of(left)[-1])

    return products


def _sum_of_products(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    first = call.of("batch1")
    yield (*call.result, first[0], first[-1])


def _tensordot(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    own = call.of("self")
    yield (*call.result, *(own[dimension] for dimension in call.arguments["dims_self"]))


def _bilinear(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    yield (*call.result, *call.of("weight")[1:])


def _trilinear(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    """The product of three tensors, each with dimensions of length 1 inserted at the positions in `expand`."""
    found: dict[int, Length] = {}
    for name, inserted in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        own = iter(call.of(name))
        skipped = call.arguments[inserted]
        for position in range(len(call.of(name)) + len(skipped)):
            if position not in skipped:
                length = next(own)
                found.setdefault(position, length)
    yield tuple(found.values())


def _attention(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    query, key, value = (call.of(name) for name in ("query", "key", "value"))
    for width in (query[-1], value[-1]):
        yield (*query[:-1], key[-2], width)


def _recurrent(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    """All layers and directions at once. Each weight matrix is used once at every time step."""
    steps = call.of("data" if "data" in call.arguments else "input")[:-1]
    for weight in call.arguments["params"]:
        shape = call.lengths(weight)
        if len(shape) > 1:  # no bias
            yield (*steps, *shape)


def _recurrent_layer(*weights: str) -> Callable[[Operation[Length]], Iterator[tuple[Length, ...]]]:
    """A recurrent layer in one direction, or a cell."""

    def products(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
        for weight in weights:
            yield (*call.of("input")[:-1], *call.of(weight))

    return products


def _quantized_linear(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    yield (*call.of("inputs"), call.of("codes")[-1])  # codes (in, out)


def _einsum(call: Operation[Length]) -> Iterator[tuple[Length, ...]]:
    """Pairs from left to right, as torch does. What no later operand and no output needs is summed before a product."""
    operands = [tuple(call.lengths(tensor)) for tensor in call.arguments["tensors"]]
    given, arrow, output = str(call.arguments["equation"]).replace(" ", "").partition("->")
    terms = [_letters(term, operand) for term, operand in zip(given.split(","), operands, strict=True)]
    lengths: dict[str, Length] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, length in zip(term, operand, strict=True):
            if letter not in lengths or _size(length) > _size(lengths[letter]):  # an operand may broadcast a letter
                lengths[letter] = length
    hidden = {letter for term in terms for letter in term if len(letter) > 1}
    kept = set(output.replace("...", "")) | hidden if arrow else {letter for letter in lengths if _times(letter, terms) == 1}
    done = set(terms[0])
    for place, term in enumerate(terms[1:], start=1):
        later = kept | {letter for other in terms[place + 1 :] for letter in other}
        left, right = (
            {letter for letter in side if letter in other or letter in later} for side, other in ((done, term), (term, done))
        )
        if (left | right) - later:
            yield tuple(lengths[letter] for letter in sorted(left | right))
        done = (left | right) & later


def _times(letter: str, terms: Sequence[Sequence[str]]) -> int:
    return sum(list(term).count(letter) for term in terms)


def _letters(term: str, operand: Sequence[Any]) -> list[str]:
    """The letters of an operand; dimensions behind "..." are named by their place from the right."""
    before, dots, after = term.partition("...")
    hidden = len(operand) - len(before) - len(after) if dots else 0
    return [*before, *(f"...{place}" for place in range(hidden, 0, -1)), *after]


def _size(length: Any) -> int:
    """The size of a length: a number, or an axis with its size."""
    return int(length[1]) if isinstance(length, tuple) else int(length)


_RULES: Mapping[str, Callable[[Operation[Any]], Iterator[tuple[Any, ...]]]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    "conv_tbc": _convolution_over_time,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "_int_mm", "_scaled_mm"), _product("self")),
    **dict.fromkeys(("addmm", "_addmm_activation"), _product("mat1")),
    "baddbmm": _product("batch1"),
    "addmv": _product("mat"),
    "addbmm": _sum_of_products,
    "tensordot": _tensordot,
    "einsum": _einsum,
    "bilinear": _bilinear,
    "_trilinear": _trilinear,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "mkldnn_rnn_layer": _recurrent_layer("weight0", "weight1"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_layer("w_ih", "w_hh")),
    **dict.fromkeys(("mirabelle.dynamic_linear", "mirabelle.token_linear"), _quantized_linear),
}
_ADDED: Mapping[str, tuple[str, ...]] = dict.fromkeys(("addmm", "_addmm_activation", "baddbmm", "addmv", "addbmm"), ("self",))
