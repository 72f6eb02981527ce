"""`mirabelle runs`: lists the runs in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirabelle.cli.options import json_option

if TYPE_CHECKING:
    from mirabelle.report.runs import RunSummary


@click.command("runs", short_help="List the runs in a folder, with their goals, states and numbers.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@json_option
def command(folder: Path, *, as_json: bool) -> int:
    """List the runs in FOLDER and in the folders below it: goal, state, metric, bytes and milliseconds.

    Unfinished runs are listed with the step that they are at; the same `mirabelle run` command continues a stopped one.

    \b
    Example:
      mirabelle runs
    """
    from mirabelle.report.runs import runs_in

    found = runs_in(folder)
    if as_json:
        click.echo(json.dumps([run.to_data() for run in found], indent=2))
        return 0
    from mirabelle.cli.display import print_table

    titles = ("run", "state", "goal", "metric", "packed, bytes", "milliseconds", "last change")
    print_table(titles, [_line(run) for run in found], numbers_from=len(titles))
    return 0


def _line(run: RunSummary) -> tuple[str, ...]:
    state = f"{run.state}: {run.detail}" if run.detail else run.state
    metric = f"{run.metric} {_change(run.values, '.4g')}" if run.metric else ""
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
    packed, milliseconds = _change(run.packed, ",", ratio=True), _change(run.milliseconds, ".3g", ratio=True)
    return (run.folder, state, _goal(run.goal), metric, packed, milliseconds, changed)


def _goal(goal: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in goal.items())


def _change(values: tuple[float | None, float | None], form: str, *, ratio: bool = False) -> str:
    """ "before → after", or what is known of it, with how many times smaller it has become."""
    before, after = values
    if after is None:
        return ""
    if before is None:
        return f"{after:{form}}"
    times = f" ({before / after:.3g}×)" if ratio and after else ""
    return f"{before:{form}} → {after:{form}}{times}"
