"""Which dynamically quantized layers can have one range for their whole input: as exact as a range per token, and faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics import affine
from mirabelle.quantize.dense_layers import weight_of
from mirabelle.quantize.layers import DynamicLayer, TokenLayer
from mirabelle.runtime import operators
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.batch import Batch

AS_EXACT = 1.25  # largest error with one range for all inputs, in multiples of the error with one range per token
_ROWS = 256  # vectors per batch whose outputs are compared
_ROUNDS, _CALLS = 9, 5  # times are medians over rounds of some calls
_WITH_TOKENS = 3  # dimensions of inputs with an axis of tokens


@torch.no_grad()
def layers_per_tensor(
    model: nn.Module, layers: Mapping[str, nn.Module], weight_bits: int, batches: Iterable[Batch]
) -> list[str]:
    """The names of the layers that get one range for their whole input: as exact as a range per token, and faster.

    The error of a layer is Σ (y − ŷ)² over its outputs, with integer weights. Layers that read the same input are decided
    together, since they share its codes. A layer whose inputs have no axis of tokens keeps a range for each sample. The times
    are those of the largest layer in ONNX Runtime, for one sample.

    Args:
        model: runs on the batches in eval mode.
        layers: linear layers, by name.
        weight_bits: bits per weight.
        batches: inputs as large as those that the model will get: one range then covers all samples of a batch.
    """
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    errors = {name: torch.zeros(2, dtype=torch.float64) for name in layers}
    shapes: dict[str, torch.Size] = {}
    groups: dict[str, str] = {}  # name of a layer -> the first layer with the same input
    last: list[tuple[Tensor, str]] = []

    def look(run: LayerRun) -> None:
        given = run.input
        assert given is not None, "a linear layer has an input"
        if given.ndim < len(shapes.setdefault(run.name, given.shape)):
            shapes[run.name] = given.shape
        first = last[0][1] if last and last[0][0] is given else run.name
        groups.setdefault(run.name, groups.get(first, first))
        last[:] = [(given, first)]
        if given.ndim >= _WITH_TOKENS:
            if run.name not in weights:
                layer = layers[run.name]
                weights[run.name] = weight_of(layer), _rounded_weight(layer, weight_bits)
            errors[run.name] += _errors(given, *weights[run.name])

    watch(model, batches, layers, before=look)
    sums: dict[str, Tensor] = {}
    for name, first in groups.items():
        sums[first] = sums.get(first, torch.zeros(2, dtype=torch.float64)) + errors[name]
    whole = {first for first, (per_token, per_tensor) in sums.items() if bool(per_tensor <= AS_EXACT**2 * per_token)}
    whole -= {groups[name] for name, shape in shapes.items() if len(shape) < _WITH_TOKENS}
    found = [name for name in layers if groups.get(name) in whole]
    largest = max(found, key=lambda name: weight_of(layers[name]).numel(), default=None)
    return found if largest is not None and _is_faster(layers[largest], weight_bits, shapes[largest]) else []


def _is_faster(layer: nn.Module, weight_bits: int, shape: Sequence[int]) -> bool:
    """Whether ONNX Runtime computes a layer faster with one range for the whole input than with one per token.

    Args:
        layer: linear layer.
        weight_bits: bits per weight.
        shape: of an input, (samples, ..., in); one sample is timed.
    """
    example = Batch(torch.randn(2, *shape[1:]), torch.zeros(2))
    sessions = [
        default_runtime().load(export(kind.quantized(layer, weight_bits), example), threads=1)
        for kind in (TokenLayer, DynamicLayer)
    ]
    feeds = [session.feed(example.inputs[:1]) for session in sessions]
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(_ROUNDS):
        for place in (0, 1) if k % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(_CALLS):
                sessions[place].run(feeds[place])
            times[place].append(time.perf_counter() - start)
    return statistics.median(times[1]) < statistics.median(times[0])


def _rounded_weight(layer: nn.Module, weight_bits: int) -> Tensor:
    coded = TokenLayer.quantized(layer, weight_bits, rows=True)
    weight: Tensor = operators.decode(coded.codes, coded.scale)
    return weight


def _errors(inputs: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
    """Σ (y − ŷ)² with a range per token and with one for the whole input, (2,), over some of the vectors."""
    rows = inputs.flatten(0, -2).float()
    scale, zero_point = affine.asymmetric_parameters(*rows.aminmax())
    rows = rows[:: max(1, len(rows) // _ROWS)]
    largest = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    per_token = torch.round(rows / largest * 127) * largest / 127
    per_tensor = (affine.quantize(rows, scale, zero_point, 0, 255) - zero_point) * scale
    due = F.linear(rows, weight.float())
    return torch.stack([(F.linear(one, rounded) - due).double().square().sum() for one in (per_token, per_tensor)])
