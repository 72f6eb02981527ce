"""Sensitivity analysis: the loss of a model as a function of the sparsity of one group of units, or of one layer, at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_cut, run_masked, sliced
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced
from mirabelle.graph.units import Array
from mirabelle.inspection.kinds import kinds_of
from mirabelle.model.device import check_device
from mirabelle.model.state import in_eval_mode
from mirabelle.numerics.masks import keep_highest
from mirabelle.prune.ranking import ranked
from mirabelle.scores import Magnitude, Score
from mirabelle.scores.evidence import evidence_for
from mirabelle.task.batch import Batch, arguments_of, as_outputs, call
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import evaluate_metrics

SPARSITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
_BATCH = 256
_SEED = 0
Progress = Callable[[int, int, str], None]  # measurements done, measurements in total, what is being measured


@dataclass(frozen=True)
class Point:
    """One measurement.

    Args:
        sparsity: the requested sparsity, in [0, 1).
        removed: number of removed units or weights: floor(sparsity · size).
        loss: the task's loss over the samples; may be infinite or NaN.
        metric: mean over the samples, higher = better.
    """

    sparsity: float
    removed: int
    loss: float
    metric: float


@dataclass(frozen=True)
class Curve:
    """Loss as a function of the sparsity of one part, while the rest of the model is unchanged.

    Args:
        part: "group" (of units) or "layer" (the elements of one weight).
        name: of the group or the weight.
        kind: description of what is removed.
        size: number of units of the group, or of elements of the weight.
        points: by ascending sparsity.
    """

    part: Literal["group", "layer"]
    name: str
    kind: str
    size: int
    points: tuple[Point, ...]

    @property
    def cost(self) -> float:
        """Mean loss over the points; infinite if a loss is not finite."""
        mean = sum(point.loss for point in self.points) / len(self.points)
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a model to the removal of each of its parts.

    Args:
        samples: number of samples that were measured.
        loss: of the unchanged model.
        metric: of the unchanged model.
        metric_name: name of the task's metric.
        curves: one for each part, the part with the lowest mean loss first.
    """

    samples: int
    loss: float
    metric: float
    metric_name: str
    curves: tuple[Curve, ...]

    def to_data(self) -> dict[str, Any]:
        """The result as data for JSON; a loss that is not finite becomes null."""

        def plain(curve: Curve) -> dict[str, Any]:
            points = [{**asdict(point), "loss": _finite(point.loss), "metric": _finite(point.metric)} for point in curve.points]
            return {**asdict(curve), "points": points}

        head = {"samples": self.samples, "loss": self.loss, "metric": {"name": self.metric_name, "value": self.metric}}
        return {**head, "curves": [plain(curve) for curve in self.curves]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sensitivity_of(
    model: nn.Module,
    task: Task,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    samples: int = 512,
    groups: bool = True,
    score: Score | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Loss and metric on validation samples when only one group of units, or only one layer, is pruned.

    In a group of n units, the ⌊sparsity · n⌋ units with the lowest scores are removed from every tensor that they are part of,
    as `prune.Channels` does. In a layer's weight of n elements, the ⌊sparsity · n⌋ elements with the lowest scores are set to
    zero, as `prune.Weights` does. The model is not trained afterwards, so training can recover a part of the loss. The test set
    is not used.

    Args:
        model: a trained model; measured in evaluation mode, and not changed.
        task: gives validation samples, loss and metric.
        sparsities: each in [0, 1).
        samples: number of validation samples, drawn with a fixed seed; all if there are fewer.
        groups: whether groups of units are measured; False for a model that cannot be traced.
        score: importance score, magnitude by default. Parts for which it is not defined are left out.
        progress: called with the number of measurements done, their total, and the name of the part being measured.

    Returns:
        One curve for each part, the part with the lowest mean loss first.

    Raises:
        UserError: E110 if a sparsity is out of range or there is no sample, E112 if nothing can be removed, E121 if the model
            cannot be traced or has tensors without values, or if the loss of the unchanged model is not finite.

    Example:
        >>> x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> found = sensitivity_of(model, Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long())))
        >>> sorted((curve.part, curve.name, curve.size) for curve in found.curves)
        [('group', '0.weight:0', 6), ('layer', '0.weight', 24), ('layer', '2.weight', 12)]
    """
    if not all(0 <= sparsity < 1 for sparsity in sparsities) or not sparsities or samples < 1:
        message = f"sparsities must be in [0, 1) and samples at least 1; got {list(sparsities)} and {samples}"
        raise UserError("E110", message, "for example: sparsities=(0.5, 0.9), samples=512")
    check_device(model)
    score = score or Magnitude()
    with torch.no_grad(), in_eval_mode(model):
        evaluator = _Evaluator(task, samples)
        evidence = evidence_for(score, model, task)
        weights = {name: weight for name, weight in model.named_parameters() if name in evidence}
        parts = [_layer(model, name, weight, score(weight, evidence[name])) for name, weight in weights.items()]
        parts = [*(_groups(model, score, task, evaluator.example) if groups else ()), *parts]
        return _measured(model, parts, sorted(sparsities), evaluator, progress or (lambda *_: None))


def _measured(
    model: nn.Module, parts: Sequence[_Part], sparsities: Sequence[float], evaluator: _Evaluator, progress: Progress
) -> Sensitivity:
    if not parts:
        message = "the model has neither a group of units nor a weight that can be pruned"
        raise UserError("E112", message, "give the dense model")
    loss, metric = evaluator.loss_and_metric(lambda inputs: call(model, inputs))
    if not math.isfinite(loss):
        raise UserError("E121", f"the loss of the unchanged model is {loss}", "find out which outputs are not finite")
    total, curves = len(parts) * len(sparsities), []
    for place, part in enumerate(parts):
        known: dict[int, tuple[float, float]] = {0: (loss, metric)}
        points = []
        for step, sparsity in enumerate(sparsities):
            progress(place * len(sparsities) + step, total, part.name)
            removed = math.floor(sparsity * part.size)
            if removed not in known:
                known[removed] = evaluator.loss_and_metric(part.without(removed))
            points.append(Point(sparsity, removed, *known[removed]))
        curves.append(Curve(part.part, part.name, part.kind, part.size, tuple(points)))
    progress(total, total, "")
    curves.sort(key=lambda curve: curve.cost)
    return Sensitivity(evaluator.count, loss, metric, evaluator.task.metric.name, tuple(curves))


class _Evaluator:
    """Measures loss and metric on fixed samples, in batches of one size, since a traced program may require that size."""

    def __init__(self, task: Task, samples: int) -> None:
        drawn = task.validation.drawn(samples, _SEED)
        self.task, self._targets, self.count = task, drawn.targets, len(drawn)
        size = math.ceil(self.count / math.ceil(self.count / _BATCH))
        size = max(size, 2)  # torch.export treats a batch size of 1 as a constant
        places = torch.arange(math.ceil(self.count / size) * size) % self.count  # pads the last batch
        padded = drawn.at(places)
        self.batches = list(Samples(padded.inputs, padded.targets).batches(size))

    @property
    def example(self) -> Batch:
        return self.batches[0]

    def loss_and_metric(self, run: Callable[[Any], Any]) -> tuple[float, float]:
        """Loss and metric of the outputs that a function computes from the inputs."""
        results = [as_outputs(run(batch.inputs)) for batch in self.batches]
        if isinstance(results[0], Tensor):
            outputs: Any = torch.cat(results)[: self.count]
        else:
            columns = zip(*[pytree.tree_leaves(result) for result in results], strict=True)
            joined = [torch.cat(parts)[: self.count] if isinstance(parts[0], Tensor) else parts[0] for parts in columns]
            outputs = pytree.tree_unflatten(joined, pytree.tree_structure(results[0]))
        loss = float(self.task.loss(outputs, self._targets))
        if self.task.metric.of_sequences:
            scores = evaluate_metrics(run, self.batches, self.task, (self.task.metric,))[0][: self.count]
        else:
            scores = self.task.metric.of_samples(outputs, self._targets, self.task.outputs)
        return loss, self.task.metric.value(scores)


@dataclass(frozen=True)
class _Part:
    """One part of the model; `without(count)` runs the model without the `count` least important elements of the part."""

    part: Literal["group", "layer"]
    name: str
    kind: str
    size: int
    without: Callable[[int], Callable[[Any], Any]]


def _layer(model: nn.Module, name: str, weight: nn.Parameter, scores: Tensor) -> _Part:
    def without(removed: int) -> Callable[[Any], Any]:
        mask = keep_highest(scores, (removed + 0.5) / scores.numel())
        masked = {name: weight.masked_fill(~mask, 0)}

        def run(inputs: Any) -> Any:
            args, kwargs = arguments_of(inputs)
            return functional_call(model, masked, args, kwargs)

        return run

    return _Part("layer", name, "weights", weight.numel(), without)


def _groups(model: nn.Module, score: Score, task: Task, example: Batch) -> Iterator[_Part]:
    args, kwargs = arguments_of(example.inputs)
    program = traced(model, args, kwargs)
    flow = propagated(program)
    groups = groups_of(program, flow)
    rankings = ranked(score, model, task, groups, program=program, flow=flow, seed=_SEED)
    together = {int(unit) for axes in flow.equal for axis in axes for unit in _units(flow, axis)}
    for group, kind, ranking in zip(groups, kinds_of(program, flow, groups), rankings, strict=True):
        if ranking is not None:
            masked = bool(together & set(ranking.units.tolist()))  # another group must have the same width
            yield _Part("group", group.name, kind, len(group), _cutter(program, flow, ranking.units, masked=masked))


def _units(flow: Flow, axis: Any) -> Array:
    rows = flow.units.resolve(axis)
    return np.zeros(0, int) if rows is None else np.unique(rows)


def _cutter(program: Program, flow: Flow, order: Array, *, masked: bool) -> Callable[[int], Callable[[Any], Any]]:
    def without(removed: int) -> Callable[[Any], Any]:
        kept = kept_without(flow, order[:removed])
        tensors = None if masked else sliced(program, flow, kept)

        def run(inputs: Any) -> Any:
            args, kwargs = arguments_of(inputs)
            leaves = pytree.tree_leaves((args, kwargs))
            if tensors is None:
                found = run_masked(program, flow, kept, leaves)
            else:
                found = run_cut(program, flow, kept, tensors, leaves)
            return pytree.tree_unflatten(found, program.exported.call_spec.out_spec)

        return run

    return without
