"""`mirabelle check`: shows what a recipe will do and cost, without training anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import data_dir_option, goal_runtime_option, json_option, set_option

if TYPE_CHECKING:
    from mirabelle.job.forecast import Forecast


@click.command("check", short_help="Show what a recipe will do and cost.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output folder of the planned run; by default runs/<name of the recipe>."
)
@data_dir_option
@set_option
@goal_runtime_option
@json_option
def command(
    *, recipe: Path, out: Path | None, data_dir: Path | None, settings: tuple[str, ...], runtime: str | None, as_json: bool
) -> int:
    """Show what RECIPE will do, how much time, memory and disk it needs, and what will bring no benefit.

    Runs one batch through the model, previews every step and times a few optimizer steps. Nothing is trained.

    \b
    Example:
      mirabelle check recipe.toml
    """
    from mirabelle.recipe.file import read_recipe

    settings = settings if runtime is None else (*settings, f"goal.runtime={runtime}")
    file = read_recipe(recipe, settings, data_folder=data_dir)  # before heavy imports, so that mistakes are reported at once

    import psutil

    from mirabelle.job.dry_run import JobPlan, with_model_outputs_as_targets
    from mirabelle.job.forecast import folder_space, forecast
    from mirabelle.sources.datasets.decoded import only_looked_at

    with only_looked_at():
        task = file.build_task(data_dir)
    plan = JobPlan(
        model=file.build_model(),
        task=task,
        recipe=file.recipe,
        goal=file.goal,
        baseline=file.baseline.train if file.baseline else None,
        teacher=file.build_teacher(),
        teacher_train=file.teacher.train if file.teacher else None,
    )
    space = folder_space((out or Path("runs") / recipe.stem).absolute())
    with file.shown_at():
        plan = dataclasses.replace(plan, task=with_model_outputs_as_targets(plan.task, plan.teacher or plan.model))
        result = forecast(plan, free_memory=int(psutil.virtual_memory().available), free_disk=space)
    if as_json:
        click.echo(json.dumps(result.to_data(), indent=2))
    else:
        _print(result)
    return 0


def _print(forecast: Forecast) -> None:
    from mirabelle.cli.display import duration, print_table
    from mirabelle.report.table import costs

    samples = ", ".join(f"{count:,} {split}" for split, count in forecast.samples.items())
    click.echo(f"one batch: {forecast.inputs} in, {forecast.outputs} out; samples: {samples}")
    for splits, words in forecast.reading_in_words():
        click.echo(f"{splits}: {words}")
    click.echo("")
    for step in forecast.steps:
        training = f"{step.optimizer_steps:,} optimizer steps, " if step.optimizer_steps else ""
        click.echo(f"{step.name}: {training}about {duration(step.seconds)}")
        for words in step.description:
            click.echo(f"  {words}")
    click.echo("")
    print_table(("", "before", "after", "reduction"), costs(forecast.start, forecast.end, forecast.latency))
    click.echo("(after: the previewed model; its weights are not trained yet, so bytes and milliseconds are estimates)\n")
    click.echo(
        f"time about {duration(forecast.seconds)}, memory about {forecast.memory_bytes / 1e9:.2f} GB, "
        f"disk about {forecast.disk_bytes / 1e6:.1f} MB"
    )
    for remark in forecast.remarks:
        click.echo(f"- {remark}")
