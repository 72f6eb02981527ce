"""Programs of torch.export, with torch's own operators for quantization: for `.pt2` files and the converters that read them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mirabelle.errors import UserError
from mirabelle.model.free_lengths import free_lengths
from mirabelle.model.state import in_eval_mode, in_plain_layout
from mirabelle.numerics import affine
from mirabelle.runtime.codebook_operators import torch_translations as translations_of_codebooks
from mirabelle.runtime.export import quiet, reason
from mirabelle.runtime.export_arguments import arguments, taking
from mirabelle.runtime.group_operators import torch_translations as translations_of_groups
from mirabelle.runtime.half_operators import torch_translations as translations_of_halves
from mirabelle.runtime.operators import CODED, TRANSPOSED_CODES, torch_translations
from mirabelle.task.batch import Inputs, map_tensors

_LEAST_BATCH = 2  # torch takes an axis of one element for a fixed one


def exported_program(model: nn.Module, inputs: Inputs, *, largest_batch: int | None = None) -> ExportedProgram:
    """Export a model by `torch.export`, with operators that plain torch knows.

    Quantized layers keep their integer codes. What they compute is expressed by torch's operators for quantization,
    `torch.ops.quantized_decomposed`, with codes of int8: y = layer(dequantize(quantize(x)), dequantize(codes), bias). The
    result differs from `model.onnx` by rounding only. `torch.export.save` writes it as a `.pt2` file; converters, such as those
    of ExecuTorch and Core ML, take it as it is.

    Args:
        model: exported in evaluation mode; the mode of each of its modules is restored.
        inputs: at least two samples: a tensor, a tuple of tensors, or tensors by name. The batch is dynamic; if the names
            include "attention_mask", so is the number of tokens.
        largest_batch: the largest number of samples that the program takes; by default any number. ExecuTorch needs it, since
            it plans its memory in advance.

    Raises:
        UserError: E110 for a largest batch below 2; E121 if torch cannot export the model, or its batch axis is fixed.

    Example:
        >>> import mirabelle, torch
        >>> x, y = torch.randn(40, 8), torch.arange(40) % 3
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> small = mirabelle.quantize.Static()(torch.nn.Linear(8, 3), task, mirabelle.Run("runs/example"))
        >>> program = exported_program(small, x)
        >>> "quantize_per_tensor" in str(program.graph), program.module()(x[:5]).shape
        (True, torch.Size([5, 3]))

    Source: https://docs.pytorch.org/docs/stable/export.html; the operators are those of PyTorch 2 Export Quantization.
    """
    if largest_batch is not None and largest_batch < _LEAST_BATCH:
        raise UserError(
            "E110", f"largest_batch must be at least {_LEAST_BATCH}; got {largest_batch}", "give a larger number, or none"
        )
    program = _exported(model, inputs, largest_batch)
    given = program.module(check_guards=False)
    assert isinstance(given, fx.GraphModule), "an exported program is a graph"
    module = fx.GraphModule(given, given.graph)
    if not _translated(module):
        return program
    return _exported(module, inputs, largest_batch)


def program_bytes(program: ExportedProgram) -> bytes:
    """The bytes of the `.pt2` file of a program."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file)
    return file.getvalue()


class LoadedProgram(nn.Module):
    """A program from the bytes of a `.pt2` file, as a module; like every exported program it is always in evaluation mode."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        with quiet():
            self._call: Callable[..., Any] = torch.export.load(io.BytesIO(data)).module().forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def _exported(model: nn.Module, inputs: Inputs, largest_batch: int | None) -> ExportedProgram:
    # Nothing is computed with the example, and the program holds it, so it has no values of the data.
    inputs = map_tensors(inputs, lambda tensor: torch.ones_like(tensor[:_LEAST_BATCH]))
    given, taken, names = taking(model, inputs)
    args, keywords, shapes = arguments(taken, inputs, largest_batch=largest_batch)
    shapes = (shapes,) if names else shapes
    try:
        with quiet(), torch.no_grad(), in_eval_mode(given), in_plain_layout(given), free_lengths(given):
            program = torch.export.export(given, args, keywords, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise UserError(
            "E121",
            f"torch.export cannot export the model: {reason(error)}",
            "call torch.export.export yourself to see the whole error",
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _translated(module: fx.GraphModule) -> bool:
    """Replace Mirabelle's own operators by calls of their translations, in place; whether there were any."""
    translations, graph = torch_translations() | translations_of_groups() | translations_of_halves(), module.graph
    translations |= translations_of_codebooks()
    found = [node for node in graph.nodes if node.target in translations]
    for node in found:
        with graph.inserting_before(node):
            given = [_number(module, argument) for argument in node.args]
            if node.target in TRANSPOSED_CODES:
                given[1] = _by_row(module, given[1])
            if node.target in CODED:
                if not isinstance(given[-1], fx.Node):  # one scale for all rows, of which converters want one each
                    rows = torch.full((len(_tensor(module, given[0])),), given[-1])
                    given[-1] = _stored(module, given[0], "row_scales", rows)
                given.append(
                    _stored(module, given[-1], "zero_points", torch.zeros_like(_tensor(module, given[-1]), dtype=torch.int64))
                )
            bias = _bias(module, node)
            result = graph.call_function(translations[node.target], tuple(given)) if bias is None else bias
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers(remove_duplicate=False) if name not in read]:
        owner, last = _place(module, name)
        delattr(owner, last)
    module.recompile()
    return bool(found)


def _number(module: fx.GraphModule, argument: Any) -> Any:
    """A stored scalar as a number, as converters want scales and zero points; anything else as it is."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        value = _tensor(module, argument)
        return argument if value.ndim else value.item()
    return argument


def _bias(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """A bias as a stored tensor of numbers, as converters want it, if the node dequantizes codes of int32."""
    codes = node.args[0]
    if not isinstance(codes, fx.Node) or codes.op != "get_attr" or _tensor(module, codes).dtype != torch.int32:
        return None
    return _stored(module, codes, "bias", affine.dequantize(*(_tensor(module, argument) for argument in node.all_input_nodes)))


def _by_row(module: fx.GraphModule, codes: fx.Node) -> fx.Node:
    """The codes (out, in) of a layer that reads (in, out), which may be a transposed view of them."""
    if codes.op != "get_attr":
        return codes.all_input_nodes[0]
    return _stored(module, codes, "codes_by_row", _tensor(module, codes).t().contiguous())


def _stored(module: fx.GraphModule, beside: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A node for a tensor that is stored in the same module as that of another node, under a name of its own."""
    owner, last = _place(module, str(beside.target))
    owner.register_buffer(name, value)
    return module.graph.get_attr(str(beside.target).removesuffix(last) + name)


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, name = _place(module, str(node.target))
    value = getattr(owner, name)
    assert isinstance(value, Tensor), "a program stores tensors"
    return value


def _place(module: fx.GraphModule, path: str) -> tuple[nn.Module, str]:
    """(module, name in it) of a stored tensor."""
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner), name
