"""The whole job: recipe, goal, artifact, gates, report -> Result."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle import artifact, files, plain
from mirabelle.architecture import replaced_module_names
from mirabelle.batch import call, map_tensors, tensors_of
from mirabelle.errors import UserError
from mirabelle.goal import Goal, Shortfall
from mirabelle.measure import Files, exported, measure
from mirabelle.numerics.statistics import paired_p_value
from mirabelle.profile import Profile
from mirabelle.recipe import Recipe, TrailEntry, kept
from mirabelle.report import Report, write_report
from mirabelle.report.document import Comparison
from mirabelle.run import Listener, Run, environment, silent
from mirabelle.runtime.gates import Gate, same_bytes, same_outputs, torch_equals_onnx
from mirabelle.runtime.latency import Ratio, interleaved
from mirabelle.runtime.onnxruntime import NAME, Session
from mirabelle.state import fingerprint
from mirabelle.step import Step
from mirabelle.task import Task
from mirabelle.training import Training, fit

SCHEMA = 1
_GATE_SAMPLES, _GATE_BATCH = 1000, 250


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Args:
        model: the compressed module, in eval mode.
        profile: of the model at the end, its metric on the test set.
        start: of the model at the start, its metric on the test set.
        shortfalls: the parts of the goal that do not hold; empty when it is met.
        gates: the verdict of each check, by name.
        folder: where model.onnx, model.mira, report.html and the rest lie.
    """

    model: nn.Module
    profile: Profile
    start: Profile
    shortfalls: Sequence[Shortfall]
    gates: Mapping[str, Gate]
    folder: Path

    @property
    def met(self) -> bool:
        return not self.shortfalls


def compress(
    model: nn.Module,
    task: Task,
    recipe: Recipe | Sequence[Step],
    goal: Goal | Mapping[str, Any] | None = None,
    out: str | Path = "runs/mirabelle",
    *,
    seed: int = 0,
    baseline: Training | None = None,
    teacher: nn.Module | None = None,
    teacher_train: Training | None = None,
    source: Mapping[str, Any] | None = None,
    decisions: Mapping[str, Any] | None = None,
    listener: Listener = silent,
) -> Result:
    """Compress a model by a recipe, judge it once on the test set, and leave the files to ship with the evidence.

    Args:
        model: trained, or to be trained by `baseline`; left as it was.
        task: data, loss and metric.
        recipe: steps in a legal order.
        goal: what must hold at the end; the best model is kept either way.
        out: the run's folder. A folder that holds the same run is gone on with, to bit-identical weights.
        seed: of everything random in the run.
        baseline: trains the start first.
        teacher: guides every training; by default the model at the start.
        teacher_train: trains the teacher first.
        source: how a recipe file names model and data; kept in the resolved recipe.
        decisions: measured decisions of an earlier run, to reproduce it to the bit.
        listener: called with every event and with progress.

    Raises:
        UserError: E150 the folder holds another run, E302 a gate failed (all files and the report are written before),
            and whatever the steps raise.

    Example:
        >>> import mirabelle, tempfile, torch
        >>> from mirabelle import quantize
        >>> x, y = torch.randn(64, 8), torch.randint(0, 2, (64,))
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> result = mirabelle.compress(torch.nn.Linear(8, 2), task, [quantize.Static()], out=tempfile.mkdtemp())
        >>> result.met, sorted(result.gates)
        (True, ['packed_unpacked', 'saved_loaded', 'torch_onnx'])
    """
    order = _Order(
        dense=copy.deepcopy(model).eval(),
        task=task,
        recipe=recipe if isinstance(recipe, Recipe) else Recipe(recipe),
        goal=goal if isinstance(goal, Goal) else plain.build(Goal, goal or {}, "goal"),
        seed=seed,
        baseline=baseline,
        teacher=teacher,
        teacher_train=teacher_train,
        source=source or {},
    )
    _try(order)
    run = Run.opened(out, order.resolved(), seed=seed, listener=listener, decisions=decisions)
    if not (run.folder / "environment.json").is_file():
        files.write_json(run.folder / "environment.json", environment())
    start, trail = _start(order, run)
    task = task.with_teacher(_teacher(order, run) or start)
    end, origin, steps = order.recipe.run(start, task, run, dense=order.dense)
    if (run.folder / "report.json").is_file():
        return _read_result(end, run.folder)
    return _conclude(_Ending(start, end, origin, task, order.goal, trail + steps, run))


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    dense: nn.Module
    task: Task
    recipe: Recipe
    goal: Goal
    seed: int
    baseline: Training | None
    teacher: nn.Module | None
    teacher_train: Training | None
    source: Mapping[str, Any]

    def resolved(self) -> dict[str, Any]:
        """The resolved recipe: every setting, defaults included, and what tells this model and these data from others."""
        document: dict[str, Any] = {"schema": SCHEMA, "seed": self.seed, **self.source}
        document.setdefault("model", {"from": plain.name_of(type(self.dense))})
        document.setdefault("task", {"data": self.task.name})
        if self.teacher_train is not None:
            document["teacher"] = {**document.get("teacher", {}), "train": plain.to_data(self.teacher_train)}
        if self.baseline is not None:
            document["baseline"] = {"train": plain.to_data(self.baseline)}
        document["goal"] = plain.to_data(self.goal)
        document["step"] = self.recipe.to_data()
        document["fingerprint"] = {
            "model": fingerprint(self.dense),
            **({"teacher": fingerprint(self.teacher)} if self.teacher is not None else {}),
            "judged_by": f"{plain.name_of(self.task.loss)}, {self.task.metric.name}, {len(self.task.labels)} labels",
            **{name: split["digest"] or "stream" for name, split in self.task.fingerprint().items()},
        }
        return document


def _try(order: _Order) -> None:
    """One batch through the model, its loss and its metric, before anything is begun.

    Raises:
        UserError: E121 when the model fails on the data or gives no tensor, E131 when loss or metric fail on its outputs.
    """
    batch, task = order.task.example(), order.task
    given = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors_of(batch.inputs))
    try:
        with torch.no_grad():
            outputs = call(copy.deepcopy(order.dense), batch.inputs)
    except Exception as error:
        message = f"the model fails on inputs of {given}: {error}"
        raise UserError("E121", message.splitlines()[0], "see that shapes and types fit the model") from error
    if not isinstance(outputs, torch.Tensor):
        raise UserError(
            "E121", f"the model gives {type(outputs).__name__}, not a tensor", "wrap it so that it returns its scores"
        )
    try:
        task.loss(outputs.float(), batch.targets)
        task.metric.of_samples(outputs, batch.targets)
    except UserError:
        raise
    except Exception as error:
        targets = f"{batch.targets.dtype} {tuple(batch.targets.shape)}"
        message = f"loss or metric fail on outputs of {tuple(outputs.shape)} and targets of {targets}: {error}"
        raise UserError("E131", message.splitlines()[0], "give class indices as int64, other targets as float32") from error


def _start(order: _Order, run: Run) -> tuple[nn.Module, list[TrailEntry]]:
    """The model at the start: as given, or trained first."""
    if order.baseline is None:
        return order.dense, []
    start, entry = _trained("baseline", order.dense, order.baseline, order.task, run)
    return start, [entry]


def _teacher(order: _Order, run: Run) -> nn.Module | None:
    """The teacher, if one was given: as given, or trained first."""
    if order.teacher is None or order.teacher_train is None:
        return order.teacher
    return _trained("teacher", order.teacher, order.teacher_train, order.task, run)[0]


def _trained(name: str, model: nn.Module, training: Training, task: Task, run: Run) -> tuple[nn.Module, TrailEntry]:
    """A copy of the model, trained without a teacher in the run's folder steps/0-<name>."""
    place, alone = run.within(f"steps/0-{name}"), task.with_teacher(None)
    return kept(name, place, model, alone, lambda: fit(copy.deepcopy(model), alone, training, place))


@dataclass(frozen=True)
class _Ending:
    """Everything that is known when the last step is done."""

    start: nn.Module
    end: nn.Module
    origin: nn.Module
    task: Task
    goal: Goal
    trail: list[TrailEntry]
    run: Run


def _conclude(ending: _Ending) -> Result:
    """Write what ships, check it, measure it, judge it once, report it."""
    run, task = ending.run, ending.task
    run.event("begin", step="gates and measurements")
    before, after = exported(ending.start, task), exported(ending.end, task)
    files.write(run.folder / "model.onnx", after.onnx)
    files.write(run.folder / "model.mira", after.packed)
    artifact.save(ending.end, run.folder)
    gates = _gates(ending, after)
    for name, gate in gates.items():
        run.event("gate", name=name, **gate.to_data())

    threads = torch.get_num_threads()
    sessions = {"start": Session(before.onnx, threads), "end": Session(after.onnx, threads)}
    start, start_scores = measure(ending.start, task, task.test, before, session=sessions["start"])
    end, end_scores = measure(ending.end, task, task.test, after, session=sessions["end"])
    start, end, ratio = _with_latency(start, end, sessions, task)
    shortfalls = ending.goal.shortfalls(start, end)
    report = Report(
        name=task.name,
        recipe=run.journal.document,
        decisions=run.journal.decisions,
        environment=files.read_json(run.folder / "environment.json"),
        start=start,
        end=end,
        trail=ending.trail,
        gates=gates,
        shortfalls=shortfalls,
        comparison=Comparison(paired_p_value(start_scores, end_scores), ratio),
        files=after,
    )
    write_report(report, run.folder)
    run.event("end", met=not shortfalls, shortfalls=[str(shortfall) for shortfall in shortfalls])
    return _checked(Result(ending.end, end, start, shortfalls, gates, run.folder))


def _checked(result: Result) -> Result:
    """The result, unless a gate failed."""
    for name, gate in result.gates.items():
        if not gate.passed:
            message, remedy = f"gate {name} failed: {gate.detail}", f"do not ship {result.folder}; see report.html there"
            raise UserError("E302", message, remedy)
    return result


def _gates(ending: _Ending, after: Files) -> dict[str, Gate]:
    batches = list(ending.task.validation.drawn(_GATE_SAMPLES, seed=0).batches(_GATE_BATCH))
    quantized = bool(replaced_module_names(ending.end))
    return {
        "torch_onnx": torch_equals_onnx(ending.end, after.onnx, batches, quantized=quantized),
        "packed_unpacked": same_bytes(after.onnx, artifact.unpack((ending.run.folder / "model.mira").read_bytes())),
        "saved_loaded": same_outputs(ending.end, artifact.load(ending.origin, ending.run.folder), batches[0]),
    }


def _with_latency(start: Profile, end: Profile, sessions: Mapping[str, Session], task: Task) -> tuple[Profile, Profile, Ratio]:
    """Both profiles with the milliseconds of one sample, measured in turn, and the ratio end / start."""
    one = map_tensors(task.example().inputs, lambda tensor: tensor[:1])
    feeds = {name: session.feed(one) for name, session in sessions.items()}
    calls = {name: (lambda session=session, feed=feeds[name]: session.run(feed)) for name, session in sessions.items()}
    threads = sessions["start"].threads
    latencies, ratios = interleaved(calls, runtime=NAME, threads=threads, batch=1)
    return replace(start, latency_ms=latencies["start"]), replace(end, latency_ms=latencies["end"]), ratios["end"]


def _read_result(end: nn.Module, folder: Path) -> Result:
    """The result of a run that had ended before."""
    data = files.read_json(folder / "report.json")
    shortfalls = [Shortfall(entry["name"], entry["limit"], entry["value"]) for entry in data["goal"]["shortfalls"]]
    gates = {name: Gate.from_data(gate) for name, gate in data["gates"].items()}
    start, final = Profile.from_data(data["start"]), Profile.from_data(data["end"])
    return _checked(Result(end, final, start, shortfalls, gates, folder))
