"""Carry out a comparison file: train the model and the teacher once, and compare the candidates at every budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from mirabelle import records
from mirabelle.job.budgets import Budgets, compare_at
from mirabelle.job.comparison_results import Budget
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.fitting import Limit
from mirabelle.job.job import trained
from mirabelle.job.processes_of_job import identity_of, led_by_first
from mirabelle.job.program import code_of_run
from mirabelle.job.techniques import OpenRecipe, recipe_of_techniques
from mirabelle.job.where import as_begun
from mirabelle.model.state import fingerprint
from mirabelle.recipe.comparison import KINDS, CandidateRecipe, ComparisonFile, LimitKind
from mirabelle.recipe.file import SourcesFile
from mirabelle.run.journal import Callback
from mirabelle.run.process_group import joined
from mirabelle.run.run import Run
from mirabelle.task.task import Task
from mirabelle.training.settings import Training


def compare_file(
    file: ComparisonFile,
    data_folder: Path | None,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Budgets:
    """Carry out a comparison file; what is finished in `out` is not repeated.

    Args:
        file: names model, data, budgets and candidates.
        data_folder: contains built-in data sets.
        out: a folder: `start` for the trainings before the comparison, and one folder for each budget.
        callbacks: as in `mirabelle.compress`.
        tell: is given lines about fitted amounts.

    Raises:
        UserError: those of `compare_at`, and of the trainings.
    """
    joined()  # before the data are read, which may take long in one process
    with as_begun(out / "start", {}, file.run.device):
        model, task = file.build_model(), file.build_task(data_folder)
        teacher = file.build_teacher()
        task = with_model_outputs_as_targets(task, teacher or model)

        def work() -> Budgets:
            return _compared(file, model, teacher, task, out, callbacks=callbacks, tell=tell)

        return led_by_first(task, identity_of(model, task, source=file.source(), seed=file.seed), work)


def _compared(
    file: ComparisonFile,
    model: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    out: Path,
    *,
    callbacks: Sequence[Callback],
    tell: Callable[[str], None],
) -> Budgets:
    table = file.table
    try_one_batch(model, task)
    model, teacher = trained_start(file, model, teacher, task, out, callbacks=callbacks)
    task = task.with_teacher(teacher)
    limits = [Limit.kept(kind, asked, model, task, out / "limits.json") for kind in KINDS for asked in getattr(table, kind)]
    made = {name: partial(_of_techniques, name, model, task, table.train) for name in table.techniques}
    made |= {one.name: partial(_of_recipe, one) for one in file.candidates}
    length = table.train.steps or (table.train.epochs or 0) * task.train.steps(table.train.batch_size)
    return compare_at(
        model, task, made, limits, out=out, seeds=[file.seed + k for k in range(table.seeds)], budget=Budget(steps=length),
        judge=table.judge, callbacks=callbacks, tell=tell,
    )  # fmt: skip


def _of_techniques(name: str, model: nn.Module, task: Task, training: Training, kind: LimitKind) -> OpenRecipe:
    return recipe_of_techniques(name, model, kind, training, guides=task.outputs.classifies)


def _of_recipe(candidate: CandidateRecipe, kind: LimitKind) -> OpenRecipe:
    del kind
    return OpenRecipe(candidate.name, candidate.steps, fixed=candidate.vary is None)


def trained_start(
    file: SourcesFile, model: nn.Module, teacher: nn.Module | None, task: Task, out: Path, *, callbacks: Sequence[Callback]
) -> tuple[nn.Module, nn.Module | None]:
    """The model and the teacher, trained first where the file asks for it."""
    baseline = None if file.baseline is None else file.baseline.train
    of_teacher = None if file.teacher is None else file.teacher.train
    if baseline is None and (teacher is None or of_teacher is None):
        return model, teacher
    trainings = [one for one in (baseline, of_teacher) if one is not None]
    document = {"seed": file.seed, **file.source(), "step": []}
    for name, training in (("baseline", baseline), ("teacher", of_teacher)):
        if training is not None:
            document[name] = {**document.get(name, {}), "train": records.to_data(training)}
    document["fingerprint"] = {
        "model": fingerprint(model),
        **({} if teacher is None else {"teacher": fingerprint(teacher)}),
        **{name: split["digest"] or "stream" for name, split in task.fingerprint().items()},
    }
    code = code_of_run(model, task, trainings, teacher)
    run = Run.opened(out / "start", document, seed=file.seed, callbacks=callbacks, code=code)
    try:
        if baseline is not None:
            model = trained("baseline", model, baseline, task, run)[0].model
        if teacher is not None and of_teacher is not None:
            teacher = trained("teacher", teacher, of_teacher, task, run)[0].model
    finally:
        run.close()
    return model, teacher
