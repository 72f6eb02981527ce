"""Compress automatically what a file names: train the model and the teacher first where the file asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mirabelle import records
from mirabelle.job.compare_file import trained_start
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.job import Source
from mirabelle.job.processes_of_job import identity_of, led_by_first
from mirabelle.job.where import as_begun
from mirabelle.planning.found import Found
from mirabelle.planning.search import auto
from mirabelle.planning.trials import TrialSettings
from mirabelle.recipe.goal_file import GoalFile
from mirabelle.run.journal import Callback
from mirabelle.run.process_group import joined
from mirabelle.task.goal import Goal


def auto_file(
    file: GoalFile,
    data_folder: Path | None,
    out: Path,
    *,
    goal: Goal | None = None,
    minutes: float = 30.0,
    dry_run: bool = False,
    trials: TrialSettings | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Find a recipe for the goal of a file; what is finished in `out` is not repeated.

    Args:
        file: names model, data, teacher and goal.
        data_folder: contains built-in data sets.
        out: folder of the search; trainings before it are in `start`.
        goal: instead of the goal of the file.
        minutes: as in `auto`.
        dry_run: as in `auto`.
        trials: as in `auto`.
        callbacks: as in `mirabelle.compress`.
        tell: is given a line on each part of the work.

    Raises:
        UserError: those of `auto`, and of the trainings.
    """
    joined()  # before the data are read, which may take long in one process
    with as_begun(out / "start", {}, file.run.device):
        model, task, teacher = file.build_model(), file.build_task(data_folder), file.build_teacher()

        def work() -> Found:
            labelled = with_model_outputs_as_targets(task, teacher or model)
            try_one_batch(model, labelled)
            trained, guide = trained_start(file, model, teacher, labelled, out, callbacks=callbacks)
            with file.shown_at():
                return auto(
                    trained, task, goal or file.goal, out, minutes=minutes, seed=file.seed, teacher=guide, dry_run=dry_run,
                    trials=trials, source=Source(tables=_tables(file, out)), callbacks=callbacks, tell=tell,
                    device=file.run.device,
                )  # fmt: skip

        asked = records.to_data(goal or file.goal)
        return led_by_first(task, identity_of(model, task, source=file.source(), seed=file.seed, goal=asked), work)


def _tables(file: GoalFile, out: Path) -> dict[str, object]:
    """The tables that name model, data and teacher; what was trained here is in the folder `start`."""
    tables = file.source()
    if file.baseline is not None and file.baseline.train is not None:
        tables["model"] = {**tables["model"], "weights": str((out / "start/steps/0-baseline/model.safetensors").resolve())}
        tables.pop("baseline", None)
    if file.teacher is not None and file.teacher.train is not None:
        tables["teacher"] = {**tables["teacher"], "weights": str((out / "start/steps/0-teacher/model.safetensors").resolve())}
    return tables
