"""`mirabelle run`: do what a recipe says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

_GOAL_NOT_MET = 4


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; by default runs/<name of the recipe>.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie; by default $MIRABELLE_DATA.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def command(recipe: Path, out: Path | None, data_dir: Path | None, seed: int | None, *, as_json: bool, quiet: bool) -> int:
    """Compress a model as RECIPE says.

    Interrupt it, and the same command goes on to the same weights.
    """
    return run_recipe(recipe, out or Path("runs") / recipe.stem, data_dir, seed, as_json=as_json, quiet=quiet)


def run_recipe(recipe: Path, out: Path, data_dir: Path | None, seed: int | None, *, as_json: bool, quiet: bool) -> int:
    """Run a recipe file and print what came of it; returns the exit status."""
    from mirabelle.cli.display import Watcher, print_result
    from mirabelle.job import compress
    from mirabelle.recipe_file import read_recipe
    from mirabelle.run import silent

    file = read_recipe(recipe)
    file = file if seed is None else dataclasses.replace(file, seed=seed)
    watcher = Watcher()
    try:
        result = compress(
            file.build_model(),
            file.build_task(data_dir),
            file.recipe,
            file.goal,
            out,
            seed=file.seed,
            baseline=file.baseline.train if file.baseline else None,
            teacher=file.build_teacher(),
            teacher_train=file.teacher.train if file.teacher else None,
            source=file.source(),
            decisions=file.decisions,
            listener=silent if quiet else watcher,
        )
    finally:
        watcher.close()
    report = (result.folder / "report.json").read_text("utf-8")
    if as_json:
        click.echo(report, nl=False)
    else:
        print_result(result, json.loads(report)["verdict"])
    return 0 if result.met else _GOAL_NOT_MET
