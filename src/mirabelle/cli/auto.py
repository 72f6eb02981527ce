"""`mirabelle auto`: finds the recipe for a goal, and carries it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mirabelle.cli.options import data_dir_option, device_option, json_option, quiet_option, set_option, verbose
from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.run.launch import is_first

if TYPE_CHECKING:
    from mirabelle.planning.found import Found
    from mirabelle.planning.trials import TrialSettings
    from mirabelle.recipe.goal_file import GoalFile
    from mirabelle.task.goal import Goal

_GOAL = ("max_drop", "metric", "size", "onnx_size", "latency", "macs", "parameters")
_MINUTES = 30.0


@click.command("auto", short_help="Find the recipe for a goal, and compress the model with it.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", help='The trained model: "./file.py:function", an .onnx, .keras or .h5 file, or a folder of transformers.'
)
@click.option("--data", help='A built-in data set, a folder, a .csv or .npz file, texts, or "./file.py:function".')
@click.option("--weights", help="Trained weights of the model: a .safetensors file.")
@click.option("--max-drop", metavar="DROP", help='Most that the metric may drop: "0.5pt" or "1%"; by default 1 %.')
@click.option("--metric", metavar="VALUE", help='Least value of the metric, such as "92%".')
@click.option("--size", metavar="BYTES", help='Most bytes of the packed file: "40 kB", or "10%" of the weights in float32.')
@click.option("--onnx-size", metavar="BYTES", help="Most bytes of the ONNX file.")
@click.option("--latency", metavar="TIME", help='Longest call in ONNX Runtime: "0.8 ms", or "50%" of that of the model.')
@click.option("--macs", metavar="COUNT", help='Most multiply-accumulates for one sample: "2.3M", or "50%".')
@click.option("--parameters", metavar="COUNT", help='Most parameters: "20k", or "8%".')
@click.option("--time", "minutes", metavar="TIME", help='Time for all attempts: "30 min" or "2 h"; by default 30 min.')
@click.option("--trials", type=click.IntRange(min=1), help="Search around the plan with so many trials of Optuna.")
@click.option("--storage", metavar="URL", help='Database of the trials, such as "postgresql+psycopg://user@host/name".')
@click.option("--study", default="mirabelle", show_default=True, help="Name of the trials' study in the database.")
@click.option(
    "--front",
    type=click.Choice(["size", "latency", "macs", "parameters"]),
    help="Let the trials find the Pareto front of the metric and this cost (NSGA-II).",
)
@click.option("--dry-run", is_flag=True, help="Stop after the plan: nothing is trained.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output folder; by default runs/auto, or runs/auto-<name of FILE>."
)
@click.option("--seed", type=click.IntRange(min=0, max=(1 << 63) - 1), help="Seed of all random numbers.")
@data_dir_option
@device_option
@set_option
@json_option
@quiet_option
def command(
    *, file: Path | None, data_dir: Path | None, minutes: str | None, dry_run: bool, out: Path | None,
    device: str | None, settings: tuple[str, ...], as_json: bool, quiet: bool, **given: Any,
) -> int:  # fmt: skip
    """Find the recipe that meets a goal, and compress the model with it.

    The model is measured, a plan is made and shown, and then run; its recipe can be read, edited and run again. FILE is a
    recipe whose model, data and goal are used instead of the options; its steps are not.

    \b
    Example:
      mirabelle auto --model ./net.py:net --weights net.safetensors --data ./photos --max-drop 2pt --size 20% --latency any
    """
    from mirabelle.recipe.goal_file import read_goal_file

    budget = _minutes(minutes)
    goal = _goal(given)
    trials = _trials(given)
    seed = given.pop("seed")
    settings = settings if seed is None else (*settings, f"seed={seed}")
    settings = settings if device is None else (*settings, f"run.device={device}")
    folder = out or Path("runs") / (f"auto-{file.stem}" if file is not None else "auto")
    with TemporaryDirectory() as aside:  # in which the processes behind the first write their own file
        place = folder if is_first() else Path(aside)
        read = read_goal_file(_written(given, place) if file is None else _alone(file, given), settings, data_folder=data_dir)

    from mirabelle.cli.display import Watcher
    from mirabelle.planning.auto_file import auto_file

    with closing(Watcher(quiet=quiet, verbose=verbose())) as watcher:

        def tell(line: str) -> None:
            if not quiet:
                click.echo(line, err=True)

        found = auto_file(
            read, data_dir, folder, goal=goal, minutes=budget, dry_run=dry_run, trials=trials, callbacks=(watcher,), tell=tell
        )  # fmt: skip
    if not is_first():
        return 0
    click.echo(json.dumps(_as_data(found), indent=2) if as_json else _in_words(found), nl=True)
    if not dry_run:
        _check_met(found, read, given_goal=goal is not None)
    return 0


def _trials(given: Mapping[str, Any]) -> TrialSettings | None:
    """The settings of a study; None if no trials are asked for.

    Raises:
        UserError: E111 for a database or a front without trials.
    """
    from mirabelle.planning.trials import TrialSettings

    if given["trials"] is None:
        for name in ("storage", "front"):
            if given[name] is not None:
                raise UserError("E111", f"--{name} is for trials; got no --trials", f"give --trials 40, or leave out --{name}")
        return None
    return TrialSettings(given["trials"], given["storage"], given["study"], front=given["front"])


def _minutes(text: str | None) -> float:
    """A time in minutes.

    Raises:
        UserError: E113 if it cannot be read.
    """
    if text is None:
        return _MINUTES
    number, unit = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ").strip(), text.strip().lstrip("0123456789. ").strip()
    factors = {"s": 1 / 60, "min": 1.0, "m": 1.0, "h": 60.0}
    try:
        value = float(number) * factors[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError("E113", f"--time cannot be read; got {text!r}", 'write, for example, "30 min" or "2 h"')
    return value


def _goal(given: Mapping[str, Any]) -> Goal | None:
    """The goal that the options give; None if they give none."""
    from mirabelle import records
    from mirabelle.task.goal import Goal

    asked = {name: value for name in _GOAL if (value := given[name]) is not None}
    return records.build(Goal, asked, "goal") if asked else None


def _alone(file: Path, given: Mapping[str, Any]) -> Path:
    """A file that names what options name, too, is refused."""
    both = [f"--{name}" for name in ("model", "data", "weights") if given[name] is not None]
    if both:
        raise UserError(
            "E111", f"{file} names model and data; got {', '.join(both)} besides", "give either FILE or the options"
        )
    return file


def _written(given: Mapping[str, Any], folder: Path) -> Path:
    """A file in the folder of the search that says what the options say, with paths from anywhere.

    Raises:
        UserError: E104 if model or data are missing; E120 and others if there is no such model, or no such data.
    """
    import tomli_w

    from mirabelle.recipe.named_sources import absolute
    from mirabelle.run import files
    from mirabelle.sources.checks import check_data, check_model, check_weights

    missing = [f"--{name}" for name in ("model", "data") if given[name] is None]
    if missing:
        raise UserError("E104", f"missing {' and '.join(missing)}", "give --model and --data, or a recipe file")
    mistakes: list[UserError] = []
    with gathered(mistakes):
        check_model(given["model"], Path())
    with gathered(mistakes):
        check_data(given["data"], Path())
    if given["weights"] is not None:
        with gathered(mistakes):
            check_weights(Path(given["weights"]))
    raise_all(mistakes)
    model = {"from": given["model"], **({} if given["weights"] is None else {"weights": given["weights"]})}
    document = absolute({"schema": 1, "model": model, "task": {"data": given["data"]}}, Path.cwd(), key="")
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "auto.toml", tomli_w.dumps(document).encode())
    return folder / "auto.toml"


def _as_data(found: Found) -> dict[str, Any]:
    import dataclasses

    plan = found.plan
    return {
        "plan": {"steps": plan.describe(), "expected": {"metric": plan.metric, **plan.costs}},
        "attempts": [dataclasses.asdict(one) for one in found.attempts],
        "folder": str(found.folder),
        "best": None if found.best is None else str(found.best.folder),
        "met": found.met,
    }


def _in_words(found: Found) -> str:
    lines = ["Plan:", *(f"  {line}" for line in found.plan.describe())]
    if found.best is None:
        return "\n".join([*lines, "Nothing was run."])
    best = found.best
    lines += [f"Best: {best.folder} (report.html there); its files are also in {found.folder}"]
    start, end = best.start, best.profile
    assert start.metric is not None, "a run measures its metric"
    assert end.metric is not None, "a run measures its metric"
    lines.append(f"{end.metric.name} on the test data: {start.metric.value:.4f} → {end.metric.value:.4f}")
    lines.append(f"packed file: {end.size_bytes.packed:,} bytes; weights of the given model: {start.size_bytes.torch:,}")
    if start.latency_ms is not None and end.latency_ms is not None:
        lines.append(f"milliseconds: {start.latency_ms.median:.4g} → {end.latency_ms.median:.4g}")
    return "\n".join(lines)


def _advice(name: str) -> str:
    """What helps if a part of the goal is missed."""
    if name == "metric":
        return "repeat the command with more --time, or relax max_drop"
    return f"relax {name}" + (", or allow a slower model: --latency any" if name in ("size", "onnx_size") else "")


def _check_met(found: Found, read: GoalFile, *, given_goal: bool) -> None:
    """Raise E301 for each part of the goal that the best result misses."""
    if found.best is None:
        remedy = f"give more --time, or relax the goal; {found.folder} has the plan"
        raise UserError("E301", "goal not met: no attempt could be carried out", remedy)
    missed = [
        UserError(
            "E301",
            f"goal not met: {shortfall}",
            f"{found.folder} holds the closest model; {_advice(shortfall.name)}",
            path=() if given_goal else ("goal", "max_drop" if shortfall.name == "metric" else shortfall.name),
        )
        for shortfall in found.best.shortfalls
    ]
    with read.shown_at():
        raise_all(missed)
