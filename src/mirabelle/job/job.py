"""Run a recipe: compress a model, write the artifact, run the gates, measure the result and write the report."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from mirabelle import artifact, records
from mirabelle.codecs.codec import CODECS, Codec
from mirabelle.errors import Path, UserError
from mirabelle.inspection import layers_of_onnx
from mirabelle.inspection.measure import Files, measure
from mirabelle.job.conditions import Conditions
from mirabelle.job.digests import SHIPPED, digests_of
from mirabelle.job.dry_run import JobPlan, try_one_batch, try_steps, with_model_outputs_as_targets
from mirabelle.job.ended import result_of_ended, result_without_digests
from mirabelle.job.fastest import fastest_of, kept_runtime
from mirabelle.job.learned import constant_beside, with_teacher_that_learned
from mirabelle.job.metric_trial import unknown_loss
from mirabelle.job.never_slower import Form, form_of
from mirabelle.job.notes import notes_of
from mirabelle.job.origins import known_of
from mirabelle.job.processes import processes_of, record_process
from mirabelle.job.processes_of_job import led_by_first
from mirabelle.job.program import code_of_run
from mirabelle.job.result import Result, checked, tell_end
from mirabelle.job.steps import Reached, codecs_of, run_or_resume, walk
from mirabelle.job.where import as_begun
from mirabelle.model.architecture import rounds
from mirabelle.model.device import CPU, check_device, on_cpu
from mirabelle.model.state import copied, fingerprint, on_same_parameters, with_other_weights
from mirabelle.recipe.recipe import Recipe
from mirabelle.records.annotated_toml import ORIGINS, Origin
from mirabelle.records.functions import name_of
from mirabelle.report import (
    Difference,
    Report,
    Significance,
    curves,
    left_by_steps,
    read_events,
    speed_of_steps,
    write_report,
)
from mirabelle.report.verdict import not_finite
from mirabelle.run import files
from mirabelle.run.journal import Callback
from mirabelle.run.run import PROGRAM, Run, tell_working
from mirabelle.runtime.gates import Gate, batches_to_compare, same_bytes, same_outputs, torch_equals_onnx
from mirabelle.runtime.runtime import time_side_by_side
from mirabelle.sources.models.by_name import in_torch
from mirabelle.sources.models.native import Native
from mirabelle.step import Step
from mirabelle.task.batch import place_of
from mirabelle.task.goal import Goal
from mirabelle.task.loss import public_name
from mirabelle.task.profile import StepResult
from mirabelle.task.task import Task
from mirabelle.training import Training, fit, with_scale_of_targets

SCHEMA = 1


def compress(
    model: nn.Module,
    task: Task,
    recipe: Recipe | Sequence[Step],
    goal: Goal | Mapping[str, Any] | None = None,
    out: str | pathlib.Path = "runs/mirabelle",
    *,
    seed: int = 0,
    baseline: Training | None = None,
    teacher: nn.Module | None = None,
    teacher_train: Training | None = None,
    callbacks: Sequence[Callback] = (),
    source: Source | None = None,
    codecs: Sequence[Codec] = (),
    device: str = "auto",
) -> Result:
    """Compress a model with a recipe, evaluate the result once on the test set, and write artifact and report to a folder.

    Several processes that `torchrun`, `accelerate launch` or `srun` has started call this with the same arguments. The first of
    them does the job, the others take part in its trainings and evaluations, and all get the result.

    Args:
        model: trained, or to be trained by `baseline`; it is not changed. A Keras model is compressed as a torch module, and
            the result is also written as a Keras model.
        task: data, loss and metric. Without labels, the targets are outputs of the teacher, by default the model itself.
        recipe: steps in a valid order.
        goal: conditions that the result should meet; the result is kept in either case.
        out: folder of the run. If it contains the same run, unfinished, the run is continued; on the same
            machine to bit-identical weights.
        seed: of all random numbers of the run.
        baseline: training of the model before it is compressed.
        teacher: teacher in all trainings; by default the model before compression. If that is not better than the best answer
            that is the same for every input, it only teaches where an objective asks for a teacher.
        teacher_train: training of the teacher before it is used.
        callbacks: functions that are called with each event and with the progress, which they cannot change. One that returns
            `mirabelle.Stop("why")` ends the current training, or the recipe after the step just finished. If one raises an
            exception, the run ends, and can be continued later.
        source: information from a recipe file beyond the other arguments.
        codecs: user-defined codecs, tried for the packed file in addition to the built-in ones.
        device: where models are trained and run: "cpu", "cuda", "cuda:1", "mps" or "xpu"; "auto" takes the accelerator that is
            there, and the device with which a run began.

    Raises:
        UserError: E121 if a model has tensors without values; E122 if the device is not there; E150 if the folder contains
            another run, or the code of the model or of a step has changed since it was started; E152 if another process uses
            it; E302 if a gate failed (all files and the report are written before); and the errors of the steps.

    Example:
        >>> import mirabelle, tempfile, torch
        >>> from mirabelle import quantize
        >>> x, y = torch.randn(64, 8), torch.randint(0, 2, (64,))
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> result = mirabelle.compress(torch.nn.Linear(8, 2), task, [quantize.Static()], out=tempfile.mkdtemp())
        >>> result.met, sorted(result.gates)
        (True, ['packed_unpacked', 'saved_loaded', 'torch_onnx'])
    """
    source = source or Source()
    with as_begun(pathlib.Path(out), source.decisions, device):
        dense, guide = in_torch(model), None if teacher is None else in_torch(teacher)
        check_device(dense)
        if guide is not None:
            check_device(guide, "the teacher")
            guide = guide if place_of(guide) in (None, CPU) else on_cpu(guide)
        task = with_model_outputs_as_targets(task, guide or dense)
        recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
        shared = _changes_copies_alone(recipe.steps) and place_of(dense) in (None, CPU)
        plan = JobPlan(
            model=(on_same_parameters(dense) if shared else on_cpu(dense)).eval(),
            task=task,
            recipe=recipe,
            goal=goal if isinstance(goal, Goal) else records.build(Goal, goal or {}, "goal"),
            baseline=baseline,
            teacher=guide,
            teacher_train=teacher_train,
        )
        trainings = [one for one in (baseline, teacher_train) if one is not None]
        code = code_of_run(plan.model, task, [*plan.recipe.steps, *trainings, *codecs], guide)
        document = _resolved(plan, seed, source)
        if codecs:
            document["artifact"] = {"codecs": [CODECS.name_of(type(codec), with_path=True) for codec in codecs]}

        def work() -> Result:
            tell_working(callbacks, "trial of the model, the data and the steps on a few samples")
            try_one_batch(plan.model, task)
            try_steps(plan)
            origin, kept = source.origin or _origin(plan), source.decisions
            run = Run.opened(out, document, seed=seed, callbacks=callbacks, decisions=kept, origin=origin, code=code)
            try:
                return _run(plan, run)
            finally:
                run.close()

        return led_by_first(task, {**document, PROGRAM: str(code)}, work)


def _run(plan: JobPlan, run: Run) -> Result:
    ended = result_of_ended(plan, run)
    if ended is not None:
        return ended
    record_process(run, plan.model)
    if plan.trains and (sentence := unknown_loss(plan.task)):
        run.event("warning", text=sentence)
    notes = notes_of(plan)
    _tell_notes(notes, run)
    start, trail = _start(plan, run)
    teacher = _teacher(plan, run)
    task = with_teacher_that_learned(plan.task, start.model, teacher, trail[-1].profile.metric if trail else None, run)
    stopped = any(run.within(f"steps/0-{name}").decided("stopped") is not None for name in ("baseline", "teacher"))
    steps = () if stopped else plan.recipe.steps
    end, origin, entries = walk(steps, start, task, run, dense=plan.model, goal=plan.goal)
    earlier = result_without_digests(end.model, run)
    if earlier is not None:
        return earlier
    return _conclude(_Ending(start, end, origin, task, plan.goal, trail + entries, run, notes))


@dataclass(frozen=True)
class Source:
    """Information from a recipe file beyond the arguments of `compress`.

    Args:
        tables: the tables that name the model, the data and the teacher; they are copied to the resolved recipe.
        decisions: measured decisions of an earlier run, to reproduce its result to the bit on the same machine.
        origin: path in the resolved recipe -> origin of the value; by default "default" or "given".
    """

    tables: Mapping[str, Any] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None


def _changes_copies_alone(settings: Any) -> bool:
    """Whether all that a recipe names is Mirabelle's own, which never changes the weights of a model that it is given."""
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return all(map(_changes_copies_alone, settings))
    if not dataclasses.is_dataclass(settings):
        return not callable(settings)
    own = type(settings).__module__.partition(".")[0] == __name__.partition(".")[0]
    return own and all(_changes_copies_alone(getattr(settings, field.name)) for field in dataclasses.fields(settings))


def _resolved(plan: JobPlan, seed: int, source: Source) -> dict[str, Any]:
    """The resolved recipe: all settings, including defaults, and fingerprints of the models and the data."""
    document: dict[str, Any] = {"schema": SCHEMA, "seed": seed, **source.tables}
    document.setdefault("model", {"from": name_of(type(plan.model))})
    document.setdefault("task", {"data": plan.task.name})
    if plan.task.augment is not None:
        document["task"] = {**document["task"], "augment": records.to_data(plan.task.augment)}
    if plan.teacher is not None:
        document.setdefault("teacher", {"from": name_of(type(plan.teacher))})
    if plan.teacher_train is not None:
        document["teacher"] = {**document.get("teacher", {}), "train": records.to_data(plan.teacher_train)}
    if plan.baseline is not None:
        document["baseline"] = {"train": records.to_data(plan.baseline)}
    document["goal"] = records.to_data(plan.goal)
    document["step"] = plan.recipe.to_data()
    document["fingerprint"] = {
        "model": fingerprint(plan.model),
        **({"teacher": fingerprint(plan.teacher)} if plan.teacher is not None else {}),
        "judged_by": f"{public_name(plan.task.loss)}, {plan.task.metric.name}, {len(plan.task.labels)} labels"
        + (f", outputs are {said}" if (said := plan.task.outputs_are) else ""),
        **{name: split["digest"] or "stream" for name, split in plan.task.fingerprint().items()},
    }
    return document


def _origin(plan: JobPlan) -> Origin:
    """The origins of values that were given in Python: "default" or "given"."""
    given: dict[Path, Any] = {
        ("goal",): plan.goal,
        ("baseline", "train"): plan.baseline,
        ("teacher", "train"): plan.teacher_train,
        **{("step", position): step for position, step in enumerate(plan.recipe.steps)},
    }
    defaults = {(*prefix, *path) for prefix, value in given.items() for path in records.default_paths(value)}

    def origin(path: Path) -> str:
        if path[0] in ("fingerprint", "decisions"):
            return ORIGINS[path[0]]
        return "default" if any(path[:length] in defaults for length in range(len(path) + 1)) else "given"

    return origin


def _start(plan: JobPlan, run: Run) -> tuple[Reached, list[StepResult]]:
    """The model to compress: the given one, or the one trained by the baseline."""
    if plan.baseline is None:
        return Reached.given(plan.model, run.journal.document["fingerprint"]["model"]), []
    start, entry = trained("baseline", plan.model, plan.baseline, plan.task, run)
    return start, [entry]


def _teacher(plan: JobPlan, run: Run) -> nn.Module | None:
    """The teacher, trained first if a training is given; None if there is no teacher."""
    if plan.teacher is None or plan.teacher_train is None:
        return plan.teacher
    return trained("teacher", plan.teacher, plan.teacher_train, plan.task, run)[0].model


def trained(name: str, model: nn.Module, training: Training, task: Task, run: Run) -> tuple[Reached, StepResult]:
    """Train a copy of the model without a teacher; the files of the training are in the subfolder steps/0-<name>."""
    place, alone = run.within(f"steps/0-{name}"), task.with_teacher(None)
    made_from = {"model": fingerprint(model), "teacher": None}

    def work() -> Form:
        return form_of(fit(with_scale_of_targets(copied(model), alone), alone, training, place), alone)

    return run_or_resume(name, place, lambda: model, alone, work, made_from=made_from)


@dataclass(frozen=True)
class _Ending:
    """The state of a run after its last step."""

    start: Reached
    end: Reached
    origin: nn.Module
    task: Task
    goal: Goal
    trail: list[StepResult]
    run: Run
    notes: tuple[str, ...]


def _conclude(ending: _Ending) -> Result:
    """Write the artifact, run its gates, measure it, evaluate it once on the test set, and write the report."""
    run, task = ending.run, ending.task
    run.event("begin", step="gates and measurements")
    run.working("export and packing of the model at the start")
    before, after = ending.start.exported(task, codecs_of(run)).without_packed(), ending.end.exported(task, codecs_of(run))
    ending.start.files = before
    files.write(run.folder / "model.onnx", after.onnx)
    files.write(run.folder / "model.mira", after.packed)
    for name, data in task.extra_files.items():
        files.write(run.folder / name, data)
    run.working("gates")
    artifact.save(ending.end.model, run.folder)
    native = _write_back(ending)
    gates = _gates(ending, after)
    for name, gate in gates.items():
        run.event("gate", name=name, **gate.to_data())

    run.working("choice of the runtime")
    timed = kept_runtime(ending.goal, Conditions.of(ending.goal, task), after.onnx, run)
    run.working(f"evaluation on the test data in {timed.runtime.describe().title}")
    first = timed.load(before.onnx)
    start, start_scores = measure(ending.start.model, task, task.test, before, session=first)
    first.release()
    last = timed.load(after.onnx)
    end, end_scores = measure(ending.end.model, task, task.test, after, session=last)
    for sentence in not_finite(start, end):
        run.event("warning", text=sentence)
    run.working("latency")
    start_ms, end_ms, ratio = time_side_by_side(first, last, timed.inputs, batch=timed.batch)
    start, end = replace(start, latency_ms=start_ms), replace(end, latency_ms=end_ms)
    run.working("comparison with answers that are the same for every input")
    constant = constant_beside(task, (ending.start.model, start), (ending.end.model, end))
    shortfalls = ending.goal.shortfalls(start, end, None if constant is None or constant.end_learned else constant.value)
    run.working("latency in other runtimes and with other threads")
    contest = fastest_of(ending.goal, timed, (before.onnx, start_ms), (after.onnx, end_ms), ratio)
    run.working("report")
    difference = Difference(*task.metric.difference(start_scores, end_scores))
    events = read_events(run.folder)
    report = Report.of(
        name=task.name,
        recipe={**run.journal.document, "decisions": run.journal.decisions},
        processes=processes_of(run.folder),
        digests=digests_of(run.folder, [*SHIPPED, *task.extra_files, *native]),
        start=start,
        end=end,
        trail=ending.trail,
        gates=gates,
        shortfalls=shortfalls,
        comparison=Significance(task.metric.p_value([start_scores], [end_scores]), ratio, difference),
        layers=layers_of_onnx(after.onnx, task.example()),
        curves=curves(events),
        constant=constant,
        left=left_by_steps(events),
        speeds=speed_of_steps(events),
        contest=contest,
        notes=ending.notes,
        about=known_of(task, ending.origin, str(run.journal.document.get("model", {}).get("from", ""))),
    )
    write_report(report, run.folder)
    tell_end(run, shortfalls)
    model = copied(ending.end.model) if ending.end is ending.start else ending.end.model
    return checked(Result(model, end, start, shortfalls, gates, run.folder, constant))


def _write_back(ending: _Ending) -> list[str]:
    """Write the model in the format of its original framework, such as Keras; return the names of the files and folders.

    If that is impossible, a warning is recorded.
    """
    if isinstance(ending.origin, Native):
        try:
            return [ending.origin.write_back(ending.end.model, ending.run.folder)]
        except UserError as error:
            ending.run.event("warning", text=f"the model cannot be written in its original framework: {error.message}")
    return []


def _tell_notes(notes: Sequence[str], run: Run) -> None:
    """Record what is to be known about data and models; a continued run records only what is new."""
    known = {event.get("text") for event in read_events(run.folder) if event.get("event") == "note"}
    for text in notes:
        if text not in known:
            run.event("note", text=text)


def _gates(ending: _Ending, after: Files) -> dict[str, Gate]:
    batches = batches_to_compare(ending.task.validation)
    quantized = rounds(ending.end.model)
    return {
        "torch_onnx": torch_equals_onnx(ending.end.model, after.onnx, batches, quantized=quantized, kind=ending.task.outputs),
        "packed_unpacked": same_bytes(after.onnx, artifact.unpack((ending.run.folder / "model.mira").read_bytes())),
        "saved_loaded": same_outputs(
            ending.end.model, artifact.load(lambda: with_other_weights(ending.origin), ending.run.folder), batches[0]
        ),
    }
