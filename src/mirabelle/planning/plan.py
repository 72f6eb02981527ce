"""A plan: the steps that carry a draft out, and what the compressed model is expected to be, seen before any training."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mirabelle.allocation.limits import Stopwatch
from mirabelle.artifact.mira import pack
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, multiply_accumulates, onnx_file
from mirabelle.job.fitting import previewed
from mirabelle.model.state import copied
from mirabelle.planning.draft import KEYS, Draft, Key, drafts_of, least_possible
from mirabelle.planning.measured import Measured
from mirabelle.planning.measuring import SAMPLES, quantizing, stopwatch, without_codes
from mirabelle.quantize.output_change import OutputChange
from mirabelle.run.run import Run
from mirabelle.step import Step, folder_of
from mirabelle.training.evaluation import evaluate
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from mirabelle.task.task import Task

_ROUNDS = 6  # of drafting, and of measuring the drafted model without training
_USED = 0.989  # of the size that is given to quantize.RateDistortion
_MOST_CHANGE, _USELESS = 0.3, 0.9  # of the outputs: the most that a plan may begin with; nearly that of a constant answer
_MADE, _MADE_MACS = 2, 2e7  # plans that are made and compared, of networks with at most so many multiply-accumulates
_TINY, _REFUSED_CHANGE = 1e-9, 10.0  # a change; by which more changes are expected of drafts like one that cannot be made
_FAR = 4.0  # times the change of the best: plans that are expected to change more are not made
_HALVINGS = 14  # of the logarithm of the size
_SAFELY = 0.998  # by which a draft aims below a limit that the model before it missed
_UNITS = {
    "size": "bytes",
    "onnx_size": "bytes of ONNX",
    "latency": "ms",
    "macs": "multiply-accumulates",
    "parameters": "parameters",
}
_SHAPES = {"whole": "nothing is cut", "units": "channels, neurons or heads are cut", "ranks": "layers become products of two"}
_FORMS = {
    "float": "in floating point", "dynamic": "8-bit integers, with ranges of each input", "static": "8-bit integers",
    "coded": "coded weights of few bits, computed in floating point",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A draft that was tried without training.

    Args:
        draft: what stays of each part.
        costs: of the model as the steps make it without training: measured, for each limit.
        change: expected change of the outputs before any training.
        metric: expected before any training.
    """

    draft: Draft
    costs: Mapping[str, float]
    change: float
    metric: float

    @property
    def key(self) -> Key:
        return self.draft.structure, self.draft.form

    def steps(self, training: Training | None = None, *, learned: bool = False) -> list[Step]:
        """The steps of a recipe.

        Args:
            training: after the cut; None for none.
            learned: whether weights that are coded are trained with their bits in the loss, instead of rounded afterwards.
        """
        return steps_of(self.draft, training, learned=learned)

    def describe(self) -> list[str]:
        """What the plan does and what is expected of it, in sentences."""
        draft = self.draft
        expected = ", ".join(f"{self.costs[name]:,.6g} {_UNITS[name]}" for name in self.costs)
        lines = [f"{_SHAPES[draft.structure]}; {_FORMS[draft.form]}"]
        lines += [f"{name}: {count} units stay" for name, count in draft.units.items()]
        lines += [f"{name}: rank {rank}" for name, rank in draft.ranks.items()]
        if draft.coded_bytes:
            lines.append(f"coded weights: {draft.coded_bytes:,.0f} bytes")
        return [
            *lines,
            f"expected before any training: {expected or 'the same costs'}; the outputs change by {self.change:.2g}",
        ]

    def to_data(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Plan:
        """From what `to_data` has made."""
        return cls(**{**data, "draft": Draft(**{**data["draft"], "tables": tuple(data["draft"]["tables"])})})


def steps_of(draft: Draft, training: Training | None = None, *, learned: bool = False) -> list[Step]:
    """The steps that carry a draft out; a training follows the cut, or trains the coded weights."""
    from mirabelle import factorize, prune, quantize

    steps: list[Step] = []
    after_cut = None if learned and draft.form == "coded" else training
    if draft.units:
        widths = dict(draft.units)
        steps.append(prune.Channels(widths=widths, score="Hessian", recover="least-squares", train=after_cut))  # type: ignore[arg-type]
    tables = {name: rank for name, rank in draft.ranks.items() if name in draft.tables}
    layers = {name: rank for name, rank in draft.ranks.items() if name not in draft.tables}
    if tables:
        steps.append(factorize.Embedding(ranks=tables, method="whitened", multiple=1, train=None if layers else after_cut))
    if layers:
        steps.append(factorize.Linear(ranks=layers, method="whitened", multiple=1, keep="smaller", train=after_cut))
    if learned and draft.form == "coded":
        return [*steps, quantize.EntropyConstrained(size=f"{draft.coded_bytes:.0f} B", train=training)]
    return [*steps, *quantizing(draft.form, draft.coded_bytes, embeds=draft.embeds)]


def learns(plan: Plan) -> bool:
    """Whether a training of a plan should train its coded weights with their bits: they change more than the cut does."""
    return plan.draft.form == "coded" and (plan.draft.structure == "whole" or plan.draft.of_numbers > plan.change / 2)


def is_trainable(plan: Plan) -> bool:
    """Whether any step of a plan can be trained: a cut, factors, or coded weights."""
    return bool(plan.draft.units or plan.draft.ranks or plan.draft.form == "coded")


class Planner:
    """Makes plans for a model within limits.

    Args:
        model: trained.
        task: of the model.
        found: measurements of the model.
        limits: name of each limited cost -> its limit.
        tell: is given a line on each draft.
        batch: samples in a call that is timed.
        implied: names of limits that nobody asked for: the plan is not slower than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        found: Measured,
        limits: Mapping[str, float],
        *,
        tell: Callable[[str], None] = lambda _: None,
        batch: int = 1,
        implied: frozenset[str] = frozenset(),
    ) -> None:
        self._model, self._task, self.found, self.limits, self._tell = model, task, found, dict(limits), tell
        self._batch, self.implied = batch, implied
        self.corrections: dict[Key, dict[str, float]] = {}
        self._changes: dict[Key, float] = {}  # by which changes of the outputs were larger than expected
        self._more: dict[Key, float] = {}  # by which factor the plans that were made last change the outputs more than expected
        self._watch: Stopwatch | None = None

    def expect_as_made(self) -> None:
        """Expect of all drafts what was found of those that were made."""
        for key, factor in self._more.items():
            self._changes[key] = self._changes.get(key, 1.0) * factor
        self._more = {}

    def plans(self) -> list[Plan]:
        """The best plan of each structure and form that is within the limits.

        First comes the one that changes the outputs least; of small networks the one with the highest metric.

        Raises:
            UserError: E114 if there is none, with the least cost that is possible.
        """
        ordered = sorted(self.drafts(), key=lambda draft: draft.change)
        seen: list[Draft] = []
        found: list[Plan] = []
        for draft in ordered:
            if any(draft.same_as(one) for one in seen):
                continue
            seen.append(draft)
            if found and draft.change > found[0].change:
                break  # drafts that change more are tried only if those before them turn out to change more than expected
            plan = self.tried(draft)
            if plan is not None:
                found.append(plan)
        if not found:
            raise self._out_of_reach()
        return self._by_what_they_change(sorted(found, key=lambda plan: plan.change))

    def _by_what_they_change(self, plans: list[Plan]) -> list[Plan]:
        """The plans of a small network, and those of the next best drafts, made without training, in the order of their metric.

        What is expected of a cut, or of weights of few bits after it, is often wrong by a factor of two. Of large networks
        nothing is made: that takes minutes.
        """
        if self.found.macs > _MADE_MACS:
            return plans
        drafts = [draft for key in KEYS for draft in self._drafts_of(key)]
        for draft in sorted(map(self._as_seen, drafts), key=lambda draft: draft.change):
            if len(plans) == _MADE or draft.change > _FAR * plans[0].change:
                break
            if not any(draft.same_as(one.draft) for one in plans) and (plan := self.tried(draft)) is not None:
                plans += [] if any(plan.draft.same_as(one.draft) for one in plans) else [plan]
        return sorted(map(self._made, plans), key=lambda plan: (not self._holds(plan), -plan.metric, plan.change))

    def _holds(self, plan: Plan) -> bool:
        return all(plan.costs[name] <= limit for name, limit in self.limits.items())

    def _made(self, plan: Plan) -> Plan:
        """The plan with what its steps give without training: the change of the outputs, and the metric on validation data.

        The bytes of coded weights are those of the levels that were found. If a step refuses, as one whose outputs are no
        better than a constant answer, the change is 1.
        """
        model = copied(self._model).eval()
        with tempfile.TemporaryDirectory() as folder:
            run = Run(folder)
            try:
                for position, step in enumerate(steps_of(plan.draft), start=1):
                    model = step(model, self._task, run.within(folder_of(position, step)))
            except UserError as error:
                self._tell(f"{_SHAPES[plan.draft.structure]}, {_FORMS[plan.draft.form]}: {error.errors[0].message}")
                self._more[plan.key] = _REFUSED_CHANGE
                return Plan(dataclasses.replace(plan.draft, change=1.0), plan.costs, 1.0, self.found.metric_at(1.0))
        change = OutputChange.drawn(self._model, self._task.train, SAMPLES, 0).of(model)
        metric = self._task.metric.value(evaluate(model, self._task.validation, self._task))
        made = f"made, the outputs change by {change:.2g}, {self._task.metric.name} {metric:.4f}"
        self._tell(f"{_SHAPES[plan.draft.structure]}, {_FORMS[plan.draft.form]}: {made}")
        change = change if math.isfinite(change) else _USELESS
        metric = metric if math.isfinite(metric) else self.found.metric_at(1.0)
        self._more[plan.key] = change / max(plan.change, _TINY)
        draft = dataclasses.replace(plan.draft, change=change, of_numbers=min(plan.draft.of_numbers, change))
        costs = dict(plan.costs)
        if "size" in costs and plan.draft.form == "coded":
            costs["size"] = float(len(pack(onnx_file(model, self._task))))
        return Plan(draft, costs, change, metric)

    def drafts(self) -> list[Draft]:
        """The draft of each structure and form that is expected to be within the limits."""
        drafts = [self.draft(key) for key in KEYS]
        return [self._as_seen(draft) for draft in drafts if draft is not None]

    def others(self, keys: Sequence[Key]) -> list[Plan]:
        """The best plan of a structure and form that is none of these, if there is one within the limits."""
        for draft in sorted(self.drafts(), key=lambda draft: draft.change):
            if (
                (draft.structure, draft.form) not in keys
                and draft.change < _USELESS
                and (plan := self.tried(draft)) is not None
            ):
                return [plan]
        return []

    def corrected(self, plan: Plan, costs: Mapping[str, float]) -> list[Plan]:
        """The plan of the same structure and form, after a run has measured these costs of the plan."""
        missed = {name: limit for name, limit in self.limits.items() if name in costs and costs[name] > limit}
        own = self.corrections.setdefault(plan.key, {})
        for name in missed:
            own[name] = own.get(name, 1.0) * costs[name] / max(plan.costs[name], 1e-12) / _SAFELY
        found = self.tried(self.draft(plan.key)) if missed else None
        return [] if found is None else [found]

    def seen(self, plan: Plan, model: nn.Module, metric: float) -> None:
        """Take in what was measured of the plan's model before any training: the change of its outputs, and its metric."""
        change = OutputChange.drawn(self._model, self._task.train, SAMPLES, 0).of(model)
        if math.isfinite(change) and plan.draft.change > 0:
            self._changes[plan.key] = self._changes.get(plan.key, 1.0) * change / plan.draft.change
            self.found = self.found.with_metric(change, metric)

    def _as_seen(self, draft: Draft) -> Draft:
        factor = self._changes.get((draft.structure, draft.form), 1.0)
        return dataclasses.replace(draft, change=draft.change * factor, of_numbers=draft.of_numbers * factor)

    def tried(self, draft: Draft | None, weights: Mapping[str, float] | None = None) -> Plan | None:
        """A draft made into a model without training, corrected until what is measured of it is within the limits."""
        for _ in range(_ROUNDS):
            if draft is None:
                return None
            key = (draft.structure, draft.form)
            costs = self.measured(draft)
            self._tell(f"{_SHAPES[draft.structure]}, {_FORMS[draft.form]}: " + _in_words(costs))
            missed = {name: limit for name, limit in self.limits.items() if costs[name] > limit}
            if not missed:
                draft = self._as_seen(draft)
                return Plan(draft, costs, draft.change, self.found.metric_at(draft.change))
            self._correct(key, draft, costs, missed)
            draft = self.draft(key, weights)
        return None

    def measured(self, draft: Draft) -> dict[str, float]:
        """The limited costs of the model as the steps of a draft make it without training."""
        model = previewed(steps_of(draft), self._model, self._task)
        found: dict[str, float] = {}
        if {"size", "onnx_size"} & self.limits.keys():
            onnx = onnx_file(model, self._task)
            found |= {"size": self._size(onnx, draft, model), "onnx_size": float(len(onnx))}
        if "latency" in self.limits:
            self._watch = self._watch or stopwatch(self._model, self._task, self._batch)
            found["latency"] = self.found.forms["float"].latency * self._watch.ratio(model).median
        found["macs"] = float(multiply_accumulates(model, self._task.example()))
        found["parameters"] = float(count_parameters(model)[1])
        return {name: found[name] for name in self.limits}

    def _size(self, onnx: bytes, draft: Draft, model: nn.Module) -> float:
        """Bytes of the packed file, with what is planned for coded weights: a preview draws their levels at random."""
        return float(len(pack(onnx))) if draft.form != "coded" else without_codes(onnx, model) + _USED * draft.coded_bytes

    def draft(self, key: Key, weights: Mapping[str, float] | None = None) -> Draft | None:
        """The draft of a structure and form within the limits, with the corrections that earlier ones have shown."""
        return next(iter(self._drafts_of(key, weights)), None)

    def _drafts_of(self, key: Key, weights: Mapping[str, float] | None = None) -> list[Draft]:
        return drafts_of(self.found, key, self.limits, self.corrections.get(key, {}), weights)

    def _correct(self, key: Key, draft: Draft, costs: Mapping[str, float], missed: Mapping[str, float]) -> None:
        own = self.corrections.setdefault(key, {})
        for name in missed:
            own[name] = own.get(name, 1.0) * costs[name] / max(draft.costs[name], 1e-12) / _SAFELY

    def _out_of_reach(self) -> UserError:
        least = {name: least_possible(self.found, name) for name in self.limits}
        told = ", ".join(f"{name} {value:,.6g} {_UNITS[name]}" for name, value in least.items())
        asked = ", ".join(f"{name} {value:,.6g}" for name, value in self.limits.items() if name not in self.implied)
        same = " without being slower than the given model" if self.implied else ""
        over = [name for name, limit in self.limits.items() if limit < least[name]] or [*self.limits.keys() - self.implied]
        slower = ' or allow a slower model (latency = "any"),' if self.implied else ""
        return UserError(
            "E114",
            f"no plan meets {asked or 'the goal'}{same}: the least that is expected of each alone is {told}",
            f"relax {' or '.join(over)},{slower} or give a smaller model: distill.Student trains one of another architecture",
            path=(over[0],),
        )


def smallest_plan(planner: Planner, metric: float) -> Plan:
    """The plan with the smallest file with which the metric is still expected to be at least this, without a training.

    Raises:
        UserError: E114 if the metric is expected to be lower for every plan.
    """
    allowed = min(planner.found.change_at(metric), _MOST_CHANGE)
    limits = dict(planner.limits)
    for _ in range(_ROUNDS):
        low, high = math.log(least_possible(planner.found, "size")), math.log(planner.found.float_bytes)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            planner.limits = {**limits, "size": math.exp(middle)}
            best = min((draft.change for draft in planner.drafts()), default=math.inf)
            low, high = (low, middle) if best <= allowed else (middle, high)
        planner.limits = {**limits, "size": math.exp(high)}
        plan = planner.plans()[0]
        if plan.metric >= metric:
            break
        planner.expect_as_made()
    return plan


def _in_words(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{value:,.6g} {_UNITS[name]}" for name, value in costs.items())
