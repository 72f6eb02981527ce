"""Operators for weights with one scale per group of columns: their computation in torch, and their forms in an ONNX file.

`mirabelle::decode_groups` gives the weights, and `mirabelle::group_linear` multiplies by them. The exporter writes each as one
node of the domain "mirabelle" (`onnx_translations`), which `write_groups` then replaces:

- decoded weights by stored codes of as few bits as ONNX has a type for, and a Cast and products, which runtimes compute once,
  when they load the file. Runtimes for large models recognize this form, too. DequantizeLinear would say the same, but ONNX
  Runtime makes a matrix product of it that also rounds the activations to 8 bits.
- a product by com.microsoft MatMulNBits with accuracy_level 1: ONNX Runtime keeps the codes in memory and computes with
  activations in float32.

Importing this module registers the operators with torch. They have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper
from torch import Tensor

from mirabelle.numerics.group_codes import decoded
from mirabelle.runtime.initializers import StoredArrays
from mirabelle.runtime.opset import can_be_raised, opsets_of, set_opsets

DOMAIN, CONTRIBUTED, PRODUCT, LOOK_UP = "mirabelle", "com.microsoft", "MatMulNBits", "LookUp"
NUMBERS = 32  # instead of the bits of a look-up: the file stores the weights
_FLOAT32_ACTIVATIONS = 1  # accuracy_level of MatMulNBits
_UNSIGNED = {2: (TensorProto.UINT2, 25), 4: (TensorProto.UINT4, 21)}
_TYPES = {2: (TensorProto.INT2, 25), 3: (TensorProto.INT4, 21), 4: (TensorProto.INT4, 21)}  # bits -> type, opset that has it
Array = npt.NDArray[Any]


@torch.library.custom_op("mirabelle::decode_groups", mutates_args=())
def decode_groups(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int) -> Tensor:
    """scale · code, for weights that are used in floating point.

    Args:
        codes: int8, (rows, ...); the columns are all further axes, flattened.
        scale: (rows, groups).
        zero_point: int8, (rows, groups): code + zero_point is a number of that many bits; None if the code itself is one.
        bits: per code.
        group_size: columns of a group.
    """
    del zero_point, bits
    return decoded(codes, scale, group_size)


@decode_groups.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int) -> Tensor:
    del zero_point, bits, group_size
    return torch.empty(codes.shape, dtype=scale.dtype, device=codes.device)


@torch.library.custom_op("mirabelle::group_linear", mutates_args=())
def group_linear(  # noqa: PLR0917 (operators of torch take no keywords)
    inputs: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int
) -> Tensor:
    """inputs · weightᵀ, with the weights of `decode_groups`.

    Args:
        inputs: (..., columns).
        codes: int8, (rows, columns).
        scale: (rows, groups).
        zero_point: int8, (rows, groups): code + zero_point is a number of that many bits; None if the code itself is one.
        bits: per code.
        group_size: columns of a group.
    """
    del zero_point, bits
    return F.linear(inputs, decoded(codes, scale, group_size))


@group_linear.register_fake
def _(inputs: Tensor, codes: Tensor, *of_groups: Any) -> Tensor:
    del of_groups
    return inputs.new_empty((*inputs.shape[:-1], codes.shape[0]))


def torch_translations() -> dict[Any, Callable[..., Tensor]]:
    """Translations of the operators to those of torch."""

    def torch_decode(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int) -> Tensor:
        del zero_point, bits
        return decoded(codes, scale, group_size)

    def torch_linear(inputs: Tensor, codes: Tensor, *of_groups: Any) -> Tensor:
        return F.linear(inputs, torch_decode(codes, *of_groups))

    return {
        torch.ops.mirabelle.decode_groups.default: torch_decode,
        torch.ops.mirabelle.group_linear.default: torch_linear,
    }


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of the operators to single nodes of the domain "mirabelle", which `write_groups` replaces."""
    from onnxscript.values import Op, Opset

    opset = Opset(DOMAIN, 1)
    decode = Op(opset, "DecodeGroups", own_schema("DecodeGroups", "codes", "scale", "zero_point"))
    product = Op(opset, "GroupLinear", own_schema("GroupLinear", "inputs", "codes", "scale", "zero_point"))

    def onnx_decode(codes: Any, scale: Any, zero_point: Any, bits: int, group_size: int) -> Any:
        return decode(codes, scale, zero_point, bits=bits, group_size=group_size)

    def onnx_linear(inputs: Any, *coded: Any) -> Any:
        return product(inputs, *coded[:3], bits=coded[3], group_size=coded[4])

    return {
        torch.ops.mirabelle.decode_groups.default: onnx_decode,
        torch.ops.mirabelle.group_linear.default: onnx_linear,
    }


def own_schema(name: str, *inputs: str) -> defs.OpSchema:
    """What the exporter must know of a node: any inputs, of which the last may be missing, and numbers as attributes."""
    parameter, option = defs.OpSchema.FormalParameter, defs.OpSchema.FormalParameterOption
    kinds = {key: f"T{position}" for position, key in enumerate((*inputs, "result"))}
    return defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[
            parameter(key, kinds[key], param_option=option.Optional if key == inputs[-1] else option.Single) for key in inputs
        ],
        outputs=[parameter("result", kinds["result"])],
        type_constraints=[(kind, ["tensor(float)", "tensor(int8)", "tensor(uint8)"], "") for kind in kinds.values()],
        attributes=[defs.OpSchema.Attribute(key, defs.OpSchema.AttrType.INT) for key in ("bits", "group_size")],
    )


def write_groups(model: ModelProto) -> None:
    """Replace the nodes of the domain "mirabelle" by those of ONNX and of ONNX Runtime, in place; see the module."""
    graph, versions = model.graph, opsets_of(model)
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in (*graph.input, *graph.output)}
    taken |= {name for node in graph.node for name in node.output}
    writer = _Writer(StoredArrays(graph), versions[""], plain=not can_be_raised(model), taken=taken)
    nodes = [made for node in graph.node for made in writer.nodes_for(node)]
    if not writer.tensors:
        return
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = writer.renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)
    others = [tensor for tensor in graph.initializer if tensor.name not in writer.tensors]
    del graph.initializer[:]
    graph.initializer.extend((*others, *writer.tensors.values()))
    kept = {domain: version for domain, version in versions.items() if domain != DOMAIN}
    set_opsets(model, kept | {"": writer.opset} | ({CONTRIBUTED: 1} if writer.contributed else {}))


class _Writer:
    """The nodes and tensors that take the place of those of the domain "mirabelle".

    Args:
        arrays: the stored tensors of the graph.
        opset: of the graph.
        plain: whether codes of less than 8 bits are stored in 8, because the opset cannot be raised.
        taken: names of values that are in use.
    """

    def __init__(self, arrays: Mapping[str, Array], opset: int, *, plain: bool, taken: Collection[str]) -> None:
        self._arrays, self._plain, self.opset = arrays, plain, opset
        self.tensors: dict[str, TensorProto] = {}
        self.renamed: dict[str, str] = {}  # results that are stored
        self._taken, self._looked = taken, dict[str, tuple[str, str, int]]()
        self.contributed = False

    def nodes_for(self, node: NodeProto) -> Iterator[NodeProto]:
        """A node itself, or the nodes that take its place."""
        if node.domain != DOMAIN:
            yield node
            return
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        write = {"DecodeGroups": self._decoded, "GroupLinear": self._product, LOOK_UP: self._looked_up}[node.op_type]
        for made in write(node, int(values["bits"]), int(values["group_size"])):
            made.metadata_props.extend(node.metadata_props)
            yield made

    def _decoded(self, node: NodeProto, bits: int, group_size: int) -> Iterator[NodeProto]:
        codes, scale, zero, (result,) = node.input[0], node.input[1], [*node.input, ""][2], node.output
        shape = self._arrays[codes].shape
        rows, columns, groups = shape[0], int(np.prod(shape[1:])), self._arrays[scale].shape[1]
        value = f"{result}:levels"
        yield helper.make_node(
            "Cast", [self._in_bits(codes, self._numbers(codes, zero, group_size), bits)], [value], to=TensorProto.FLOAT
        )
        if groups == 1 and not zero:
            of_rows = self._tensor(scale, self._arrays[scale].reshape(rows, *[1] * (len(shape) - 1)))
            yield helper.make_node("Mul", [value, of_rows], [result])
            return
        full = groups * group_size == columns
        grouped = (rows, groups, group_size) if full else (rows, columns)
        yield helper.make_node(
            "Reshape", [value, self._tensor(f"{result}:groups", np.array(grouped, np.int64))], [f"{value}:g"]
        )
        value = f"{value}:g"
        for name, kind in ((zero, "Sub"), (scale, "Mul")):
            if name:
                of_groups = yield from self._of_groups(name, f"{result}:{kind}", bits, None if full else (group_size, columns))
                yield helper.make_node(kind, [value, of_groups], [f"{value}:{kind}"])
                value = f"{value}:{kind}"
        yield helper.make_node("Reshape", [value, self._tensor(f"{result}:shape", np.array(shape, np.int64))], [result])

    def _looked_up(self, node: NodeProto, bits: int, group_size: int) -> Iterator[NodeProto]:
        """A Gather from the values of the codebook, or of several, one behind the other; without the first if none is read."""
        (codes, values), (result,) = node.input, node.output
        array, stored = self._arrays[codes], self._arrays[values]
        if bits == NUMBERS:
            book = np.arange(len(array)).reshape(-1, *[1] * (array.ndim - 1)) // group_size
            key, name = (codes, values, group_size), f"{codes.removesuffix('codes')}weight"
            if name in self._taken or self._looked.setdefault(name, key) != key:
                name = result
            self.renamed[result] = self._tensor(name, stored[book, array])
            return
        if array.min(initial=bits) > 0:
            array, stored = array - 1, stored[:, 1:]
        books, entries = stored.shape
        places = f"{result}:places"
        held = next((most for most in _UNSIGNED if entries <= 1 << most), bits)
        yield helper.make_node("Cast", [self._in_bits(codes, array, held, _UNSIGNED)], [places], to=TensorProto.INT32)
        if books > 1:
            book = np.arange(len(array), dtype=np.int32) // group_size * entries
            begins = self._tensor(f"{result}:begins", book.astype(np.int32).reshape(-1, *[1] * (array.ndim - 1)))
            yield helper.make_node("Add", [places, begins], [f"{places}:all"])
            places = f"{places}:all"
        yield helper.make_node("Gather", [self._tensor(values, stored.reshape(-1)), places], [result])

    def _of_groups(self, name: str, result: str, bits: int, cut: tuple[int, int] | None) -> Generator[NodeProto, None, str]:
        """Scales or zero points of groups, in a shape that fits (rows, groups, group size), or with a cut (rows, columns)."""
        array = self._arrays[name]
        rows, groups = array.shape
        value = (
            self._in_bits(name, array[:, :, None], bits) if array.dtype == np.int8 else self._tensor(name, array[:, :, None])
        )
        if array.dtype == np.int8:
            yield helper.make_node("Cast", [value], [f"{result}:cast"], to=TensorProto.FLOAT)
            value = f"{result}:cast"
        if cut is None:
            return value
        group_size, columns = cut
        wide, flat = np.array((rows, groups, group_size), np.int64), np.array((rows, groups * group_size), np.int64)
        yield helper.make_node("Expand", [value, self._tensor(f"{result}:wide", wide)], [f"{result}:wide_groups"])
        yield helper.make_node("Reshape", [f"{result}:wide_groups", self._tensor(f"{result}:flat", flat)], [f"{result}:f"])
        ends = [self._tensor(f"{result}:{end}", np.array([at], np.int64)) for end, at in (("b", 0), ("e", columns), ("a", 1))]
        yield helper.make_node("Slice", [f"{result}:f", *ends], [f"{result}:columns"])
        return f"{result}:columns"

    def _product(self, node: NodeProto, bits: int, group_size: int) -> Iterator[NodeProto]:
        """MatMulNBits: unsigned codes, several in a byte, (rows, groups, bytes of a group), the first in the lowest bits."""
        inputs, codes, scale, *zero = (name for name in node.input if name)
        held = 4 if bits == 3 else bits  # noqa: PLR2004 (there is no kernel for 3 bits)
        rows, columns = self._arrays[codes].shape
        packed = product_codes(self._numbers(codes, zero[0] if zero else "", group_size), held, group_size)
        names = [inputs, self._tensor(codes, packed), self._tensor(scale, self._arrays[scale].reshape(-1))]
        if zero:
            names.append(self._tensor(zero[0], product_points(self._arrays[zero[0]], held)))
        self.contributed = True
        settings: dict[str, Any] = product_settings(rows, columns, held, group_size)
        yield helper.make_node(PRODUCT, names, node.output, domain=CONTRIBUTED, **settings)

    def _numbers(self, codes: str, zero: str, group_size: int) -> Array:
        """The codes plus the zero points of their groups."""
        array = self._arrays[codes]
        if not zero:
            return array
        flat = array.reshape(len(array), -1)
        numbers: Array = flat + self._arrays[zero].repeat(group_size, axis=1)[:, : flat.shape[1]]
        return numbers.reshape(array.shape)

    def _in_bits(self, name: str, array: Array, bits: int, types: Mapping[int, tuple[int, int]] = _TYPES) -> str:
        """Store numbers of so many bits under a name, in the smallest type that holds them; returns the name."""
        if bits in types and not self._plain:
            kind, opset = types[bits]
            self.opset = max(self.opset, opset)
            array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
        return self._tensor(name, array)

    def _tensor(self, name: str, array: Array) -> str:
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name


def product_codes(numbers: Array, bits: int, group_size: int) -> Array:
    """Signed codes with their zero points added, (rows, columns), as MatMulNBits takes them: (rows, groups, bytes of a group).

    The bytes have unsigned numbers, the first in the lowest bits; the last group is filled up with zeros.
    """
    rows, columns = numbers.shape
    groups = -(-columns // group_size)
    filled = np.zeros((rows, groups * group_size), np.int16)
    filled[:, :columns] = numbers
    return _packed(filled + 2 ** (bits - 1), bits).reshape(rows, groups, -1)


def product_points(points: Array, bits: int) -> Array:
    """Signed zero points, (rows, groups), as MatMulNBits takes them: bytes of unsigned numbers, (rows · bytes of a row,)."""
    return _packed(points.astype(np.int16) + 2 ** (bits - 1), bits).reshape(-1)


def product_settings(rows: int, columns: int, bits: int, group_size: int) -> dict[str, int]:
    """The attributes of a MatMulNBits node that computes with activations in float32."""
    return {
        "K": columns,
        "N": rows,
        "bits": bits,
        "block_size": group_size,
        "accuracy_level": _FLOAT32_ACTIVATIONS,
    }


def stored_codes(node: NodeProto, tensors: Mapping[str, TensorProto]) -> TensorProto | None:
    """The weights of a MatMulNBits node as codes (rows, columns) in which 0 is a zero weight; None if they are not stored.

    They have the type that takes as many bits; with zero points, codes beyond it are clamped.
    """
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    bits, rows, columns, group_size = (int(given.get(key, 4)) for key in ("bits", "N", "K", "block_size"))
    packed, points = (tensors.get(name) for name in [*node.input, "", "", ""][1:4:2])
    kind = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}.get(bits)
    if packed is None or kind is None or (points is not None and points.data_type != TensorProto.UINT8):
        return None
    codes = _unpacked(numpy_helper.to_array(packed).reshape(rows, -1), bits)
    middle = 1 << bits - 1
    zero: Array | int = middle
    if points is not None:
        groups = -(-columns // group_size)
        zero = _unpacked(numpy_helper.to_array(points).reshape(rows, -1), bits)[:, :groups].repeat(group_size, axis=1)
    signed = (codes - zero)[:, :columns].clip(-middle, middle - 1)
    return numpy_helper.from_array(signed.astype(helper.tensor_dtype_to_np_dtype(kind)), packed.name)


def _unpacked(packed: Array, bits: int) -> Array:
    """The inverse of `_packed`, with the numbers that fill the last byte: (rows, bytes) -> (rows, 8 // bits · bytes)."""
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)
    found: Array = ((packed[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1).astype(np.int16)
    return found


def _packed(values: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Numbers below 2^bits, (rows, n), as bytes, (rows, ⌈n · bits / 8⌉): the first number in the lowest bits of a byte.

    Example:
        >>> _packed(np.array([[1, 2, 3]]), bits=4)
        array([[33,  3]], dtype=uint8)
    """
    each = 8 // bits
    filled = np.zeros((len(values), -(-values.shape[1] // each) * each), np.uint8)
    filled[:, : values.shape[1]] = values
    parts = filled.reshape(len(values), -1, each) << (bits * np.arange(each, dtype=np.uint8))
    return np.asarray(np.bitwise_or.reduce(parts, axis=2), np.uint8)
