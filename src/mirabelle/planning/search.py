"""Automatic compression: a goal in, a plan and a model out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.job import Source, compress
from mirabelle.job.learned import nothing_learned, standing
from mirabelle.job.processes_of_job import identity_of, led_by_first
from mirabelle.job.result import Result
from mirabelle.job.where import as_begun
from mirabelle.model.device import check_device, on_cpu
from mirabelle.model.state import fingerprint
from mirabelle.planning.draft import COSTS, KEYS
from mirabelle.planning.found import Attempt, Found, costs_of_result, place_of_goal, whole_cost
from mirabelle.planning.front import write_front
from mirabelle.planning.measured import Measured
from mirabelle.planning.measuring import Wanted, measured
from mirabelle.planning.plan import Plan, Planner, is_trainable, learns, smallest_plan
from mirabelle.planning.training_time import training_of_plan
from mirabelle.planning.trials import Trials, TrialSettings
from mirabelle.recipe.recipe import Recipe
from mirabelle.report import read_report
from mirabelle.run import files
from mirabelle.run.journal import Callback
from mirabelle.run.run import Run
from mirabelle.sources.models.by_name import in_torch
from mirabelle.step import step_to_data
from mirabelle.task.goal import Goal, limit_of
from mirabelle.task.task import Task
from mirabelle.training.settings import Training

SHIPPED = (
    *("model.onnx", "model.mira", "model.safetensors", "architecture.json"),
    *("recipe.toml", "report.json", "report.html", "README.md"),
)
_AS_FAST = 1.05  # of the milliseconds of the given model: as fast as it, within what a measurement repeats
_CLOSE = 0.95  # of the smallest file that fits: a file this close to it is not tried
_MOST_ATTEMPTS = 12
_DROP = "1%"  # where the goal has no limit of the metric
_AIM = 0.8  # of the allowed drop that may be used on the validation data, as the test data differ
_REFUSED = ("E114", "E201")  # a limit that a step cannot meet, a training that diverged: another plan may
_WITHIN = 0.5  # of the allowed drop: a plan that is expected to lose less needs no training

Tell = Callable[[str], None]


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
    trials: TrialSettings | None = None,
    source: Source | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Tell = lambda _: None,
    device: str = "auto",
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
        minutes: after which no new attempt begins; trainings are planned to end about then.
        seed: of all random numbers.
        teacher: of all trainings; by default the model itself.
        dry_run: stop after the plan; nothing is trained.
        trials: search around the plan with Optuna, instead of going from one plan to the next; the best trial is then run as an
            attempt. `minutes` are for each trial's training alone.
        source: of the recipes, as in `compress`.
        callbacks: as in `compress`.
        tell: is given a line on each part of the work.
        device: as in `compress`.

    Raises:
        UserError: E112 if the model is within the limits as it is; E113 for a metric that cannot be reached; E114 if no plan
            can meet the limits, with the least that is possible; E121 if the model has learned nothing, or cannot be exported;
            and the errors of `compress`.

    Example:
        >>> import mirabelle, tempfile, torch
        >>> x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> task = mirabelle.Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> training, run = mirabelle.Training(epochs=20, lr=1e-2), mirabelle.Run(tempfile.mkdtemp())
        >>> model = mirabelle.training.fit(model, task, training, run)
        >>> found = auto(model, task, {"size": "50%"}, tempfile.mkdtemp(), dry_run=True)
        >>> found.plan.costs["size"] <= 0.5 * 4 * 178
        True
    """
    goal = goal if isinstance(goal, Goal) else records.build(Goal, goal, "goal")
    if goal.metric is None and goal.max_drop is None:
        goal = replace(goal, max_drop=_DROP)
    out = Path(out)
    with as_begun(out / "attempt-1", {}, device):
        check_device(given := in_torch(model))
        dense = on_cpu(given).eval()
        guide = None if teacher is None else in_torch(teacher)
        task = with_model_outputs_as_targets(task, guide or dense)
        search = _Search(dense, task, goal, out, minutes, seed, guide, source, callbacks, tell, trials)
        job = identity_of(dense, task, goal=records.to_data(goal), seed=seed)
        return led_by_first(task, job, lambda: search.found(dry_run=dry_run))


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
    trials: TrialSettings | None = None
    attempts: list[Attempt] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    _is_over: bool = False  # there was no time for a training
    refused: dict[str, float] = field(default_factory=dict)  # name of each attempt that could not be carried out -> its size

    def found(self, *, dry_run: bool) -> Found:
        try_one_batch(self.model, self.task)
        self.goal.check(self.task.metric.name, self.task.metric.highest)
        start = standing(self.model, self.task, self.task.validation)
        if not start.learned:
            remedy = "give trained weights, or train it first: `mirabelle init` prints a recipe with a [baseline]"
            raise UserError("E121", nothing_learned("the model to compress", start), remedy)
        least = self.goal.least_metric(start.metric.value, _AIM)
        assert least is not None, "a goal without a limit of the metric gets one"
        self._start, self._least = start.metric, least
        run = Run(self.out / "measuring", seed=self.seed)
        limited = {name: value for name in COSTS if (value := getattr(self.goal, name)) not in (None, "any")}
        front = None if self.trials is None else self.trials.front
        coded, timed = "size" in limited or not limited or front == "size", not self.goal.may_be_slower or front == "latency"
        wanted = Wanted(coded, timed, self.goal.batch or 1)
        found = measured(self.model, self.task, run, wanted, self.tell, kept=self.out / "measured.json")
        self._begin = time.monotonic()
        for note in found.notes:
            self.tell(note)
        if self.goal.threads is not None or self.goal.runtime is not None:
            self.tell("plans are timed in ONNX Runtime with the threads of the run; attempts are judged as the goal says")
        self.limits: dict[str, float] = {
            name: limit_of(name, asked, whole_cost(name, found, self.model)) for name, asked in limited.items()
        }
        self._place = place_of_goal(self.out, files.digest_of_data([found.to_data(), self.limits, self._least, self.seed]))
        self.tell(f"{start.metric.name} of the given model on the validation data: {start.metric.value:.4f}")
        self._tell_resolution()
        limits = self._planned_limits(found)
        planner = Planner(
            self.model, self.task, found, limits, tell=self.tell, batch=self.goal.batch or 1,
            implied=frozenset(limits.keys() - self.limits.keys()),
        )  # fmt: skip
        plans = self._plans(planner)
        for line in plans[0].describe():
            self.tell(line)
        self.tell(f"expected {start.metric.name} before any training: {plans[0].metric:.4f}")
        if not dry_run and self.trials is not None:
            self._try(planner, plans[0], self.trials)
        elif not dry_run:
            self._run(planner, plans)
        best = self._best()
        return Found(plans[0], self.attempts, None if best is None else self.results[best.name], self.out, start.metric)

    def _planned_limits(self, found: Measured) -> dict[str, float]:
        """The limits of plans: those of the goal, and unless it allows that, no plan may be slower than the given model."""
        if self.goal.may_be_slower or "latency" in self.limits:
            return dict(self.limits)
        return {**self.limits, "latency": _AS_FAST * found.forms["float"].latency}

    def _tell_resolution(self) -> None:
        """Say so if the validation data cannot show a drop as small as the allowed one."""
        one, allowed = 1 / max(self._start.n, 1), (self._start.value - self._least) / _AIM
        if 0 <= self._start.value <= 1 and one > allowed:
            self.tell(f"the allowed drop, {allowed:.2%}, is less than one of the {self._start.n} validation samples, {one:.2%}")

    def _plans(self, planner: Planner) -> list[Plan]:
        """The plans for the goal, from the folder if they were made before: a repeated search runs the same recipes."""
        kept = self._place / "plan.json"
        if kept.is_file():
            return [Plan.from_data(plan) for plan in files.read_json(kept)["plans"]]
        plans = planner.plans() if self.limits else [smallest_plan(planner, self._untrained)]
        files.write_json(kept, {"limits": self.limits, "plans": [plan.to_data() for plan in plans]})
        return plans

    def _run(self, planner: Planner, plans: Sequence[Plan]) -> None:
        """Run one recipe after the other, until the goal is met or the time is over; the first in any case."""
        queue = [(plan, plan.metric < self._untrained) for plan in plans]
        while queue and self._may_go_on():
            plan, trains = queue.pop(0)
            attempt = self._attempt(planner, plan, trains=trains and is_trainable(plan))
            if attempt is None:
                queue = queue or self._others(planner, plan)
            elif not self._within(attempt):
                queue = [(other, trains) for other in planner.corrected(plan, attempt.costs)] + queue
            elif attempt.fits and self.limits:
                return
            elif not attempt.fits and not attempt.trained and is_trainable(plan):
                queue.insert(0, (plan, True))
            elif not attempt.fits and self.limits and not queue:
                queue = self._others(planner, plan) or [(plan, True)] * is_trainable(plan)
            if not self.limits and not queue:
                queue = [(other, other.metric < self._untrained) for other in self._next_size(planner)]

    def _others(self, planner: Planner, plan: Plan) -> list[tuple[Plan, bool]]:
        """The best plan of a structure and form that no attempt had, to be trained."""
        had = [one.plan for one in self.attempts]
        keys = [key for key in KEYS if "/".join(key) in had]
        return [(other, True) for other in planner.others([plan.key, *keys])]

    def _try(self, planner: Planner, plan: Plan, settings: TrialSettings) -> None:
        """Search around a plan with trials, and run the best of them as an attempt.

        Of a front it is the cheapest whose metric is as high as the goal asks, or else that with the highest metric.
        """
        planner.limits = planner.limits or {"size": plan.costs["size"]}
        if settings.front is not None and settings.front not in planner.limits:
            planner.limits = {**planner.limits, settings.front: whole_cost(settings.front, planner.found, self.model)}
        identity = files.digest_of_data(
            [fingerprint(self.model), self.task.fingerprint(), records.to_data(self.goal), self.seed, settings.front]
        )  # fmt: skip
        study = Trials(
            model=self.model, task=self.task.with_teacher(self.teacher or self.model), planner=planner, plan=plan,
            training=lambda: self._of_trials(plan),
            out=self._place / "trials", settings=settings, identity=identity, seed=self.seed, tell=self.tell,
        )  # fmt: skip
        found = study.best()
        best = next((one for one in found if one.metric >= self._least), found[-1])
        if settings.front is not None:
            tables = {} if self.source is None else {"schema": 1, **self.source.tables}
            write_front(self._place, found, settings.front, self._start, tables)
        self.tell(f"best of {best.counted} trials: number {best.number}, {self._start.name} {best.metric:.4f} ({best.plan})")
        files.write_json(self._place / "attempt-1.json", {"step": [step_to_data(step) for step in best.steps]})
        self._attempt(planner, plan, trains=False)

    def _of_trials(self, plan: Plan) -> Training | None:
        """The training of all trials: none if the plan is expected to lose little without one."""
        if plan.metric >= self._untrained or not is_trainable(plan):
            return None
        self._begin = time.monotonic()  # each trial has all of the time
        return self._training(plan, "trials", learned=learns(plan))

    def _next_size(self, planner: Planner) -> list[Plan]:
        """A smaller plan if the metric allows it, or a larger one if this one lost too much; none close to what was tried."""
        tried = [(one.expected["size"], one.fits) for one in self.attempts] + [(size, False) for size in self.refused.values()]
        small = max((size for size, fits in tried if not fits), default=0.0)
        large = min((size for size, fits in tried if fits), default=min(2 * small, planner.found.float_bytes))
        wanted = (small * large) ** 0.5 if small and any(fits for _, fits in tried) else 0.75 * large if not small else large
        if not small < wanted or (wanted > _CLOSE * large and any(fits for _, fits in tried)):
            return []
        planner.limits = {**planner.limits, "size": wanted}
        try:
            return planner.plans()[:1]
        except UserError:
            return []

    def _may_go_on(self) -> bool:
        """Whether another attempt may begin: until one has ended, one that was begun before, or one that has time."""
        if self._count >= _MOST_ATTEMPTS:
            return False
        return not self.attempts or self._is_known() or (not self._is_over and self._left() > 0)

    @property
    def _count(self) -> int:
        return len(self.attempts) + len(self.refused)

    def _is_known(self) -> bool:
        """Whether the next attempt was begun before."""
        return (self._place / f"attempt-{self._count + 1}.json").is_file()

    def _attempt(self, planner: Planner, plan: Plan, *, trains: bool) -> Attempt | None:
        """Run a plan as a recipe; None if it has no time for its training, or cannot be carried out."""
        name = f"attempt-{self._count + 1}"
        kept = self._place / f"{name}.json"
        known = files.read_json(kept) if kept.is_file() else self._begun(plan, name, trains=trains)
        if known is None:
            return None
        steps = Recipe.from_data(known["step"]).steps
        trained = any(getattr(step, "train", None) is not None for step in steps)
        files.write_json(kept, known)
        self.tell(f"{name}: {', '.join(table['use'] for table in known['step'])}" + (" with training" if trained else ""))
        begin = time.monotonic()
        try:
            result = compress(
                self.model, self.task, steps, self.goal, self._place / name, seed=self.seed, teacher=self.teacher,
                callbacks=self.callbacks, source=self.source,
            )  # fmt: skip
        except UserError as error:
            if error.code not in _REFUSED:
                raise
            self.tell(f"{name} ends: {error.errors[0].message}")
            self.refused[name] = plan.costs.get("size", 0.0)
            return None
        if "seconds" not in known:
            files.write_json(kept, {**known, "seconds": time.monotonic() - begin})
        last = read_report(result.folder).trail[-1].profile.metric
        assert last is not None, "every step is measured"
        measured_costs = costs_of_result(result, planner.found)
        costs = {cost: measured_costs[cost] for cost in self.limits or ("size",)}
        missed = {shortfall.name for shortfall in result.shortfalls} & self.limits.keys()
        expected = {cost: plan.costs.get(cost, value) for cost, value in costs.items()}
        attempt = Attempt(
            name, "/".join(plan.key), known["step"], trained, last.value, costs, expected,
            not missed and last.value >= self._least, tuple(sorted(missed)), files.read_json(kept)["seconds"],
        )  # fmt: skip
        self.attempts.append(attempt)
        self.results[name] = result
        if not trained:
            planner.seen(plan, result.model, last.value)
        self._keep()
        words = ", ".join(f"{cost} {value:,.6g} (expected {expected[cost]:,.6g})" for cost, value in costs.items())
        judged = "fits" if attempt.fits else "misses the goal"
        self.tell(f"{name}: {self._start.name} {last.value:.4f} on the validation data, {words}: {judged}")
        return attempt

    def _begun(self, plan: Plan, name: str, *, trains: bool) -> dict[str, Any] | None:
        """The recipe of a new attempt. If there is no time for its training: without it, or none if something was run before.

        None, too, for a recipe that was run already.

        Raises:
            UserError: E112 if the plan changes nothing.
        """
        learned = trains and learns(plan)
        training = self._training(plan, name, learned=learned) if trains else None
        self._is_over = trains and training is None
        if self._is_over and self.attempts:
            return None
        steps = plan.steps(training, learned=learned and training is not None)
        if not steps:
            raise UserError("E112", "the given model is within the limits as it is", "ask for more: a smaller limit")
        tables = [step_to_data(step) for step in steps]
        return None if tables in [one.steps for one in self.attempts] else {"step": tables}

    def _training(self, plan: Plan, name: str, *, learned: bool) -> Training | None:
        run = Run(self._place / "measuring" / name, seed=self.seed)
        task = self.task.with_teacher(self.teacher or self.model)
        return training_of_plan(plan, self.model, task, run, left=self._left, learned=learned, tell=self.tell)

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
        """Whether all limits of the goal but that of the metric hold, as the run measured it."""
        return not one.missed

    def _keep(self) -> None:
        """Copy the files of the best attempt so far, and say which one it is."""
        best = self._best()
        assert best is not None, "there is an attempt"
        for name in SHIPPED:
            file = self._place / best.name / name
            if file.is_file():
                files.write(self.out / name, file.read_bytes())
            else:
                (self.out / name).unlink(missing_ok=True)  # of an earlier best
        attempts = [records.to_data(one) for one in self.attempts]
        folder = str((self._place / best.name).relative_to(self.out))
        files.write_json(self.out / "best.json", {"best": folder, "limits": self.limits, "attempts": attempts})
