"""Graphs in half precision, computed in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import AttributeProto, TensorProto

from mirabelle.sources.models.onnx_graph.branches import graphs_in

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_NAMES_OF_TYPES = ("to", "dtype", "output_datatype", "output_dtype", "stash_type")  # attributes that are data types


def in_single_precision(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """The model with float32 in the place of float16 and bfloat16, and whether there was any half precision.

    Inputs and outputs become float32, too. Rounding that half precision does between operators is gone.
    """
    if not any(_uses_half(graph) for graph in graphs_in(proto.graph)):
        return proto, False
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    for graph in graphs_in(found.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for tensor in graph.initializer:
            _widen(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    _widen(attribute.t)
                elif attribute.name in _NAMES_OF_TYPES and attribute.i in _HALF:
                    attribute.i = TensorProto.FLOAT
    return found, True


def _uses_half(graph: onnx.GraphProto) -> bool:
    kinds = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    kinds += [tensor.data_type for tensor in graph.initializer]
    kinds += [one.t.data_type for node in graph.node for one in node.attribute if one.type == AttributeProto.TENSOR]
    kinds += [one.i for node in graph.node for one in node.attribute if one.name in _NAMES_OF_TYPES]
    return any(kind in _HALF for kind in kinds)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALF:
        wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
