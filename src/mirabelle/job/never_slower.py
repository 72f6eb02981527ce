"""Keeps the steps of a run from making the model slower: what does not pay is undone, layer by layer.

The model after a step is timed beside the model before it and the model at the start of the run, under the conditions of the
goal. If it is slower (the 95 % interval of the ratio lies above 1, or the ratio itself is 1.02 or more after the longest
measurement), the time of each layer is measured before and after the step, and the step is made again without the layers that
do not gain; if it is still slower, the step is undone as a whole. What is undone is a decision of the run, so that a run that
was killed ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from mirabelle.errors import UserError
from mirabelle.inspection.measure import onnx_file
from mirabelle.job.conditions import Conditions
from mirabelle.model.architecture import architecture_of, replaced_module_names
from mirabelle.report.findings import LayerTimes, StepSpeed
from mirabelle.run.run import Run
from mirabelle.runtime.latency import Ratio
from mirabelle.runtime.layer_times import layer_milliseconds
from mirabelle.runtime.runtime import time_all
from mirabelle.step import ReplacesModel, Step, use_of
from mirabelle.task.goal import Goal
from mirabelle.task.profile import Latency
from mirabelle.task.task import Task

EVENT = "speed"
BRIEFLY, LONG = 0.5, 2.0  # seconds of a measurement; the second one, and one three times as long, if a doubt is left
_DECISION = "undone"  # the names of the layers that a step must leave as they are, as JSON, or this word:
_WHOLLY = "all"
_TRIES = 3  # how often a step is made again without the layers that do not gain
_NOTICEABLE = 0.05  # of the model's time: what layers must lose for a step that gains to be tried without them
_SMALLER = 0.95  # of the bytes of the ONNX file: what is left of a step that gains no time must save more
_LEVEL = 1.01  # a median below it leaves no doubt that is worth a longer measurement
_DOUBTFUL = 1.02  # a median from it on, after the longest measurement, counts as slower, whatever its interval

Make = Callable[[Step], nn.Module]


def origin_after(step: Step, dense: nn.Module, place: Run) -> nn.Module:
    """The dense module from which the result of a step was made; a step that was undone as a whole replaces none.

    Args:
        step: the step.
        dense: that of the model before it.
        place: the folder of the step.
    """
    replaces = isinstance(step, ReplacesModel) and place.decided(_DECISION) != _WHOLLY
    return step.origin(dense, place) if replaces and isinstance(step, ReplacesModel) else dense


@dataclass
class Form:
    """A model with its ONNX file, which is exported when it is first needed.

    Args:
        model: the model.
        export: writes its ONNX file.
        known: the file, if it has been needed already.
    """

    model: nn.Module
    export: Callable[[], bytes]
    known: bytes = b""

    @property
    def onnx(self) -> bytes:
        self.known = self.known or self.export()
        return self.known


def form_of(model: nn.Module, task: Task) -> Form:
    """A model that has not been exported yet."""
    return Form(model, partial(onnx_file, model, task))


class Guard:
    """Undoes what makes a model slower, unless the goal allows it; tells the speed of each step in either case.

    Args:
        goal: says how models are timed, and whether the model may become slower.
        task: gives the inputs.
        start: the model at the start of the run.
    """

    def __init__(self, goal: Goal, task: Task, start: Form) -> None:
        self.goal, self.task, self.start = goal, task, start
        self._conditions: Conditions | None = None

    @property
    def timed(self) -> Conditions:
        self._conditions = self._conditions or Conditions.of(self.goal, self.task)
        return self._conditions

    def kept(self, step: Step, before: Form, place: Run, make: Make) -> Form:
        """The result of a step, without what made the model slower; the model before it if nothing is left.

        Args:
            step: the step.
            before: the model before it.
            place: the folder of the step.
            make: carries out a step.
        """
        trial = Trial(self, step, before, place, make)
        decision = str(place.decided(_DECISION) or trial.decide())
        if decision == _WHOLLY:
            return before
        names = tuple(json.loads(decision))
        if names in trial.made:
            return trial.made[names]
        if trial.made:  # what was told of an attempt is told anew
            place.event("begin", step=use_of(step))
        return form_of(make(without(step, names)), self.task)

    def compare(self, before: Form, after: Form) -> tuple[Latency, Latency, Ratio, bool]:
        """(latency before, latency after, ratio after / before, whether it is slower than before, or than at the start).

        What a brief measurement cannot tell is measured longer. A doubt that stays speaks against the step.
        """
        forms = {"after": after, "before": before, **({} if before is self.start else {"start": self.start})}
        sessions = {name: self.timed.load(form.onnx) for name, form in forms.items()}
        found: tuple[dict[str, Latency], dict[str, Ratio]] = ({}, {})
        against: list[Ratio] = []
        for seconds in (BRIEFLY, LONG, 3 * LONG):
            found = time_all(sessions, self.timed.inputs, batch=self.timed.batch, seconds=seconds, enough=_all_slower)
            against = [found[1][name].inverse() for name in forms if name != "after"]
            if all(ratio.slower or ratio.median < _LEVEL for ratio in against):
                break
        latencies, ratios = found
        slower = any(ratio.slower or ratio.median >= _DOUBTFUL for ratio in against)
        return latencies["before"], latencies["after"], ratios["before"].inverse(), slower

    def layer_times(self, form: Form, layers: Sequence[str], whole_ms: float) -> dict[str, float]:
        """Milliseconds of each of these layers in a model of `whole_ms`; none in a runtime that does not tell."""
        inputs = self.timed.inputs
        try:
            feed = self.timed.load(form.onnx).feed(inputs)
            first = {name: array[: self.timed.batch] for name, array in feed.items()}
            timed = self.timed
            return layer_milliseconds(timed.runtime, form.onnx, first, layers, threads=timed.threads, whole_ms=whole_ms)
        except UserError as error:
            if error.code != "E111":
                raise
            return {}


@dataclass(frozen=True)
class _Tried:
    """What a step gives without some layers, and its speed."""

    names: tuple[str, ...]
    form: Form
    speed: StepSpeed
    slower: bool


@dataclass
class Trial:
    """The attempts at one step; `made` holds their results by the names of the layers that were left as they are."""

    guard: Guard
    step: Step
    before: Form
    place: Run
    make: Make
    made: dict[tuple[str, ...], Form] = field(default_factory=dict)

    def decide(self) -> str:
        """What is undone; nothing is measured, or decided, if the step leaves all operators as they are."""
        first = self._attempt(())
        if architecture_of(first.model).edits == architecture_of(self.before.model).edits and not _replaces(self.step):
            return "[]"
        return str(self.place.decide(_DECISION, lambda: self.undone(first)))

    def _attempt(self, names: tuple[str, ...]) -> Form:
        """The result of the step, without these layers; of a step that trains for speed, its preview, which costs nothing."""
        step = without(self.step, names)
        if _trains_for_speed(self.step):
            with tempfile.TemporaryDirectory() as folder:
                preview = step.preview(self.before.model, self.guard.task, Run(folder, seed=self.place.seed))
            return form_of(preview.model, self.guard.task)
        self.made[names] = form_of(self.make(step), self.guard.task)
        return self.made[names]

    def undone(self, first: Form) -> str:
        """Measure the result of the step, and the step without the layers that do not gain; what is undone, as text."""
        now = tried = self._timed((), first)
        returned: list[LayerTimes] = []
        if not self.guard.goal.may_be_slower:
            self.place.working("time of each layer")
            dense = self.guard.layer_times(self.before, self._new(first), tried.speed.before.median) if self._worth(now) else {}
            for _ in range(_TRIES):
                losing = self._losing(now, dense) if self._worth(now) else []
                better = self._without(now, losing) if losing else None
                if better is not None or now.slower:
                    returned += losing
                if better is None:
                    break
                now = better
        undone = not self.guard.goal.may_be_slower and (now.slower or (now is not tried and self._idle(now)))
        speed = dataclasses.replace(tried.speed, undone=undone, returned=tuple(returned))
        if now is not tried and not speed.undone:
            speed = dataclasses.replace(speed, kept=now.speed.ratio, kept_ms=now.speed.after.median)
        self.place.event(EVENT, **speed.to_data())
        return _WHOLLY if speed.undone else json.dumps(now.names)

    def _timed(self, names: tuple[str, ...], form: Form) -> _Tried:
        for one in (form, self.before, self.guard.start):
            self.place.working("export to ONNX, to be timed")
            one.onnx  # noqa: B018 (is exported now)
        self.place.working("latency beside the model before")
        before, after, ratio, slower = self.guard.compare(self.before, form)
        return _Tried(names, form, StepSpeed(use_of(self.step), before, after, ratio), slower)

    def _idle(self, now: _Tried) -> bool:
        """Whether too little is left of the step to gain time or bytes."""
        return not now.speed.ratio.faster and len(now.form.onnx) > _SMALLER * len(self.before.onnx)

    def _worth(self, now: _Tried) -> bool:
        """Whether layers are to be looked at: the model is slower, or only its speed counts."""
        goal = self.guard.goal
        return now.slower or (goal.size is None and goal.onnx_size is None)

    def _losing(self, now: _Tried, dense: Mapping[str, float]) -> list[LayerTimes]:
        """The layers that lose time. If the model is slower, at least the half of them that gains least; otherwise at least so
        much that it shows.
        """
        self.place.working("time of each layer")
        after = self.guard.layer_times(now.form, self._new(now.form), now.speed.after.median)
        times = [LayerTimes(name, dense[name], after[name]) for name in after if name in dense]
        losing = [one for one in times if one.after_ms > one.before_ms]
        if now.slower:
            times.sort(key=lambda one: one.before_ms / max(one.after_ms, 1e-9))
            return losing or times[: (len(times) + 1) // 2]
        lost = sum(one.after_ms - one.before_ms for one in losing)
        return losing if lost >= _NOTICEABLE * now.speed.after.median else []

    def _without(self, now: _Tried, losing: Sequence[LayerTimes]) -> _Tried | None:
        """The step without these layers, too; None if that is no better, if no other is left, or it takes no `exclude`."""
        names = tuple(sorted({*now.names, *(one.name for one in losing)}))
        if without(self.step, names) == self.step:
            return None
        try:
            found = self._timed(names, self._attempt(names))
        except UserError as error:
            if error.code != "E112":
                raise
            return None
        gains = now.slower or (not found.slower and self.guard.compare(now.form, found.form)[2].faster)
        return found if gains else None

    def _new(self, form: Form) -> list[str]:
        """The layers that the step has replaced; not what it has added."""
        known = dict(self.before.model.named_modules()).keys() - replaced_module_names(self.before.model)
        return [name for name in replaced_module_names(form.model) if name in known]


def without(step: Step, names: Sequence[str]) -> Step:
    """A step that leaves more layers as they are; the step itself if it takes no `exclude`.

    Example:
        >>> from mirabelle import quantize
        >>> without(quantize.Static(exclude=("head",)), ["conv[1]"]).exclude
        ('head', 'conv[[]1]')
    """
    if not names:
        return step
    parts, changed = getattr(step, "steps", None), {}
    if parts is not None:
        changed["steps"] = tuple(without(part, names) if _quantizes(part) else part for part in parts)
    elif hasattr(step, "exclude"):
        changed["exclude"] = (*step.exclude, *map(glob.escape, names))
    fewer: Step = dataclasses.replace(step, **changed)  # type: ignore[type-var]  # every step is a record
    return fewer


def _quantizes(step: Step) -> bool:
    return step.stage == "quantize"


def _replaces(step: Step) -> bool:
    return isinstance(step, ReplacesModel)


def _trains_for_speed(step: Step) -> bool:
    """Whether a step trains a model whose speed its preview shows, so that no training is wasted on what is undone."""
    trains = getattr(step, "train", None) is not None
    return trains and (_replaces(step) or _quantizes(step))


def _all_slower(ratios: Mapping[str, Ratio]) -> bool:
    """Whether all other models are clearly slower than the first one, which a step has made."""
    return all(ratio.low > 1 for name, ratio in ratios.items() if name != "after")
