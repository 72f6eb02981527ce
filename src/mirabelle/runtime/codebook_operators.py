"""The operator for weights that share the values of a codebook: its computation in torch, and its form in an ONNX file.

`mirabelle::look_up` gives the weights. The exporter writes it as one node of the domain "mirabelle" (`onnx_translations`),
which `group_operators.write_groups` replaces by stored codes of as few bits as ONNX has a type for, a Cast and a Gather from
the stored values, which runtimes compute once, when they load the file; or, where the layer asks for it, by the weights.

Importing this module registers the operator with torch. It has no gradient; `looked_up` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor

from mirabelle.runtime.group_operators import DOMAIN, LOOK_UP, NUMBERS, own_schema

_BITS = 8  # of the codes in a program; a file stores as few as they need


def looked_up(codes: Tensor, values: Tensor, group_size: int) -> Tensor:
    """values[row // group_size, code] for each code.

    Args:
        codes: integers, (rows, ...).
        values: (codebooks, entries).
        group_size: rows that share a codebook.
    """
    if len(values) == 1:
        return values[0][codes.long()]
    book = torch.arange(len(codes), device=codes.device) // group_size
    return values[book.reshape(-1, *[1] * (codes.ndim - 1)), codes.long()]


@torch.library.custom_op("mirabelle::look_up", mutates_args=())
def look_up(codes: Tensor, values: Tensor, group_size: int, numbers: bool) -> Tensor:  # noqa: FBT001 (an operator of torch)
    """`looked_up`, as one node of an exported program; `numbers`: a file stores the weights instead of the codes."""
    del numbers
    return looked_up(codes, values, group_size)


@look_up.register_fake
def _(codes: Tensor, values: Tensor, *settings: int) -> Tensor:
    del settings
    return torch.empty(codes.shape, dtype=values.dtype, device=codes.device)


def torch_translations() -> dict[Any, Callable[..., Tensor]]:
    """The translation of the operator to those of torch."""
    return {torch.ops.mirabelle.look_up.default: lambda codes, values, group_size, _: looked_up(codes, values, group_size)}


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation of the operator to a single node of the domain "mirabelle"."""
    from onnxscript.values import Op, Opset

    node = Op(Opset(DOMAIN, 1), LOOK_UP, own_schema(LOOK_UP, "codes", "values"))

    def onnx_look_up(codes: Any, values: Any, group_size: int, numbers: bool) -> Any:  # noqa: FBT001
        return node(codes, values, bits=NUMBERS if numbers else _BITS, group_size=group_size)

    return {torch.ops.mirabelle.look_up.default: onnx_look_up}


def codes_looked_up(node: NodeProto, codes: TensorProto, tensors: Mapping[str, TensorProto]) -> TensorProto | None:
    """The codes with which a node gathers stored values, changed so that 0 alone stands for the value 0.

    None if the node does not look up values of a codebook: numbers with one axis, as many as the codes' type can count.

    Args:
        node: a Gather.
        codes: integers, the places.
        tensors: stored tensors by name.
    """
    book = tensors.get(node.input[0])
    if node.op_type != "Gather" or book is None or len(book.dims) != 1:
        return None
    places, values = numpy_helper.to_array(codes), numpy_helper.to_array(book)
    if not 0 < len(values) <= 256 or not places.size or places.astype(np.int64).max() >= len(values):  # noqa: PLR2004 (a byte)
        return None
    zero = values[places.astype(np.int64)] == 0
    changed = np.where(zero, 0, np.maximum(places.astype(np.int64), 1)).astype(places.dtype)
    return numpy_helper.from_array(changed, codes.name)
