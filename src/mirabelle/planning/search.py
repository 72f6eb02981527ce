"""Automatic compression: a goal in, a plan and a model out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters
from mirabelle.job.comparison import step_seconds
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.job import Source, compress
from mirabelle.job.learned import nothing_learned, standing
from mirabelle.job.result import Result
from mirabelle.model.device import check_device
from mirabelle.model.state import copied
from mirabelle.planning.learning_rate import learning_rate
from mirabelle.planning.measured import Measured
from mirabelle.planning.measuring import Wanted, measured
from mirabelle.planning.plan import Plan, Planner, smallest_plan
from mirabelle.recipe.recipe import Recipe
from mirabelle.report import read_report
from mirabelle.run import files
from mirabelle.run.journal import Callback
from mirabelle.run.run import Run, threads_of_run, torch_threads
from mirabelle.sources.models.by_name import in_torch
from mirabelle.step import Step, step_to_data
from mirabelle.task.goal import Goal, limit_of
from mirabelle.task.profile import MeasuredMetric
from mirabelle.task.task import Task
from mirabelle.training.settings import Training

SHIPPED = (
    "model.onnx",
    "model.mira",
    "model.safetensors",
    "architecture.json",
    "recipe.toml",
    "report.json",
    "report.html",
    "README.md",
)
_BATCH = 64
_MOST_EPOCHS = 60
_SHARE = 0.7  # of the time that is left, for the training of one attempt
_LEAST_STEPS = 100  # a training that is shorter is not worth its time
_MOST_ATTEMPTS = 12
_DROP = "1%"  # where the goal has no limit of the metric
_AIM = 0.8  # of the allowed drop that may be used on the validation data, as the test data differ
_REFUSED = ("E114", "E201")  # a limit that a step cannot meet, a training that diverged: another plan may
_WITHIN = 0.5  # of the allowed drop: a plan that is expected to lose less needs no training

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """One recipe that was run.

    Args:
        name: of its folder.
        plan: its structure, its form, what stays, and what was expected.
        steps: of the recipe, as plain data.
        metric: on the validation data, of the compressed model.
        costs: of the compressed model, measured, for each limit.
        expected: the same costs as the plan expected them.
        fits: whether all limits hold, those of the metric by the validation data.
        seconds: that it took.
    """

    name: str
    plan: str
    steps: Sequence[Mapping[str, Any]]
    metric: float
    costs: Mapping[str, float]
    expected: Mapping[str, float]
    fits: bool
    seconds: float


@dataclass(frozen=True)
class Found:
    """What automatic compression has found.

    Args:
        plan: the first plan.
        attempts: in their order.
        best: the run of the best of them; None if nothing was run.
        folder: with `best.json` and the files of the best run.
        start_metric: of the given model on the validation data.
    """

    plan: Plan
    attempts: Sequence[Attempt]
    best: Result | None
    folder: Path
    start_metric: MeasuredMetric

    @property
    def met(self) -> bool:
        """Whether the best result meets the goal."""
        return self.best is not None and self.best.met


def auto(
    model: nn.Module,
    task: Task,
    goal: Goal | Mapping[str, Any],
    out: str | Path = "runs/auto",
    *,
    minutes: float = 30.0,
    seed: int = 0,
    teacher: nn.Module | None = None,
    dry_run: bool = False,
    source: Source | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Tell = lambda _: None,
) -> Found:
    """Find a recipe for a goal and carry it out.

    The model is measured: how much each cut, rank and rounding changes its outputs, and what each costs in bytes, operations
    and milliseconds of this machine. A plan is chosen exactly (`mirabelle.allocation`) under all limits at once, made without
    training, and corrected until what is measured of it is within the limits. Then it is run as an ordinary recipe. If the
    metric is too low on the validation data, the model is trained under the given model as its teacher for as long as the time
    allows, or another plan is taken. Without a limit on the cost, the file becomes as small as the metric allows.

    A killed search goes on where it was: measurements, attempts and their trainings are kept in the folder.

    Args:
        model: trained.
        task: its data, loss and metric. Without labels, the outputs of the model are the targets.
        goal: limits; without one of the metric, it may drop by 1 %. Those of the metric are checked on validation data during
            the search, and on test data at its end.
        out: folder of the search, with one folder for each attempt, the files of the best, and `best.json`.
        minutes: after which no new attempt begins; trainings are planned to end within them.
        seed: of all random numbers.
        teacher: of all trainings; by default the model itself.
        dry_run: stop after the plan; nothing is trained.
        source: of the recipes, as in `compress`.
        callbacks: as in `compress`.
        tell: is given a line on each part of the work.

    Raises:
        UserError: E114 if no plan can meet them, with the least that is possible; E121 if the
            model has learned nothing; and the errors of `compress`.

    Example:
        >>> import mirabelle, tempfile, torch
        >>> x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> task = mirabelle.Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> model = mirabelle.training.fit(model, task, mirabelle.Training(epochs=20), mirabelle.Run(tempfile.mkdtemp()))
        >>> found = auto(model, task, {"size": "50%"}, tempfile.mkdtemp(), dry_run=True)
        >>> found.plan.costs["size"] <= 0.5 * 4 * 178
        True
    """
    goal = goal if isinstance(goal, Goal) else records.build(Goal, goal, "goal")
    if goal.metric is None and goal.max_drop is None:
        goal = replace(goal, max_drop=_DROP)
    out = Path(out)
    with torch_threads(threads_of_run(out / "attempt-1", {})):
        dense = copied(in_torch(model)).eval()
        check_device(dense)
        guide = None if teacher is None else in_torch(teacher)
        task = with_model_outputs_as_targets(task, guide or dense)
        try_one_batch(dense, task)
        return _Search(dense, task, goal, out, minutes, seed, guide, source, callbacks, tell).found(dry_run=dry_run)


@dataclass
class _Search:
    model: nn.Module
    task: Task
    goal: Goal
    out: Path
    minutes: float
    seed: int
    teacher: nn.Module | None
    source: Source | None
    callbacks: Sequence[Callback]
    tell: Tell
    attempts: list[Attempt] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    refused: dict[str, float] = field(default_factory=dict)  # name of each attempt that could not be carried out -> its size

    def found(self, *, dry_run: bool) -> Found:
        self._begin = time.monotonic()
        start = standing(self.model, self.task, self.task.validation)
        if not start.learned:
            remedy = "give trained weights, or train it first: `mirabelle init` prints a recipe with a [baseline]"
            raise UserError("E121", nothing_learned("the model to compress", start), remedy)
        least = self.goal.least_metric(start.metric.value, _AIM)
        assert least is not None, "a goal without a limit of the metric gets one"
        self._start, self._least = start.metric, least
        run = Run(self.out / "measuring", seed=self.seed)
        limited = {name: value for name in LIMITS if (value := getattr(self.goal, name)) not in (None, "any")}
        wanted = Wanted(coded="size" in limited or not limited, timed="latency" in limited)
        found = measured(self.model, self.task, run, wanted, self.tell, kept=self.out / "measured.json")
        self.limits: dict[str, float] = {
            name: limit_of(name, asked, self._whole(name, found)) for name, asked in limited.items()
        }
        self.tell(f"{start.metric.name} of the given model on the validation data: {start.metric.value:.4f}")
        planner = Planner(self.model, self.task, found, self.limits, self.tell)
        plans = self._plans(planner)
        for line in plans[0].describe():
            self.tell(line)
        self.tell(f"expected {start.metric.name} before any training: {plans[0].metric:.4f}")
        if not dry_run:
            self._run(planner, plans)
        best = self._best()
        return Found(plans[0], self.attempts, None if best is None else self.results[best.name], self.out, start.metric)

    def _plans(self, planner: Planner) -> list[Plan]:
        """The plans for the goal, from the folder if they were made before: a repeated search runs the same recipes."""
        kept, of = self.out / "plan.json", files.digest_of_data([planner.found.to_data(), self.limits, self._least])
        if kept.is_file() and (known := files.read_json(kept)).get("of") == of:
            return [Plan.from_data(plan) for plan in known["plans"]]
        plans = planner.plans() if self.limits else [smallest_plan(planner, self._untrained)]
        files.write_json(kept, {"of": of, "limits": self.limits, "plans": [plan.to_data() for plan in plans]})
        return plans

    def _whole(self, name: str, found: Measured) -> float:
        """What a share in the goal refers to."""
        given = found.forms["float"]
        return {
            "size": found.float_bytes, "onnx_size": given.onnx_size, "latency": given.latency, "macs": found.macs,
            "parameters": float(count_parameters(self.model)[1]),
        }[name]  # fmt: skip

    def _run(self, planner: Planner, plans: Sequence[Plan]) -> None:
        """Run one recipe after the other, until the goal is met or the time is over."""
        queue = [*plans]
        while queue and len(self.attempts) + len(self.refused) < _MOST_ATTEMPTS and (not self.attempts or self._left() > 0):
            plan = queue.pop(0)
            tries: Sequence[bool] = (False, True) if plan.metric >= self._untrained else (True,)
            for trains in tries:
                attempt = self._attempt(planner, plan, trains=trains)
                if attempt is not None and attempt.fits:
                    break
            if attempt is not None and attempt.fits and self.limits:
                return
            if not self.limits:
                queue += self._next_size(planner)

    def _next_size(self, planner: Planner) -> list[Plan]:
        """A smaller plan if the metric allows it, or a larger one if this one lost too much; none close to what was tried."""
        tried = [(one.expected["size"], one.fits) for one in self.attempts] + [(size, False) for size in self.refused.values()]
        small = max((size for size, fits in tried if not fits), default=0.0)
        large = min((size for size, fits in tried if fits), default=planner.found.float_bytes)
        wanted = (small * large) ** 0.5 if small else large * 0.75
        if not small < wanted < large or wanted > 0.95 * large:
            return []
        planner.limits = {"size": wanted}
        try:
            return planner.plans()[:1]
        except UserError:
            return []

    def _attempt(self, planner: Planner, plan: Plan, *, trains: bool) -> Attempt | None:
        """Run a plan as a recipe; None if there is no time for a training that it needs."""
        name = f"attempt-{len(self.attempts) + len(self.refused) + 1}"
        kept = self.out / f"{name}.json"
        learned = trains and plan.draft.form == "coded" and plan.draft.of_numbers > 0.5 * plan.change
        if kept.is_file():
            known = files.read_json(kept)
            steps: Sequence[Step] = Recipe.from_data(known["step"]).steps
        else:
            training = self._training(plan, name, learned=learned) if trains else None
            if trains and training is None:
                return None
            steps = plan.steps(training, learned=learned)
            if not steps:
                raise UserError("E112", "the given model is within the limits as it is", "ask for more: a smaller limit")
            files.write_json(kept, {"step": [step_to_data(step) for step in steps]})
        self.tell(f"{name}: {', '.join(step_to_data(step)['use'] for step in steps)}" + (" with training" if trains else ""))
        begin = time.monotonic()
        try:
            result = compress(
                self.model, self.task, steps, self.goal, self.out / name, seed=self.seed, teacher=self.teacher,
                callbacks=self.callbacks, source=self.source,
            )  # fmt: skip
        except UserError as error:
            if error.code not in _REFUSED:
                raise
            self.tell(f"{name} ends: {error.errors[0].message}")
            self.refused[name] = plan.costs.get("size", 0.0)
            return None
        report = read_report(result.folder)
        last = report.trail[-1].profile.metric
        assert last is not None, "every step is measured"
        metric = last.value
        known = _costs(result, planner.found)
        costs = {cost: known[cost] for cost in self.limits or ("size",)}
        fits = metric >= self._least and all(costs[one] <= limit for one, limit in self.limits.items())
        expected = {cost: plan.costs[cost] for cost in costs}
        attempt = Attempt(
            name,
            "/".join(plan.key),
            [step_to_data(step) for step in steps],
            metric,
            costs,
            expected,
            fits,
            time.monotonic() - begin,
        )
        self.attempts.append(attempt)
        self.results[name] = result
        self._keep()
        words = ", ".join(f"{cost} {value:,.6g} (expected {expected[cost]:,.6g})" for cost, value in costs.items())
        self.tell(
            f"{name}: {self._start.name} {metric:.4f} on the validation data, {words}: {'fits' if fits else 'misses the goal'}"
        )
        return attempt

    def _training(self, plan: Plan, name: str, *, learned: bool) -> Training | None:
        """A training under the teacher as long as the time allows, with a measured learning rate; None if there is no time."""
        run = Run(self.out / "measuring" / name, seed=self.seed)
        task = self.task.with_teacher(self.teacher or self.model)
        training = Training(epochs=_MOST_EPOCHS, batch_size=min(_BATCH, max(len(task.train) // 8, 1)))
        steps = plan.steps(training, learned=learned)
        place = next(place for place, step in enumerate(steps) if getattr(step, "train", None) is not None)
        model = self.model
        for step in steps[:place]:
            model = step(model, task, run.within("before"))
        preview = steps[place].preview(model, task, run.within("preview"))
        seconds = step_seconds(preview.trained, task, training, run.within("timed"), budget=0.0)
        steps_per_epoch = task.train.steps(training.batch_size)
        count = int(min(_SHARE * self._left() / max(seconds, 1e-6), _MOST_EPOCHS * steps_per_epoch))
        if count < min(_LEAST_STEPS, steps_per_epoch):
            self.tell(f"no time is left for a training: {seconds:.3g} s for each step")
            return None
        rate = learning_rate(preview.trained, task, training, run)
        epochs = max(count // steps_per_epoch, 1)
        self.tell(f"training of {epochs} epochs with learning rate {rate:g}, {seconds * steps_per_epoch:.3g} s each")
        return Training(epochs=epochs, batch_size=training.batch_size, lr=rate)

    @property
    def _untrained(self) -> float:
        """The metric from which on a plan is first run without a training."""
        return self._least + (self._start.value - self._least) * (1 - _WITHIN)

    def _left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self._begin)

    def _best(self) -> Attempt | None:
        """The attempt that fits, with the smallest file or the highest metric; else that which is closest to the goal."""
        if not self.attempts:
            return None
        fitting = [one for one in self.attempts if one.fits]
        if fitting and not self.limits:
            return min(fitting, key=lambda one: one.costs["size"])
        return max(fitting or self.attempts, key=lambda one: (self._within(one), one.metric))

    def _within(self, one: Attempt) -> bool:
        return all(one.costs[name] <= limit for name, limit in self.limits.items())

    def _keep(self) -> None:
        """Copy the files of the best attempt so far, and say which one it is."""
        best = self._best()
        assert best is not None, "there is an attempt"
        for name in SHIPPED:
            if (self.out / best.name / name).is_file():
                files.write(self.out / name, (self.out / best.name / name).read_bytes())
        attempts = [records.to_data(one) for one in self.attempts]
        files.write_json(self.out / "best.json", {"best": best.name, "limits": self.limits, "attempts": attempts})


LIMITS: tuple[Literal["size", "onnx_size", "latency", "macs", "parameters"], ...] = (
    "size", "onnx_size", "latency", "macs", "parameters",
)  # fmt: skip


def _costs(result: Result, found: Measured) -> dict[str, float]:
    """What the compressed model costs; its milliseconds are those of the given model at first, times the ratio of both now."""
    start, end = result.start, result.profile
    assert end.size_bytes.packed is not None, "a run packs its model"
    assert end.size_bytes.onnx is not None, "a run exports its model"
    assert start.latency_ms is not None, "a run times both models"
    assert end.latency_ms is not None, "a run times both models"
    return {
        "size": float(end.size_bytes.packed), "onnx_size": float(end.size_bytes.onnx), "macs": float(end.macs),
        "latency": found.forms["float"].latency * end.latency_ms.median / start.latency_ms.median,
        "parameters": float(end.nonzero_parameters),
    }  # fmt: skip
