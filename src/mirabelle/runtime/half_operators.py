"""The operator for weights stored in half precision: its computation in torch, and its form in an ONNX file.

`mirabelle::widen` gives the weights as float32. The exporter would compute it and store the result, so it is exported as a node
of a domain of its own, which `write_casts` replaces by a Cast. Runtimes compute that once, when they load the file.

Importing this module registers the operator with torch. It has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx import ModelProto, TensorProto, defs, helper
from torch import Tensor

from mirabelle.runtime.opset import opsets_of, set_opsets

_DOMAIN = "mirabelle.half"


@torch.library.custom_op("mirabelle::widen", mutates_args=())
def widen(values: Tensor) -> Tensor:
    """The values as float32.

    Args:
        values: float16 or bfloat16.
    """
    return values.float()


@widen.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


def torch_translations() -> dict[Any, Callable[..., Tensor]]:
    """The translation of the operator to one of torch."""
    return {torch.ops.mirabelle.widen.default: lambda values: values.float()}


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation of the operator to a single node, which `write_casts` replaces."""
    from onnxscript.values import Op, Opset

    parameter = defs.OpSchema.FormalParameter
    schema = defs.OpSchema(
        "Widen",
        _DOMAIN,
        1,
        inputs=[parameter("values", "T")],
        outputs=[parameter("result", "R")],
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)"], ""), ("R", ["tensor(float)"], "")],
    )
    node = Op(Opset(_DOMAIN, 1), "Widen", schema)
    return {torch.ops.mirabelle.widen.default: node}


def write_casts(model: ModelProto) -> None:
    """Replace the nodes of the operator by Cast, in place."""
    for node in model.graph.node:
        if node.domain == _DOMAIN:
            cast = helper.make_node("Cast", node.input, node.output, to=TensorProto.FLOAT, name=node.name)
            cast.metadata_props.extend(node.metadata_props)
            node.CopyFrom(cast)
    set_opsets(model, {domain: version for domain, version in opsets_of(model).items() if domain != _DOMAIN})
