"""Compare recipes at equal budgets: several seeds per recipe, the same samples, confidence intervals and paired tests."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.job.comparison_results import Budget, Comparison, Outcome
from mirabelle.job.dry_run import JobPlan, try_one_batch, try_steps, with_model_outputs_as_targets
from mirabelle.job.learned import standing, taught_by_start
from mirabelle.job.processes import record_process
from mirabelle.job.processes_of_job import led_by_first
from mirabelle.job.program import code_of_run
from mirabelle.job.steps import Reached, walk
from mirabelle.job.where import as_begun
from mirabelle.model.device import check_device
from mirabelle.model.state import copied, fingerprint
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.statistics import Scores, records_of
from mirabelle.recipe.comparison import check_names
from mirabelle.recipe.recipe import Recipe
from mirabelle.run import files
from mirabelle.run.journal import Callback
from mirabelle.run.run import PROGRAM, Run
from mirabelle.runtime.runtime import default_runtime, time_alone
from mirabelle.step import Step, folder_of, step_to_data
from mirabelle.task.goal import Goal
from mirabelle.task.loss import public_name
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import Training, evaluate, fit, with_replaced_model_as_teacher
from mirabelle.training.shared import training_of

_WARM_STEPS, _TIMED_STEPS, _MOST_TIMED = 3, 12, 96
_TIMED_SHARE = 0.03  # fraction of the budget that is spent on timing
_STILL = 1e-12  # learning rate with which weights practically do not change
Candidates: TypeAlias = Mapping[str, Sequence[Step]]


def compare(
    model: nn.Module,
    task: Task,
    candidates: Candidates,
    *,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    budget: Budget | None = None,
    reference: str | None = None,
    judge: Literal["validation", "test"] = "validation",
    callbacks: Sequence[Callback] = (),
    device: str = "auto",
) -> Comparison:
    """Run each candidate with each seed, starting from the same model, and evaluate the results on the same samples.

    Finished runs are kept: a killed comparison continues with the next run and gives the same results. The outputs of the
    teacher are cached once for all candidates.

    Args:
        model: from which all candidates start; it is not changed.
        task: with its teacher; by default the model itself is the teacher, as in `mirabelle.compress`, unless it is not better
            than the best answer that is the same for every input.
        candidates: recipes by name, each a list of steps.
        out: a folder; if it contains the same comparison, unfinished, the comparison is continued.
        seeds: each candidate is run with all of them.
        budget: the same for all candidates.
        reference: name of the candidate with which the others are compared; by default the first.
        judge: the split for the evaluation. Choose a recipe on "validation"; use "test" once, after the choice.
        callbacks: functions that are called with each event, as in `mirabelle.compress`.
        device: as in `mirabelle.compress`.

    Raises:
        UserError: E110 for a name that cannot be that of a folder; E111 if there are no candidates or seeds, or the reference
            is not a candidate; E121 if a model has tensors without values; E150 if `out` contains another comparison; and the
            errors of the steps.

    Example:
        >>> import mirabelle, tempfile, torch
        >>> from mirabelle import prune
        >>> x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        >>> task = mirabelle.Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))
        >>> recipes = {"half": [prune.Weights(sparsity=0.5)], "most": [prune.Weights(sparsity=0.9)]}
        >>> found = compare(nn.Linear(4, 2), task, recipes, out=tempfile.mkdtemp(), seeds=(0,))
        >>> sorted(found.outcomes), found.reference
        (['half', 'most'], 'half')
    """
    budget, out = budget or Budget(), Path(out)
    reference = reference or next(iter(candidates), "")
    if reference not in candidates or not seeds:
        message = f'a comparison needs seeds, and candidates that include the reference "{reference}"'
        raise UserError("E111", message, "give the name of a candidate as `reference`")
    check_names(candidates)
    check_device(model)
    with as_begun(out / next(iter(candidates)) / f"seed-{seeds[0]}", {}, device):
        recipes = {name: Recipe(steps) for name, steps in candidates.items()}
        asked = with_model_outputs_as_targets(task, task.teacher or model)
        task = asked.with_teacher(asked.teacher or copied(model).eval())
        documents = {name: _document(recipe, model, task, budget) for name, recipe in recipes.items()}
        codes = {name: code_of_run(model, asked, recipe.steps, asked.teacher) for name, recipe in recipes.items()}

        def work() -> Comparison:
            try_one_batch(model, asked)
            for recipe in recipes.values():
                try_steps(JobPlan(model, asked, recipe, Goal(), teacher=asked.teacher))
            outcomes: dict[str, list[Outcome]] = {name: [] for name in recipes}
            begin = standing(model, task, task.validation)

            def taught(run: Run) -> Task:
                return task if asked.teacher is not None else taught_by_start(task, begin, run)

            @contextmanager
            def place(name: str, seed: int) -> Iterator[Run]:
                document = {"seed": seed, **documents[name]}
                run = Run.opened(out / name / f"seed-{seed}", document, seed=seed, callbacks=callbacks, code=codes[name])
                run.journal.shared = out
                record_process(run, model)
                try:
                    yield run
                finally:
                    run.close()

            for name, recipe in recipes.items():  # all are timed before the first run, under the same conditions
                with place(name, seeds[0]) as run:
                    _within(budget, recipe.steps, copied(model).eval(), taught(run), run)
            for seed in seeds:
                for name, recipe in recipes.items():
                    with place(name, seed) as run:
                        outcomes[name].append(_outcome(model, taught(run), recipe.steps, run, budget=budget, judge=judge))
            start = begin if judge == "validation" else standing(model, task, task.test)
            found = Comparison(task.metric, judge, reference, budget, outcomes, start)
            files.write(out / f"{judge}.md", found.table().encode())
            return found

        return led_by_first(task, {**documents, PROGRAM: {name: str(code) for name, code in codes.items()}}, work)


def _document(recipe: Recipe, model: nn.Module, task: Task, budget: Budget) -> dict[str, Any]:
    """The recipe, budget and fingerprints that identify the runs of a candidate."""
    assert task.teacher is not None, "the model is its own teacher by default"
    return {
        "step": [step_to_data(step) for step in recipe.steps],
        "budget": records.to_data(budget),
        "augment": records.to_data(task.augment) if task.augment is not None else "none",
        "fingerprint": {
            "model": fingerprint(model),
            "teacher": fingerprint(task.teacher),
            "judged_by": f"{public_name(task.loss)}, {task.metric.name}",
            "data": task.fingerprint(),
        },
    }


def _outcome(
    model: nn.Module, task: Task, steps: Sequence[Step], run: Run, *, budget: Budget, judge: Literal["validation", "test"]
) -> Outcome:
    start = copied(model).eval()
    end, _, trail = walk(_within(budget, steps, start, task, run), Reached.given(start), task, run, dense=start)
    profile = trail[-1].profile
    scores = _scores(end, task.test if judge == "test" else task.validation, task, run.folder / f"{judge}.safetensors", run)
    return Outcome(
        run.seed,
        task.metric.value(scores),
        scores,
        sum(entry.seconds for entry in trail),
        profile.nonzero_parameters,
        profile.size_bytes.packed or 0,
        profile.macs,
        run.decide("milliseconds", lambda: _milliseconds(end, task)) if budget.milliseconds is not None else None,
    )


def _scores(end: Reached, data: Samples, task: Task, path: Path, run: Run) -> Scores:
    """The scores of a model for the samples of a split, from a file of the run, or computed and kept there.

    A file that is damaged, or that is of another model or other data, is made again.
    """
    of = {"of": f"{end.digest} {data.digest()}"}
    try:
        tensors, kept = files.read_tensors(path)
        if kept.get("of", of["of"]) == of["of"]:
            return _as_scores(tensors, task)
        run.event("warning", text=f"{path} has scores of another model or of other data; they are computed again")
    except UserError as error:
        if path.is_file():
            run.event("warning", text=f"{error.message}; the scores are computed again")
    tensors = _as_tensors(evaluate(end.model, data, task))
    files.write_tensors(path, tensors, of)
    return _as_scores(tensors, task)


def _as_tensors(scores: Scores) -> dict[str, torch.Tensor]:
    parts = {"scores": scores} if scores.dtype.names is None else {name: scores[name] for name in scores.dtype.names}
    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}


def _as_scores(tensors: Mapping[str, torch.Tensor], task: Task) -> Scores:
    if tensors.keys() == {"outputs", "targets"}:  # earlier versions kept these for every metric of a set
        return task.metric.of_samples(tensors["outputs"], tensors["targets"], task.outputs)
    arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
    return arrays["scores"].astype(float) if "scores" in arrays else records_of(arrays)


def _milliseconds(end: Reached, task: Task) -> float:
    """Median latency of a call for one sample in the default runtime, with the number of threads of torch."""
    session = default_runtime().load(end.exported(task).onnx, torch.get_num_threads())
    return time_alone(session, task.example().inputs).median


def _within(budget: Budget, steps: Sequence[Step], model: nn.Module, task: Task, run: Run) -> list[Step]:
    """The steps, with the lengths of their trainings adjusted to the budget."""
    if budget.steps is None and budget.seconds is None:
        return list(steps)
    path = run.folder.parent / "factor.json"  # shared by all seeds of the candidate
    asked = {key: value for key, value in run.journal.document.items() if key != "seed"}
    if not path.is_file():
        files.write_json(path, {"asked": asked, "factor": _factor(budget, steps, model, task, run)})
    kept = files.read_json(path)
    if kept["asked"] != json.loads(json.dumps(asked)):
        message = f"{run.folder.parent} contains another comparison"
        raise UserError("E150", message, "repeat it with the same arguments, or choose another `out`")
    return [_lengthened(step, kept["factor"], task) for step in steps]


def _factor(budget: Budget, steps: Sequence[Step], model: nn.Module, task: Task, run: Run) -> float:
    """The factor by which the lengths of all trainings of a recipe are multiplied to use the budget."""
    trainings = [
        (training, getattr(step, "trainings", 1)) for step in steps if (training := getattr(step, "train", None)) is not None
    ]
    if not trainings:
        raise UserError("E111", "a budget of steps or seconds needs recipes with trainings", "give `train`, or another budget")
    if budget.steps is not None:
        return budget.steps / sum(times * _length(training, task) for training, times in trainings)
    seconds = 0.0
    for position, step in enumerate(steps, start=1):
        place = run.within(folder_of(position, step))
        preview, under = step.preview(model, task, place), with_replaced_model_as_teacher([step], model, task)
        model = preview.model
        training = training_of(preview, under)
        if training is not None:
            seconds += _length(training, task) * step_seconds(
                preview.trained, under, training, place.within("timed"), budget=budget.seconds or 0.0
            )
    return (budget.seconds or 0.0) / seconds


def step_seconds(model: nn.Module, task: Task, training: Training, run: Run, *, budget: float) -> float:
    """Seconds per optimizer step, including its share of the validation after each epoch; the teacher's outputs are cached.

    The steps are timed with a tiny learning rate: without a warmup, the training might diverge and end the comparison.
    """
    few = task.replace(validation=task.validation.drawn(2, 0))

    def seconds(count: int) -> float:
        (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        settings = dataclasses.replace(training, epochs=None, steps=count, lr=_STILL, keep="last", patience=None, until=None)
        begin = time.perf_counter()
        fit(copied(model), few, settings, run)
        return time.perf_counter() - begin

    seconds(_WARM_STEPS)  # also chooses the execution and caches the outputs of the teacher
    bare = min(seconds(_WARM_STEPS), seconds(_WARM_STEPS))
    timed = _TIMED_STEPS
    step = max(seconds(_WARM_STEPS + timed) - bare, 0.0) / timed
    if step * timed < _TIMED_SHARE * budget:
        timed = min(_MOST_TIMED, int(_TIMED_SHARE * budget / max(step, 1e-6)))
        step = max(seconds(_WARM_STEPS + timed) - bare, 0.0) / timed
    begin = time.perf_counter()
    evaluate(model, task.validation, task)
    judging = time.perf_counter() - begin
    return step + judging / task.train.steps(training.batch_size)


def _length(training: Training, task: Task) -> int:
    """The length of a training in optimizer steps."""
    return training.steps or (training.epochs or 0) * task.train.steps(training.batch_size)


def _lengthened(step: Step, factor: float, task: Task) -> Step:
    training: Training | None = getattr(step, "train", None)
    if training is None:
        return step
    longer = dataclasses.replace(training, epochs=None, steps=max(1, round(factor * _length(training, task))))
    return dataclasses.replace(step, train=longer)  # type: ignore[type-var]  # steps are records
