"""Search around a plan with Optuna: any number of processes and machines work on one study, and no trial counts twice."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.job.comparison import compare
from mirabelle.job.comparison_results import Budget, Outcome
from mirabelle.planning.draft import Key
from mirabelle.planning.measured import Measured
from mirabelle.planning.plan import Plan, Planner, learns, steps_of
from mirabelle.recipe.recipe import Recipe
from mirabelle.run import files
from mirabelle.run.journal import Stop
from mirabelle.step import Step, step_to_data
from mirabelle.task.task import Task
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    import optuna

_WEIGHT = 8.0  # by which the change of a part may count more, or less, than it is measured
_RATE = 3.0  # by which the learning rate may be larger or smaller than that of the plan
_BEAT, _LATE = 30, 120  # seconds: between signs of life of a worker, and after which its trial is taken up by another
_POLLED = 2.0  # seconds between looks at the trials of other workers
_STARTED, _WARM = 6, 1  # trials before any is stopped early, and epochs before one is
_TRIES = 5  # to open the database
_SLOT, _OF, _BEGUN = "slot", "mirabelle", "begun with"

_LEAST_SHARE = 0.1  # of the limit, down to which trials for a front go
_LARGEST_POPULATION, _SMALLEST_POPULATION = 50, 4
_MEASURED = {"size": "size_bytes", "latency": "milliseconds", "macs": "macs", "parameters": "parameters"}

FrontCost = Literal["size", "latency", "macs", "parameters"]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class TrialSettings:
    """How many trials a study has, and where it is kept.

    Args:
        trials: of the whole study, by all workers together.
        storage: URL of a database, such as "postgresql+psycopg://user@host/name"; by default SQLite in the folder.
        study: name of the study in the database.
        beat: seconds between signs of life of a worker.
        late: seconds without one after which another worker takes up its trial.
        front: a cost, for the Pareto front of the metric and that cost; None for the highest metric within the limits.
    """

    trials: int
    storage: str | None = None
    study: str = "mirabelle"
    beat: int = _BEAT
    late: int = _LATE
    front: FrontCost | None = None


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study.

    Args:
        number: of the trial, from 1 on.
        metric: on the validation data.
        plan: its structure and form.
        steps: of its recipe.
        counted: number of trials that were finished or stopped early.
        cost: of the front, as it was measured; None without a front.
    """

    number: int
    metric: float
    plan: str
    steps: Sequence[Step]
    counted: int
    cost: float | None = None


@dataclass(kw_only=True)
class Trials:
    """The trials of a study around a plan.

    A trial draws how much the change of each part counts, and the structure and form; the plan for these weights is within the
    limits and solved exactly, and all weights at 1 are the plan itself, which is the first trial. It is trained as long as the
    plan, with a learning rate around that of the plan, and judged on the validation data.

    For a Pareto front a trial also draws the share of one limit that its plan may use, and both the metric and that cost are
    objectives, for NSGA-II; no trial is stopped early then.

    Args:
        model: trained.
        task: with its teacher.
        planner: has the measurements and the limits; those of the worker that began the study take their place.
        plan: around which trials are made; that of the same worker takes its place.
        training: gives the training of each trial, None for no training; it is asked by the worker that begins the study.
        out: folder of the trials.
        settings: of the study.
        identity: of model, data and goal: a study of another one is refused.
        seed: of the sampler and the trainings.
        tell: is given a line on each trial.
    """

    model: nn.Module
    task: Task
    planner: Planner
    plan: Plan
    training: Callable[[], Training | None]
    out: Path
    settings: TrialSettings
    identity: str
    seed: int
    tell: Tell

    def best(self) -> list[BestTrial]:
        """Work on the study until all of its trials are counted; the best one, or those of the front, the cheapest first.

        Raises:
            UserError: E110 for a number of trials that is not positive; E130 if the database cannot be reached; E150 if the
                study is one of another model, data or goal; E160 if Optuna is not installed; E114 if no trial was within the
                limits.
        """
        optuna = _optuna()
        with _database(self.settings.storage), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = self._storage(optuna)
            try:
                study = self._opened(optuna, storage)
                self._share(study)
                drafts = [draft for draft in self.planner.drafts() if steps_of(draft)]  # but the given model
                self._keys = {f"{draft.structure}/{draft.form}": (draft.structure, draft.form) for draft in drafts}
                self._queue(study)
                while (left := self._left(study)) > 0:
                    if any(trial.state.name == "WAITING" for trial in self._with_slots(study)):
                        study.optimize(self._objective, n_trials=1, catch=(_NoSlotError,))
                    else:
                        self.tell(f"{left} trials are at work elsewhere")
                        time.sleep(_POLLED)
                        optuna.storages.fail_stale_trials(study)
                        self._queue(study)
                return self._best_of(study)
            finally:
                storage.remove_session()
                storage.engine.dispose()

    def counted(self, study: optuna.Study) -> dict[int, Any]:
        """Slot of each trial that is finished or was stopped early -> the first trial that has it."""
        found: dict[int, Any] = {}
        for trial in self._with_slots(study):
            if trial.state.name in ("COMPLETE", "PRUNED"):
                found.setdefault(trial.user_attrs[_SLOT], trial)
        return found

    def _storage(self, optuna: Any) -> Any:
        """The database of the study, in which workers give signs of life."""
        url = self.settings.storage or f"sqlite:///{(self.out / 'trials.db').resolve()}"
        self.out.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        import sqlalchemy.exc

        for left in reversed(range(_TRIES)):  # two workers that begin at once both create the tables: one of them is refused
            try:
                return optuna.storages.RDBStorage(
                    url, heartbeat_interval=self.settings.beat, grace_period=self.settings.late,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
                )  # fmt: skip
            except sqlalchemy.exc.SQLAlchemyError:
                if not left:
                    raise
                time.sleep(_POLLED / 4)
        raise AssertionError("the last try returns or raises")

    def _opened(self, optuna: Any, storage: Any) -> Any:
        """The study in the database, which is begun if it is not there.

        Raises:
            UserError: E150 if it is of another model, data or goal.
        """
        sampler = optuna.samplers.TPESampler(seed=None, multivariate=True, group=True)
        if self.settings.front is not None:
            population = max(min(self.settings.trials // 4, _LARGEST_POPULATION), _SMALLEST_POPULATION)
            sampler = optuna.samplers.NSGAIISampler(population_size=population)
        study = optuna.create_study(
            storage=storage, study_name=self.settings.study, load_if_exists=True, sampler=sampler,
            directions=["maximize"] if self.settings.front is None else ["maximize", "minimize"],
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTED, n_warmup_steps=_WARM),
        )  # fmt: skip
        if study.user_attrs.setdefault(_OF, self.identity) != self.identity:
            message = f'the study "{self.settings.study}" is of another model, data or goal'
            raise UserError("E150", message, "choose another --study, or repeat it with the same arguments")
        study.set_user_attr(_OF, self.identity)
        return study

    def _share(self, study: optuna.Study) -> None:
        """Take the measurements, limits and training from the study, or begin it with one's own: all workers have the same."""
        if _BEGUN not in study.user_attrs:
            training = self.training()
            begun = {
                "found": self.planner.found.to_data(),
                "limits": self.planner.limits,
                "plan": self.plan.to_data(),
                "training": None if training is None else records.to_data(training),
            }
            study.set_user_attr(_BEGUN, json.dumps(begun))
        known = json.loads(study.user_attrs[_BEGUN])
        self.planner.found, self.planner.limits = Measured.from_data(known["found"]), known["limits"]
        self.plan = Plan.from_data(known["plan"])
        self._training = None if known["training"] is None else records.build(Training, known["training"], "train")

    def _with_slots(self, study: optuna.Study) -> list[Any]:
        return [trial for trial in study.get_trials(deepcopy=False) if _SLOT in trial.user_attrs]

    def _left(self, study: optuna.Study) -> int:
        return self.settings.trials - len([slot for slot in self.counted(study) if slot < self.settings.trials])

    def _queue(self, study: optuna.Study) -> None:
        """Put every slot into the queue that neither waits, is at work nor is counted."""
        taken = {trial.user_attrs[_SLOT] for trial in self._with_slots(study) if trial.state.name != "FAIL"}
        for slot in range(self.settings.trials):
            if slot not in taken:
                given = self._plan_itself() if slot == 0 else {}
                study.enqueue_trial(given, user_attrs={_SLOT: slot})

    def _is_of_another(self, trial: optuna.Trial, slot: int) -> bool:
        """Whether another trial has the slot: two workers that find it free in the same moment both put it into the queue.

        A trial that is counted has it; otherwise the one with the lowest number, whether it waits or is at work.
        """
        others = [other for other in self._with_slots(trial.study) if other.user_attrs[_SLOT] == slot]
        return slot in self.counted(trial.study) or any(
            other.number < trial.number and other.state.name != "FAIL" for other in others
        )

    def _plan_itself(self) -> dict[str, Any]:
        key = "/".join(self.plan.key)
        if key not in self._keys:  # it is the given model
            return {}
        weights = {f"weight {name}": 1.0 for name in self._parts(self._keys[key])}
        share = {} if self.settings.front is None else {"share": 1.0}
        return {"plan": key, **weights, **share, **({"rate": 1.0} if self._training else {})}

    def _parts(self, key: Key) -> list[str]:
        """The parts whose changes are weighted in plans of a structure and form."""
        structure, form = key
        found = self.planner.found
        parts = {"whole": (), "units": found.units, "ranks": found.ranks}[structure]
        coded = [f"coded {part.name}" for part in found.codes] if form == "coded" else []
        return [*(f"{structure} {part.name}" for part in parts), *coded]

    def _objective(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """The metric of one trial on the validation data, for a front with its cost.

        Raises:
            optuna.TrialPruned: if it is not within the limits, or was stopped early.
        """
        optuna = _optuna()
        slot = trial.user_attrs.get(_SLOT)
        if slot is None or self._is_of_another(trial, slot):  # the queue was emptied by another worker, or has a slot twice
            raise _NoSlotError
        plan = self._drawn(trial)
        if plan is None:
            raise optuna.TrialPruned("no plan for these weights is within the limits")
        training = self._training
        if training is not None:
            factor = trial.suggest_float("rate", 1 / _RATE, _RATE, log=True)
            training = replace(training, lr=training.lr * factor)
        steps = plan.steps(training, learned=training is not None and learns(plan))
        if not steps:
            raise optuna.TrialPruned("it is the given model")
        tables = [step_to_data(step) for step in steps]
        trial.set_user_attr("steps", tables)
        folder = self.out / f"trial-{slot + 1}-{files.digest_of_data(tables)[:8]}"
        watching = () if self.settings.front is not None else (_Reporting(trial),)
        timed = Budget(milliseconds=self.planner.limits["latency"]) if self.settings.front == "latency" else Budget()
        found = compare(
            self.model, self.task, {"trial": steps}, out=folder, budget=timed, seeds=(self.seed,), callbacks=watching
        )
        (outcome,) = found.outcomes["trial"]
        trial.set_user_attr("size", outcome.size_bytes)
        trial.set_user_attr("folder", str(folder))
        if trial.user_attrs.get("stopped"):
            raise optuna.TrialPruned
        cost = self._cost(outcome)
        told = "" if cost is None else f", {self.settings.front} {cost:,.6g}"
        self.tell(f"trial {slot + 1} of {self.settings.trials}: {outcome.metric:.4f}{told} ({trial.params['plan']})")
        return outcome.metric if cost is None else (outcome.metric, cost)

    def _cost(self, outcome: Outcome) -> float | None:
        """The cost of the front that a trial turned out to have."""
        return None if self.settings.front is None else float(getattr(outcome, _MEASURED[self.settings.front]))

    def _drawn(self, trial: optuna.Trial) -> Plan | None:
        key = self._keys[trial.suggest_categorical("plan", sorted(self._keys))]
        weights = {
            name: trial.suggest_float(f"weight {name}", 1 / _WEIGHT, _WEIGHT, log=True) for name in self._parts(key)
        }  # fmt: skip
        limits, front = self.planner.limits, self.settings.front
        if front is not None:
            share = trial.suggest_float("share", _LEAST_SHARE, 1.0, log=True)
            self.planner.limits = {**limits, front: share * limits[front]}
        if trial.user_attrs[_SLOT] == 0:
            self.planner.limits = limits
            return self.plan
        try:
            return self.planner.tried(self.planner.draft(key, weights), weights)
        finally:
            self.planner.limits = limits

    def _best_of(self, study: optuna.Study) -> list[BestTrial]:
        counted = self.counted(study)
        finished = [trial for trial in counted.values() if trial.state.name == "COMPLETE"]
        if not finished:
            raise UserError("E114", "no trial was within the limits", "relax the limits, or allow more trials")
        found = [self._described(trial, len(counted)) for trial in finished]
        if self.settings.front is None:
            return [max(found, key=lambda one: one.metric)]
        return pareto_front(found)

    def _described(self, trial: Any, counted: int) -> BestTrial:
        steps = Recipe.from_data(trial.user_attrs["steps"]).steps
        metric, *costs = trial.values
        return BestTrial(
            trial.user_attrs[_SLOT] + 1, float(metric), trial.params["plan"], steps, counted, float(costs[0]) if costs else None
        )


def pareto_front(trials: Sequence[BestTrial]) -> list[BestTrial]:
    """The trials than which none is better in metric or cost without being worse in the other, the cheapest first.

    Of trials that are equal in both, the first is kept.

    Example:
        >>> points = [(0.9, 10.0), (0.8, 10.0), (0.95, 30.0)]
        >>> found = pareto_front([BestTrial(k, metric, "", (), 3, cost) for k, (metric, cost) in enumerate(points, 1)])
        >>> [one.number for one in found]
        [1, 3]
    """
    found: list[BestTrial] = []
    for one in sorted(trials, key=lambda one: (one.cost, -one.metric, one.number)):
        if not found or one.metric > found[-1].metric:
            found.append(one)
    return found


class _NoSlotError(Exception):
    """A trial that is not one of the study: it is not counted."""


class _Reporting:
    """Reports the metric after each epoch, and stops a training that is worse than the median of the others."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial, self._epochs = trial, 0

    def __call__(self, event: Mapping[str, Any]) -> Stop | None:
        if event.get("event") != "epoch" or event.get("metric") is None:
            return None
        self._epochs += 1
        self._trial.report(float(event["metric"]), self._epochs)
        if not self._trial.should_prune():
            return None
        self._trial.set_user_attr("stopped", f"after epoch {self._epochs}")
        return Stop("it is worse than the median of the trials before it")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("E160", "--trials needs Optuna", "pip install 'mirabelle[search]'") from None
    return optuna


@contextmanager
def _database(url: str | None) -> Iterator[None]:
    """A context in which what a database reports becomes one line."""
    try:
        import sqlalchemy.exc
    except ImportError:
        yield
        return
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        where = url.partition("@")[2] or url if url else "SQLite in the folder"  # without what may be a password
        remedy = "check the URL and the server; the same command goes on with the study"
        raise UserError("E130", f"the database of the study ({where}) cannot be used: {reason}", remedy) from None
