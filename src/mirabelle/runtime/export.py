"""Export of a torch module to canonical ONNX."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper
from torch import nn

from mirabelle.errors import UserError, first_line
from mirabelle.graph.exporter_tables import translations_read_once
from mirabelle.model.free_lengths import free_lengths
from mirabelle.model.state import in_eval_mode, in_plain_layout
from mirabelle.model.value_names import names_of, rename_values
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.codebook_operators import onnx_translations as translations_of_codebooks
from mirabelle.runtime.export_arguments import arguments, free_tokens, taking
from mirabelle.runtime.fused_forms import fused_translations
from mirabelle.runtime.gelu_of_codes import join_gelu
from mirabelle.runtime.group_operators import onnx_translations as translations_of_groups
from mirabelle.runtime.group_operators import write_groups
from mirabelle.runtime.half_operators import onnx_translations as translations_of_halves
from mirabelle.runtime.half_operators import write_casts
from mirabelle.runtime.integer_graph import keep_integers
from mirabelle.runtime.lengths import computes_other_lengths
from mirabelle.runtime.operators import onnx_translations
from mirabelle.runtime.pooling import pooling_translations
from mirabelle.task.batch import Batch
from mirabelle.task.outputs import OutputKind
from mirabelle.task.preprocessing import Preprocessing, to_json

Array = npt.NDArray[np.generic]
_OPSET = 18
_CHATTY = ("torch.onnx._internal.exporter._registration", "onnx_ir.passes.common.initializer_deduplication")


def export(
    model: nn.Module,
    example: Batch,
    labels: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
    *,
    outputs: OutputKind | None = None,
) -> bytes:
    """Export a model to a canonical ONNX file with a dynamic batch axis for every input.

    The names of inputs and outputs are the model's `input_names` and `output_names`. By default, inputs have the names of the
    forward's parameters, and outputs are "output", or "output_0", "output_1" and so on.

    Args:
        model: the model, exported in evaluation mode; the mode of each of its modules is restored.
        example: at least two samples; if named inputs include an "attention_mask", their number of tokens is dynamic, too, if
            the file then computes what the model computes for other lengths; otherwise it is that of the example.
        labels: names of the classes, stored in the file as JSON under "labels".
        preprocessing: how a raw input becomes a model input, stored in the file as JSON under "preprocessing".
        outputs: the meaning of the outputs, stored in the file by `OutputKind.metadata`; by default class scores.

    Raises:
        UserError: E121 if torch cannot export the model, or its batch axis is fixed.
    """
    metadata = {"labels": json.dumps(labels)} if labels else {}
    metadata |= outputs.metadata if outputs is not None else {}
    if preprocessing is not None:
        metadata["preprocessing"] = to_json(preprocessing)
    free = free_tokens(example.inputs)
    file = _file(model, example, metadata, free)
    if free and not computes_other_lengths(model, file, example, free):
        file = _file(model, example, metadata, {})
    return file


def _file(model: nn.Module, example: Batch, metadata: Mapping[str, str], free: Mapping[str, int]) -> bytes:
    """The canonical file; the inputs in `free` have a dynamic number of tokens."""
    given, inputs, names = taking(model, example.inputs)
    args, keywords, shapes = arguments(inputs, example.inputs, free)
    shapes = (shapes,) if names else shapes
    proto: ModelProto = program_of(given, args, keywords, shapes, names).model_proto
    if _fixed_batch(proto) is not None:
        with free_lengths(given):  # code that asks for len(x)
            proto = program_of(given, args, keywords, shapes, names).model_proto
    fixed = _fixed_batch(proto)
    if fixed is not None:
        raise UserError("E121", f'the batch axis of input "{fixed}" is fixed', "make the model accept any batch size")
    _name_tokens(proto.graph)
    write_casts(proto)
    write_groups(proto)
    _cast_codes(proto.graph)
    keep_integers(proto.graph)
    join_gelu(proto)
    names_given = names_of(model)
    named = rename_values(proto.graph, proto.graph.input, () if isinstance(example.inputs, Mapping) else names_given.inputs)
    named += rename_values(proto.graph, proto.graph.output, names_given.outputs)
    return canonical(proto, dict(metadata), kept=named)


def program_of(
    model: nn.Module,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    shapes: Any,
    names: Sequence[str],
    *,
    optimize: bool = True,
) -> Any:
    """The `torch.onnx.ONNXProgram` of a model, with the operators of this package as single nodes.

    Args:
        model: exported in evaluation mode.
        args: of its forward.
        keywords: of its forward.
        shapes: their dynamic axes, as torch.onnx.export takes them.
        names: of the inputs; if it is empty, those of the forward's parameters.
        optimize: whether constants are folded; that reads weights, which must have values then.

    Raises:
        UserError: E121 if torch cannot export the model.
    """
    try:
        with quiet(), translations_read_once(), torch.no_grad(), in_eval_mode(model), in_plain_layout(model):
            program = torch.onnx.export(
                model,
                args,
                kwargs=keywords,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=names or None,
                custom_translation_table=_translations(),
                opset_version=_OPSET,
                verbose=False,
                optimize=optimize,
            )
    except Exception as error:
        if (told := _told_by_the_model(error)) is not None:
            raise told from error
        raise UserError(
            "E121",
            f"torch.onnx cannot export the model: {reason(error)}",
            "call torch.onnx.export(..., dynamo=True) yourself to see the whole error",
        ) from error
    assert program is not None, "dynamo export returns a program"
    return program


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX operators for our own operators, and for those of torch that its exporter writes otherwise or not at all."""
    return (
        onnx_translations()
        | translations_of_groups()
        | translations_of_codebooks()
        | translations_of_halves()
        | pooling_translations()
        | fused_translations()
    )


def _told_by_the_model(error: BaseException | None) -> UserError | None:
    """The error with which a model says itself why it cannot be exported; torch wraps it in errors of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _fixed_batch(model: ModelProto) -> str | None:
    """The name of the first input whose batch axis has a fixed size; None if there is none."""
    return next((value.name for value in model.graph.input if not value.type.tensor_type.shape.dim[0].dim_param), None)


def _name_tokens(graph: GraphProto) -> None:
    """Name the dynamic axis of an attention mask "tokens"; torch's own name contains a counter."""
    masks = [value for value in graph.input if value.name == "attention_mask"]
    own = {mask.type.tensor_type.shape.dim[1].dim_param for mask in masks if len(mask.type.tensor_type.shape.dim) > 1}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param and axis.dim_param in own:
                axis.dim_param = "tokens"


def _cast_codes(graph: GraphProto) -> None:
    """Replace DequantizeLinear without a zero point, from `operators.decode` for weight-only quantization, by Cast."""
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:  # noqa: PLR2004 (codes and scale)
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, to=TensorProto.FLOAT, name=node.name))


def reason(error: Exception) -> str:
    """The root cause of an exporter's error, in one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages of missing packages and values, torch's own deprecations, and the graph that a failed export prints."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
