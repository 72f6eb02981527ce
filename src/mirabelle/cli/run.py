"""`mirabelle run`: compresses a model as described by a recipe."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import (
    data_dir_option,
    device_option,
    goal_runtime_option,
    json_option,
    quiet_option,
    set_option,
    track_option,
    verbose,
)
from mirabelle.errors import UserError, raise_all
from mirabelle.run.launch import is_first

if TYPE_CHECKING:
    from mirabelle.task.goal import Goal, Shortfall


@click.command("run", short_help="Compress a model as described in a recipe.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Output folder of the run; by default runs/<name of the recipe>.")
@data_dir_option
@click.option("--seed", type=click.IntRange(min=0, max=(1 << 63) - 1), help="Override the seed of the recipe.")
@device_option
@set_option
@goal_runtime_option
@track_option
@json_option
@quiet_option
def command(
    *,
    recipe: Path,
    out: Path | None,
    data_dir: Path | None,
    seed: int | None,
    device: str | None,
    settings: tuple[str, ...],
    runtime: str | None,
    track: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Compress a model as described in RECIPE.

    After an interruption or a crash, run the same command again: it continues and ends with the same weights.

    \b
    Example:
      mirabelle run recipe.toml --out runs/mine --set step.1.sparsity=0.7
    """
    settings = settings if seed is None else (*settings, f"seed={seed}")
    settings = settings if device is None else (*settings, f"run.device={device}")
    settings = settings if runtime is None else (*settings, f"goal.runtime={runtime}")
    out = out or Path("runs") / recipe.stem
    return run_recipe(recipe, out, data_dir, settings, track=track, as_json=as_json, quiet=quiet)


def run_recipe(
    recipe: Path,
    out: Path,
    data_dir: Path | None,
    settings: tuple[str, ...] = (),
    *,
    track: tuple[str, ...] = (),
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a recipe file and print its report; returns the exit status.

    Raises:
        UserError: E301 if the goal is not met, besides all errors of reading and running the recipe.
    """
    from mirabelle.recipe.file import read_recipe

    file = read_recipe(recipe, settings, data_folder=data_dir)  # before heavy imports, so that mistakes are reported at once

    from mirabelle.run.tracking import require

    for name in track:
        require(name)

    from mirabelle.cli.display import Watcher, print_report, warn
    from mirabelle.job.job import Source, compress
    from mirabelle.report import read_report
    from mirabelle.run.process_group import joined
    from mirabelle.run.tracking import tracker_for

    joined()  # before the data are read, which may take long in one process
    with ExitStack() as stack, file.shown_at():
        watchers = [stack.enter_context(closing(Watcher(quiet=quiet, verbose=verbose())))]
        trackers = [stack.enter_context(closing(tracker_for(name, out, warn))) for name in track if is_first()]
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
            callbacks=(*watchers, *trackers),
            source=Source(tables=file.source(), decisions=file.decisions, origin=file.origin),
            device=file.run.device,
        )
    if not is_first():
        return 0
    if as_json:
        click.echo((result.folder / "report.json").read_text("utf-8"), nl=False)
    else:
        print_report(read_report(result.folder), result.folder / "report.html", shortfalls=False)  # raised as errors below
    with file.shown_at():
        undone = any(one.undone or one.returned for one in read_report(result.folder).speeds)
        raise_all([_missed(shortfall, file.goal, result.folder, undone=undone) for shortfall in result.shortfalls])
    return 0


def _missed(shortfall: Shortfall, goal: Goal, folder: Path, *, undone: bool) -> UserError:
    """The error for one unmet part of the goal, with the setting to relax; `undone`: steps were undone to keep the speed."""
    key = shortfall.name
    if key == "metric" and goal.metric is None:
        key = "max_drop"
    remedy = f"{folder} holds the closest model; relax goal.{key}, train longer or compress less"
    if key not in ("metric", "max_drop"):
        remedy = f"{folder} holds the closest model; relax goal.{key} to {shortfall.value:.6g}, or compress more"
    if undone and key in ("size", "onnx_size"):
        remedy += ', or set goal.latency = "any" to keep what makes the file smaller and the model slower, '
        remedy += "or use quantize.Weights, which costs no time"
    return UserError("E301", f"goal not met: {shortfall}", remedy, path=("goal", key))
