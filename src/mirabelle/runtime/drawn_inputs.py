"""Random inputs for ONNX models without data, of sizes that the file fixes, that a user gives, or that the model accepts."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.numerics.arrays import Array
from mirabelle.runtime.runtime import Session
from mirabelle.runtime.signature import Value

_NOT_DRAWN = (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.BFLOAT16)
_LENGTHS = (16, 32, 64, 224, 8, 128, 320, 640, 4096, 16000, 48000)  # tried for all free axes together
_MIXED = (32, 64, 16, 48, 128, 8, 1)  # tried for each free axis of its own
_MOST_MIXED = 3  # free axes
_TRIALS, _ELEMENTS = 64, 1 << 21  # the most runs, and elements of an input, while sizes are sought
_NAMELESS = {"", "?"}  # names that exporters write for any axis
Sizes = tuple[int | None, ...]  # of the axes of an input, batch included; None: not known


@dataclass(frozen=True)
class GivenInput:
    """The sizes of an input as a user gives them.

    Args:
        sizes: without the batch axis, or of all axes if `whole`.
        name: of the input; "" for an input by its position.
        whole: whether the first size is that of the first axis, usually the batch.
        dtype: such as "int64"; "" for that of the file.
    """

    sizes: tuple[int, ...]
    name: str = ""
    whole: bool = False
    dtype: str = ""

    def __str__(self) -> str:
        shape = ",".join(map(str, self.sizes)) if self.whole else "x".join(map(str, self.sizes))
        return f"{self.name}={shape}" if self.name else shape


@dataclass(frozen=True)
class Accepted:
    """Random inputs on which a model has run.

    Args:
        feed: an array for every input.
        outputs: of the model.
        found: the sizes of the inputs, if they were found by trial; else "".
    """

    feed: Mapping[str, Array]
    outputs: Sequence[Any]
    found: str

    @property
    def note(self) -> str:
        """Words to put behind a sentence, which name the sizes that were found by trial; "" if there were none to find."""
        return f" (sizes found by trial: {self.found})" if self.found else ""


def batch_of(inputs: Sequence[Value]) -> int | None:
    """The batch size to which a file fixes the first axis of its inputs; None if the batch is free.

    An input of a fixed first axis beside inputs of a free one has its batch elsewhere, like the state of a recurrent network.

    Example:
        >>> batch_of([Value("x", 1, (1, 8)), Value("state", 1, (2, 1, 8))]), batch_of([Value("x", 1, ("batch", 8))])
        (1, None)
    """
    firsts = [value.sizes[0] for value in inputs if value.sizes]
    fixed = [size for size in firsts if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(firsts) else None


def sizes_are_known(inputs: Sequence[Value], given: Sequence[GivenInput]) -> bool:
    """Whether the sizes of all axes but the batch are fixed or given.

    Raises:
        UserError: E110 and E111 as `drawn_inputs`, if what is given does not fit.
    """
    batch = batch_of(inputs) or next((one.sizes[0] for one in given if one.whole), 2)
    return all(sizes is not None and None not in sizes for sizes in _known(inputs, batch, given).values())


def drawn_inputs(inputs: Sequence[Value], batch: int, given: Sequence[GivenInput] = (), seed: int = 0) -> dict[str, Array]:
    """Random arrays for every input: standard normal numbers, integers of 0 and 1 (0 to 255 for uint8), or booleans.

    Args:
        inputs: inputs of the model.
        batch: batch size, if the first axis is dynamic.
        given: sizes of inputs with dynamic axes. One without a name is for all of them; several are in the order of the inputs.
        seed: equal seeds give equal arrays.

    Raises:
        UserError: E110 if the size of a dynamic axis is not given, or sizes or types do not fit the inputs; E111 if names or
            the number of `given` do not; E121 for other data types.

    Example:
        >>> inputs = [Value("x", TensorProto.FLOAT, ("batch", 3)), Value("ids", TensorProto.INT64, ("batch", "length"))]
        >>> [array.shape for array in drawn_inputs(inputs, 2, [GivenInput((16,), "ids")]).values()]
        [(2, 3), (2, 16)]
    """
    sizes = _known(inputs, batch, given)
    for value in inputs:
        if sizes[value.name] is None or None in (sizes[value.name] or ()):
            raise _unknown(value, sizes[value.name], inputs)
    return _arrays(inputs, sizes, seed)


def accepted_inputs(session: Session, inputs: Sequence[Value], given: Sequence[GivenInput] = (), batch: int = 2) -> Accepted:
    """Random inputs that the model accepts in its runtime: sizes of free axes that nobody gives are found by trial.

    Axes of one name get one size; a name such as "past + length" gets the sum. Batches of `batch` samples are tried, then of
    one sample. Sizes at which outputs are empty or not finite are taken only if there are no better ones.

    Args:
        session: of the model.
        inputs: inputs of the model.
        given: sizes that are known, as for `drawn_inputs`.
        batch: batch size, if it is free and not given.

    Raises:
        UserError: as `drawn_inputs`, and E121 if no sizes are found, with the runtime's reason for the first.
    """
    return next(all_accepted(session, inputs, given, batch))


def all_accepted(
    session: Session, inputs: Sequence[Value], given: Sequence[GivenInput] = (), batch: int = 2
) -> Iterator[Accepted]:
    """As `accepted_inputs`, with all sizes that are tried and that the model accepts; the first is the best."""
    first: tuple[str, Exception] | None = None
    poor: list[Accepted] = []
    fixed, tried, found = batch_of(inputs), 0, False
    for count in (fixed,) if fixed else dict.fromkeys((batch, 1)):
        known = _known(inputs, count, given)
        for sizes in itertools.islice(_trials(inputs, known), _TRIALS):
            feed = _arrays(inputs, sizes, seed=0)
            tried += 1
            try:
                outputs = session.run(feed)
            except Exception as error:  # noqa: BLE001 (the runtime may raise anything for sizes that do not fit)
                first = first or (_shapes(sizes), error)
                continue
            accepted = Accepted(feed, outputs, _shapes(sizes) if first or sizes != known else "")
            if sizes == known or all(map(_is_sound, outputs)):
                found = True
                yield accepted
            else:
                poor.append(accepted)
    yield from poor
    if found or poor:
        return
    if first is None:
        raise UserError("E121", f"no random inputs are small enough: {described(inputs)}", _EXAMPLE)
    what = f"the model fails on random inputs of {first[0]}" + (f" and {tried - 1} other sizes" if tried > 1 else "")
    raise UserError("E121", f"{what}: {first_line(first[1])}", f"{_EXAMPLE}; it takes {described(inputs)}") from first[1]


def _is_sound(output: Any) -> bool:
    """Whether an output has values, all finite, or is no array."""
    if not isinstance(output, np.ndarray):
        return True
    return output.size > 0 and (output.dtype.kind != "f" or bool(np.isfinite(output).all()))


def drawn_like(inputs: Sequence[Value], feed: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Other random arrays for every input, of the sizes of those in `feed`."""
    return _arrays(inputs, {name: array.shape for name, array in feed.items()}, seed)


def described(inputs: Sequence[Value]) -> str:
    """Names, sizes and types of inputs in one line.

    Example:
        >>> described([Value("ids", TensorProto.INT64, ("batch", "")), Value("x", TensorProto.FLOAT, None)])
        '"ids" (batch,?) int64, "x" (any shape) float'
    """
    return ", ".join(f'"{value.name}" ({_axes(value)}) {_type(value)}' for value in inputs) or "no inputs"


_EXAMPLE = "give sizes that it accepts, such as --input 1x28x28 (without the batch) or --input NAME=2,16 (of all axes)"


def _axes(value: Value) -> str:
    return "any shape" if value.sizes is None else ",".join(str(size or "?") for size in value.sizes) or "one number"


def _type(value: Value) -> str:
    return str(TensorProto.DataType.Name(value.data_type)).lower()


def _known(inputs: Sequence[Value], batch: int, given: Sequence[GivenInput]) -> dict[str, Sizes | None]:
    """The sizes of every input as far as they are fixed, given, or follow from others; None if even their number is unknown."""
    asked = _asked(inputs, given)
    for value in inputs:
        one = asked.get(value.name)
        if one is not None and one.whole and one.sizes and (value.sizes is None or isinstance(next(iter(value.sizes), 0), str)):
            batch = one.sizes[0]
            break
    sizes = {value.name: _sizes(value, batch, asked.get(value.name), inputs) for value in inputs}
    if len(given) == 1 and not given[0].name and len(inputs) > 1:
        one = given[0]
        if all(found is None or (found if one.whole else found[1:]) != one.sizes for found in sizes.values()):
            raise UserError("E110", f"no input is {one}{_whole(one)}: {described(inputs)}", "give one of these shapes, or none")
    return _bound(inputs, sizes, {})


def _asked(inputs: Sequence[Value], given: Sequence[GivenInput]) -> dict[str, GivenInput]:
    """What is given, by the name of the input."""
    names = [one.name for one in given if one.name]
    if len(names) not in (0, len(given)) or len(set(names)) != len(names):
        told = ", ".join(map(str, given))
        raise UserError("E111", f"name every --input, each differently, or none; got {told}", f"inputs: {described(inputs)}")
    known = [value.name for value in inputs]
    if strange := [name for name in names if name not in known]:
        message = f'the model has no input "{strange[0]}"; it takes {described(inputs)}'
        raise UserError("E111", message, did_you_mean(strange[0], known))
    if names:
        return {one.name: one for one in given}
    if len(given) > 1 and len(given) != len(inputs):
        message = f"{len(given)} shapes are given, but the model takes {described(inputs)}"
        raise UserError("E111", message, f"give one for each, or name them: --input {known[0] if known else 'NAME'}={given[0]}")
    if len(given) == 1 and len(inputs) > 1:
        batches = {value.sizes[0] for value in inputs if value.sizes} - _NAMELESS
        return {value.name: given[0] for value in inputs if value.sizes is None or _is_free(value, batches)}
    return dict(zip(known, given, strict=False))


def _is_free(value: Value, batches: Container[int | str]) -> bool:
    """Whether axes besides the first are free, and not named like the batch."""
    return any(isinstance(size, str) and size not in batches for size in (value.sizes or ())[1:])


def _sizes(value: Value, batch: int, one: GivenInput | None, inputs: Sequence[Value]) -> Sizes | None:
    if one is not None and one.dtype and value.data_type != TensorProto.UNDEFINED:
        dtype = helper.tensor_dtype_to_np_dtype(value.data_type).name
        if one.dtype != dtype:
            raise UserError("E110", f'input "{value.name}" is {dtype}; got {one.dtype}', f"write --input {one}:{dtype}")
    first = None if one is None or not one.whole or not one.sizes else one.sizes[0]
    if batch_of(inputs) not in (None, first or batch) and len(value.sizes or ()) > 1 and value.sizes is not None:
        raise UserError(
            "E110",
            f'input "{value.name}" has the fixed batch size {value.sizes[0]}; got {first or batch}',
            "give this batch size",
        )
    if value.sizes is None:
        return None if one is None else one.sizes if one.whole else (batch, *one.sizes)
    known: list[int | None] = [size if isinstance(size, int) else None for size in value.sizes]
    if known and known[0] is None and (one is None or not one.whole):
        known[0] = batch
    if one is None:
        return tuple(known)
    due = known if one.whole else known[1:]
    if len(due) != len(one.sizes) or any(size not in (None, own) for size, own in zip(due, one.sizes, strict=True)):
        shape = (",".join if one.whole else "x".join)(str(size or "?") for size in due) or "one number for each sample"
        message = f'input "{value.name}" is {shape}{_whole(one)}; got {str(one).rpartition("=")[2]}'
        raise UserError("E110", message, f"give a shape that fits: {described(inputs)}")
    return one.sizes if one.whole else (*known[:1], *one.sizes)


def _whole(one: GivenInput) -> str:
    return "" if one.whole else " without its batch axis"


def _bound(inputs: Sequence[Value], sizes: Mapping[str, Sizes | None], names: Mapping[str, int]) -> dict[str, Sizes | None]:
    """The sizes with axes filled whose name has a size in another input, or in `names`; sums of names are computed."""
    known = dict(names)
    for value in inputs:
        for axis, size in zip(value.sizes or (), sizes[value.name] or (), strict=False):
            if isinstance(axis, str) and axis not in _NAMELESS and size is not None:
                known.setdefault(axis, size)
    filled: dict[str, Sizes | None] = {}
    for value in inputs:
        own = sizes[value.name]
        if own is not None and value.sizes is not None:
            own = tuple(
                _computed(axis, known) if size is None and isinstance(axis, str) else size
                for axis, size in zip(value.sizes, own, strict=True)
            )
        filled[value.name] = own
    return filled


def _computed(axis: str, names: Mapping[str, int]) -> int | None:
    """The size of an axis by its name, "length" or "past + length"; None if it is not known."""
    if axis in names:
        return names[axis]
    sum_of = _sum(axis)
    return _evaluated(sum_of, names) if sum_of is not None and _names_in(sum_of) <= names.keys() else None


def _sum(axis: str) -> ast.expr | None:
    """The parsed name of an axis if it is a sum or product of other names and numbers; None for any other name."""
    try:
        tree = ast.parse(axis, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    allowed = (ast.BinOp, ast.Name, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Load)
    return tree if isinstance(tree, ast.BinOp) and all(isinstance(node, allowed) for node in ast.walk(tree)) else None


def _names_in(tree: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _evaluated(node: ast.expr, names: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        left, right = _evaluated(node.left, names), _evaluated(node.right, names)
        return left + right if isinstance(node.op, ast.Add) else left - right if isinstance(node.op, ast.Sub) else left * right
    return names[node.id] if isinstance(node, ast.Name) else int(getattr(node, "value", 0))


def _trials(inputs: Sequence[Value], known: Mapping[str, Sizes | None]) -> Iterator[Mapping[str, Sizes | None]]:
    """Sizes to try, without those of too many elements: one length for all free axes, then one for each of up to three."""
    places = _free_places(inputs, known)
    if not places:
        yield known
        return
    alike = ([length] * len(places) for length in _LENGTHS)
    mixed = itertools.product(_MIXED, repeat=len(places)) if 1 < len(places) <= _MOST_MIXED else iter(())
    for lengths in itertools.chain(alike, mixed):
        names = dict(zip(places, lengths, strict=True))
        sizes = _bound(inputs, known, names)
        for value in inputs:
            own = sizes[value.name] or ()
            sizes[value.name] = tuple(
                names.get(_place(value, position), 1) if size is None else size for position, size in enumerate(own)
            )
        if all(prod(size or 0 for size in own or ()) <= _ELEMENTS for own in sizes.values()):
            yield sizes


def _free_places(inputs: Sequence[Value], known: Mapping[str, Sizes | None]) -> list[str]:
    """The names of the axes whose size is not known; axes without a name, or of a computed size, by their position."""
    axes = [
        (value, position, axis)
        for value in inputs
        for position, (axis, size) in enumerate(zip(value.sizes or (), known[value.name] or (), strict=False))
        if size is None
    ]
    names = {axis for _, _, axis in axes if isinstance(axis, str) and _sum(axis) is None}
    found: dict[str, None] = {}
    for value, position, axis in axes:
        tree = _sum(str(axis))
        if tree is None or not _names_in(tree) <= names:
            found[str(axis) if axis in names - _NAMELESS else _place(value, position)] = None
    return list(found)


def _place(value: Value, position: int) -> str:
    return f"{value.name} {position}"


def _shapes(sizes: Mapping[str, Sizes | None]) -> str:
    return " and ".join(f"{name} {','.join(map(str, own or ()))}".rstrip() for name, own in sizes.items())


def _arrays(inputs: Sequence[Value], sizes: Mapping[str, Sizes | None], seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {value.name: _drawn(value, tuple(size or 0 for size in sizes[value.name] or ()), generator) for value in inputs}


def _unknown(value: Value, sizes: Sizes | None, inputs: Sequence[Value]) -> UserError:
    position = 0 if sizes is None else sizes.index(None)
    what = "its shape" if value.sizes is None else f'axis {position} ("{value.sizes[position]}")'
    remedy = f"give the sizes without the batch, such as --input {value.name}=1x28x28; the model takes {described(inputs)}"
    return UserError("E110", f'input "{value.name}" does not define {what}', remedy)


def _drawn(value: Value, sizes: tuple[int, ...], generator: np.random.Generator) -> Array:
    if value.data_type in _NOT_DRAWN:
        kind = TensorProto.DataType.Name(value.data_type)
        raise UserError("E121", f'input "{value.name}" has type {kind}, for which there are no random inputs', "give real data")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.data_type))
    if dtype.kind == "f":
        return generator.standard_normal(sizes).astype(dtype)
    if dtype.kind not in "biu":
        raise UserError(
            "E121", f'input "{value.name}" has type {dtype.name}, for which there are no random inputs', "give real data"
        )
    return generator.integers(0, 256 if dtype == np.uint8 else 2, size=sizes).astype(dtype)
