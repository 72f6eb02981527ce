"""`mirabelle check`: what a recipe will do and cost, before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import data_dir_option, json_option, set_option

if TYPE_CHECKING:
    from mirabelle.job.forecast import Forecast


@click.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run to be; by default runs/<name of the recipe>.")
@data_dir_option
@set_option
@json_option
def command(*, recipe: Path, out: Path | None, data_dir: Path | None, settings: tuple[str, ...], as_json: bool) -> int:
    """Tell what RECIPE will do, and what it will take: seconds, memory, disk; and what will not pay.

    One batch goes through the model, every step is previewed, a few optimizer steps are timed; nothing is trained.

    \b
    Example:
      mirabelle check recipe.toml
    """
    from mirabelle.recipe.file import read_recipe

    file = read_recipe(recipe, settings, data_folder=data_dir)  # before anything heavy is imported: a mistake is told at once

    import psutil

    from mirabelle.job.dry_run import JobPlan, with_model_outputs_as_targets
    from mirabelle.job.forecast import folder_space, forecast

    plan = JobPlan(
        model=file.build_model(),
        task=file.build_task(data_dir),
        recipe=file.recipe,
        goal=file.goal,
        baseline=file.baseline.train if file.baseline else None,
        teacher=file.build_teacher(),
        teacher_train=file.teacher.train if file.teacher else None,
    )
    space = folder_space((out or Path("runs") / recipe.stem).absolute())
    with file.shown_at():
        plan = dataclasses.replace(plan, task=with_model_outputs_as_targets(plan.task, plan.teacher or plan.model))
        found = forecast(plan, free_memory=int(psutil.virtual_memory().available), free_disk=space)
    if as_json:
        click.echo(json.dumps(found.to_data(), indent=2))
    else:
        _print(found)
    return 0


def _print(found: Forecast) -> None:
    from mirabelle.cli.display import duration, print_table
    from mirabelle.report.table import costs

    samples = ", ".join(f"{count:,} {split}" for split, count in found.samples.items())
    click.echo(f"one batch: {found.inputs} in, {found.outputs} out; samples: {samples}\n")
    for step in found.steps:
        training = f"{step.optimizer_steps:,} optimizer steps, " if step.optimizer_steps else ""
        click.echo(f"{step.name}: {training}about {duration(step.seconds)}")
        for words in step.description:
            click.echo(f"  {words}")
    click.echo("")
    print_table(("", "before", "after", "less by"), costs(found.start, found.end, found.latency))
    click.echo("(after: the model as previewed; its weights are not trained yet, so bytes and milliseconds are estimates)\n")
    click.echo(
        f"time about {duration(found.seconds)}, memory about {found.memory_bytes / 1e9:.2f} GB, "
        f"disk about {found.disk_bytes / 1e6:.1f} MB"
    )
    for remark in found.remarks:
        click.echo(f"- {remark}")
