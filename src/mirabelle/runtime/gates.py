"""Gates: checks that two forms of one model agree; a failed gate names the first layer that differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.model.state import in_eval_mode
from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics.arrays import Array, bytes_of, to_numpy
from mirabelle.numerics.draws import generator_from
from mirabelle.numerics.target_shapes import CLASS_SCORES
from mirabelle.runtime.runtime import Runtime, default_runtime
from mirabelle.task.batch import Batch, call, joined, map_tensors, parts_of
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.samples import Samples

# Floating point: sums in another order. Quantized: ties may round differently, which moves values by one level and cascades.
_EXACT, _QUANTIZED = 1e-4, 5e-2
_NOISE, _MOST_BY_NOISE = 1e-6, 0.2
_AGREEING = 0.995
_SAMPLES, _BATCH = 1000, 250


@dataclass(frozen=True)
class Gate:
    """The result of one check.

    Args:
        passed: whether the two forms agree.
        worst: the largest difference found, relative to the largest value.
        detail: what was compared, or which layer differs first.
    """

    passed: bool
    worst: float
    detail: str

    def to_data(self) -> dict[str, Any]:
        """The gate as plain data; an infinite difference is None, because JSON has no infinity."""
        return {**asdict(self), "worst": self.worst if math.isfinite(self.worst) else None}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Gate:
        worst = math.inf if data["worst"] is None else data["worst"]
        return Gate(passed=data["passed"], worst=worst, detail=data["detail"])


def batches_to_compare(data: Samples) -> list[Batch]:
    """Up to 1000 samples, always the same ones, to compare two forms of a model."""
    return list(data.drawn(_SAMPLES, seed=0).batches(_BATCH))


def torch_equals_onnx(
    model: nn.Module,
    onnx: bytes,
    batches: list[Batch],
    *,
    quantized: bool,
    kind: OutputKind | None = None,
    runtime: Runtime | None = None,
) -> Gate:
    """Check that torch and a runtime give the same outputs on real data.

    In floating point, every value must agree to 1e-4 of the largest value of its output. For a quantized model, 99.5 % of the
    samples must agree to 5 % of the largest value and, if the only output is class scores, in their class; ties in rounding may
    be resolved differently and cascade. With thousands of outputs, as a detector has, one of them may move further: then, up to
    20 %, twice the change counts that noise of 10⁻⁶ in the inputs makes in torch alone, if the mean difference is no more than
    twice that of the noise, either. Outputs that are NaN or infinite never agree.

    Args:
        model: the torch model.
        onnx: bytes of its ONNX file.
        batches: the batches to compare.
        quantized: whether the model is quantized.
        kind: the meaning of the outputs; by default what their shapes say.
        runtime: by default ONNX Runtime.
    """
    session = (runtime or default_runtime()).load(onnx, torch.get_num_threads())
    with torch.inference_mode(), in_eval_mode(model):
        expected = [to_numpy(part) for part in joined([_tensors(call(model, batch.inputs)) for batch in batches])]
    given = [to_numpy(part) for part in parts_of(session.outputs_of(batches)[0])]
    shapes = [[part.shape for part in side] for side in (expected, given)]
    if shapes[0] != shapes[1]:
        here, there = (" and ".join(map(str, side)) for side in shapes)
        return Gate(passed=False, worst=float("inf"), detail=f"torch gives {here}, ONNX {there}")
    count = sum(map(len, batches))
    if rows := next((len(part) for part in expected if len(part) != count), None):
        return Gate(passed=False, worst=float("inf"), detail=f"an output has {rows} rows for {count} samples")
    if wrong := int((~np.stack([_finite(part) for part in (*expected, *given)]).all(0)).sum()):
        return Gate(passed=False, worst=math.inf, detail=f"outputs of {wrong} of {count} samples are NaN or infinite")
    by_output = np.stack([_relative(*pair) for pair in zip(expected, given, strict=True)])
    differences = by_output.max(axis=0)
    worst = float(differences.max())
    if quantized:
        tolerance, noise = _tolerance(model, batches, expected, given)
        agreeing = differences <= tolerance
        if kind is None or kind.form is Form.UNKNOWN:
            kind = OutputKind.of_shapes(shapes[0])
        if kind.form is Form.CLASSES and expected[0].ndim == CLASS_SCORES:
            agreeing &= kind.chosen(expected[0]) == kind.chosen(given[0])
        passed, share = bool(agreeing.mean() >= _AGREEING), f"{agreeing.mean():.2%} of {len(agreeing)} samples agree{noise}"
    else:
        passed, share = worst <= _EXACT, f"{len(differences)} samples, worst difference {worst:.1e}"
    if len(expected) > 1:
        share += f" in {len(expected)} outputs"
    if passed:
        return Gate(passed=True, worst=worst, detail=share)
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    worst_batch = batches[int(np.searchsorted(starts, int(differences.argmax()), side="right")) - 1]
    layer = first_differing_layer(model, onnx, worst_batch, _QUANTIZED if quantized else _EXACT)
    if len(expected) > 1:
        share += f', the largest difference is in "{session.output_names[int(by_output.max(axis=1).argmax())]}"'
    return Gate(passed=False, worst=worst, detail=f"{share}; the first layer that differs is {layer}")


def _tolerance(model: nn.Module, batches: list[Batch], expected: list[Array], given: list[Array]) -> tuple[float, str]:
    """(the largest difference of a sample that agrees, how it was found): 5 % if that is enough.

    Otherwise twice the largest relative change of an output that noise in the inputs makes, if that is more, up to 20 %; but
    5 % if the mean difference of an output is more than twice that of the noise, because then it is something else. Inputs that
    are integers get no noise.
    """
    if (_largest(expected, given) <= _QUANTIZED).mean() >= _AGREEING:
        return _QUANTIZED, ""
    generator = generator_from(0)

    def noisy(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = 2.0 * torch.randint(0, 2, tensor.shape, generator=generator) - 1
        return tensor + (_NOISE * tensor.abs().max() * signs).to(tensor.dtype)

    with torch.inference_mode(), in_eval_mode(model):
        changed = joined([_tensors(call(model, map_tensors(batch.inputs, noisy))) for batch in batches])
    noise = [to_numpy(part) for part in changed]
    found = min(max(_QUANTIZED, 2 * float(_largest(expected, noise).max())), _MOST_BY_NOISE)
    like_noise = all(_mean(due, own) <= 2 * _mean(due, other) for due, own, other in zip(expected, given, noise, strict=True))
    if found <= _QUANTIZED or not like_noise:
        return _QUANTIZED, ""
    return found, f" to {found:.1%} (twice what noise of 1e-6 in the inputs changes)"


def _largest(expected: list[Array], given: list[Array]) -> Array:
    """For each sample, the largest relative difference in any output."""
    worst: Array = np.stack([_relative(*pair) for pair in zip(expected, given, strict=True)]).max(axis=0)
    return worst


def _mean(expected: Array, given: Array) -> float:
    return float(np.abs(expected.astype(np.float64) - given.astype(np.float64)).mean())


def same_bytes(one: bytes, other: bytes | Iterable[bytes | memoryview]) -> Gate:
    """Check that two files have the same bytes; those of the second may come in parts."""
    at = 0
    for part in (other,) if isinstance(other, bytes) else other:
        due = memoryview(one)[at : at + len(part)]
        if due != part:
            shared = min(len(due), len(part))
            unequal = np.frombuffer(due[:shared], np.uint8) != np.frombuffer(part[:shared], np.uint8)
            at += int(unequal.argmax()) if unequal.any() else shared
            return Gate(passed=False, worst=1.0, detail=f"first difference at byte {at} of {len(one)}")
        at += len(part)
    if at < len(one):
        return Gate(passed=False, worst=1.0, detail=f"only the first {at} bytes of {len(one)}")
    return Gate(passed=True, worst=0.0, detail=f"{at} bytes are equal")


def same_outputs(one: nn.Module, other: nn.Module, batch: Batch) -> Gate:
    """Check that two modules return the same bits for a batch."""
    with torch.inference_mode(), in_eval_mode(one), in_eval_mode(other):
        first, second = (_tensors(call(model, batch.inputs)) for model in (one, other))
    pairs = list(zip(first, second, strict=True))
    if not all(bool(part.isfinite().all()) for part in (*first, *second)):
        return Gate(passed=False, worst=math.inf, detail="outputs are NaN or infinite")
    if all(torch.equal(*pair) for pair in pairs):
        return Gate(passed=True, worst=0.0, detail=f"{len(batch)} samples are equal to the bit")
    worst = max(float(_relative(to_numpy(due), to_numpy(given)).max()) for due, given in pairs)
    return Gate(passed=False, worst=worst, detail="outputs differ")


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Gate:
    """Check that two sets of tensors are equal to the bit; the detail names the first that differs."""
    if set(one) != set(other):
        alone = sorted(set(one) ^ set(other))
        return Gate(passed=False, worst=math.inf, detail=f'only one of the two has tensor "{alone[0]}"')
    for name, tensor in one.items():
        same_kind = tensor.dtype == other[name].dtype and tensor.shape == other[name].shape
        if not same_kind or bytes_of(tensor) != bytes_of(other[name]):
            return Gate(passed=False, worst=math.inf, detail=f'tensor "{name}" differs')
    return Gate(passed=True, worst=0.0, detail=f"{len(one)} tensors are equal to the bit")


def first_differing_layer(model: nn.Module, onnx: bytes, batch: Batch, tolerance: float) -> str:
    """The name of the first layer, in the order of the ONNX graph, whose output differs between torch and ONNX Runtime."""
    expected = _layer_outputs(model, batch)
    probe = ModelProto.FromString(onnx)
    outputs = {value.name for value in probe.graph.output}
    made = [name for node in probe.graph.node for name in node.output]
    watched = [name for name in made if name in expected and name not in outputs]
    probe.graph.output.extend(ValueInfoProto(name=name) for name in watched)
    session = default_runtime().load(probe.SerializeToString(), torch.get_num_threads())
    given = dict(zip(session.output_names, session.run(session.feed(batch.inputs)), strict=True))
    for name in watched:
        tensor, array = to_numpy(expected[name]), given[name]
        if tensor.shape != array.shape or _relative(tensor, array).max() > tolerance:
            return f'"{name}"'
    last = [name for name, module in model.named_modules() if name and not list(module.children())]
    return f'"{last[-1]}" or what follows it' if last else "the output"


def _layer_outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The outputs of all modules that run exactly once and return one tensor, by name."""
    seen: dict[str, list[Tensor]] = {}

    def keep(run: LayerRun) -> None:
        if isinstance(run.given, Tensor):
            seen.setdefault(run.name, []).append(run.given)

    watch(model, [batch], {name: module for name, module in model.named_modules() if name}, after=keep)
    return {name: outputs[0] for name, outputs in seen.items() if len(outputs) == 1}


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    """A model's outputs, from any structure, in the order of the ONNX outputs."""
    return tuple(part for part in pytree.tree_leaves(outputs) if isinstance(part, Tensor))


def _finite(part: Array) -> Array:
    """Which samples of an output are finite, (samples,)."""
    finite: Array = np.asarray(np.isfinite(part)).reshape(len(part), -1)
    return np.asarray(finite.all(1))


def _relative(expected: Array, given: Array) -> Array:
    """For each sample, the largest difference relative to the largest finite value of all; NaN counts as infinite.

    Equal values do not differ, also if they are infinite, as in the mask of an attention.
    """
    due, found = expected.astype(np.float64), given.astype(np.float64)
    scale = max(float(np.abs(due).max(initial=0.0, where=np.isfinite(due))), 1e-12)
    with np.errstate(invalid="ignore"):
        differences = np.where(due == found, 0.0, np.abs(due - found)).reshape(len(expected), -1)
    worst: Array = np.nan_to_num(differences.max(axis=1, initial=0.0), nan=np.inf) / scale
    return worst
