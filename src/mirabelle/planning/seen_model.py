"""What kind of network a model is, and which of its layers are heavy in bytes and in milliseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from onnx import GraphProto
from torch import nn

from mirabelle.errors import UserError
from mirabelle.inspection.layers import Layer, layers_of_module
from mirabelle.inspection.measure import count_parameters
from mirabelle.model.architecture import architecture_of
from mirabelle.runtime.layer_times import layer_milliseconds
from mirabelle.runtime.runtime import default_runtime, time_alone
from mirabelle.runtime.views import structure_of
from mirabelle.task.task import Task

Kind = Literal[
    "transformer", "convolutional network", "recurrent network", "network of embedding tables", "fully connected network"
]  # fmt: skip
_RECURRENT, _PRODUCTS = {"LSTM", "GRU", "RNN"}, {"MatMul", "Gemm", "FusedMatMul"}
_AROUND = {"Cast", "Mul", "Div", "Where", "Dropout", "Identity", "Reshape", "Transpose"}
_HEAVY, _SHOWN = 0.05, 3  # share of the whole from which a layer is named, and how many are
_SECONDS = 0.5


def kind_of(onnx: bytes, layers: list[Layer]) -> Kind:
    """The kind of a network by the operators of its ONNX file, whatever framework it comes from.

    A network with attention, a softmax whose result is multiplied by a matrix, is a transformer unless convolutions do most of
    its work; then come convolutions, recurrent layers, and tables of embeddings that have most of the parameters.

    Args:
        onnx: bytes of the file.
        layers: of the model.
    """
    graph = structure_of(onnx).graph
    counts = Counter(node.op_type for node in graph.node)
    macs: Counter[str] = Counter()
    for layer in layers:
        macs["convolution" if "Conv" in layer.kind else "other"] += layer.macs or 0
    convolves = bool(counts["Conv"] + counts["ConvTranspose"])
    if _attends(graph) and not (convolves and macs["convolution"] > macs["other"]):
        return "transformer"
    if convolves:
        return "convolutional network"
    if _RECURRENT & counts.keys():
        return "recurrent network"
    tables = sum(layer.parameters for layer in layers if "Embedding" in layer.kind)
    return (
        "network of embedding tables" if tables > sum(layer.parameters for layer in layers) / 2 else "fully connected network"
    )


def _attends(graph: GraphProto) -> bool:
    """Whether the result of a softmax is multiplied by a matrix, or an operator computes attention as a whole."""
    if any(node.op_type.endswith("Attention") for node in graph.node):
        return True
    made = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    for node in graph.node:  # in topological order
        if node.op_type in _AROUND and made & set(node.input):
            made |= set(node.output)
        elif node.op_type in _PRODUCTS and len(node.input) > 1 and made & set(node.input[:2]):
            return True
    return False


def sentences_on_model(model: nn.Module, task: Task, onnx: bytes, *, timed: bool) -> tuple[Kind, list[str]]:
    """(kind of the network, sentences on its size and on what is heavy in it).

    Args:
        model: in eval mode.
        task: gives inputs.
        onnx: bytes of its ONNX file.
        timed: whether layers are timed in ONNX Runtime.
    """
    example = task.example()
    layers = layers_of_module(model, example)
    kind = kind_of(onnx, layers)
    total = sum(layer.size_bytes for layer in layers)
    macs = sum(layer.macs or 0 for layer in layers)
    said = [
        f"network: {kind}, {count_parameters(model)[0]:,} parameters ({_size(total)}), {macs:,} multiply-accumulates a sample"
    ]
    shares = {layer.name: layer.size_bytes / max(total, 1) for layer in layers}
    heaviest = _heaviest(shares, {layer.name: layer.kind for layer in layers})
    said += [f"heavy in bytes: {heaviest}"] if heaviest else []
    if timed:
        said += _slow(task, onnx, layers)
    why = architecture_of(model).rewritten
    return kind, [*said, f"its code has sizes written into it, so a program takes its place: {why}"] if why else said


def _slow(task: Task, onnx: bytes, layers: list[Layer]) -> list[str]:
    runtime, threads = default_runtime(), torch.get_num_threads()
    session = runtime.load(onnx, threads)
    inputs = task.example().inputs
    whole = time_alone(session, inputs, batch=1, seconds=_SECONDS).median
    told = f"{whole:.3g} ms for one sample in ONNX Runtime, {threads} thread{'s' * (threads > 1)}"
    names = [layer.name for layer in layers]
    try:
        feed = {name: array[:1] for name, array in session.feed(inputs).items()}
        found = layer_milliseconds(runtime, onnx, feed, names, threads=threads, whole_ms=whole)
    except UserError:  # a runtime that cannot profile operators
        return [told]
    shares = {name: value / whole for name, value in found.items()}
    named = _heaviest(shares, {layer.name: layer.kind for layer in layers})
    return [f"{told}; heavy: {named}" if named else told]


def _heaviest(shares: Mapping[str, float], kinds: Mapping[str, str]) -> str:
    """The heaviest layers, and the kinds of layers if no layer stands out."""
    order = sorted((name for name in shares if shares[name] >= _HEAVY), key=lambda name: -shares[name])[:_SHOWN]
    named = [f'layer "{name}" {shares[name]:.0%}' for name in order]
    if sum(shares[name] for name in order) < 0.5 and len(shares) > _SHOWN:  # noqa: PLR2004 (half of all)
        sums: Counter[str] = Counter()
        for name, share in shares.items():
            sums[kinds[name]] += share  # type: ignore[assignment]
        named = [f"all {kind} {share:.0%}" for kind, share in sums.most_common(_SHOWN) if share >= _HEAVY] + named
    return ", ".join(named)


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"  # noqa: PLR2004 (a megabyte)
